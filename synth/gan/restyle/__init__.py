"""Appearance translation: the same content as another site, scanner or stain shows it; one network for all styles."""

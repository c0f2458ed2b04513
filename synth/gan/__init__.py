"""Mask-to-image translators: networks, discriminators and losses to build from, one recipe, and the pipeline."""

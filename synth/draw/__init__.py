"""Draws synthetic pairs: layouts -> generator -> gates -> shards. Resumable, the same for any number of processes."""

from synth.draw.controls import draw_copypaste, draw_layouts, draw_roundtrip
from synth.draw.curated import SelectSettings, curate
from synth.draw.curation import CurateSettings, Curation, class_losses, default_curation
from synth.draw.run import draw
from synth.draw.settings import CopyPasteSettings, DrawSettings
from synth.draw.shards import verify_shards
from synth.draw.supply import Supply, SupplySettings, default_supply
from synth.draw.translated import translate_images

__all__ = ["CopyPasteSettings", "CurateSettings", "Curation", "DrawSettings", "SelectSettings", "Supply",
           "SupplySettings", "class_losses", "curate", "default_curation", "default_supply", "draw", "draw_copypaste",
           "draw_layouts", "draw_roundtrip", "translate_images", "verify_shards"]

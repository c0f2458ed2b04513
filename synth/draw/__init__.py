"""Draws synthetic pairs: layouts -> generator -> gates -> shards. Resumable, the same for any number of processes."""

from synth.draw.run import CopyPasteSettings, DrawSettings, draw, draw_copypaste, verify_shards

__all__ = ["CopyPasteSettings", "DrawSettings", "draw", "draw_copypaste", "verify_shards"]

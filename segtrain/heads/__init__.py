"""Extra networks that a method trains beside the segmenter."""

from segtrain.heads.sizes import Sizes
from synth.core.config import Settings

__all__ = ["HEADS", "Sizes"]

HEADS: dict[str, type[Settings]] = {}
"""Heads by the name that method files use; called with the segmenter's `Sizes`, they return a module."""

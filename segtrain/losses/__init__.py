"""Losses as functions: of labels, and of targets."""

from segtrain.losses.consistency import CONSISTENCY
from segtrain.losses.supervised import SUPERVISED, supervised
from synth.core.config import Settings

__all__ = ["LOSSES", "SUPERVISED", "supervised"]

LOSSES: dict[str, type[Settings]] = {**CONSISTENCY}
"""Consistency losses by the name that method files use."""

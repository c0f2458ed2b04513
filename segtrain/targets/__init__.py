"""What a student is asked to predict: sources say it, operators narrow it."""

from segtrain.targets.filters import FILTERS
from segtrain.targets.sources import SOURCES as _SOURCES
from segtrain.targets.target import Target, from_labels, from_prob, soft
from synth.core.config import Settings

__all__ = ["SOURCES", "TARGETS", "Target", "from_labels", "from_prob", "soft"]

SOURCES: dict[str, type[Settings]] = {**_SOURCES}
"""Sources by the name that method files use."""

TARGETS: dict[str, type[Settings]] = {**FILTERS}
"""Operators by the name that method files use."""

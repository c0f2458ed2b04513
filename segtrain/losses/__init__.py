"""Losses as functions: of labels, and of targets."""

from segtrain.losses.boundary import BOUNDARY
from segtrain.losses.consistency import CONSISTENCY
from segtrain.losses.crc import CRC
from segtrain.losses.noisy import NOISY
from segtrain.losses.partial import PARTIAL
from segtrain.losses.parts import PARTS
from segtrain.losses.supervised import SUPERVISED as _SUPERVISED
from segtrain.losses.supervised import supervised
from synth.core.config import Settings

__all__ = ["LOSSES", "SUPERVISED", "supervised"]

LOSSES: dict[str, type[Settings]] = {**CONSISTENCY, **CRC, **PARTS, **BOUNDARY, **NOISY}
"""Consistency losses by the name that method files use."""

SUPERVISED: dict[str, type[Settings]] = {**_SUPERVISED, **PARTIAL}
"""Losses of labels, (logits, labels, weight) -> scalar, by the name that method files use."""

"""All topologies that a method may name."""

from segtrain.distillation import Distil
from segtrain.topology import TOPOLOGIES as _TOPOLOGIES
from synth.core.config import Settings

TOPOLOGIES: dict[str, type[Settings]] = {**_TOPOLOGIES, "distil": Distil}
"""Topologies by the name that method files use."""

"""Regularisers: (scene) -> scalar, terms that follow no view's target."""

from segtrain.regularisers.basic import BASIC
from synth.core.config import Settings

__all__ = ["REGULARISERS"]

REGULARISERS: dict[str, type[Settings]] = {**BASIC}
"""Regularisers by the name that method files use."""

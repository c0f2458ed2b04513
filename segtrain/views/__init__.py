"""Perturbations of a batch, (images, rngs, scene) -> (images, Warp): the only things that may move pixels."""

from segtrain.views.basic import BASIC
from segtrain.views.weak import augment_pairs, weak
from synth.core.config import Settings

__all__ = ["FEATURE_PERTURBATIONS", "PERTURBATIONS", "augment_pairs", "weak"]

PERTURBATIONS: dict[str, type[Settings]] = {**BASIC}
"""Perturbations of images by the name that method files use."""

FEATURE_PERTURBATIONS: dict[str, type[Settings]] = {}
"""Perturbations of an encoder's features, (features, rngs) -> features, by the name that method files use."""

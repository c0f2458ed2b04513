"""Perturbations of a batch, (images, rngs, scene) -> (images, Warp): the only things that may move pixels."""

from segtrain.views.bands import BANDS
from segtrain.views.basic import BASIC
from segtrain.views.crops import CROPS
from segtrain.views.features import FEATURES
from segtrain.views.mixes import MIXES
from segtrain.views.spectral import SPECTRAL
from segtrain.views.weak import augment_pairs, weak
from synth.core.config import Settings

__all__ = ["FEATURE_PERTURBATIONS", "PERTURBATIONS", "augment_pairs", "weak"]

PERTURBATIONS: dict[str, type[Settings]] = {**BASIC, **MIXES, **BANDS, **CROPS, **SPECTRAL}
"""Perturbations of images by the name that method files use."""

FEATURE_PERTURBATIONS: dict[str, type[Settings]] = {**FEATURES}
"""Perturbations of an encoder's features, (features, rngs) -> features, by the name that method files use."""

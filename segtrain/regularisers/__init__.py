"""Regularisers: (scene) -> scalar, terms that follow no view's target."""

from segtrain.regularisers.adversarial import ADVERSARIAL
from segtrain.regularisers.agree import AGREE
from segtrain.regularisers.basic import BASIC
from segtrain.regularisers.contrast import CONTRAST
from segtrain.regularisers.corrected import CORRECTED
from segtrain.regularisers.dac import DAC
from segtrain.regularisers.denoise import DENOISE
from segtrain.regularisers.disagree import DISAGREE
from segtrain.regularisers.distil import DISTIL
from segtrain.regularisers.latents import LATENTS
from segtrain.regularisers.plausible import PLAUSIBLE
from segtrain.regularisers.projection import PROJECTION
from segtrain.regularisers.queue import QUEUE
from synth.core.config import Settings

__all__ = ["REGULARISERS"]

REGULARISERS: dict[str, type[Settings]] = {**BASIC, **AGREE, **CONTRAST, **DISAGREE, **QUEUE,
                                           **ADVERSARIAL, **CORRECTED, **DAC, **DENOISE, **DISTIL, **LATENTS,
                                           **PLAUSIBLE, **PROJECTION}
"""Regularisers by the name that method files use."""

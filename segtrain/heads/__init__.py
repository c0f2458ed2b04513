"""Extra networks that a method trains beside the segmenter."""

from segtrain.heads.dae import MaskDae
from segtrain.heads.discriminator import MaskDiscriminator
from segtrain.heads.posterior import Posterior
from segtrain.heads.projector import PROJECTORS
from segtrain.heads.sizes import Sizes
from segtrain.heads.transition import TransitionHead
from synth.core.config import Settings

__all__ = ["HEADS", "Sizes"]

HEADS: dict[str, type[Settings]] = {**PROJECTORS, "mask_dae": MaskDae, "mask_discriminator": MaskDiscriminator,
                                    "posterior": Posterior, "transition": TransitionHead}
"""Heads by the name that method files use; called with the segmenter's `Sizes`, they return a module."""

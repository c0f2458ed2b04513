"""Perturbations that change amplitudes alone: nothing moves, so the target stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from segtrain.transforms.spectral import (
    AmplitudeMixSettings,
    AsFarSettings,
    FdaSettings,
    FrequencySettings,
    ReweightSettings,
)
from segtrain.transforms.warps import Rngs, Stay, Warp
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


class Frequency(FrequencySettings):
    """Slot member `frequency`: images drawn towards the frequency prior of the run (FPGM)."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return self.of(images, rngs, scene.beside()), Stay()


class AsFar(AsFarSettings):
    """Slot member `as_far`: the control of `frequency`, images blurred, sharpened or tilted to an equal PSNR."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return self.of(images, rngs, scene.beside()), Stay()


class Fda(FdaSettings):
    """Slot member `fda`: the low amplitudes of another image of the step (Yang & Soatto 2020)."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return self.of(images, rngs, scene.beside()), Stay()


class AmplitudeMix(AmplitudeMixSettings):
    """Slot member `amplitude_mix`: a share of another image's amplitudes at all frequencies (Xu et al. 2021)."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return self.of(images, rngs, scene.beside()), Stay()


class Reweight(ReweightSettings):
    """Slot member `reweight`: octaves re-weighted at random."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return self.of(images, rngs, scene.beside()), Stay()


class OneOverF(ReweightSettings):
    """Slot member `one_over_f`: the same with one random exponent a, amplitudes times f^a."""

    shape: Literal["random", "tilt", "blur", "sharpen"] = "tilt"

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return self.of(images, rngs, scene.beside()), Stay()


SPECTRAL: dict[str, type[Settings]] = {
    "frequency": Frequency, "as_far": AsFar, "fda": Fda, "amplitude_mix": AmplitudeMix, "reweight": Reweight,
    "one_over_f": OneOverF}
"""Perturbations of this module by the name that method files use."""

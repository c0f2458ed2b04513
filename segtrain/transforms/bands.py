"""An image as the sum of a low and a high frequency band."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from synth.core.config import Settings
from synth.spectral.bands import low_pass


class Band(Settings):
    """Which band of an image is looked at: what a Gaussian keeps, or the rest; x = x_low + x_high.

    Attributes:
        sigma: of the Gaussian, share of the shorter side.
    """

    keep: Literal["low", "high"] = "low"
    sigma: float = Field(1 / 32, ge=0, le=0.5)

    def of(self, images: torch.Tensor) -> torch.Tensor:
        """Returns that band (B, C, H, W) of unit images; the low one stays in [-1, 1], the high one in [-2, 2]."""
        low = low_pass(images, sigma_px=self.sigma * min(images.shape[-2:]))
        return low if self.keep == "low" else images - low

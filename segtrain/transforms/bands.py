"""An image as the sum of a low and a high frequency band."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from synth.core.config import Settings


def low_pass(images: torch.Tensor, *, sigma_px: float) -> torch.Tensor:
    """Returns unit images (B, C, H, W) smoothed by a Gaussian, mirrored at the borders; sigma 0 changes nothing."""
    if not sigma_px:
        return images
    reach = min(math.ceil(3 * sigma_px), min(images.shape[-2:]) - 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (steps / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).to(images).expand(images.shape[1], 1, 1, -1)
    for turned, pad in ((kernel, (reach, reach, 0, 0)), (kernel.mT, (0, 0, reach, reach))):
        images = F.conv2d(F.pad(images, pad, mode="reflect"), turned, groups=images.shape[1])
    return images


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

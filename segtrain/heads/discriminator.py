"""A discriminator of label masks, which tells real ones from predicted ones patch by patch."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from segtrain.heads.sizes import Sizes
from synth.core.config import Settings


class Discriminator(nn.Module):
    """Masks (B, K, H, W), onehot or probabilities -> scores (B, 1, h, w), 1 = real, 0 = predicted."""

    def __init__(self, n_classes: int, width: int, n_levels: int) -> None:
        super().__init__()
        widths = [n_classes, *(width * 2**i for i in range(n_levels))]
        layers: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            # Bounded slopes instead of a gradient penalty, which would want a second derivative in every step.
            layers += [spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        """Returns scores (B, 1, h, w) of masks (B, K, H, W)."""
        return self.layers(masks)


class MaskDiscriminator(Settings):
    """Slot member `mask_discriminator`: strided convolutions of bounded slope."""

    width: int = Field(16, ge=1)
    levels: int = Field(3, ge=1, le=6)

    def __call__(self, sizes: Sizes) -> nn.Module:
        """Returns an untrained discriminator."""
        return Discriminator(sizes.n_classes, self.width, self.levels)

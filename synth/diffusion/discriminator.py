"""The patch discriminator of the autoencoder: network, and the adaptive weight of its term."""

from __future__ import annotations

import torch
from torch import nn

from synth.core.rng import derive_seed

MAX_WEIGHT = 1e4
"""Bound of the adaptive weight, as in the released code of Esser et al. 2021."""


class PatchDiscriminator(nn.Module):
    """Three-layer PatchGAN (Isola et al. 2017): one logit for each patch of 34 x 34 px.

    Group norm, not batch norm: it is the same for a batch of four as for one of forty, and on any number of processes.
    """

    def __init__(self, channels: int, *, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, padding=1), nn.GroupNorm(8, 4 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits (B, 1, h, w) of unit images (B, C, H, W) of at least 16 px a side: high = real."""
        return self.layers(images)


def build_discriminator(*, channels: int, seed: int) -> PatchDiscriminator:
    """Returns an untrained discriminator; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "discriminator"))
        return PatchDiscriminator(channels)


def adaptive_weight(reconstruction: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
    """Returns the scalar by which the adversarial gradient is multiplied (Esser et al. 2021, eq. 7).

    Args:
        reconstruction, adversarial: gradients of the two losses in the decoder's last layer, one shape, such as
            (C_out, C_in, 3, 3).
    """
    return (reconstruction.norm() / (adversarial.norm() + 1e-6)).clamp(0, MAX_WEIGHT)

"""The posterior of a probabilistic U-Net: which latent numbers would have given this mask of this image."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from segtrain.heads.sizes import Sizes
from segtrain.models.probabilistic import gaussian
from segtrain.models.tiny import TinyEncoder
from synth.core.checks import UserError
from synth.core.config import Settings


class PosteriorNet(nn.Module):
    """Images and onehot masks -> a Gaussian of L latent numbers. It is gone when the run ends."""

    def __init__(self, n_in: int, latent: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.out = TinyEncoder(n_in, channels), nn.Linear(channels[-1], 2 * latent)

    def forward(self, images: torch.Tensor, onehot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log standard deviation, (B, L) each, for unit images (B, C, H, W) and masks (B, K, H, W)."""
        return gaussian(self.out(self.encoder(torch.cat([images, onehot], dim=1))[-1].mean(dim=(2, 3))))


class Posterior(Settings):
    """Slot member `posterior`: an encoder of its own on image and mask."""

    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1)

    def __call__(self, sizes: Sizes) -> nn.Module:
        """Returns an untrained posterior.

        Raises:
            UserError: if the network has no prior that it could belong to.
        """
        if not sizes.widths.latent:
            raise UserError("head posterior", rule="this network has no prior", repair="write topology: prob_unet, or "
                            "take model.name=prob_tiny or prob_lite")
        return PosteriorNet(sizes.channels + sizes.n_classes, sizes.widths.latent, self.channels)

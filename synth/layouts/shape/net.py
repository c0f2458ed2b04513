"""ShapeNet: one-hot label maps to a code and back to the log-probabilities of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(g for g in (1, 2, 4, 8) if width % g == 0), width)


def _conv(n_in: int, n_out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1), _norm(n_out), nn.SiLU(inplace=True))


class ShapeNet(nn.Module):
    """A small convolutional variational autoencoder of label maps (Kingma & Welling 2014), categorical at its end."""

    def __init__(self, n_classes: int, *, size: int, widths: tuple[int, ...], latents: int) -> None:
        super().__init__()
        self.n_classes, self.size, self.widths, self.latents = n_classes, size, tuple(widths), latents
        down, before, self.sides = [], n_classes, [size]
        for width in widths:
            down += [_conv(before, width, stride=2), _conv(width, width)]
            before, self.sides = width, [*self.sides, -(-self.sides[-1] // 2)]
        self.down = nn.Sequential(*down)
        bottom = before * self.sides[-1] ** 2
        self.to_code, self.from_code = nn.Linear(bottom, 2 * latents), nn.Linear(latents, bottom)
        self.up = nn.ModuleList([_conv(width, onward) for width, onward in
                                 zip(widths[::-1], (*widths[-2::-1], widths[0]), strict=True)])
        self.last = nn.Conv2d(widths[0], n_classes, 3, padding=1)

    def forward(self, onehot: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns log-probabilities (B, K, S, S) of one-hot maps (B, K, S, S), and their codes' mean and log-variance.

        Args:
            noise: normal, (B, D): which code of each map's distribution is decoded.
        """
        mean, logvar = self.encode(onehot)
        return self.decode(mean + noise * (0.5 * logvar).exp()), mean, logvar

    def encode(self, onehot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log-variance, both (B, D), of the codes of one-hot label maps (B, K, S, S)."""
        mean, logvar = self.to_code(self.down(onehot).flatten(1)).chunk(2, 1)
        return mean, logvar.clamp(-10, 5)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns log-probabilities (B, K, S, S) of the classes for codes (B, D)."""
        side = self.sides[-1]
        h = self.from_code(codes).view(len(codes), self.widths[-1], side, side)
        for block, side in zip(self.up, self.sides[-2::-1], strict=True):
            h = block(F.interpolate(h, (side, side), mode="bilinear", align_corners=False))
        return self.last(h).log_softmax(1)


def reconstruction(onehot: torch.Tensor, logprob: torch.Tensor) -> torch.Tensor:
    """Returns -log p(map | code), (B,), of one-hot maps and log-probabilities (B, K, S, S); ignored pixels are 0."""
    return -(onehot * logprob).sum((1, 2, 3))


def divergence(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Returns KL(N(mean, e^logvar) | N(0, 1)), (B,), of mean and logvar (B, D): appendix B of Kingma & Welling 2014."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)

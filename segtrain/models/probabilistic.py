"""The probabilistic U-Net: one image, several plausible masks, each from one draw of a few latent numbers.

Kohl et al. 2018 (Probabilistic U-Net), with the networks of this package: a Gaussian prior of the image says how those
numbers are spread, three 1x1 convolutions turn them and the decoder's pixels into one mask. Prior and U-Net share the
encoder, where the paper has an encoder for each. What the network says is the mean over draws that are always the same
ones, so that it predicts like any other network here.
"""

from __future__ import annotations

import torch
from torch import nn

from segtrain.models.segnet import Features, SegNet, Widths
from synth.core.rng import sample_rng

WIDEST = 4.0
"""Largest |log standard deviation|: beyond, a mask would no longer depend on it."""


def gaussian(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and log standard deviation, (B, L) each, of what a linear layer said, (B, 2L)."""
    mean, log_std = raw.float().chunk(2, dim=1)
    return mean, WIDEST * torch.tanh(log_std / WIDEST)


def fixed_noise(n: int, latent: int) -> torch.Tensor:
    """Returns the n draws (n, L) that every prediction looks at: pairs of opposite sign, their mean exactly zero."""
    half = torch.randn((n // 2, latent), generator=sample_rng(0, "plausible", latent))
    return torch.cat([half, -half, torch.zeros(n % 2, latent)])


class PriorDecoder(nn.Module):
    """A U-Net's decoder, with the prior's mean and log standard deviation behind its channels, alike at every pixel."""

    def __init__(self, decoder: nn.Module, coarse: int, latent: int) -> None:
        super().__init__()
        self.decoder, self.prior = decoder, nn.Linear(coarse, 2 * latent)

    def deep_heads(self, n_classes: int) -> list[nn.Module]:
        """Returns a fresh head for each level of the decoder but the finest, fine to coarse."""
        return self.decoder.deep_heads(n_classes)

    def levels(self, features: Features) -> Features:
        """Returns what the decoder makes at each level, fine to coarse; the finest with the prior, D + 2L channels."""
        fine, *further = self.decoder.levels(features)
        raw = self.prior(features[-1].mean(dim=(2, 3)))[..., None, None]
        return [torch.cat([fine, raw.expand(-1, -1, *fine.shape[-2:])], dim=1), *further]

    def forward(self, features: Features) -> torch.Tensor:
        """Returns the finest level with the prior, (B, D + 2L, h, w), of features (B, c, h, w)."""
        return self.levels(features)[0]


class Plausible(nn.Module):
    """From a decoder's pixels and latent numbers to masks.

    Attributes:
        noise: (n, L), the standard normal draws whose mean mask is the prediction.
    """

    def __init__(self, width: int, n_classes: int, *, latent: int, n_samples: int) -> None:
        super().__init__()
        self.latent = latent
        # The first 1x1 convolution of (pixels, numbers) is the sum of one of each: pixels go through it once.
        self.of_pixels, self.of_numbers = nn.Conv2d(width, width, 1), nn.Linear(latent, width, bias=False)
        # Enlarged smoothly: a class for each of 2x2 pixels by itself would give borders a comb where numbers move them.
        self.rest = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, n_classes, 1),
                                  nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        self.register_buffer("noise", fixed_noise(n_samples, latent))

    def prior(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the prior's mean and log standard deviation, (B, L) each, of hidden (B, D + 2L, h, w)."""
        return gaussian(hidden[:, -2 * self.latent:, 0, 0])

    def masks(self, hidden: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, N, K, H, W) of hidden (B, D + 2L, h, w) and latent numbers (B, N, L)."""
        pixels = self.of_pixels(hidden[:, :-2 * self.latent])
        x = pixels[:, None] + self.of_numbers(numbers.to(pixels.dtype))[..., None, None]
        return self.rest(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def draw(self, hidden: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, N, K, H, W) of hidden (B, D + 2L, h, w) for standard normal noise (B or 1, N, L)."""
        mean, log_std = self.prior(hidden)
        return self.masks(hidden, mean[:, None] + log_std.exp()[:, None] * noise.to(mean))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logarithm of the mean probability over the fixed draws, (B, K, H, W)."""
        prob = self.draw(hidden, self.noise[None]).float().softmax(dim=2).mean(dim=1)
        return prob.clamp_min(torch.finfo(prob.dtype).tiny).log()


def probabilistic(net: SegNet, n_classes: int, *, latent: int, n_samples: int) -> SegNet:
    """Returns a probabilistic U-Net on encoder and decoder of `net`, which is used up."""
    hidden, coarse = net.widths.hidden, net.widths.coarse
    head = Plausible(hidden, n_classes, latent=latent, n_samples=n_samples)
    return SegNet(net.encoder, PriorDecoder(net.decoders[0], coarse, latent), head, stride=net.stride,
                  widths=Widths(hidden + 2 * latent, coarse, latent)).to(memory_format=torch.channels_last)

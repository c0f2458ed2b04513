"""Networks of translation without pairs: who labels images, who judges masks, and who reads an image's style."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn


def _norm(channels: int) -> nn.GroupNorm:
    # Groups, not instances: how bright a channel is beside the others of its group is kept.
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _conv(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), _norm(after), nn.LeakyReLU(0.2))


class Labeller(ModelMixin, ConfigMixin):
    """A U-Net from images to the logits of classes, whose decoder's channels a judge's feedback can scale.

    Args:
        n_feedback: numbers of feedback. widths: channels from fine to coarse, one level for each.
    """

    @register_to_config
    def __init__(self, channels: int = 3, n_classes: int = 2, sample_size: int = 64, n_feedback: int = 32,
                 widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        inner = list(reversed(widths))
        self.first = _conv(channels, widths[0])
        self.down = nn.ModuleList([nn.Sequential(_conv(a, b, stride=2), _conv(b, b))
                                   for a, b in zip(widths, widths[1:], strict=False)])
        self.up = nn.ModuleList([_conv(a + b, b) for a, b in zip(inner, inner[1:], strict=False)])
        self.last = nn.Conv2d(widths[0], n_classes, 1)
        self.gated = inner[1:]
        self.calibration = nn.Sequential(nn.Linear(n_feedback, 32), nn.LeakyReLU(0.2), nn.Linear(32, sum(self.gated)))
        nn.init.zeros_(self.calibration[-1].weight)
        nn.init.zeros_(self.calibration[-1].bias)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Returns features of unit images (B, C, H, W) from fine to coarse."""
        found = [self.first(images)]
        for layer in self.down:
            found.append(layer(found[-1]))
        return found

    def decode(self, features: Sequence[torch.Tensor], feedback: torch.Tensor | None = None) -> torch.Tensor:
        """Returns logits (B, K, H, W); feedback (B, n) scales the decoder's channels by gates in (0, 2), None by 1."""
        *skips, x = features
        gates = None if feedback is None else (2 * self.calibration(feedback).sigmoid()).split(self.gated, 1)
        for i, layer in enumerate(self.up):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), skips[-1 - i]], 1))
            x = x if gates is None else x * gates[i][..., None, None]
        return self.last(x)

    def forward(self, images: torch.Tensor, frames: torch.Tensor, judge: MaskVae | None = None) -> torch.Tensor:
        """Returns logits (B, K, H, W) of unit images (B, C, H, W); in their frames (B, 1, H, W) background is certain.

        With a `judge`, after discriminator-guided channel calibration: the judge's code of a first pass makes the
        gates of a second. No gradient goes through the judge, nor through the first pass.
        """
        features = self.encode(images)
        if judge is None:
            return frame_out(self.decode(features), frames)
        with torch.no_grad():
            feedback = judge.encode(frame_out(self.decode(features), frames).softmax(1))[0]
        return frame_out(self.decode(features, feedback), frames)


def frame_out(logits: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Returns logits (B, K, H, W) that say background in frames (B, 1, H, W), 1 = frame.

    A black corner is as dark as any lesion, and nothing but its place tells the two apart.
    """
    sure = torch.zeros_like(logits)
    sure[:, 0] = SURE
    return torch.where(frames > 0, sure, logits)


SURE = 12.0
"""Logit of what is certain."""


class MaskVae(ModelMixin, ConfigMixin):
    """A variational autoencoder of masks (Kingma & Welling 2014); its energy says how unlike the known masks one is.

    Args:
        widths: channels from fine to coarse, each level at half the resolution of the one before.
        beta: weight of the divergence in the energy.
    """

    @register_to_config
    def __init__(self, n_classes: int = 2, sample_size: int = 64, n_code: int = 32,
                 widths: tuple[int, ...] = (16, 32, 64, 64), beta: float = 0.01) -> None:
        super().__init__()
        side, levels = sample_size // 2 ** len(widths), [n_classes, *widths]
        self.bottom = (widths[-1], side, side)
        self.down = nn.Sequential(*(_conv(a, b, stride=2) for a, b in zip(levels, widths, strict=False)))
        self.to_code = nn.Linear(math.prod(self.bottom), 2 * n_code)
        self.from_code = nn.Linear(n_code, math.prod(self.bottom))
        self.up = nn.Sequential(*(nn.Sequential(nn.Upsample(scale_factor=2), _conv(a, b)) for a, b in zip(
            widths[::-1], (*widths[-2::-1], widths[0]), strict=True)))
        self.last = nn.Conv2d(widths[0], n_classes, 3, padding=1)

    def encode(self, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log-variance (B, n) of the codes of masks (B, K, H, W), one-hot or probabilities."""
        mean, logvar = self.to_code(self.down(masks).flatten(1)).chunk(2, 1)
        return mean, logvar.clamp(-8, 8)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns the logits (B, K, H, W) of codes (B, n)."""
        return self.last(self.up(self.from_code(codes).unflatten(1, self.bottom)))

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        """Returns the energy (B,) of masks (B, K, H, W): cross entropy per pixel + beta * divergence per number.

        Codes are drawn while training (by torch's own generator), else they are their mean.
        """
        mean, logvar = self.encode(masks)
        codes = mean + (0.5 * logvar).exp() * torch.randn_like(mean) if self.training else mean
        entropy = -(masks * self.decode(codes).log_softmax(1)).sum(1)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
        return entropy.mean((1, 2)) + self.config.beta * divergence.mean(1)


class StyleEncoder(nn.Module):
    """Reads what is the same all over an image: pooled over the image, so it cannot say where anything is."""

    def __init__(self, channels: int, *, width: int, n_code: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2),
                                    nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2),
                                    nn.Conv2d(2 * width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2))
        self.last = nn.Linear(2 * width, 2 * n_code)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log-variance (B, n) of the style codes of unit images (B, C, H, W)."""
        mean, logvar = self.last(self.layers(images).mean((2, 3))).chunk(2, 1)
        return mean, logvar.clamp(-8, 8)


class Projector(nn.Module):
    """Features of either network brought to one space, place by place, for PatchNCE."""

    def __init__(self, channels: int, *, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns features (B, width, h, w) of features (B, C, h, w)."""
        return self.layers(features)

"""Who tells drawn images from real ones: by patches of 70 px, or pixel by pixel as a segmenter of K + 1 classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """The 70 x 70 PatchGAN (Isola et al. 2017, 6.1.2) on image and condition together.

    Args:
        channels: of the image and the condition together.
        norm: instance norm takes away how bright and coloured an image is; where that is judged, "spectral" norm.
        n_out: maps of logits, one for each style that is judged.
    """

    def __init__(self, channels: int, *, width: int, norm: Literal["instance", "spectral"] = "instance",
                 n_out: int = 1) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 8 * width)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            layers += [nn.Conv2d(before, after, 4, stride=2 if i < 3 else 1, padding=1),
                       nn.Identity() if i == 0 else nn.InstanceNorm2d(after, affine=True), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, n_out, 4, padding=1))
        if norm == "spectral":
            layers = [spectral_norm(m) if isinstance(m, nn.Conv2d) else m for m in self.layers
                      if not isinstance(m, nn.InstanceNorm2d)]
            self.layers = nn.Sequential(*layers)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, n_out, h, w), high = real, of image and condition (B, C, H, W), 32 px or more."""
        return self.layers(seen)


class _Block(nn.Module):
    """Two convolutions, each after group norm, beside a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(math.gcd(8, n), n) for n in (before, after)])
        self.convs = nn.ModuleList([nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)])
        self.shortcut = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W) with other channels."""
        out = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            out = conv(F.leaky_relu(norm(out), 0.2))
        return self.shortcut(x) + out


class SegmenterDiscriminator(nn.Module):
    """OASIS's discriminator (Schoenfeld et al. 2021, 3.1): encoder and decoder with K + 1 logits for every pixel.

    It never sees the label map: what class a pixel shows, and whether it is drawn, it must find in the image. Group
    norm takes the place of the paper's spectral norm: with it the same steps on twenty images taught it more.

    Args:
        widths: channels from fine to coarse; each level has half the resolution of the one before.
    """

    def __init__(self, channels: int, n_classes: int, *, widths: Sequence[int]) -> None:
        super().__init__()
        inner = list(reversed(widths))
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList([_Block(a, b) for a, b in zip(widths, widths[1:], strict=False)])
        self.up = nn.ModuleList([_Block(a if i == 0 else 2 * a, b)
                                 for i, (a, b) in enumerate(zip(inner, inner[1:], strict=False))])
        self.last = nn.Conv2d(2 * widths[0], n_classes + 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K + 1, H, W) of unit images (B, C, H, W); the last class is "drawn"."""
        x = self.first(images)
        skips = [x]
        for block in self.down:
            x = block(F.avg_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = torch.cat([F.interpolate(block(x), scale_factor=2.0), skips.pop()], 1)
        return self.last(F.leaky_relu(x, 0.2))

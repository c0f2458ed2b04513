"""UNet++ on the tiny encoder: nested decoders, each a U-Net of its own depth, that share their nodes.

segmentation_models_pytorch's offers the deepest output alone; what the paper prunes for are the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from segtrain.models.segnet import Features, SegNet, Widths
from segtrain.models.tiny import Door, TinyEncoder, block, encode, half
from segtrain.settings import Norm


class _First(nn.Module):
    """The first blocks of a tiny encoder, the same tensors."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, images: torch.Tensor) -> Features:
        """Returns the first levels' features (B, c, h, w) of unit images (B, C, H, W)."""
        return encode(self.blocks, half(images))


class Nested(nn.Module):
    """Nodes X(i, j), level i, column j: a block of all earlier nodes of the level and the one below, enlarged.

    Zhou et al. 2018, UNet++, eq. 1: X(i, j) = H([X(i, 0), ..., X(i, j-1), U(X(i+1, j-1))]), X(i, 0) the encoder's.
    """

    def __init__(self, channels: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.depth, self.width = len(channels) - 1, channels[0]
        self.nodes = nn.ModuleDict({
            f"{i}_{j}": block(j * channels[i] + channels[i + 1], channels[i], norm)
            for j in range(1, self.depth + 1) for i in range(self.depth + 1 - j)})

    def deep_heads(self, n_classes: int) -> list[nn.Module]:
        """Returns a fresh head for each shallower decoder, deep to shallow; like the deepest they say whole images."""
        return [Door(self.width, n_classes) for _ in range(self.depth - 1)]

    def levels(self, features: Features) -> Features:
        """Returns the top nodes X(0, depth), ..., X(0, 1), (B, D, h, w) each, of features (B, c, h, w)."""
        return self.top(features, self.depth)[:0:-1]

    def top(self, features: Features, depth: int) -> Features:
        """Returns the top nodes X(0, 0), ..., X(0, depth), (B, D, h, w) each, and computes none that they do not need.
        """
        rows = [[level] for level in features[:depth + 1]]
        for j in range(1, depth + 1):
            for i in range(depth + 1 - j):
                below = F.interpolate(rows[i + 1][j - 1], size=rows[i][0].shape[-2:], mode="nearest")
                rows[i].append(self.nodes[f"{i}_{j}"](torch.cat([*rows[i], below], dim=1)))
        return rows[0]

    def shallow(self, encoder: TinyEncoder, depth: int) -> tuple[nn.Module, nn.Module]:
        """Returns the encoder and decoder of a U-Net of that depth, the same tensors, computing nothing beyond it."""
        return _First(encoder.blocks[:depth + 1]), _Shallow(self, depth)

    def forward(self, features: Features) -> torch.Tensor:
        """Returns the deepest decoder's output (B, D, h, w) of features (B, c, h, w)."""
        return self.top(features, self.depth)[-1]


class _Shallow(nn.Module):
    """A nested decoder cut off at a depth."""

    def __init__(self, nested: Nested, depth: int) -> None:
        super().__init__()
        self.nested, self.depth = nested, depth

    def forward(self, features: Features) -> torch.Tensor:
        return self.nested.top(features, self.depth)[-1]


def unetpp(in_channels: int, n_classes: int, channels: Sequence[int], *, norm: Norm) -> SegNet:
    """Returns a UNet++ of the given widths, fine to coarse, that works at half resolution."""
    net = SegNet(TinyEncoder(in_channels, channels, norm=norm), Nested(channels, norm),
                 Door(channels[0], n_classes), stride=2 ** len(channels), widths=Widths(channels[0], channels[-1]))
    return net.to(memory_format=torch.channels_last)

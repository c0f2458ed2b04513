"""SegFormer of transformers from its configuration, never from a hub: a small mix transformer under an MLP decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import SegformerConfig, SegformerModel
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from segtrain.models.segnet import Features, SegNet, Widths
from segtrain.settings import ModelSettings

HEAD_WIDTH = 32
"""Channels of one attention head where a level has as many (Xie et al. 2021, table 6)."""


class _Grown(nn.Module):
    """The way out of coarser features: logits, enlarged bilinear."""

    def __init__(self, width: int, n_classes: int, scale: int) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(width, n_classes, 1), scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, scale h, scale w) of (B, D, h, w)."""
        return F.interpolate(self.conv(hidden), scale_factor=self.scale, mode="bilinear", align_corners=False)


class _Encoder(nn.Module):
    def __init__(self, model: SegformerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> Features:
        """Returns every level's features (B, c, h, w) of unit images (B, C, H, W)."""
        return list(self.model(images, output_hidden_states=True).hidden_states)


class _Decoder(nn.Module):
    """Every level to one width, to the finest level's size, and mixed."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        self.inner = SegformerDecodeHead(config)
        self.inner.classifier = nn.Identity()  # the last layer is the network's head

    def forward(self, features: Features) -> torch.Tensor:
        return self.inner(features)


def _heads(width: int) -> int:
    return max(n for n in range(1, max(1, width // HEAD_WIDTH) + 1) if width % n == 0)


def segformer(in_channels: int, n_classes: int, settings: ModelSettings) -> SegNet:
    """Returns a SegFormer of widths `settings.channels`, one block a level, features from 1/4 of the resolution on.

    Positional information comes from its convolutions alone, so that any size goes which the stride divides.
    """
    channels = settings.channels
    n = len(channels)
    config = SegformerConfig(
        num_channels=in_channels, num_encoder_blocks=n, depths=[1] * n, hidden_sizes=list(channels),
        patch_sizes=[7, *[3] * (n - 1)], strides=[4, *[2] * (n - 1)], mlp_ratios=[4] * n,
        num_attention_heads=[_heads(width) for width in channels],
        # Keys and values of every level come from a grid as fine as the coarsest level's.
        sr_ratios=[2 ** (n - 1 - i) for i in range(n)], decoder_hidden_size=channels[-1])
    return SegNet(_Encoder(SegformerModel(config)), _Decoder(config), _Grown(channels[-1], n_classes, 4),
                  stride=2 ** (n + 1), widths=Widths(channels[-1], channels[-1]))

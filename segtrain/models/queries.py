"""A mask-query head on the tiny U-Net: a few queries, each a class and a mask, summed up to classes of pixels.

The idea of MaskFormer and Mask2Former (Cheng et al. 2021, 2022) in its smallest 2D form, and not their networks: the
pixel decoder is a small U-Net in the place of deformable attention, the queries look at one scale, and there is no
matching of queries to segments. The pixel losses of a method train it through the rule of semantic inference itself,
so that nothing but that sum is asked of a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from segtrain.models.segnet import SegNet, Widths
from segtrain.models.tiny import Decoder, TinyEncoder
from segtrain.settings import Norm

GRID = 16
"""Largest side of the grid that the queries look at."""

N_LAYERS = 2
LEAST = 1e-6
"""Score below which the logarithm goes no further down."""


def combine(classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the logits (B, K, H, W) whose softmax is the scores sum_q p_q(k) sigmoid(m_q(x)), made to sum to 1.

    Classes are logits (B, Q, K + 1), the last of them "nothing"; masks are logits (B, Q, H, W). The sum is MaskFormer's
    semantic inference (Cheng et al. 2021, section 3.4), which takes its largest k; here it is trained.
    """
    scores = torch.einsum("bqk,bqhw->bkhw", classes.float().softmax(-1)[..., :-1], masks.float().sigmoid())
    return scores.clamp_min(LEAST).log()


def focus(masks: torch.Tensor) -> torch.Tensor:
    """Returns where queries may look, (B, Q, P) bool: where mask logits (B, Q, P) say yes; a query of none, anywhere.

    Masked attention (Cheng et al. 2022, eq. 2 and 3).
    """
    inside = masks.detach() > 0
    return inside | ~inside.any(dim=-1, keepdim=True)


class _Attention(nn.Module):
    """Queries read values: attention in heads, added, normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_heads = max(n for n in (1, 2, 4, 8) if width % n == 0 and width // n >= 8 or n == 1)
        self.ask, self.keys, self.values, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Returns queries (B, Q, D) that have read `seen` (B, P, D), each where mask (B, Q, P) is True."""
        rows = (self.ask(queries), self.keys(seen), self.values(seen))
        ask, keys, values = (x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in rows)
        read = F.scaled_dot_product_attention(ask, keys, values, None if mask is None else mask[:, None])
        return self.norm(queries + self.out(read.transpose(1, 2).flatten(-2)))


class _Layer(nn.Module):
    """Masked attention to the pixels, attention among the queries, two linear layers: Mask2Former's order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look, self.talk = _Attention(width), _Attention(width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: torch.Tensor, seen: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns queries (B, Q, D) after one layer over pixels `seen` (B, P, D), looking where mask (B, Q, P) is."""
        queries = self.look(queries, seen, mask)
        queries = self.talk(queries, queries)
        return self.norm(queries + self.think(queries))


class QueryHead(nn.Module):
    """From pixel embeddings to logits by way of queries."""

    def __init__(self, width: int, n_classes: int, n_queries: int) -> None:
        super().__init__()
        self.queries = nn.Embedding(n_queries, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(N_LAYERS))
        self.classes, self.masks = nn.Linear(width, n_classes + 1), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, 2h, 2w) of pixel embeddings (B, D, h, w)."""
        grid = F.adaptive_avg_pool2d(hidden, [min(side, GRID) for side in hidden.shape[-2:]]).flatten(2).mT
        queries = self.queries.weight.expand(len(hidden), -1, -1)
        for layer in self.layers:
            queries = layer(queries, grid, focus(self.masks(queries) @ grid.mT))
        masks = torch.einsum("bqd,bdhw->bqhw", self.masks(queries), hidden)
        masks = F.interpolate(masks, scale_factor=2, mode="bilinear", align_corners=False)
        return combine(self.classes(queries), masks)


def queries(in_channels: int, n_classes: int, channels: Sequence[int], n_queries: int, *, norm: Norm) -> SegNet:
    """Returns a tiny U-Net of the given widths, fine to coarse, under `n_queries` mask queries."""
    net = SegNet(TinyEncoder(in_channels, channels, norm=norm),
                 Decoder(channels, channels, keep_coarse=True, norm=norm),
                 QueryHead(channels[0], n_classes, n_queries), stride=2 ** len(channels),
                 widths=Widths(channels[0], channels[-1]))
    return net.to(memory_format=torch.channels_last)

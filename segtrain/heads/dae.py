"""A denoising auto-encoder of label masks: what a plausible mask near a given one looks like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from segtrain.heads.sizes import Sizes
from segtrain.models.tiny import block
from synth.core.config import Settings
from synth.core.rng import derive_seed

if TYPE_CHECKING:
    from segtrain.transforms.warps import Rngs


class Dae(nn.Module):
    """Label masks as onehot (B, K, H, W) -> logits (B, K, H, W) of the mask that they may be a damaged form of.

    Nothing but the narrow middle joins input and output, hence it cannot copy: it can only say what it has learnt that
    masks look like.
    """

    def __init__(self, n_classes: int, width: int, n_levels: int) -> None:
        super().__init__()
        widths = [n_classes, *(width * 2**i for i in range(n_levels))]
        self.down = nn.ModuleList(block(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(block(b, a) for a, b in reversed([*zip(widths[1:], widths[2:], strict=False)]))
        self.out = nn.Conv2d(width, n_classes, 1)

    def forward(self, masks: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, H, W) of onehot masks (B, K, H, W)."""
        x, sizes = masks, []
        for down in self.down:
            sizes.append(x.shape[-2:])
            x = down(F.avg_pool2d(x, 2, ceil_mode=True))
        for up, size in zip(self.up, sizes[:0:-1], strict=True):
            x = up(F.interpolate(x, size, mode="nearest"))
        return F.interpolate(self.out(x), sizes[0], mode="bilinear", align_corners=False)


class MaskDae(Settings):
    """Slot member `mask_dae`: convolutions to 1 / 2^levels of the side and back."""

    width: int = Field(16, ge=2)
    levels: int = Field(3, ge=2, le=6)

    def __call__(self, sizes: Sizes) -> nn.Module:
        """Returns an untrained auto-encoder of masks."""
        return Dae(sizes.n_classes, self.width, self.levels)


@dataclass(frozen=True)
class Damage:
    """What happens to B masks.

    Attributes:
        wrong: (B, H, W) bool, pixels that get the class `instead` (B, H, W).
        swaps: (B, n, 4) as rows and columns, shares of the room there is, of two patches that change places.
    """

    wrong: torch.Tensor
    instead: torch.Tensor
    swaps: torch.Tensor


def draw_damage(rngs: Rngs, shape: tuple[int, int], *, n_classes: int, p: float, n_swaps: int) -> Damage:
    """Returns one damage per generator for masks of `shape` (H, W); pixels are wrong with probability `p`."""
    seeds = [int(torch.randint(2**31, (), generator=rng)) for rng in rngs]
    own = [torch.Generator().manual_seed(derive_seed(seed, "damage")) for seed in seeds]
    u = torch.stack([torch.rand((2, *shape), generator=rng) for rng in own])
    places = torch.stack([torch.rand((n_swaps, 4), generator=rng) for rng in own])
    return Damage(u[:, 0] < p, (u[:, 1] * n_classes).long().clamp(max=n_classes - 1), places)


def apply_damage(labels: torch.Tensor, damage: Damage, *, side: int) -> torch.Tensor:
    """Returns labels (B, H, W) with patches of `side` px swapped and pixels changed."""
    labels = labels.clone()
    room = torch.tensor([labels.shape[1] - side, labels.shape[2] - side] * 2)
    for row, swaps in enumerate((damage.swaps * (room + 1)).long().tolist()):
        for top, left, other_top, other_left in swaps:
            first = (row, slice(top, top + side), slice(left, left + side))
            second = (row, slice(other_top, other_top + side), slice(other_left, other_left + side))
            kept = labels[first].clone()
            labels[first] = labels[second]
            labels[second] = kept
    return torch.where(damage.wrong.to(labels.device), damage.instead.to(labels.device), labels)

"""What terms on single pixels share: drawing some of them, and finding them again in another view or resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from segtrain.transforms.warps import Rngs
from synth.core.checks import UserError

if TYPE_CHECKING:
    from segtrain.scene import Scene, Shown


@dataclass(frozen=True)
class Picked:
    """Some pixels of each image: `index` (B, n), counted row by row, and whether each was `found`, (B, n)."""

    index: torch.Tensor
    found: torch.Tensor


def pick(mask: torch.Tensor, rngs: Rngs, n: int) -> Picked:
    """Returns up to `n` pixels of each image, drawn from where mask (B, H, W) is True; row i from `rngs[i]` alone."""
    size = mask[0].numel()
    order = torch.stack([torch.rand(size, generator=rng) for rng in rngs]).to(mask.device)
    score, index = order.masked_fill(~mask.flatten(1), -1.0).topk(min(n, size), dim=1)
    return Picked(index, score >= 0)


def features_at(features: torch.Tensor, index: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Returns features (B, D, h, w) at pixels `index` (B, n) of the images of `size` (H, W), as (B, n, D).

    Features are coarser than images: a pixel has those of the cell it lies in.
    """
    height, width = features.shape[-2:]
    y, x = (index // size[1]) * height // size[0], (index % size[1]) * width // size[1]
    cell = (y * width + x)[:, None].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, cell).mT


def place_of(shown: Shown) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns where in the view each pixel of the images is (B, H, W), counted row by row, and whether it is there.

    Raises:
        UserError: if the view's moves have no way back.
    """
    n, _, height, width = shown.images.shape
    index = torch.arange(height * width, device=shown.images.device).reshape(height, width).expand(n, -1, -1)
    return shown.warp.back(index, torch.ones_like(index, dtype=torch.bool))


def logits_back(shown: Shown) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a view's logits (B, K, H, W) at the pixels of its images, and where (B, H, W) bool it shows them.

    Raises:
        UserError: if the view's moves have no way back.
    """
    logits = shown.seen.logits.float()
    return shown.warp.back(logits, torch.ones_like(logits[:, 0], dtype=torch.bool))


def head_of(scene: Scene, name: str) -> nn.Module:
    """Returns the method's head `name`.

    Raises:
        UserError: if it has none of that name.
    """
    if name not in scene.heads:
        raise UserError(f"head {name}", rule="the method has no such head",
                        repair=f"add it under heads:, or take one of {', '.join(scene.heads) or 'none'}")
    return scene.heads[name]

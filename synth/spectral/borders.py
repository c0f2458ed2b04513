"""What lies round a picture before its Fourier transform: mirrored margins, and frames that are no part of the view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.fft import next_fast_len

from synth.core.config import Settings


class Border(Settings):
    """How an operation treats what lies at and beyond the borders of an image.

    Attributes:
        pad: width of the mirrored margin, share of the side, rounded up to a length that Fourier transforms like;
            0 = none, the image is taken as periodic.
        field_of_view: "auto" finds dark frames (`synth.core.frame`): they come out untouched and are filled smoothly
            before the transform, so that their outline neither counts nor rings; "all" takes every pixel as picture.
        clamp: whether what leaves [-1, 1] is cut off.
    """

    pad: float = Field(0.125, ge=0, le=0.5)
    field_of_view: Literal["auto", "all"] = "auto"
    clamp: bool = True


def padded_side(side: int, pad: float) -> int:
    """Returns the length, px, of a side with its margin: at least (1 + pad) sides, a product of 2, 3 and 5."""
    if not pad:
        return side
    return min(next_fast_len(math.ceil((1 + pad) * side), real=True), 2 * side - 1)


def extend(images: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Returns images (B, C, H, W) as (B, C, *shape), continued beyond the right and lower border without a step.

    The margin fades from the mirror image of the one border to that of the opposite one, so that the picture closes
    upon itself: a plain mirrored margin would meet its neighbour in the periodic plane with a step.
    """
    height, width = images.shape[-2:]
    if shape == (height, width):
        return images
    whole = images.new_empty(*images.shape[:2], *shape)
    whole[..., :height, :width] = images
    whole[..., :height, width:] = _margin(images, shape[1] - width, -1)
    whole[..., height:, :] = _margin(whole[..., :height, :], shape[0] - height, -2)
    return whole


def _margin(images: torch.Tensor, margin: int, axis: int) -> torch.Tensor:
    near, far, share = _fading(images.shape[axis], margin, images.dtype, str(images.device))
    return torch.lerp(images.index_select(axis, near), images.index_select(axis, far),
                      share.view(-1, *(1,) * (-axis - 1)))


@lru_cache(maxsize=32)
def _fading(n: int, margin: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Which of n pixels a margin mirrors at the near border and at the far one, and the share of the latter, (margin,).
    step = torch.arange(1, margin + 1, device=device)
    return n - 1 - step, margin + 1 - step, (0.5 - 0.5 * torch.cos(torch.pi * step / (margin + 1))).to(dtype)


def fill_frame(images: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Returns images (B, C, H, W) with the pixels outside `inside` (B, 1, H, W) bool filled smoothly from the others.

    Each unknown pixel takes the value of the finest of ever coarser averages that has seen a known one.
    """
    if bool(inside.all()) or max(images.shape[-2:]) == 1:
        return images
    known = inside.to(images.dtype)
    share, sums = F.avg_pool2d(known, 2, ceil_mode=True), F.avg_pool2d(images * known, 2, ceil_mode=True)
    smooth = _doubled(fill_frame(sums / share.clamp_min(1e-6), share > 0), images.shape[-2:])
    return torch.where(inside, images, smooth)


def _doubled(images: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    # Bilinear interpolation by 2, cut to `shape`; on a CPU several times faster than torch's for any factor.
    for axis in (-2, -1):
        n = images.shape[axis]
        first, last = images.narrow(axis, 0, 1), images.narrow(axis, n - 1, 1)
        before = torch.cat([first, images.narrow(axis, 0, n - 1)], dim=axis)
        after = torch.cat([images.narrow(axis, 1, n - 1), last], dim=axis)
        place = images.ndim + axis
        pairs = torch.stack([torch.lerp(images, side, 0.25) for side in (before, after)], dim=place + 1)
        images = pairs.flatten(place, place + 1).narrow(axis, 0, shape[axis])
    return images

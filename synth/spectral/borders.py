"""What lies round a picture before its Fourier transform: mirrored margins, and frames that are no part of the view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.fft import next_fast_len

from synth.core.config import Settings

CELLS = 32
"""Cells along the shorter side, at least, between which frames are filled."""


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
    near, far = images.narrow(axis, images.shape[axis] - 1 - margin, margin), images.narrow(axis, 1, margin)
    share = _fading(margin, images.dtype, str(images.device)).view(-1, *(1,) * (-axis - 1))
    return torch.lerp(near, far, share).flip(axis)  # mirrored once, after blending


@lru_cache(maxsize=32)
def _fading(margin: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    # The share of the opposite border in each pixel of a margin, from its outer end inwards.
    return 0.5 + 0.5 * torch.cos(torch.pi * torch.arange(1, margin + 1, device=device, dtype=dtype) / (margin + 1))


@dataclass(frozen=True)
class View:
    """Which pixels of images are picture, and what takes the place of the others in a transform.

    Attributes:
        inside: (B, 1, H, W) bool. coarse: (B, C, h, w), means of the picture over cells of `cell_px` a side; those
            that see none of it have weighted means of the others.
    """

    inside: torch.Tensor
    coarse: torch.Tensor

    def split(self, n: int) -> list[View | None]:
        """Returns the views of n images at a time; None where they are all picture."""
        framed = ~self.inside.flatten(1).cpu().numpy().all(1)  # torch takes long to reduce bools
        parts = zip(self.inside.split(n), self.coarse.split(n), strict=True)
        return [View(*part) if any(framed[i * n:(i + 1) * n]) else None for i, part in enumerate(parts)]


def cell_px(shape: Sequence[int]) -> int:
    """Returns the side of the cells of `View.coarse`, px, for images of `shape` (H, W): a power of 2."""
    return 1 << max(1, (min(shape) // CELLS).bit_length() - 1)


def view_of(images: torch.Tensor, inside: torch.Tensor) -> View:
    """Returns the view of images (B, C, H, W) whose picture is `inside`, (B, 1, H, W) bool."""
    step = cell_px(images.shape[-2:]) // 2  # two pixels a side stand for each cell
    known = inside[..., step // 2::step, step // 2::step].to(images.dtype)
    some = images[..., step // 2::step, step // 2::step] * known
    share, sums = F.avg_pool2d(known, 2, ceil_mode=True), F.avg_pool2d(some, 2, ceil_mode=True)
    tall, broad = (_near(n, images.dtype, str(images.device)) for n in sums.shape[-2:])
    least = torch.finfo(images.dtype).tiny
    round_about = (tall @ sums @ broad) / (tall @ share @ broad).clamp_min(least)
    return View(inside, torch.where(share > 0, sums / share.clamp_min(least), round_about))


@lru_cache(maxsize=32)
def _near(n: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    # Weights (n, n) of cells for cells: they fall with the 6th power, so that what is nearest counts, and never to 0.
    place = torch.arange(n, device=device, dtype=dtype)
    return (1 + (place[:, None] - place).square()).pow(-3)


def fill_frame(images: torch.Tensor, view: View) -> torch.Tensor:
    """Returns images (B, C, H, W) with all but the picture filled smoothly from it: linear between the cells of `view`.

    Coarse on purpose: next to its rim a picture is continued by means over cells of 1 / 32 to 1 / 63 of the side.
    """
    smooth, factor = view.coarse, cell_px(images.shape[-2:])
    share = (torch.arange(factor, device=images.device, dtype=images.dtype) + 0.5) / factor
    for axis in (-1, -2):  # rows last: whole rows are blended at a time
        n, place = smooth.shape[axis], smooth.ndim + axis
        cells = torch.cat([smooth.narrow(axis, 0, 1), smooth, smooth.narrow(axis, n - 1, 1)], axis).unsqueeze(place + 1)
        between = torch.lerp(cells.narrow(place, 0, n + 1), cells.narrow(place, 1, n + 1),
                             share.view(-1, *(1,) * (-axis - 1)))
        smooth = between.flatten(place, place + 1).narrow(axis, factor // 2, images.shape[axis])
    return torch.where(view.inside, images, smooth)

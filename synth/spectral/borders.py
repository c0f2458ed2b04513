"""What lies round a picture before its Fourier transform: mirrored margins, and frames that are no part of the view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.fft import next_fast_len

from synth.core.config import Settings

TOLERANCE = 0.06
"""How far above its darkest value a frame reaches, share of the image's own range."""
MIN_RIM = 0.05
"""Share of dark pixels along the image's border below which nobody looks for a frame."""
SHARES = (0.02, 0.7)
"""Share of the image that a frame covers; above it, the dark is what the objects lie in."""
MIN_FILL = 0.6
"""Share of its bounding box that a field of view fills (a disc fills 0.79); scattered objects fill less."""
PLATEAU = 0.75
"""Share of what twice the tolerance reaches that is within it: a frame's edge is steep, corners that darken smoothly
have none. (At half the tolerance, sensor noise would break frames up.)"""


class Border(Settings):
    """How an operation treats what lies at and beyond the borders of an image.

    Attributes:
        pad: width of the mirrored margin, share of the side, rounded up to a length that Fourier transforms like;
            0 = none, the image is taken as periodic.
        field_of_view: "auto" finds dark frames (`field_of_view`): they come out untouched and are filled smoothly
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
    n = images.shape[axis]
    near = images.narrow(axis, n - 1 - margin, margin).flip(axis)
    far = images.narrow(axis, 1, margin).flip(axis)
    steps = torch.arange(1, margin + 1, device=images.device, dtype=images.dtype) / (margin + 1)
    return torch.lerp(near, far, (0.5 - 0.5 * torch.cos(torch.pi * steps)).view(-1, *(1,) * (-axis - 1)))


def field_of_view(images: torch.Tensor) -> torch.Tensor | None:
    """Returns which pixels of unit images (B, C, H, W) belong to the picture, (B, 1, H, W) bool; None if all do.

    A frame is near the darkest value of its image in every channel, and nothing brighter stands between it and a border
    in a straight line along its row or column: the black corners of an endoscope's or fundus picture, the air round a
    body. It is one only if it ends steeply, covers some but not most of the image, and leaves a compact view.
    """
    bright = images.amax(1)
    low, span = bright.amin((1, 2)), bright.amax((1, 2)) - bright.amin((1, 2))
    level = low + TOLERANCE * span
    rim = torch.cat([bright[:, 0], bright[:, -1], bright[:, :, 0], bright[:, :, -1]], dim=1)
    rows = ((rim <= level[:, None]).float().mean(1) >= MIN_RIM).nonzero()[:, 0]
    if not len(rows):
        return None
    some = bright[rows, ::2, ::2]  # every second pixel tells whether it is a frame
    frame, wider = (_reached(some <= (low + k * TOLERANCE * span)[rows, None, None]) for k in (1, 2))
    rows = rows[_is_frame(frame, wider)]
    if not len(rows):
        return None
    inside = torch.ones_like(bright, dtype=torch.bool)
    inside[rows] = ~_reached(bright[rows] <= level[rows, None, None])
    return inside[:, None]


def _reached(dark: torch.Tensor) -> torch.Tensor:
    # Dark pixels (N, H, W) with nothing bright between them and a border along their row or column.
    return _reached_along_rows(dark) | _reached_along_rows(dark.mT).mT


def _reached_along_rows(dark: torch.Tensor) -> torch.Tensor:
    n = dark.shape[-1]
    bright, place = (~dark).to(torch.uint8), torch.arange(n, device=dark.device)
    first, last = bright.argmax(-1), n - 1 - bright.flip(-1).argmax(-1)
    return (place < first[..., None]) | (place > last[..., None]) | dark.all(-1)[..., None]


def _is_frame(frame: torch.Tensor, wider: torch.Tensor) -> torch.Tensor:
    share = frame.float().mean((1, 2))
    view = ~frame
    height, width = view.any(2), view.any(1)
    box = _extent(height) * _extent(width)
    compact = view.sum((1, 2)) >= MIN_FILL * box
    steep = frame.sum((1, 2)) >= PLATEAU * wider.sum((1, 2))
    return (share >= SHARES[0]) & (share <= SHARES[1]) & compact & steep


def _extent(used: torch.Tensor) -> torch.Tensor:
    n, used = used.shape[1], used.to(torch.uint8)
    return n - used.argmax(1) - used.flip(1).argmax(1)


def fill_frame(images: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Returns images (B, C, H, W) with the pixels outside `inside` (B, 1, H, W) bool filled smoothly from the others.

    Each unknown pixel takes the value of the finest of ever coarser averages that has seen a known one.
    """
    if bool(inside.all()) or max(images.shape[-2:]) == 1:
        return images
    share = F.avg_pool2d(inside.to(images.dtype), 2, ceil_mode=True)
    means = F.avg_pool2d(torch.where(inside, images, 0.0), 2, ceil_mode=True) / share.clamp_min(1e-6)
    return torch.where(inside, images, _doubled(fill_frame(means, share > 0), images.shape[-2:]))


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

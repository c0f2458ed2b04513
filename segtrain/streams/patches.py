"""Squares of images at their own size: random ones to train on, overlapping ones to predict with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from segtrain.settings import SegmentSettings
from synth.core.checks import IGNORE
from synth.core.pairs import Arrays, ImageSet, Rows
from synth.core.rng import choice, uniform

FOREGROUND_SHARE = 1 / 3
"""Of the squares: those that are laid around a pixel of foreground (nnU-Net's oversampling)."""

OVERLAP = 0.5
SIGMA = 1 / 8
"""Of the Gaussian that weighs a tile's pixels, share of its side (nnU-Net's)."""

Corner = tuple[int, int]
"""Top and left of a square, px."""


# Training -------------------------------------------------------------------------------------------------------------

def read_arrays(images: ImageSet, settings: SegmentSettings) -> Arrays:
    """Returns a set as the settings want it: at the working resolution, or at native size for patches.

    Either way all of it is decoded once and held in memory; an image smaller than a patch is enlarged to it.
    """
    if settings.patch is None:
        return images.arrays(settings.size)
    native = images.native(settings.patch)
    pixels, masks = [], []
    for i in range(len(native)):  # image and mask together: only a few items are cached
        pixels.append(native.images[i])
        masks.append(None if native.masks is None else native.masks[i])
    whole = native.masks is not None and not any(mask is None for mask in masks)
    return dataclasses.replace(native, images=in_rows(pixels), masks=in_rows(masks) if whole else None)


def in_rows(values: Sequence[np.ndarray]) -> Rows:
    """Returns arrays of any shape as a column."""
    return Rows(values.__getitem__, range(len(values)))


def shows_foreground(arrays: Arrays) -> bool:
    """Returns whether any mask of a set with masks has a class > 0 other than ignore."""
    return any(bool(((mask > 0) & (mask != IGNORE)).any()) for mask in arrays.masks)


def draw_corner(rng: torch.Generator, shape: tuple[int, int], side: int, mask: np.ndarray | None = None) -> Corner:
    """Returns where a square of `side` px lies in an image of `shape` = (height, width), no side of it below that.

    With a mask (H, W), a third of the squares have a foreground pixel at their centre, as near as the border allows:
    one class that occurs there, each as likely, and one of its pixels. The others lie anywhere.
    """
    spare = [length - side for length in shape]
    top, left = (choice(rng, room + 1) for room in spare)
    if uniform(rng, 0, 1) >= FOREGROUND_SHARE or mask is None:
        return top, left
    present = [int(k) for k in np.unique(mask) if k not in (0, IGNORE)]
    if not present:
        return top, left
    places = np.argwhere(mask == present[choice(rng, len(present))])
    y, x = places[choice(rng, len(places))].tolist()
    return tuple(min(max(at - side // 2, 0), room) for at, room in zip((y, x), spare, strict=True))


def cut(values: np.ndarray | Rows, rows: Sequence[int], corners: Sequence[Corner] | None, side: int) -> np.ndarray:
    """Returns the rows of a column, (B, ..., side, side), their squares if there are corners, else whole."""
    if corners is None:
        return values[list(rows)]
    return np.stack([values[i][..., top:top + side, left:left + side]
                     for i, (top, left) in zip(rows, corners, strict=True)])


# Prediction -----------------------------------------------------------------------------------------------------------

def tile_starts(length: int, side: int) -> list[int]:
    """Returns where tiles of `side` start along `length` px: evenly, the first at 0, the last at the end, with half of
    each, or more, under the next."""
    n_steps = math.ceil((length - side) / (side * (1 - OVERLAP)))
    return [round(k * (length - side) / n_steps) for k in range(n_steps + 1)] if n_steps else [0]


def importance(side: int) -> torch.Tensor:
    """Returns how much each pixel of a tile counts (side, side), in (0, 1]: a Gaussian around the centre."""
    steps = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (SIGMA * side)
    bell = torch.exp(-0.5 * steps.square())
    weight = torch.outer(bell, bell)
    return (weight / weight.max()).float()


def predict_tiles(predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, *, side: int,
                  chunk: int) -> torch.Tensor:
    """Returns the weighted mean (B, K, H, W) of what `predict` says of overlapping tiles of images (B, C, H, W).

    It sees up to `chunk` tiles (B', C, side, side) at once and says (B', K, side, side). An image smaller than a tile
    is enlarged to it, as in training, and what was said of it goes back, bilinear.
    """
    native = tuple(images.shape[-2:])
    scale = max(1.0, side / min(native))
    shape = tuple(max(side, round(scale * length)) for length in native)
    if shape != native:
        images = F.interpolate(images, shape, mode="bilinear", align_corners=False)
    corners = [(top, left) for top in tile_starts(shape[0], side) for left in tile_starts(shape[1], side)]
    said = _gather(predict, images, corners, side=side, chunk=chunk)
    return said if shape == native else F.interpolate(said, native, mode="bilinear", align_corners=False)


def _gather(predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, corners: Sequence[Corner], *,
            side: int, chunk: int) -> torch.Tensor:
    weight = importance(side).to(images.device)
    total = torch.zeros(images.shape[-2:], device=images.device)
    found: list[torch.Tensor] = []
    for image in images:
        said = None
        for first in range(0, len(corners), chunk):
            some = corners[first:first + chunk]
            tiles = predict(torch.stack([image[:, y:y + side, x:x + side] for y, x in some]))
            said = torch.zeros(tiles.shape[1], *total.shape, device=images.device) if said is None else said
            for (y, x), tile in zip(some, tiles, strict=True):
                said[:, y:y + side, x:x + side] += weight * tile
        found.append(said)
    for y, x in corners:
        total[y:y + side, x:x + side] += weight
    return torch.stack(found) / total

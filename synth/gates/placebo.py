"""Placebos: places that are kept although they hold no object, so that only the seam can tell them from the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage, signal

from synth.core.checks import IGNORE
from synth.core.rng import choice, sample_rng, uniform

MIN_SHARE, MAX_SHARE = 0.01, 0.15
"""Smallest and largest area of a placebo, as a share of the image."""

GAP_PX = 2
"""Background left between a placebo and any labelled pixel."""

TRIES = 8
"""Draws of a shape per placebo, each allowed a smaller one than the draw before; after them, discs."""

SHRINK = 0.8
"""What the scale of each further draw is multiplied by."""


@dataclass(frozen=True)
class Placebos:
    """Keep masks without an object, and the decoys that say what their place alone gives away.

    Attributes:
        rows: (M,) of the images that have room, ascending. keep: (M, H, W) bool, the placebos.
        decoy: (M, H, W) bool, for the same images by the same law, drawn independently; nothing is ever kept there.
    """

    rows: tuple[int, ...]
    keep: torch.Tensor
    decoy: torch.Tensor


def _crop(shape: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    return shape[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]


def _shapes(foreground: np.ndarray) -> list[np.ndarray]:
    """Returns the cropped foreground (H, W) bool as a whole, then each of its connected components."""
    parts, n = ndimage.label(foreground)
    return [_crop(foreground), *(_crop(parts == k) for k in range(1, n + 1))] if n else []


def _disc(area: float) -> np.ndarray:
    """Returns a disc, (D, D) bool, of at least `area` px: the smallest that can be centred on a pixel."""
    radius = math.sqrt(area / math.pi)
    while True:
        r = math.ceil(radius)
        y, x = np.mgrid[-r:r + 1, -r:r + 1]
        disc = y**2 + x**2 <= radius**2
        if disc.sum() >= area:
            return _crop(disc)
        radius += 0.1


def _edit(rng: torch.Generator, shape: np.ndarray, *, n_pixels: int, shrink: float) -> np.ndarray:
    """Returns `shape` rotated by a multiple of 90 degrees, perhaps mirrored, and scaled into the bounds of area."""
    shape = np.rot90(shape, choice(rng, 4))
    shape = shape[:, ::-1] if choice(rng, 2) else shape
    area = shape.sum() * (math.exp(uniform(rng, math.log(0.7), math.log(1.4))) * shrink)**2
    # Just inside the bounds, for rounding to whole pixels moves the area a little.
    area = min(max(area, 1.1 * MIN_SHARE * n_pixels), 0.95 * MAX_SHARE * n_pixels)
    scale = math.sqrt(area / shape.sum())
    h, w = (max(1, round(scale * side)) for side in shape.shape)
    y, x = (np.arange(h) + 0.5) * shape.shape[0] / h, (np.arange(w) + 0.5) * shape.shape[1] / w
    return shape[y.astype(int)][:, x.astype(int)]


def _place(rng: torch.Generator, shape: np.ndarray, blocked: np.ndarray) -> np.ndarray | None:
    """Returns `shape` at a uniformly random place of the frame where nothing of `blocked` (H, W) is; None without."""
    n_pixels, (h, w) = blocked.size, shape.shape
    if h > blocked.shape[0] or w > blocked.shape[1] or not MIN_SHARE <= shape.sum() / n_pixels <= MAX_SHARE:
        return None
    # Labelled pixels under the shape, for every place of its corner.
    covered = signal.fftconvolve(blocked.astype(float), shape[::-1, ::-1].astype(float), mode="valid")
    free = np.argwhere(covered < 0.5)
    if not len(free):
        return None
    top, left = free[choice(rng, len(free))]
    out = np.zeros_like(blocked)
    out[top:top + h, left:left + w] = shape
    return out


def _draw_one(rng: torch.Generator, blocked: np.ndarray, bank: Sequence[Sequence[np.ndarray]]) -> np.ndarray | None:
    n_pixels = blocked.size
    for k in range(TRIES if bank else 0):
        shapes = bank[choice(rng, len(bank))]
        # The whole foreground half of the time, else one component.
        shape = shapes[0] if choice(rng, 2) else shapes[1 + choice(rng, len(shapes) - 1)]
        placed = _place(rng, _edit(rng, shape, n_pixels=n_pixels, shrink=SHRINK**k), blocked)
        if placed is not None:
            return placed
    first = math.exp(uniform(rng, math.log(MIN_SHARE), math.log(0.9 * MAX_SHARE)))
    for share in (first, math.sqrt(first * MIN_SHARE), MIN_SHARE):
        placed = _place(rng, _disc(share * n_pixels), blocked)
        if placed is not None:
            return placed
    return None


def draw_placebo(labels: torch.Tensor, *, seed: int, groups: Sequence[str] | None = None) -> Placebos:
    """Returns a placebo and a decoy for each image of labels (N, H, W) that has room for them.

    A placebo is the foreground, or one connected component of it, of an image of another group: rotated by a multiple
    of 90 degrees, perhaps mirrored, scaled, and put at a uniformly random place of the frame that holds background
    only, `GAP_PX` off every labelled pixel (255, ignored, counts as labelled). Where it finds no place it is drawn
    again and smaller, at last as a disc; its area is `MIN_SHARE` to `MAX_SHARE` of the image. Row i depends on `seed`,
    i and the labels alone.

    Args:
        labels: zeros for an image without labels: a placebo may then cover an object that nobody annotated.
        groups: of each image, (N,); every image is its own if None. Without foreground elsewhere, discs are drawn.
    """
    names = list(groups) if groups is not None else [str(i) for i in range(len(labels))]
    maps = labels.numpy()
    shapes = [_shapes((one > 0) & (one != IGNORE)) for one in maps]
    banks = {g: [s for s, name in zip(shapes, names, strict=True) if s and name != g] for g in set(names)}
    square = np.ones((2 * GAP_PX + 1, 2 * GAP_PX + 1), bool)
    rows, keep, decoy = [], [], []
    for i, one in enumerate(maps):
        blocked = ndimage.binary_dilation(one > 0, square)
        found = [_draw_one(sample_rng(seed, kind, i), blocked, banks[names[i]]) for kind in ("placebo", "decoy")]
        if all(mask is not None for mask in found):
            rows.append(i)
            keep.append(found[0])
            decoy.append(found[1])
    empty = np.zeros((0, *maps.shape[1:]), bool)
    return Placebos(tuple(rows), *(torch.from_numpy(np.stack(m) if m else empty) for m in (keep, decoy)))

"""One warp of image and mask: mirror, scale, turn, shift and elastic displacement in a single sampling grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from synth.core.rng import uniform
from synth.core.space import labels_to_keep
from synth.layouts.settings import LayoutSettings, Mirror

NODES = 4
"""Nodes a side of the coarse grid of elastic offsets; the outer ones lie on the image's border."""


@dataclass(frozen=True)
class Affine:
    """One edit: mirrored first, then scaled, rotated (degrees) and shifted (share of the side, x right, y down).

    Attributes:
        elastic: 2 x NODES x NODES offsets (x of all nodes row by row, then y; share of the side) by which the place
            that a pixel comes from moves, smooth between the nodes; empty = none.
    """

    flip: Mirror
    scale: float
    rotate_deg: float
    shift_x: float
    shift_y: float
    elastic: tuple[float, ...] = ()


IDENTITY = Affine(flip="none", scale=1.0, rotate_deg=0.0, shift_x=0.0, shift_y=0.0)


def foreground_of(mask: np.ndarray) -> np.ndarray:
    """Returns where labels (..., H, W) are foreground, bool of the same shape."""
    return labels_to_keep(torch.from_numpy(np.ascontiguousarray(mask))).numpy()


def _draw_elastic(rng: torch.Generator, amount: float) -> tuple[float, ...]:
    # Offsets beyond two deviations are cut: with bicubic interpolation the steepest slope is then about 18 amounts
    # (0.9 for the largest amount allowed), so that the warp never folds.
    offsets = torch.randn(2 * NODES * NODES, generator=rng, dtype=torch.float64).clamp_(-2, 2) * amount
    return tuple(round(v, 5) for v in offsets.tolist()) if amount else ()


def draw_affine(rng: torch.Generator, settings: LayoutSettings) -> Affine:
    """Returns random parameters within `settings`."""
    across, down = uniform(rng, 0, 1) < 0.5, uniform(rng, 0, 1) < 0.5
    across, down = across and settings.flip in ("horizontal", "both"), down and settings.flip in ("vertical", "both")
    words: tuple[Mirror, ...] = ("none", "horizontal", "vertical", "both")
    return Affine(
        flip=words[across + 2 * down],
        scale=math.exp(uniform(rng, math.log(settings.scale[0]), math.log(settings.scale[1]))),
        rotate_deg=uniform(rng, -settings.rotate_deg, settings.rotate_deg),
        shift_x=uniform(rng, -settings.shift, settings.shift), shift_y=uniform(rng, -settings.shift, settings.shift),
        elastic=_draw_elastic(rng, settings.elastic))


def _signs(params: Affine) -> tuple[float, float]:
    """Returns the mirror's signs along x and y."""
    return (-1.0 if params.flip in ("horizontal", "both") else 1.0,
            -1.0 if params.flip in ("vertical", "both") else 1.0)


def sampling_grid(params: Affine, shape: tuple[int, int]) -> torch.Tensor:
    """Returns the grid (1, H, W, 2) of where each output pixel comes from, the image's border at -1 and 1."""
    angle, s = math.radians(params.rotate_deg), 1 / params.scale
    cos, sin = math.cos(angle) * s, math.sin(angle) * s
    mx, my = _signs(params)
    x, y = -2 * params.shift_x, -2 * params.shift_y
    tall = shape[0] / shape[1]  # the grid counts in half sides, and a rotation in pixels
    rows = [[mx * cos, mx * sin * tall, mx * (cos * x + sin * tall * y)],
            [-my * sin / tall, my * cos, my * (-sin / tall * x + cos * y)]]
    grid = F.affine_grid(torch.tensor([rows], dtype=torch.float64), [1, 1, *shape], align_corners=False)
    if params.elastic:
        nodes = torch.tensor(params.elastic, dtype=torch.float64).view(1, 2, NODES, NODES)
        grid = grid + 2 * F.interpolate(nodes, shape, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return grid


def shift_to(params: Affine, *, origin: tuple[float, float], target: tuple[float, float],
             shape: tuple[int, int]) -> Affine:
    """Returns `params` with the shift that brings `origin` to `target`, both (x, y) with the border at -1 and 1.

    Args:
        shape: (H, W) of the image.
    """
    angle, (mx, my) = math.radians(params.rotate_deg), _signs(params)
    cos, sin = math.cos(angle) * params.scale, math.sin(angle) * params.scale
    x, y, tall = mx * origin[0], my * origin[1], shape[0] / shape[1]
    return replace(params, shift_x=(target[0] - (cos * x - sin * tall * y)) / 2,
                   shift_y=(target[1] - (sin / tall * x + cos * y)) / 2)


def apply_image(image: np.ndarray, params: Affine, *, extended: np.ndarray | None = None) -> np.ndarray:
    """Returns pixels (C, H, W), same dtype: bilinear, interpolated once, mirrored at the border, rounded.

    Args:
        extended: (H, W) bool, pixels that continue the border outwards in the place of mirroring it: the moved frame.
    """
    if params == IDENTITY:
        return image
    values, grid = torch.from_numpy(image.astype(np.float64))[None], sampling_grid(params, image.shape[-2:])
    moved = F.grid_sample(values, grid, padding_mode="reflection", align_corners=False)[0]
    if extended is not None and extended.any():  # the same grid: no pixel is interpolated twice
        outwards = F.grid_sample(values, grid, padding_mode="border", align_corners=False)[0]
        moved = torch.where(torch.from_numpy(extended), outwards, moved)
    return moved.round_().clamp_(0, np.iinfo(image.dtype).max).numpy().astype(image.dtype)


def apply_mask(mask: np.ndarray, params: Affine) -> np.ndarray:
    """Returns labels (H, W) uint8: nearest neighbour, background where the frame moved in."""
    return _nearest(mask, params, padding="zeros").astype(np.uint8)


def mirrored_in(mask: np.ndarray, params: Affine) -> np.ndarray:
    """Returns where `apply_image` mirrors what is not plain background into the frame, (H, W) bool.

    `apply_mask` says background there: it is a second look at an object, or at what nobody could tell.
    """
    beyond = _nearest(np.ones_like(mask), params, padding="zeros") < 0.5
    return beyond & (_nearest(mask, params, padding="reflection") > 0)


def apply_region(region: np.ndarray, params: Affine) -> np.ndarray:
    """Returns the moved region (H, W) bool: nearest, continued outwards where it met the border, as a frame is.

    Mirrored there, a black corner would become a black diamond amid the tissue.
    """
    return _nearest(region, params, padding="border") > 0.5


def _nearest(values: np.ndarray, params: Affine, *, padding: str) -> np.ndarray:
    if params == IDENTITY:
        return values
    source = torch.from_numpy(values.astype(np.float64))[None, None]
    return F.grid_sample(source, sampling_grid(params, values.shape), mode="nearest", padding_mode=padding,
                         align_corners=False)[0, 0].numpy()


def stays_inside(moved: np.ndarray, params: Affine, *, area: int, min_foreground: float) -> bool:
    """Returns whether enough of a foreground of `area` pixels is left in the labels (H, W) that `params` moved."""
    return int(foreground_of(moved).sum()) >= max(1, min_foreground * area * params.scale**2)


def draw_fitting(rng: torch.Generator, mask: np.ndarray, settings: LayoutSettings, *, tries: int = 20) -> Affine:
    """Returns the first random edit that keeps `min_foreground` of the foreground of mask (H, W) in the frame.

    After `tries` misses (an object that fills the frame) the pair is only mirrored or left as it is.
    """
    area = int(foreground_of(mask).sum())
    for _ in range(tries):
        params = draw_affine(rng, settings)
        if stays_inside(apply_mask(mask, params), params, area=area, min_foreground=settings.min_foreground):
            return params
    return replace(IDENTITY, flip=params.flip)

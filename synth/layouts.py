"""New label masks from old ones: draw the parameters, then apply them to image and mask alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat

from synth.core.config import Settings
from synth.core.rng import uniform


class LayoutSettings(Settings):
    """Ranges of the random affine edit of a pair before it is painted.

    Attributes:
        flip: mirror left-right half of the time; only where the anatomy allows it.
        scale: smallest and largest magnification. rotate_deg: largest angle. shift: largest move, share of the side.
        min_foreground: share of the foreground's area that must stay inside the frame.
    """

    flip: bool = True
    scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.2)
    rotate_deg: float = Field(20.0, ge=0, le=180)
    shift: float = Field(0.15, ge=0, le=0.5)
    min_foreground: float = Field(0.6, ge=0, le=1)


@dataclass(frozen=True)
class Affine:
    """One edit: mirrored first, then scaled, rotated (degrees) and shifted (share of the side, x right, y down)."""

    flip: bool
    scale: float
    rotate_deg: float
    shift_x: float
    shift_y: float


IDENTITY = Affine(flip=False, scale=1.0, rotate_deg=0.0, shift_x=0.0, shift_y=0.0)


def draw_affine(rng: torch.Generator, settings: LayoutSettings) -> Affine:
    """Returns random parameters within `settings`."""
    return Affine(
        flip=settings.flip and uniform(rng, 0, 1) < 0.5,
        scale=math.exp(uniform(rng, math.log(settings.scale[0]), math.log(settings.scale[1]))),
        rotate_deg=uniform(rng, -settings.rotate_deg, settings.rotate_deg),
        shift_x=uniform(rng, -settings.shift, settings.shift), shift_y=uniform(rng, -settings.shift, settings.shift))


def _grid(params: Affine, shape: tuple[int, int]) -> torch.Tensor:
    """Returns the sampling grid (1, H, W, 2): where each output pixel comes from."""
    angle, s = math.radians(params.rotate_deg), 1 / params.scale
    cos, sin = math.cos(angle) * s, math.sin(angle) * s
    mirror = -1.0 if params.flip else 1.0
    x, y = -2 * params.shift_x, -2 * params.shift_y
    rows = [[mirror * cos, mirror * sin, mirror * (cos * x + sin * y)], [-sin, cos, -sin * x + cos * y]]
    return F.affine_grid(torch.tensor([rows], dtype=torch.float64), [1, 1, *shape], align_corners=False)


def apply_image(image: np.ndarray, params: Affine) -> np.ndarray:
    """Returns pixels (C, H, W), same dtype: bilinear, mirrored at the border, rounded."""
    if params == IDENTITY:
        return image
    values = torch.from_numpy(image.astype(np.float64))[None]
    moved = F.grid_sample(values, _grid(params, image.shape[-2:]), padding_mode="reflection", align_corners=False)[0]
    return moved.round_().clamp_(0, np.iinfo(image.dtype).max).numpy().astype(image.dtype)


def apply_mask(mask: np.ndarray, params: Affine) -> np.ndarray:
    """Returns labels (H, W) uint8: nearest neighbour, background where the frame moved in."""
    if params == IDENTITY:
        return mask
    values = torch.from_numpy(mask.astype(np.float64))[None, None]
    moved = F.grid_sample(values, _grid(params, mask.shape), mode="nearest", padding_mode="zeros", align_corners=False)
    return moved[0, 0].numpy().astype(np.uint8)


def draw_fitting(rng: torch.Generator, mask: np.ndarray, settings: LayoutSettings, *, tries: int = 20) -> Affine:
    """Returns the first random edit that keeps `min_foreground` of the foreground of mask (H, W) in the frame.

    After `tries` misses (an object that fills the frame) the pair is only mirrored or left as it is.
    """
    area = int(((mask > 0) & (mask != 255)).sum())
    for _ in range(tries):
        params = draw_affine(rng, settings)
        moved = apply_mask(mask, params)
        inside = int(((moved > 0) & (moved != 255)).sum())
        if inside >= max(1, settings.min_foreground * area * params.scale**2):
            return params
    return Affine(params.flip, 1.0, 0.0, 0.0, 0.0)

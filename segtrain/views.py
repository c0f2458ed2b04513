"""Perturbations of a batch. Each returns (images, Warp); what moves pixels moves targets by the same Warp."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from pydantic import Field

from segtrain.geometry import (
    draw_geometry,
    geometry_grid,
    inside_grid,
    sample_labels,
    sample_nearest,
    sample_smooth,
)
from segtrain.intensity import apply_intensity, draw_intensity
from segtrain.settings import AugmentSettings, GeometrySettings, IntensitySettings
from segtrain.targets import Target
from synth.core.config import Settings

Rngs = Sequence[torch.Generator]


class Warp(ABC):
    """Where the pixels of a view came from."""

    @abstractmethod
    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) moved like the images; `nearest` for what must not be blended."""

    def known(self, valid: torch.Tensor) -> torch.Tensor:
        """Returns valid (B, H, W) bool moved like the images, False where nothing came from."""
        return self.move(valid, nearest=True)

    def apply(self, target: Target) -> Target:
        """Returns `target` with prob (B, K, H, W), hard, weight and valid (B, H, W) moved like the images."""
        return replace(
            target, prob=None if target.prob is None else self.move(target.prob, nearest=False),
            hard=None if target.hard is None else self.move(target.hard, nearest=True),
            weight=self.move(target.weight, nearest=False), valid=self.known(target.valid))


class Stay(Warp):
    """Nothing moved."""

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) as they are."""
        return values


@dataclass(frozen=True)
class GridWarp(Warp):
    """Output pixels come from positions `grid` (B, H, W, 2) of the input."""

    grid: torch.Tensor

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) sampled at the grid."""
        if nearest:
            return sample_nearest(values, self.grid)
        return sample_smooth(values, self.grid) if values.ndim == 4 else sample_smooth(values[:, None], self.grid)[:, 0]

    def known(self, valid: torch.Tensor) -> torch.Tensor:
        """Returns valid (B, H, W) bool sampled at the grid, False beyond the border."""
        return sample_nearest(valid, self.grid) & inside_grid(self.grid)


@dataclass(frozen=True)
class MixWarp(Warp):
    """Pixels in `pasted` (B, H, W) bool come from the batch's row `partner` (B,), the rest stay."""

    pasted: torch.Tensor
    partner: torch.Tensor

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) with the partner's pixels pasted."""
        pasted = self.pasted if values.ndim == 3 else self.pasted[:, None]
        return torch.where(pasted, values[self.partner], values)


@dataclass(frozen=True)
class ChainWarp(Warp):
    """One warp after another."""

    warps: tuple[Warp, ...]

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) moved by each warp in turn."""
        for warp in self.warps:
            values = warp.move(values, nearest=nearest)
        return values

    def known(self, valid: torch.Tensor) -> torch.Tensor:
        """Returns valid (B, H, W) bool moved by each warp in turn."""
        for warp in self.warps:
            valid = warp.known(valid)
        return valid


class Perturbation(Protocol):
    """Anything that turns unit images (B, C, H, W) into a view of them, with one generator per row."""

    def __call__(self, images: torch.Tensor, rngs: Rngs) -> tuple[torch.Tensor, Warp]:
        """Returns the view (B, C, H, W) and where its pixels came from."""


def weak(images: torch.Tensor, rngs: Rngs, settings: GeometrySettings) -> tuple[torch.Tensor, Warp]:
    """Returns unit images (B, C, H, W) flipped, rotated, zoomed and shifted, and the grid that did it."""
    grid = geometry_grid(draw_geometry(rngs, settings), tuple(images.shape[-2:]), images.device)
    return sample_smooth(images, grid), GridWarp(grid)


def augment_pairs(images: torch.Tensor, labels: torch.Tensor, rngs: Rngs,
                  settings: AugmentSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns augmented unit images (B, C, H, W) and labels (B, H, W); 255 where the image was made up."""
    images, warp = weak(images, rngs, settings.geometry)
    labels = sample_labels(labels, warp.grid)
    return apply_intensity(images, draw_intensity(rngs, settings.intensity)), labels


@dataclass(frozen=True)
class Boxes:
    """Drawn rectangles, (B, 4) as top, left, bottom, right in shares of the side; empty where nothing is pasted."""

    edges: torch.Tensor


def draw_boxes(rngs: Rngs, settings: CutMix) -> Boxes:
    """Returns one box per generator: area uniform, aspect ratio log-uniform, place uniform."""
    u = torch.stack([torch.rand(5, generator=rng, dtype=torch.float64) for rng in rngs])
    area = settings.area_low + (settings.area_high - settings.area_low) * u[:, 1]
    ratio = settings.aspect ** (2 * u[:, 2] - 1)
    height, width = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    top, left = u[:, 3] * (1 - height), u[:, 4] * (1 - width)
    edges = torch.stack([top, left, top + height, left + width], dim=1)
    return Boxes(edges * (u[:, :1] < settings.p))


def apply_boxes(images: torch.Tensor, boxes: Boxes) -> tuple[torch.Tensor, Warp]:
    """Returns images (B, C, H, W) with the next row's pixels inside each box, and the Warp."""
    n, _, height, width = images.shape
    top, left, bottom, right = boxes.edges.to(images.device, torch.float32)[..., None, None].unbind(1)
    y = ((torch.arange(height, device=images.device) + 0.5) / height)[None, :, None]
    x = ((torch.arange(width, device=images.device) + 0.5) / width)[None, None, :]
    pasted = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    warp = MixWarp(pasted, torch.arange(n, device=images.device).roll(-1))
    return warp.move(images, nearest=True), warp


class Strong(IntensitySettings):
    """Slot member `strong`: strong changes of grey values and colours; defaults after UniMatch's colour jitter."""

    p_colour: float = Field(0.8, ge=0, le=1)
    brightness: float = Field(0.5, ge=0, lt=1)
    contrast: float = Field(0.5, ge=0, lt=1)
    saturation: float = Field(0.5, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)
    p_blur: float = Field(0.5, ge=0, le=1)

    def __call__(self, images: torch.Tensor, rngs: Rngs) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return apply_intensity(images, draw_intensity(rngs, self)), Stay()


class Move(GeometrySettings):
    """Slot member `move`: flips, rotation, zoom and shift of the student's view alone; the target follows."""

    def __call__(self, images: torch.Tensor, rngs: Rngs) -> tuple[torch.Tensor, Warp]:
        """Returns moved unit images (B, C, H, W) and where their pixels came from."""
        return weak(images, rngs, self)


class CutMix(Settings):
    """Slot member `cutmix`: a rectangle of the next image in the batch (Yun et al. 2019; French et al. 2020).

    Attributes:
        p: share of images that get one. area_low, area_high: of the image. aspect: largest side ratio.
    """

    p: float = Field(0.5, ge=0, le=1)
    area_low: float = Field(0.02, gt=0, le=1)
    area_high: float = Field(0.4, gt=0, le=1)
    aspect: float = Field(3.3, ge=1)

    def __call__(self, images: torch.Tensor, rngs: Rngs) -> tuple[torch.Tensor, Warp]:
        """Returns mixed images (B, C, H, W) and where their pixels came from."""
        return apply_boxes(images, draw_boxes(rngs, self))


PERTURBATIONS: dict[str, type[Settings]] = {"strong": Strong, "move": Move, "cutmix": CutMix}
"""Perturbations by the name that method files use."""

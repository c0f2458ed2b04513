"""Perturbations that change intensities, move pixels, or mix rectangles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.settings import GeometrySettings, IntensitySettings
from segtrain.transforms.intensity import apply_intensity, draw_intensity
from segtrain.transforms.noise import NoiseSettings, bounded_noise
from segtrain.transforms.warps import MixWarp, Rngs, Stay, Warp
from segtrain.views.weak import weak
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


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

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns changed unit images (B, C, H, W); nothing moved."""
        return apply_intensity(images, draw_intensity(rngs, self)), Stay()


class Move(GeometrySettings):
    """Slot member `move`: flips, rotation, zoom and shift of the student's view alone; the target follows."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
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

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns mixed images (B, C, H, W) and where their pixels came from."""
        return apply_boxes(images, draw_boxes(rngs, self))


class InputNoise(NoiseSettings):
    """Slot member `noise`: Mean Teacher's clamp(sigma N(0, 1), -limit, limit), in units of the unit space."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns noisy unit images (B, C, H, W); nothing moved."""
        return images + bounded_noise(images.shape[1:], rngs, self, images.device), Stay()


BASIC: dict[str, type[Settings]] = {"strong": Strong, "move": Move, "cutmix": CutMix, "noise": InputNoise}
"""Perturbations of this module by the name that method files use."""

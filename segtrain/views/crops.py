"""Windows on an image, moved by whole pixels, with a way back into the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import Field

from segtrain.transforms.warps import Rngs, Warp, take_pixels
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


@dataclass(frozen=True)
class Shifts:
    """Drawn moves of B windows, (B, 2) down and right, in shares of the height and width."""

    share: torch.Tensor


def draw_shifts(rngs: Rngs, settings: CropPair) -> Shifts:
    """Returns one move per generator, uniform up to `settings.shift` each way."""
    u = torch.stack([torch.rand(2, generator=rng, dtype=torch.float64) for rng in rngs])
    return Shifts(settings.shift * (2 * u - 1))


@dataclass(frozen=True)
class ShiftWarp(Warp):
    """Pixel (y, x) of the window comes from (y, x) + `shift` (B, 2), px, of the image; beyond it is mirrored."""

    shift: torch.Tensor

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) as the window shows them."""
        return take_pixels(values, self._source(values, 1)[0])

    def known(self, valid: torch.Tensor) -> torch.Tensor:
        """Returns valid (B, H, W) bool as the window shows it, False beyond the image."""
        index, inside = self._source(valid, 1)
        return take_pixels(valid, index) & inside

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, H, W) and valid (B, H, W) at the image's pixels; what the window cut off is invalid."""
        index, inside = self._source(values, -1)
        return take_pixels(values, index), take_pixels(valid, index) & inside

    def _source(self, values: torch.Tensor, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns for each pixel the row-by-row index (B, H, W) of where it comes from, and whether that is inside."""
        height, width = values.shape[-2:]
        shift = sign * self.shift.to(values.device)
        y = torch.arange(height, device=values.device)[None, :, None] + shift[:, 0, None, None]
        x = torch.arange(width, device=values.device)[None, None, :] + shift[:, 1, None, None]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return _mirror(y, height) * width + _mirror(x, width), inside


def _mirror(position: torch.Tensor, n: int) -> torch.Tensor:
    # Edges are not repeated: -1 is 1, n is n - 2.
    return (n - 1 - ((position % max(2 * n - 2, 1)) - (n - 1)).abs()).clamp(0, n - 1)


class CropPair(Settings):
    """Slot member `crop`: a window of the image's own size, moved by whole pixels; two views are two such windows.

    What both show, each shows in another context (TraCoCo, Liu et al. 2022). What lies beyond the image is mirrored and
    not valid.

    Attributes:
        shift: largest move, share of the side: two windows share at least (1 - 2 shift)^2 of the image.
    """

    shift: float = Field(0.2, ge=0, lt=0.5)

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns what the windows show of unit images (B, C, H, W), and where it came from."""
        share = draw_shifts(rngs, self).share.to(images.device)
        warp = ShiftWarp((share * torch.tensor(images.shape[-2:], device=images.device)).round().long())
        return warp.move(images, nearest=True), warp


CROPS: dict[str, type[Settings]] = {"crop": CropPair}
"""Perturbations of this module by the name that method files use."""

"""Where the pixels of a view came from: what moves an image moves its target by the same Warp."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from segtrain.targets.target import Target
from segtrain.transforms.geometry import inside_grid, inverse_grid, sample_nearest, sample_smooth
from synth.core.checks import UserError

Rngs = Sequence[torch.Generator]
"""One generator per image of a batch."""


class Warp(ABC):
    """Where the pixels of a view came from."""

    @abstractmethod
    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) moved like the images; `nearest` for what must not be blended."""

    def known(self, valid: torch.Tensor) -> torch.Tensor:
        """Returns valid (B, H, W) bool moved like the images, False where nothing came from."""
        return self.move(valid, nearest=True)

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, H, W) or (B, H, W) of a view at the pixels of the images before the move.

        With them comes where they are known there, (B, H, W) bool, of where they were in the view, `valid`.

        Raises:
            UserError: if this move has no way back.
        """
        raise UserError(type(self).__name__, rule="this move of pixels has no way back, and a term that "
                        "compares two views needs one", repair="compare views that only crop, mix or change greys")

    def apply(self, target: Target) -> Target:
        """Returns `target` with prob (B, K, H, W), hard, weight and valid (B, H, W) moved like the images."""
        return replace(
            target, prob=None if target.prob is None else self.move(target.prob, nearest=False),
            hard=None if target.hard is None else self.move(target.hard, nearest=True),
            weight=self.move(target.weight, nearest=False), valid=self.known(target.valid),
            pasted=None if target.pasted is None else self.move(target.pasted, nearest=True))


class Stay(Warp):
    """Nothing moved."""

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) as they are."""
        return values

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, H, W) or (B, H, W) and valid (B, H, W) as they are."""
        return values, valid


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

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, H, W) or (B, H, W), and valid (B, H, W), at the pixels before the move.

        Smooth values are blended, all others the nearest's; pixels that the view did not show are not valid.
        """
        grid = inverse_grid(self.grid)
        shown = grid.isfinite().all(dim=-1)
        grid = grid.where(shown[..., None], torch.zeros_like(grid))
        moved = GridWarp(grid).move(values, nearest=not values.is_floating_point())
        return moved, sample_nearest(valid, grid) & shown


@dataclass(frozen=True)
class MixWarp(Warp):
    """Pixels in `pasted` (B, H, W) bool come from the batch's row `partner` (B,), the rest stay."""

    pasted: torch.Tensor
    partner: torch.Tensor

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) with the partner's pixels pasted."""
        pasted = self.pasted if values.ndim == 3 else self.pasted[:, None]
        return torch.where(pasted, values[self.partner], values)

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, H, W) or (B, H, W) as they are, valid only where no partner was pasted."""
        return values, valid & ~self.pasted


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

    def apply(self, target: Target) -> Target:
        """Returns `target` moved by each warp in turn, so that one which brings a target of its own can."""
        for warp in self.warps:
            target = warp.apply(target)
        return target

    def back(self, values: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns values (B, C, H, W) or (B, H, W) and valid (B, H, W), moved back by each warp from the last on."""
        for warp in reversed(self.warps):
            values, valid = warp.back(values, valid)
        return values, valid


def take_pixels(values: torch.Tensor, index: torch.Tensor, *, across: bool = False) -> torch.Tensor:
    """Returns values (B, C, H, W) or (B, H, W) of any type whose pixels are those that `index` (B, H, W) names.

    Pixels are counted row by row in each image; `across` the whole batch, image after image.
    """
    n, height, width = values.shape[0], *values.shape[-2:]
    if not across:
        index = index + height * width * torch.arange(n, device=index.device)[:, None, None]
    if values.ndim == 3:
        return values.reshape(-1)[index]
    return values.movedim(1, -1).reshape(n * height * width, -1)[index].movedim(-1, 1)

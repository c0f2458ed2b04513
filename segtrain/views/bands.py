"""Perturbations of CFC-Net: one frequency band, and patches exchanged by their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field

from segtrain.transforms.bands import Band
from segtrain.transforms.warps import Rngs, Stay, Warp, take_pixels
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.scene import Scene


class OneBand(Band):
    """Slot member `band`: one frequency band of the images."""

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns the band (B, C, H, W) of unit images; nothing moved."""
        return self.of(images), Stay()


@dataclass(frozen=True)
class PatchWarp(Warp):
    """Pixels come from the whole batch's pixels `index` (B, H, W), counted row by row, image after image."""

    index: torch.Tensor

    def move(self, values: torch.Tensor, *, nearest: bool) -> torch.Tensor:
        """Returns values (B, C, H, W) or (B, H, W) with the patches exchanged."""
        return take_pixels(values, self.index, across=True)


def patch_warp(entropy: torch.Tensor, *, n_cells: int, n_patches: int) -> PatchWarp:
    """Returns the exchange of each image's most uncertain patches for the most certain ones of the batch (UCF-Mix).

    Args:
        entropy: (B, H, W). n_cells: patches along each side; what is left over stays. n_patches: how many per image.
    """
    n, height, width = entropy.shape
    sides = max(height // n_cells, 1), max(width // n_cells, 1)
    cells = F.avg_pool2d(entropy[:, None], sides).flatten(1)
    n_columns = width // sides[1]
    wanted = min(n_patches, cells.shape[1])
    replaced = cells.topk(wanted, dim=1).indices
    certain = cells.flatten().topk(wanted, largest=False).indices
    index = torch.arange(n * height * width, device=entropy.device).reshape(n, height, width)
    moved = index.clone()
    for row in range(n):
        for old, new in zip(replaced[row].tolist(), certain.tolist(), strict=True):
            image, cell = divmod(new, cells.shape[1])
            moved[(row, *_window(old, n_columns, sides))] = index[(image, *_window(cell, n_columns, sides))]
    return PatchWarp(moved)


def _window(cell: int, n_columns: int, sides: tuple[int, int]) -> tuple[slice, slice]:
    y, x = divmod(cell, n_columns)
    return slice(y * sides[0], (y + 1) * sides[0]), slice(x * sides[1], (x + 1) * sides[1])


def mean_entropy(logits: list[torch.Tensor]) -> torch.Tensor:
    """Returns the entropy (B, H, W), nats, of the mean probability that several logits (B, K, H, W) stand for."""
    prob = torch.stack([some.float().softmax(dim=1) for some in logits]).mean(dim=0)
    return -torch.xlogy(prob, prob).sum(dim=1)


class UcfMix(Settings):
    """Slot member `ucf_mix`: where student and teacher together know least, what they know best is shown instead.

    Attributes:
        student, teacher: names; null = the first branch, and who labels for it. band: what the student sees of the
            images; null = all. cells: patches along each side. n: patches exchanged in each image.
    """

    student: str | None = None
    teacher: str | None = None
    band: Band | None = None
    cells: int = Field(16, ge=1)
    n: int = Field(2, ge=0)

    def __call__(self, images: torch.Tensor, rngs: Rngs, scene: Scene) -> tuple[torch.Tensor, Warp]:
        """Returns mixed unit images (B, C, H, W) and where their pixels came from."""
        student = self.student or scene.topology.branches[0]
        teacher = self.teacher or scene.topology.labeller(student)
        said = [scene.said_of_form(student, band=self.band).logits, scene.said(teacher).logits]
        warp = patch_warp(mean_entropy(said), n_cells=self.cells, n_patches=self.n)
        return warp.move(images, nearest=True), warp


BANDS: dict[str, type[Settings]] = {"band": OneBand, "ucf_mix": UcfMix}
"""Perturbations of this module by the name that method files use."""

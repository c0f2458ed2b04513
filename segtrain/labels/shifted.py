"""Plausible labels where one rater alone drew: the borders of a mask, moved in and out by a smooth random field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from scipy.ndimage import distance_transform_edt

from synth.core.checks import IGNORE
from synth.core.config import Settings

if TYPE_CHECKING:
    from segtrain.transforms.warps import Rngs


LARGEST = 0.45
"""Of the greatest depth of the thinnest class a border may move: less than half, so its deepest pixel is safe."""


class ShiftSettings(Settings):
    """How much two raters differ.

    Attributes:
        n: plausible masks of each image, the given one among them.
        shift: standard deviation of how far a class's whole border moves, share of the side.
        wave: standard deviation of how far single stretches of it move, share of the side. cells: their coarseness, so
            many across the image.
    """

    n: int = Field(4, ge=1, le=32)
    shift: float = Field(0.015, ge=0, le=0.25)
    wave: float = Field(0.015, ge=0, le=0.25)
    cells: int = Field(4, ge=2, le=32)


@dataclass(frozen=True)
class Shifts:
    """How far borders move outwards: whole ones (B, N, K), and stretches (B, N, K, c, c), shares of the side."""

    whole: torch.Tensor
    waves: torch.Tensor


def draw_shifts(rngs: Rngs, n_classes: int, settings: ShiftSettings) -> Shifts:
    """Returns the shifts of N - 1 masks for each generator; the given mask is the one that is not shifted."""
    n, cells = settings.n - 1, settings.cells
    whole = torch.stack([torch.randn((n, n_classes), generator=rng) for rng in rngs])
    waves = torch.stack([torch.randn((n, n_classes, cells, cells), generator=rng) for rng in rngs])
    return Shifts(settings.shift * whole, settings.wave * waves)


def depths(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Returns how deep inside each class a pixel lies, (K, H, W), px, negative outside; labels (H, W).

    A class that is nowhere is infinitely far. Half a pixel is where a border runs: no pixel lies at 0.
    """
    found = np.full((n_classes, *labels.shape), -np.inf, np.float32)
    for k in np.unique(labels[labels != IGNORE]):
        inside = labels == k
        outside = distance_transform_edt(~inside) - 0.5
        found[k] = np.where(inside, distance_transform_edt(inside) - 0.5, -outside) if not inside.all() else np.inf
    return found


def apply_shifts(labels: torch.Tensor, shifts: Shifts) -> torch.Tensor:
    """Returns plausible labels (B, 1 + N, H, W) of labels (B, H, W): themselves, and N with moved borders.

    Each pixel goes to the class in which it lies deepest, once a foreground class's depth is raised by twice its shift:
    the neighbour's depth falls as its own rises. No border moves by half of the greatest depth of the thinnest class
    that is there, so no foreground class vanishes; a pixel that is ignored stays so.
    """
    n_classes, size = shifts.whole.shape[2], labels.shape[-2:]
    waves = F.interpolate(shifts.waves.flatten(0, 1), size, mode="bicubic", align_corners=True)
    move = max(size) * (waves.unflatten(0, shifts.whole.shape[:2]) + shifts.whole[..., None, None])
    depth = torch.from_numpy(np.stack([depths(one, n_classes) for one in labels.cpu().numpy()]))
    deepest = depth[:, 1:].flatten(2).amax(dim=2)
    limit = LARGEST * deepest.masked_fill(deepest < 0, torch.inf).amin(dim=1)[:, None, None, None, None]
    move = move.minimum(limit).maximum(-limit)
    move[:, :, 0] = 0
    moved = (depth[:, None] + 2 * move).argmax(dim=2).to(labels)
    moved = torch.where(labels[:, None] == IGNORE, IGNORE, moved)
    return torch.cat([labels[:, None], moved], dim=1)

"""Frequencies of a real image's half spectrum: which ring and which direction each coefficient belongs to.

Frequencies are in cycles per pixel. Ring 0 is the mean of the image alone (DC); ring r >= 1 holds the frequencies from
r to r + 1 times 0.5 / n_rings; what lies beyond 0.5, in the corners of the spectrum, is a bucket of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

ROUNDING = 1e-9
"""Added before rounding down: an integer radius must not fall into the ring below it by a rounding error."""


@dataclass(frozen=True)
class Grid:
    """Rings and directions of the half spectrum of images (H, W).

    Attributes:
        shape: (H, W). n_rings: rings below 0.5 cycles per pixel. ring: ((W // 2 + 1) * H,) int64, `n_rings` = beyond;
            column after column, for so transforms leave half spectra in a CPU's memory.
        cell: ring times sectors plus sector, int64, same shape. counts, cell_counts: coefficients of the full spectrum
            in each ring (n_rings + 1,) and cell (n_rings + 1, n_sectors), float32.
        members: places of the coefficients of ring 0, then of ring 1, and so on, (N,) int64; of a mirrored pair, one.
        starts: where among `members` each ring begins, (n_rings,) int64.
    """

    shape: tuple[int, int]
    n_rings: int
    n_sectors: int
    ring: torch.Tensor
    cell: torch.Tensor
    counts: torch.Tensor
    cell_counts: torch.Tensor
    members: np.ndarray
    starts: np.ndarray


def ring_frequencies(n_rings: int) -> torch.Tensor:
    """Returns the middle of each ring in cycles per pixel, (n_rings,) float64; 0 for the first."""
    middles = (torch.arange(n_rings, dtype=torch.float64) + 0.5) * (0.5 / n_rings)
    middles[0] = 0
    return middles


@lru_cache(maxsize=32)
def grid_of(shape: tuple[int, int], n_rings: int, *, n_sectors: int = 1, device: str = "cpu") -> Grid:
    """Returns the grid of images of `shape` (H, W), with its tensors on `device`.

    Sector 0 is centred on horizontal frequencies (upright stripes), sector n_sectors / 2 on vertical ones.
    """
    fy, fx = torch.fft.fftfreq(shape[0], dtype=torch.float64), torch.fft.rfftfreq(shape[1], dtype=torch.float64)
    radius = torch.hypot(fy[:, None], fx[None]) * (2 * n_rings)
    ring = (radius + ROUNDING).floor().long().clamp_(1, n_rings)
    ring[0, 0] = 0
    angle = torch.atan2(fy[:, None].expand(ring.shape), fx.expand(ring.shape)) / torch.pi * n_sectors
    cell = ring * n_sectors + (angle + 0.5).floor().long() % n_sectors
    ones, rings, cells = torch.ones(ring.shape), ring.mT.flatten(), cell.mT.flatten()
    counts = _sums(ones, rings, shape, n_rings + 1)
    cell_counts = _sums(ones, cells, shape, (n_rings + 1) * n_sectors).view(n_rings + 1, n_sectors)
    return Grid(shape, n_rings, n_sectors, *(t.to(device) for t in (rings, cells, counts, cell_counts)),
                *_members(ring, shape, n_rings))


def _members(ring: torch.Tensor, shape: tuple[int, int], n_rings: int) -> tuple[np.ndarray, np.ndarray]:
    # The first column mirrors itself; so does the last of an even width, but that lies beyond the rings.
    ring = ring.clone()
    ring[shape[0] // 2 + 1:, 0] = n_rings
    rings = ring.mT.flatten().numpy()
    order = rings.argsort(kind="stable")
    ends = np.searchsorted(rings[order], np.arange(n_rings + 1))
    return order[:ends[-1]], ends[:-1]


def _sums(values: torch.Tensor, index: torch.Tensor, shape: tuple[int, int], n: int) -> torch.Tensor:
    # Sums over the full spectrum of what the half spectrum (..., H, W // 2 + 1) holds. Every column stands for itself
    # and its mirror image, but for the first and, where the width is even, the last, which are their own.
    flat = values.mT.reshape(-1, index.numel())
    sums = flat.new_zeros(len(flat), n).index_add_(1, index, flat).mul_(2)
    index = index.view(-1, shape[0])
    for column in (0, -1) if shape[1] % 2 == 0 else (0,):
        once = values[..., column].reshape(-1, shape[0])
        sums.index_add_(1, index[column], once, alpha=-1)
    return sums.view(*values.shape[:-2], n)


def ring_sums(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the sums over each ring of the full spectrum, the corners last, (B, C, R), of values (B, C, H, F).

    F = W // 2 + 1 columns stand for the W of the full spectrum.
    """
    return _sums(values, grid.ring, grid.shape, grid.n_rings + 1)


def ring_means(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the mean of each ring, (B, C, R), of half spectra (B, C, H, F); the corners count nowhere.

    Of values that mirrored coefficients have in common, as amplitudes of real images are: one of each pair is read.
    """
    if values.device.type != "cpu" or values.requires_grad:
        return (ring_sums(values, grid) / grid.counts)[..., :-1]
    flat = values.mT.reshape(-1, grid.ring.numel()).numpy()
    # Half the time of index_add. A ring without members would be given its neighbour's first.
    sums = np.add.reduceat(flat.take(grid.members, axis=1), grid.starts, axis=1)
    sums[:, 1:] *= 2
    return torch.from_numpy(sums).view(*values.shape[:-2], grid.n_rings) / grid.counts[:-1]


def sector_means(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the mean of each sector of each ring, (B, C, R, A), of half spectra (B, C, H, F).

    Small rings have no coefficient in some directions: there stands the mean of the whole ring.
    """
    n = (grid.n_rings + 1) * grid.n_sectors
    sums = _sums(values, grid.cell, grid.shape, n).view(*values.shape[:-2], grid.n_rings + 1, grid.n_sectors)
    counts = grid.cell_counts
    ring = sums.sum(-1, keepdim=True) / counts.sum(-1, keepdim=True)
    return torch.where(counts > 0, sums / counts.clamp_min(1), ring)[..., :-1, :]


def to_coefficients(table: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the entry of `table` (B, C, R) for the ring of each coefficient, (B, C, H, F); corners as the last."""
    whole = torch.cat([table, table[..., -1:]], dim=-1).reshape(-1, grid.n_rings + 1)
    return whole.index_select(1, grid.ring).view(*table.shape[:-1], grid.shape[1] // 2 + 1, grid.shape[0]).mT

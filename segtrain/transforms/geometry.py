"""Moves of pixels, drawn per sample on the CPU and applied to the whole batch on its device through one grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from segtrain.settings import GeometrySettings
from synth.core.checks import IGNORE
from synth.core.rng import randn_each


@dataclass(frozen=True)
class Geometry:
    """Drawn moves of B samples.

    Attributes:
        theta: affine maps (B, 2, 3) from output to input positions in [-1, 1].
        displacement: smooth displacements (B, 2, n, n) of control points, px, or None.
    """

    theta: torch.Tensor
    displacement: torch.Tensor | None = None


def draw_geometry(rngs: Sequence[torch.Generator], settings: GeometrySettings) -> Geometry:
    """Returns one move per generator; row i depends on `rngs[i]` alone."""
    u = torch.stack([torch.rand(7, generator=rng, dtype=torch.float64) for rng in rngs])
    rotated, zoomed, shifted = _hits(u[:, 0], rngs, settings)
    angle = rotated * (2 * u[:, 1] - 1) * math.radians(settings.rotate_deg)
    scale = torch.exp(-zoomed * (2 * u[:, 2] - 1) * math.log1p(settings.zoom))
    shift = 2 * settings.shift * shifted[:, None] * (2 * u[:, 3:5] - 1)
    sign = torch.ones_like(shift)
    if settings.flip_horizontal:
        sign[:, 0] = torch.where(u[:, 5] < 0.5, -1.0, 1.0)
    if settings.flip_vertical:
        sign[:, 1] = torch.where(u[:, 6] < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cos * sign[:, 0], -sin * sign[:, 1], shift[:, 0]], 1),
            torch.stack([sin * sign[:, 0], cos * sign[:, 1], shift[:, 1]], 1)]
    field = None
    if settings.elastic_px:
        field = settings.elastic_px * randn_each((2, settings.elastic_cells, settings.elastic_cells), rngs)
        if settings.p_elastic < 1:
            hit = torch.stack([torch.rand((), generator=rng) for rng in rngs]) < settings.p_elastic
            field = field * hit[:, None, None, None]
    return Geometry(torch.stack(rows, 1).float(), field)


def _hits(together: torch.Tensor, rngs: Sequence[torch.Generator], settings: GeometrySettings) -> list[torch.Tensor]:
    # Which rows are rotated, zoomed, shifted. More is drawn only where a kind has a share of its own.
    own = (settings.p_rotate, settings.p_zoom, settings.p_shift)
    moved = (together < settings.p).double()
    if own == (None, None, None):
        return [moved] * 3
    u = torch.stack([torch.rand(3, generator=rng, dtype=torch.float64) for rng in rngs])
    return [moved if p is None else (u[:, i] < p).double() for i, p in enumerate(own)]


def geometry_grid(params: Geometry, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Returns the sampling grid (B, H, W, 2): where in the input, in [-1, 1], each output pixel comes from."""
    theta = params.theta.to(device)
    grid = F.affine_grid(theta, [theta.shape[0], 1, *size], align_corners=False)
    if params.displacement is not None:
        field = F.interpolate(params.displacement.to(device), size, mode="bicubic", align_corners=True)
        grid = grid + field.movedim(1, -1) * (2 / torch.tensor([size[1], size[0]], device=device))
    return grid


def sample_smooth(images: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Returns images (B, C, H, W) at grid (B, H, W, 2), bilinear; beyond the border the image is mirrored.

    Mirrored tissue is a likelier surrounding than black, which a network would learn to expect at borders.
    """
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def inside_grid(grid: torch.Tensor) -> torch.Tensor:
    """Returns (B, H, W) bool: which positions of grid (B, H, W, 2) lie within the input."""
    return (grid.abs() <= 1).all(dim=-1)


def inverse_grid(grid: torch.Tensor, *, n_iterations: int = 12) -> torch.Tensor:
    """Returns where in the output of `grid` (B, H, W, 2) each input pixel went, (B, H, W, 2) in [-1, 1]; inf = nowhere.

    g(u) = x is solved by u <- u + A^-1 (x - g(u)), A the affine map nearest to the grid: exact at once where the grid
    is affine, and a contraction where its displacements are smooth. A pixel is nowhere if u lies outside of the output,
    or if g(u) missed x by half a pixel, as where the grid folds.
    """
    base = F.affine_grid(torch.eye(2, 3, device=grid.device)[None], [1, 1, *grid.shape[1:3]], align_corners=False)[0]
    flat, places = grid.flatten(1, 2), base.flatten(0, 1)
    shift = flat.mean(dim=1)  # the places are uncorrelated and have mean 0, so that least squares is two ratios
    linear = flat.transpose(1, 2) @ (places / places.square().sum(dim=0))
    back = torch.linalg.inv(linear).transpose(1, 2)
    bent = (flat - shift[:, None] - places @ linear.transpose(1, 2)).reshape(grid.shape).movedim(-1, 1)
    at = (places - shift[:, None]) @ back
    for i in range(n_iterations + 1):
        off = F.grid_sample(bent, at.reshape(grid.shape), mode="bilinear", padding_mode="border", align_corners=False)
        missed = places - shift[:, None] - at @ linear.transpose(1, 2) - off.flatten(2).transpose(1, 2)
        if i < n_iterations:
            at = at + missed @ back
    half_px = 1 / torch.tensor([grid.shape[2], grid.shape[1]], device=grid.device)
    found = (missed.abs() <= half_px).all(dim=-1, keepdim=True) & (at.abs() <= 1).all(dim=-1, keepdim=True)
    return torch.where(found, at, torch.inf).reshape(grid.shape)


def sample_nearest(labels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Returns labels (B, H, W) or (B, O, H, W) of any type at grid (B, H, W, 2), nearest, clamped at the border."""
    channels = labels if labels.ndim == 4 else labels[:, None]
    moved = F.grid_sample(channels.float(), grid, mode="nearest", padding_mode="border", align_corners=False)
    return moved.to(labels.dtype).reshape(*labels.shape[:-2], *grid.shape[1:3])


def sample_labels(labels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Returns labels (B, H, W) or (B, O, H, W) at grid (B, H, W, 2), nearest neighbour; 255 beyond the border.

    The mirrored image there was never annotated: a lesion cut by the border would get a twin, so nobody is taught it.
    """
    inside = inside_grid(grid)
    return sample_nearest(labels, grid).masked_fill(~(inside if labels.ndim == 3 else inside[:, None]), IGNORE)

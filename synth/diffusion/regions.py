"""Which latent cells stay, and how kept and painted meet; which pixels stay: `synth.generator.kept_pixels`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from synth.core.rng import choice, sample_rng


def keep_to_latent(keep: torch.Tensor, *, factor: int) -> torch.Tensor:
    """Returns the latent keep mask (B, 1, h, w) bool of keep (B, H, W) bool: max-pooled.

    Max-pooling never hands a kept pixel to the generator; nearest sampling repaints a third of a thin wall.
    """
    return F.max_pool2d(keep[:, None].float(), factor) > 0.5


def grow_cells(keep: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
    """Returns the latent keep mask (B, 1, h, w), row i grown by `cells[i]` cells."""
    grown = [F.max_pool2d(row[None].float(), 2 * n + 1, 1, n)[0] > 0.5 if n else row
             for row, n in zip(keep, cells, strict=True)]
    return torch.stack(grown) if grown else keep


def draw_margins(seeds: Sequence[int], margin_cells: tuple[int, int]) -> list[int]:
    """Returns one margin for each seed, from `margin_cells[0]` to `margin_cells[1]` cells."""
    low, high = margin_cells
    return [low + choice(sample_rng(s, "margin"), high - low + 1) for s in seeds]


def blend_alpha(keep: torch.Tensor, *, width_px: int) -> torch.Tensor:
    """Returns the weight of the source image, (B, 1, H, W): 1 on keep (B, H, W), 0 beyond `width_px`, smooth between.

    The mask is dilated first and then blurred by as much, so that every kept pixel has weight exactly 1 and the
    transition lies outside the label.
    """
    r = width_px // 2
    grown = F.max_pool2d(keep[:, None].float(), 2 * r + 1, stride=1, padding=r)
    kernel = torch.hann_window(2 * r + 3, periodic=False, device=keep.device)[1:-1]
    kernel = kernel / kernel.sum()
    smooth = F.conv2d(F.pad(grown, (r, r, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    smooth = F.conv2d(F.pad(smooth, (0, 0, r, r), mode="replicate"), kernel.view(1, 1, -1, 1))
    return torch.where(keep[:, None], 1.0, smooth.clamp(0, 1))

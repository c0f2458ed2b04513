"""What every image goes through before anything else: the labelled ones wholly, the unlabelled ones its geometry."""

from __future__ import annotations

import torch

from segtrain.settings import AugmentSettings, GeometrySettings
from segtrain.transforms.geometry import draw_geometry, geometry_grid, sample_labels, sample_smooth
from segtrain.transforms.intensity import apply_intensity, draw_intensity
from segtrain.transforms.random_net import apply_random_net, draw_random_net
from segtrain.transforms.warps import GridWarp, Rngs, Stay, Warp


def weak(images: torch.Tensor, rngs: Rngs, settings: GeometrySettings) -> tuple[torch.Tensor, Warp]:
    """Returns unit images (B, C, H, W) flipped, rotated, zoomed and shifted, and the grid that did it."""
    if settings.is_still:
        return images, Stay()
    grid = geometry_grid(draw_geometry(rngs, settings), tuple(images.shape[-2:]), images.device)
    return sample_smooth(images, grid), GridWarp(grid)


def augment_pairs(images: torch.Tensor, labels: torch.Tensor, rngs: Rngs,
                  settings: AugmentSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns augmented unit images (B, C, H, W) and labels (B, H, W) or (B, O, H, W); 255 beyond the border."""
    images, warp = weak(images, rngs, settings.geometry)
    if isinstance(warp, GridWarp):
        labels = sample_labels(labels, warp.grid)
    if settings.random_net.p:
        images = apply_random_net(images, draw_random_net(rngs, settings.random_net, channels=images.shape[1]))
    if settings.intensity.is_still:
        return images, labels
    return apply_intensity(images, draw_intensity(rngs, settings.intensity)), labels

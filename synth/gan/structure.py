"""What must stay when an image changes its appearance: where its edges lie, and which way they run."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LEAST_GRADIENT = 0.01
"""Of what counts as an edge, unit space per px: fainter ones would be lost in 8 bits."""


def image_gradients(images: torch.Tensor) -> torch.Tensor:
    """Returns the central differences (B, 2, H, W), rows then columns, of the mean channel of images (B, C, H, W).

    They are taken after a 3 x 3 mean: grain belongs to the appearance, not to the content.
    """
    grey = F.pad(images.mean(1, keepdim=True), (2, 2, 2, 2), mode="replicate")
    grey = F.avg_pool2d(grey, 3, stride=1)
    rows = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    columns = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    return torch.cat([rows, columns], 1)


def edge_distance(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Returns how far the edges of images (B, C, H, W) are from lying in one place, a scalar in [0, 1].

    The normalised gradient field's distance (Haber & Modersitzki 2006, eq. 5 there, with the absolute inner product):
    1 - (|<g, h>| + e f)^2 / ((|g|^2 + e^2)(|h|^2 + f^2)), e and f the mean gradient of either image, but
    `LEAST_GRADIENT` at least. Contrast may be scaled or reversed: 0 for two = a one + b, unless a makes it too faint.
    """
    g, h = image_gradients(one), image_gradients(two)
    e, f = (x.square().sum(1).add(1e-12).sqrt().mean((1, 2), keepdim=True).detach().clamp(min=LEAST_GRADIENT)
            for x in (g, h))
    both = (g * h).sum(1).abs() + e * f
    lengths = (g.square().sum(1) + e**2) * (h.square().sum(1) + f**2)
    return (1 - both.square() / lengths).mean()

"""An image as the sum of a low and a high frequency band: what a Gaussian or Haar's wavelet keeps, and the rest."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

from synth.core.checks import UserError
from synth.spectral.transform import check_unit

SplitKind = Literal["gaussian", "haar"]


def low_pass(images: torch.Tensor, *, sigma_px: float) -> torch.Tensor:
    """Returns unit images (B, C, H, W) smoothed by a Gaussian, mirrored at the borders; sigma 0 changes nothing."""
    if not sigma_px:
        return images
    reach = min(math.ceil(3 * sigma_px), min(images.shape[-2:]) - 1)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (steps / sigma_px) ** 2)
    kernel = (kernel / kernel.sum()).to(images).expand(images.shape[1], 1, 1, -1)
    for turned, pad in ((kernel, (reach, reach, 0, 0)), (kernel.mT, (0, 0, reach, reach))):
        images = F.conv2d(F.pad(images, pad, mode="reflect"), turned, groups=images.shape[1])
    return images


def haar_low(images: torch.Tensor, *, levels: int) -> torch.Tensor:
    """Returns unit images (B, C, H, W) as means over blocks of 2^levels px a side; levels 0 changes nothing.

    That is Haar's wavelet transform with all detail coefficients of the first `levels` levels set to 0 and transformed
    back (Mallat 1989). Sides that the blocks do not divide are continued by their last pixels first.
    """
    side, (height, width) = 2**levels, images.shape[-2:]
    whole = F.pad(images, (0, -width % side, 0, -height % side), mode="replicate")
    means = F.avg_pool2d(whole, side)
    return means.repeat_interleave(side, -2).repeat_interleave(side, -1)[..., :height, :width]


def split_bands(images: torch.Tensor, *, kind: SplitKind = "gaussian", sigma_px: float = 4.0,
                levels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the low and the high band of unit images (B, C, H, W), which add up to them.

    The low band stays in [-1, 1], the high one in [-2, 2]. Haar's bands are orthogonal where blocks divide the sides.

    Args:
        sigma_px: of the Gaussian. levels: of Haar's transform.

    Raises:
        UserError: for another kind, a negative sigma, or levels whose blocks are larger than the image.
    """
    check_unit(images)
    if kind not in ("gaussian", "haar"):
        raise UserError(f"kind={kind!r}", rule="no such split", repair="gaussian or haar")
    if sigma_px < 0 or not 0 <= levels <= math.log2(min(images.shape[-2:])):
        raise UserError(f"sigma_px={sigma_px}, levels={levels}", rule="a band is at least 0 px and at most the image "
                        f"wide ({min(images.shape[-2:])} px)", repair="take sigma_px >= 0 and fewer levels")
    low = low_pass(images, sigma_px=sigma_px) if kind == "gaussian" else haar_low(images, levels=levels)
    return low, images - low

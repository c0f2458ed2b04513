"""What of one pair a frequency prior measures: bands along the outlines of its classes, or the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from synth.core.checks import IGNORE, UserError
from synth.spectral.borders import Border
from synth.spectral.grid import grid_of, ring_means, sector_means
from synth.spectral.settings import PriorSettings
from synth.spectral.transform import amplitude_of, open_spectrum

WHOLE = "image"
"""The one region of a prior of kind "whole"."""
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Measured:
    """Amplitudes of one image, float64.

    Attributes:
        present: (K,) bool, which regions it has. radial: mean of each ring (K, C, R). polar: of each sector
            (K, C, R, A). Amplitudes are orthonormal, of values in [0, 1].
    """

    present: torch.Tensor
    radial: torch.Tensor
    polar: torch.Tensor


def _within(region: torch.Tensor, reach: int) -> torch.Tensor:
    return F.max_pool2d(region.float()[None], 2 * reach + 1, 1, reach)[0] > 0


def outline_bands(labels: torch.Tensor, *, n_classes: int, edge_px: int) -> torch.Tensor:
    """Returns the band along the outline of each class > 0 in labels (H, W), as (K - 1, H, W) bool.

    A pixel belongs to it if both the class and another known label lie within `edge_px` in rows and columns: for two
    pixels, that is FPGM's Sobel filter with a 3 x 3 dilation. Where an object is cut off by the image's border there is
    no outline (FPGM's code, which pads with zeros, sees one), nor is there one towards ignored pixels.
    """
    known = labels != IGNORE
    own = torch.stack([labels == k for k in range(1, n_classes)])
    return _within(own, edge_px) & _within(known & ~own, edge_px) & known


def to_share(images: torch.Tensor, settings: PriorSettings) -> torch.Tensor:
    """Returns unit images (B, C, H, W) as values in [0, 1], (B, C or 1, H, W): one channel if `settings` want luma."""
    values = (images.double() + 1) / 2
    if settings.channels == "grey" and values.shape[1] == 3:
        values = torch.einsum("bchw,c->bhw", values, values.new_tensor(LUMA))[:, None]
    return values


def _edges(values: torch.Tensor, bands: torch.Tensor, settings: PriorSettings) -> torch.Tensor:
    # values (1, C, H, W) seen through bands (K, H, W): (K, C, H, W), 0 outside the bands.
    mask = bands[:, None].to(values)
    if settings.kind == "contour_only":
        return mask
    seen = values * mask
    if settings.kind == "edge_mean_removed":
        seen = seen - mask * seen.sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp_min(1)
    return seen


def _check_size(shape: tuple[int, int], settings: PriorSettings, name: str) -> None:
    if settings.n_bands > min(shape) // 2:
        raise UserError(name, rule=f"an image of {shape[0]}x{shape[1]} px has no more than {min(shape) // 2} rings, "
                        f"{settings.n_bands} are asked for", repair="set fewer bands or a larger size")


def _of_image(images: torch.Tensor, settings: PriorSettings) -> tuple[torch.Tensor, tuple[int, int]]:
    # Amplitudes (1, C, h, F) of the values in [0, 1] of an image, margins mirrored and frames filled, and (h, w).
    spectrum = open_spectrum(to_share(images, settings).float() * 2 - 1, Border())
    coefficients = spectrum.coefficients.to(torch.complex128)
    coefficients[..., 0, 0] += math.prod(spectrum.shape) ** 0.5  # of x + 1
    return amplitude_of(coefficients / 2), spectrum.shape


def measure(images: torch.Tensor, labels: torch.Tensor | None, settings: PriorSettings, *, n_classes: int,
            name: str) -> Measured:
    """Returns the amplitudes of one unit image (1, C, H, W) with labels (H, W), None where it has none.

    Raises:
        UserError: if the image `name` is too small for the rings, or the kind needs labels and there are none.
    """
    _check_size(tuple(images.shape[-2:]), settings, name)
    if settings.kind == "whole":
        (amplitudes, shape), present = _of_image(images, settings), torch.ones(1, dtype=torch.bool)
    else:
        if labels is None:
            raise UserError(name, rule=f"kind={settings.kind} looks along the outlines of label masks, and this image "
                            "has none", repair="take kind=whole, or fit on pairs")
        bands = outline_bands(labels, n_classes=n_classes, edge_px=settings.edge_px)
        shape, present = tuple(labels.shape), bands.any(2).any(1)
        amplitudes = amplitude_of(torch.fft.rfft2(_edges(to_share(images, settings), bands, settings), norm="ortho"))
    grid = grid_of(shape, settings.n_bands, n_sectors=settings.sectors)
    return Measured(present, ring_means(amplitudes, grid), sector_means(amplitudes, grid))

"""Images to spectra and back, with what lies at the borders kept out of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from synth.core.checks import UserError
from synth.core.frame import field_of_view
from synth.spectral.borders import Border, View, extend, fill_frame, padded_side, view_of
from synth.spectral.grid import Grid, grid_of, ring_sums, to_coefficients

MIN_SIDE_PX = 8


@dataclass(frozen=True)
class Spectrum:
    """The Fourier coefficients of images, and what is needed to turn them back into images.

    Attributes:
        coefficients: (B, C, h, w // 2 + 1) complex64, orthonormal, of the extended images; on a CPU, columns lie one
            after the other in memory, as the transform along them leaves them and the one back takes them.
        shape: (h, w) of the extended images. images: the unit images (B, C, H, W) they came from.
        view: which of their pixels are picture; None = all. border: how borders are treated.
    """

    coefficients: torch.Tensor
    shape: tuple[int, int]
    images: torch.Tensor
    view: View | None
    border: Border

    def grid(self, *, n_sectors: int = 1) -> Grid:
        """Returns the finest grid on which no ring is empty: one ring per step of the shorter side."""
        return finest_grid(self.shape, self.images.device, n_sectors=n_sectors)

    def scaled(self, gains: torch.Tensor) -> torch.Tensor:
        """Returns the coefficients times gains (B, C or 1, n_rings) > 0 of their ring: phases stay as they are."""
        gains = to_coefficients(gains, self.grid())[..., None]  # a complex product would first make them complex
        return torch.view_as_complex(torch.view_as_real(self.coefficients) * gains)

    def close(self, coefficients: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns unit images (B, C, H, W) of changed coefficients (B, C, h, w // 2 + 1), the frame untouched.

        Args:
            out: where to write them, of the images' shape and dtype; None = new memory.
        """
        height, width = self.images.shape[-2:]
        # Column by column first: the rows of the margin need not be transformed at all.
        rows = torch.fft.ifft(coefficients, dim=-2, norm="ortho")[..., :height, :]
        made = torch.fft.irfft(rows, n=self.shape[1], norm="ortho")[..., :width]
        whole = torch.empty_like(self.images, memory_format=torch.contiguous_format) if out is None else out
        torch.clamp(made.to(whole.dtype), -1, 1, out=whole) if self.border.clamp else whole.copy_(made)
        return whole if self.view is None else torch.where(self.view.inside, whole, self.images, out=out)


def finest_grid(shape: tuple[int, int], device: torch.device, *, n_sectors: int = 1) -> Grid:
    """Returns the finest grid of spectra of images (h, w) on which no ring is empty: a ring per step of the shorter."""
    return grid_of(shape, min(shape) // 2, n_sectors=n_sectors, device=str(device))


def padded_shape(images: torch.Tensor, border: Border) -> tuple[int, int]:
    """Returns (h, w) of unit images (B, C, H, W) with the margins of `border`."""
    height, width = images.shape[-2:]
    return padded_side(height, border.pad), padded_side(width, border.pad)


def check_unit(images: torch.Tensor, name: str = "images") -> None:
    """Returns nothing; raises if `images` are not unit images (B, C, H, W) of at least 8 px a side.

    Raises:
        UserError: naming what they are.
    """
    if images.ndim != 4 or not images.is_floating_point() or min(images.shape[-2:]) < MIN_SIDE_PX:
        raise UserError(f"{name} {tuple(images.shape)} {images.dtype}", rule=f"spectral operations take unit images "
                        f"(B, C, H, W), floating point in [-1, 1], at least {MIN_SIDE_PX} px a side",
                        repair="convert pixels with synth.core.space.pixels_to_unit")


def check_rows(images: torch.Tensor, n: int) -> None:
    """Returns nothing; raises if images (B, C, H, W) are not as many as the rows drawn for them.

    Raises:
        UserError: naming both numbers.
    """
    if len(images) != n:
        raise UserError(f"{len(images)} image(s), parameters for {n}", rule="every image has parameters of its own",
                        repair="draw them with one generator per image")


def check_reference(images: torch.Tensor, reference: torch.Tensor) -> None:
    """Returns nothing; raises if `reference` is not a unit image for each of images (B, C, H, W), at their size.

    Raises:
        UserError: naming both shapes.
    """
    check_unit(reference, "reference")
    if reference.shape != images.shape:
        raise UserError(f"images {tuple(images.shape)}, reference {tuple(reference.shape)}",
                        rule="amplitudes are exchanged coefficient by coefficient", repair="resize the reference to "
                        "the images, and give one per image")


def view_within(images: torch.Tensor, border: Border) -> View | None:
    """Returns which pixels of unit images (B, C, H, W) `border` takes for picture; None = all."""
    inside = field_of_view(images.float()) if border.field_of_view == "auto" else None
    return None if inside is None else view_of(images.float(), inside)


def open_spectrum(images: torch.Tensor, border: Border) -> Spectrum:
    """Returns the spectrum of unit images (B, C, H, W): frames filled, margins mirrored, orthonormal transform.

    Raises:
        UserError: if they are not unit images.
    """
    check_unit(images)
    return spectrum_within(images, view_within(images, border), border)


def spectrum_within(images: torch.Tensor, view: View | None, border: Border) -> Spectrum:
    """Returns the spectrum of unit images (B, C, H, W) whose `view` is known, see `view_within`."""
    values = images.float()  # a Fourier transform of half precision exists on some devices only
    filled = values if view is None else fill_frame(values, view)
    shape = padded_shape(images, border)
    rows = torch.fft.rfft(extend(filled, shape), norm="ortho")
    coefficients = torch.fft.fft(rows, dim=-2, norm="ortho")
    return Spectrum(coefficients, shape, images, view, border)


def amplitude_of(coefficients: torch.Tensor) -> torch.Tensor:
    """Returns the amplitudes |F| of complex coefficients (..., h, w), real, same shape."""
    if coefficients.device.type == "cpu" and not coefficients.requires_grad:
        return torch.from_numpy(np.abs(coefficients.numpy()))  # several times as fast as torch's
    return coefficients.abs()


def energy_of(coefficients: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Returns the sum of squared amplitudes in each ring, corners last, (B, C, R), of half spectra (B, C, H, F).

    By Parseval's theorem they add up to the sum of the squared values of the extended image.
    """
    return ring_sums(amplitude_of(coefficients).square_(), grid)

"""Amplitudes taken from another image: the low ones (FDA) or a share of all (amplitude mix). Phases are untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from synth.core.checks import UserError
from synth.core.config import Settings
from synth.spectral.borders import Border
from synth.spectral.rows import drawn_between
from synth.spectral.transform import amplitude_of, check_reference, check_rows, check_unit, open_spectrum


class SwapSettings(Settings):
    """How much of another image's low amplitudes is taken over.

    Attributes:
        p: share of images that are changed. beta: range of the half side of the square, share of the image's side;
            0 takes the mean brightness alone. keep_dc: whether the image's own mean brightness stays instead.
    """

    p: float = Field(1.0, ge=0, le=1)
    beta: tuple[float, float] = (0.0, 0.05)
    keep_dc: bool = False
    border: Border = Border()


@dataclass(frozen=True)
class Swap:
    """Drawn squares of B images: half side `beta` (B,) float64 in [0, 0.5], and the share mixed in, `share` (B,)."""

    beta: torch.Tensor
    share: torch.Tensor
    keep_dc: bool
    border: Border


class MixSettings(Settings):
    """How much of another image's amplitudes is mixed in, at all frequencies.

    Attributes:
        p: share of images that are changed. share: range of lambda. keep_dc: whether the own mean brightness stays.
    """

    p: float = Field(1.0, ge=0, le=1)
    share: tuple[float, float] = (0.0, 1.0)
    keep_dc: bool = False
    border: Border = Border()


def draw_swap(rngs: Sequence[torch.Generator], settings: SwapSettings) -> Swap:
    """Returns one square per generator; row i depends on `rngs[i]` alone.

    Raises:
        UserError: if beta is no range in [0, 0.5].
    """
    beta = drawn_between(rngs, settings.beta, p=1.0, name="beta", bounds=(0.0, 0.5))
    share = drawn_between(rngs, (1.0, 1.0), p=settings.p, name="share", bounds=(0.0, 1.0))
    return Swap(beta, share, settings.keep_dc, settings.border)


def draw_mix(rngs: Sequence[torch.Generator], settings: MixSettings) -> Swap:
    """Returns one share per generator, over the whole spectrum; row i depends on `rngs[i]` alone.

    Raises:
        UserError: if the share is no range in [0, 1].
    """
    share = drawn_between(rngs, settings.share, p=settings.p, name="share", bounds=(0.0, 1.0))
    return Swap(torch.full_like(share, 0.5), share, settings.keep_dc, settings.border)


def swap_amplitude(images: torch.Tensor, reference: torch.Tensor, params: Swap) -> torch.Tensor:
    """Returns unit images (B, C, H, W) with the low amplitudes of `reference` (B, C, H, W); phases are untouched.

    Fourier domain adaptation (Yang & Soatto 2020, eq. 2-4): |u| and |v| <= beta in cycles per pixel. For square images
    without a margin that is the paper's square of 2 floor(beta H) + 1 coefficients a side.

    Raises:
        UserError: if images, reference and parameters do not go together.
    """
    return mix_amplitude(images, reference, params)


def mix_amplitude(images: torch.Tensor, reference: torch.Tensor, params: Swap) -> torch.Tensor:
    """Returns unit images (B, C, H, W) of amplitudes (1 - l) A + l A_ref; phases are untouched.

    Amplitude mix (Xu et al. 2021, FACT, eq. 3), l the share, A_ref the amplitudes of `reference` (B, C, H, W); here
    within the square of `params`, which `draw_mix` makes as wide as the spectrum.

    Raises:
        UserError: if images, reference and parameters do not go together.
    """
    check_unit(images)
    check_rows(images, len(params.share))
    check_reference(images, reference)
    return lend_amplitude(images, amplitude_to_lend(reference, params.border), params)


def amplitude_to_lend(reference: torch.Tensor, border: Border) -> torch.Tensor:
    """Returns the amplitudes (B, C, h, w // 2 + 1) of unit images (B, C, H, W) that `lend_amplitude` takes.

    They are those of values in [0, 1]: in [-1, 1] the mean of a dark image has the phase of a negative number.
    """
    spectrum = open_spectrum(reference, border)
    return amplitude_of(_lifted(spectrum.coefficients, spectrum.shape))


def lend_amplitude(images: torch.Tensor, lent: torch.Tensor, params: Swap) -> torch.Tensor:
    """Returns what `mix_amplitude` makes of unit images (B, C, H, W) and of references with the amplitudes `lent`.

    Args:
        lent: (B, C, h, w // 2 + 1), of `amplitude_to_lend` for images of the same size, under the border of `params`.

    Raises:
        UserError: if images, amplitudes and parameters do not go together.
    """
    check_unit(images)
    check_rows(images, len(params.share))
    spectrum = open_spectrum(images, params.border)
    if lent.shape != spectrum.coefficients.shape:
        raise UserError(f"images {tuple(images.shape)}, amplitudes {tuple(lent.shape)}", rule="amplitudes are lent "
                        f"coefficient by coefficient, {tuple(spectrum.coefficients.shape)}",
                        repair="take them of images of this size, under the same border")
    own = _lifted(spectrum.coefficients, spectrum.shape)
    amplitude = amplitude_of(own)
    wanted = torch.lerp(amplitude, lent, _shares(params, spectrum.shape).to(amplitude))
    # Where nothing is, phase 0 is as good as any: what the other image has there would be lost otherwise.
    turned = torch.where(amplitude > 0, own * (wanted / amplitude.clamp_min(1e-30)), wanted.to(own.dtype))
    return spectrum.close(_lifted(turned, spectrum.shape, back=True))


def _lifted(coefficients: torch.Tensor, shape: tuple[int, int], *, back: bool = False) -> torch.Tensor:
    # Coefficients of (x + 1) / 2 from those of x, or back: the constant is all in the first one.
    constant = torch.zeros_like(coefficients[0, 0])
    constant[0, 0] = (shape[0] * shape[1]) ** 0.5
    return 2 * coefficients - constant if back else (coefficients + constant) / 2


def _shares(params: Swap, shape: tuple[int, int]) -> torch.Tensor:
    fy, fx = torch.fft.fftfreq(shape[0], dtype=torch.float64).abs(), torch.fft.rfftfreq(shape[1], dtype=torch.float64)
    reach = params.beta[:, None, None] + 1e-9
    square = (fy[:, None] <= reach) & (fx[None] <= reach)
    share = square * params.share[:, None, None]
    if params.keep_dc:
        share[:, 0, 0] = 0
    return share[:, None]

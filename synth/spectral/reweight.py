"""Smooth gains over frequency: random band re-weighting, and the control that changes images as much as another did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from synth.core.checks import UserError
from synth.core.config import Settings
from synth.spectral.borders import Border
from synth.spectral.grid import ring_frequencies
from synth.spectral.transform import Spectrum, check_rows, check_unit, energy_of, open_spectrum

MAX_EXPONENT = 64.0
"""No curve is raised to a higher power to reach a distance."""
N_HALVINGS = 40
N_CORRECTIONS = 3


class BandSettings(Settings):
    """How the octaves of images are re-weighted.

    Attributes:
        p: share of images that are changed. octaves: bands told apart; the highest ends at 0.5 cycles per pixel, and
            all that is lower belongs to the lowest. log_gain: largest natural logarithm of a band's gain.
        shape: "random" draws every band's gain by itself, "tilt" one exponent a of a gain f^a, "blur" and "sharpen"
            what a Gaussian of random width takes from or, inverted, gives to each band.
    """

    p: float = Field(1.0, ge=0, le=1)
    octaves: int = Field(5, ge=2, le=12)
    log_gain: float = Field(0.5, ge=0, le=3)
    shape: Literal["random", "tilt", "blur", "sharpen"] = "random"
    border: Border = Border()


@dataclass(frozen=True)
class BandGains:
    """Drawn natural logarithms of gains, (B, n_octaves) float64, at 0.5 / 2^k cycles per pixel, lowest first."""

    log_gains: torch.Tensor
    border: Border


def draw_band_gains(rngs: Sequence[torch.Generator], settings: BandSettings) -> BandGains:
    """Returns one curve per generator; row i depends on `rngs[i]` alone."""
    n = settings.octaves
    u = torch.stack([torch.rand(n + 1, generator=rng, dtype=torch.float64) for rng in rngs])
    if settings.shape == "random":
        curve = 2 * u[:, 1:] - 1
    elif settings.shape == "tilt":
        curve = (2 * u[:, 1:2] - 1) * torch.linspace(-1, 1, n, dtype=torch.float64)
    else:
        falling = -torch.logspace(-2 * (n - 1), 0, n, base=2, dtype=torch.float64)  # log of a Gaussian: as f squared
        curve = u[:, 1:2] * falling * (1 if settings.shape == "blur" else -1)
    return BandGains((u[:, :1] < settings.p) * curve * settings.log_gain, settings.border)


def log_gains_at(params: BandGains, frequencies: torch.Tensor) -> torch.Tensor:
    """Returns the log gains (B, R) at frequencies (R,), cycles per pixel: linear in their logarithm, 0 at 0."""
    n = params.log_gains.shape[1]
    place = (torch.log2(frequencies.double().clamp_min(1e-9) / 0.5) + n - 1).clamp_(0, n - 1)
    left = place.floor().clamp_(0, n - 2).long()
    gains = torch.lerp(params.log_gains[:, left], params.log_gains[:, left + 1], place - left)
    return torch.where(frequencies > 0, gains, 0.0)


def reweight_bands(images: torch.Tensor, params: BandGains) -> torch.Tensor:
    """Returns unit images (B, C, H, W) with each octave's amplitudes times its gain; phases and brightness stay.

    Raises:
        UserError: if they are not unit images, or not as many as the parameters.
    """
    check_unit(images)
    check_rows(images, len(params.log_gains))
    spectrum = open_spectrum(images, params.border)
    return _apply(spectrum, _curve(spectrum, params))


def reweight_as_far(images: torch.Tensor, like: torch.Tensor, params: BandGains) -> torch.Tensor:
    """Returns unit images (B, C, H, W), re-weighted until each is as far from its original as its row of `like` is.

    The control for any spectral operation: a random smooth gain, a tilt by f^a, a blur or a sharpening of equal PSNR.
    The curve of `params` gives the form; its exponent is found from the energies of the rings (Parseval) and corrected
    for margins, frames and clamping. A row whose `like` equals it stays as it is; where even the largest exponent does
    not change an image enough (one without any structure), it comes out less changed.

    Args:
        like: (B, C, H, W), what another operation made of `images`.

    Raises:
        UserError: if the shapes differ, or not as many curves were drawn.
    """
    check_unit(images)
    check_rows(images, len(params.log_gains))
    if like.shape != images.shape:
        raise UserError(f"images {tuple(images.shape)}, like {tuple(like.shape)}", rule="distances are taken pixel by "
                        "pixel", repair="give what an operation made of these images")
    spectrum = open_spectrum(images, params.border)
    curve, wanted = _curve(spectrum, params), _distance(images, like)
    aim = wanted.clone()
    for _ in range(N_CORRECTIONS):
        made = _apply(spectrum, curve * _exponents(spectrum, curve, aim)[:, None])
        aim = aim * (wanted / _distance(images, made).clamp_min(1e-20)).clamp(0.25, 4)
    made = _apply(spectrum, curve * _exponents(spectrum, curve, aim)[:, None])
    return torch.where((wanted > 0)[:, None, None, None], made, images)


def _distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() - b.double()).square().mean((1, 2, 3))


def _curve(spectrum: Spectrum, params: BandGains) -> torch.Tensor:
    frequencies = ring_frequencies(spectrum.grid().n_rings)
    return log_gains_at(params, frequencies).to(spectrum.images.device)


def _apply(spectrum: Spectrum, curve: torch.Tensor) -> torch.Tensor:
    return spectrum.close(spectrum.scaled(curve.exp().float()[:, None].expand(-1, spectrum.images.shape[1], -1)))


def _exponents(spectrum: Spectrum, curve: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    # The exponent a (B,) for which sum over rings of energy (gain^a - 1)^2, which rises with a, is the wanted distance.
    energy = energy_of(spectrum.coefficients, spectrum.grid()).double().mean(1) / math.prod(spectrum.shape)
    curve = torch.cat([curve, curve[:, -1:]], dim=1)  # the corners
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, MAX_EXPONENT)
    for _ in range(N_HALVINGS):
        middle = (low + high) / 2
        reached = (energy * torch.expm1((middle[:, None] * curve).clamp(max=30)).square()).sum(1)
        low, high = torch.where(reached < wanted, middle, low), torch.where(reached < wanted, high, middle)
    return (low + high) / 2

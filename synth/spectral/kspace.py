"""Noise added to Fourier coefficients; unlike the other operations, it changes phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field

from synth.core.config import Settings
from synth.core.rng import choice, randn_each, sample_rng
from synth.spectral.borders import Border
from synth.spectral.grid import ring_means, to_coefficients
from synth.spectral.rows import drawn_between
from synth.spectral.transform import amplitude_of, check_rows, check_unit, open_spectrum


class KspaceSettings(Settings):
    """How much noise is added to the coefficients of images.

    Attributes:
        p: share of images that get any. sigma: range of its deviation; for "white" in units of the unit space, for
            "own" a share of the image's own radial mean amplitude at each frequency.
        colour: "white" = equal at all frequencies, as a receiver's noise; "own" = as strong as the image is at each.
    """

    p: float = Field(1.0, ge=0, le=1)
    sigma: tuple[float, float] = (0.0, 0.1)
    colour: Literal["white", "own"] = "own"
    border: Border = Border()


@dataclass(frozen=True)
class KspaceNoise:
    """Drawn deviations of B images, (B,) float64, and the seed of each one's noise."""

    sigma: torch.Tensor
    seeds: tuple[int, ...]
    colour: Literal["white", "own"]
    border: Border


def draw_kspace_noise(rngs: Sequence[torch.Generator], settings: KspaceSettings) -> KspaceNoise:
    """Returns one deviation and seed per generator; row i depends on `rngs[i]` alone.

    Raises:
        UserError: if sigma is no range in [0, 1].
    """
    sigma = drawn_between(rngs, settings.sigma, p=settings.p, name="sigma", bounds=(0.0, 1.0))
    return KspaceNoise(sigma, tuple(choice(rng, 2**62) for rng in rngs), settings.colour, settings.border)


def kspace_noise(images: torch.Tensor, params: KspaceNoise) -> torch.Tensor:
    """Returns unit images (B, C, H, W) with complex Gaussian noise on every coefficient but the mean brightness.

    The noise is the transform of real white noise, so that the result is real without anything being cut off.

    Raises:
        UserError: if they are not unit images, or not as many as the parameters.
    """
    check_unit(images)
    check_rows(images, len(params.sigma))
    spectrum = open_spectrum(images, params.border)
    rngs = [sample_rng(seed, "kspace noise") for seed in params.seeds]
    noise = torch.fft.rfft2(randn_each((images.shape[1], *spectrum.shape), rngs, images.device), norm="ortho")
    noise[..., 0, 0] = 0
    if params.colour == "own":
        grid = spectrum.grid()
        noise = noise * to_coefficients(ring_means(amplitude_of(spectrum.coefficients), grid), grid)
    sigma = params.sigma.to(device=images.device, dtype=torch.float32)[:, None, None, None]
    return spectrum.close(spectrum.coefficients + sigma * noise)

"""Images drawn towards a frequency prior: amplitudes change, phases do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from synth.core.checks import UserError
from synth.core.config import Settings
from synth.core.device import rows_at_a_time
from synth.spectral.borders import Border
from synth.spectral.grid import grid_of, ring_frequencies, ring_means, to_coefficients
from synth.spectral.prior import FrequencyPrior
from synth.spectral.rows import drawn_between
from synth.spectral.transform import (
    amplitude_of,
    check_rows,
    check_unit,
    finest_grid,
    padded_shape,
    spectrum_within,
    view_within,
)

CODED_EPS = 1e-6
"""Added to sums of amplitudes before dividing by them, as in FPGM's code."""
NOTHING = 1e-6
"""A ring with less than this share of its image's amplitude holds rounding errors only, and is left as it is."""
LEAST = 1e-30
"""What is below is nothing; kept from being divided by."""


class MatchSettings(Settings):
    """How far images are drawn towards a prior, and in which form.

    Attributes:
        form: "ratio" or "coded", see `match_amplitude`. p: share of images that are changed at all.
        strength: range of the exponent (ratio) or of FPGM's gamma (coded); 0 changes nothing.
        keep: for "ratio", what of an image's level stays. "contrast": the root mean square amplitude; "mass": the sum
            of the radial means, as in FPGM; "nothing": the prior's own level is taken over too, which only kind "whole"
            has in the units of an image. The mean brightness of each channel always stays.
        limit: for "ratio", gains are clamped to [1 / limit, limit] before the contrast is put back.
        region: which class of the prior; "" = the mean over all.
    """

    form: Literal["ratio", "coded"] = "ratio"
    p: float = Field(1.0, ge=0, le=1)
    strength: tuple[float, float] = (0.0, 0.3)
    keep: Literal["contrast", "mass", "nothing"] = "contrast"
    limit: float = Field(4.0, gt=1)
    region: str = ""
    border: Border = Border()


@dataclass(frozen=True)
class Match:
    """Drawn strengths of B images, (B,) float64 in [0, 1], and the settings they were drawn under."""

    strength: torch.Tensor
    settings: MatchSettings


def draw_match(rngs: Sequence[torch.Generator], settings: MatchSettings) -> Match:
    """Returns one strength per generator; row i depends on `rngs[i]` alone.

    Raises:
        UserError: if the range of strengths is no range in [0, 1].
    """
    return Match(drawn_between(rngs, settings.strength, p=settings.p, name="strength", bounds=(0.0, 1.0)), settings)


@torch.no_grad()
def match_amplitude(images: torch.Tensor, prior: FrequencyPrior, params: Match) -> torch.Tensor:
    """Returns unit images (B, C, H, W) with their amplitudes drawn towards those of `prior`; phases are untouched.

    No gradient passes.

    "ratio": A'(u, v) = A(u, v) (T(r) / P(r))^s, with P the image's own radial mean amplitude, T the prior's at the same
    frequency, s the strength; see `MatchSettings` for its level. The image's directions and its mean brightness stay,
    and at strength 0 it is the identity.

    "coded", what FPGM's released code does (arXiv 2508.06517; github.com/ant1dote/FPGM, July 2025): A'(u, v) =
    e ((1 - g) P(r) / (e + 1e-6) + g T(r) / (sum T + 1e-6)), with e = sum P and g the strength, of values in [0, 1].
    Every coefficient gets the mean of its ring, so that directions are lost whatever g; corners get the last ring's;
    there is no margin, no field of view and no clamping, so that values leave [-1, 1]; g = 0 exactly returns the image.
    With a prior of kind "edge_raw", channels "grey" and a ring per step it is that code to rounding, for square images
    of even size; elsewhere, radii are counted in cycles per pixel where the code counts them in steps.

    Raises:
        UserError: if images and prior differ in size or channels, or the prior lacks the region.
    """
    check_unit(images)
    check_rows(images, len(params.strength))
    target = _target(images, prior, params.settings)
    strength = params.strength.to(device=images.device, dtype=torch.float32)[:, None, None]
    if params.settings.form == "coded":
        return _coded(images, target, strength)
    return _ratio(images, target, strength, params.settings)


def _target(images: torch.Tensor, prior: FrequencyPrior, settings: MatchSettings) -> torch.Tensor:
    size, shape = prior.settings.size, tuple(images.shape[-2:])
    if size is not None and shape != (size, size):
        raise UserError(f"images of {shape[0]}x{shape[1]} px", rule=f"this prior was fitted at {size}x{size} px, where "
                        "its frequencies mean something else", repair=f"fit it with size={min(shape)}, or with "
                        "size=None if pixels are equally large in both")
    if prior.n_channels not in (1, images.shape[1]):
        raise UserError(f"images of {images.shape[1]} channel(s)", rule=f"this prior has {prior.n_channels}",
                        repair="fit it on such images, or with channels=grey")
    if settings.keep == "nothing" and settings.form == "ratio" and prior.settings.kind != "whole":
        raise UserError("keep=nothing", rule=f"the level of a prior of kind {prior.settings.kind} is that of thin "
                        "bands, not of images", repair="take keep=contrast, or a prior of kind whole")
    return prior.profile(settings.region).to(device=images.device, dtype=torch.float32)


def at_rings(profile: torch.Tensor, n_rings: int) -> torch.Tensor:
    """Returns a profile (C, R) read at the frequencies of `n_rings` rings, (C, n_rings): linear between its own."""
    if profile.shape[-1] == n_rings:
        return profile
    there = ring_frequencies(profile.shape[-1]).to(profile)
    wanted = ring_frequencies(n_rings).to(profile)[1:]
    right = torch.searchsorted(there[1:].contiguous(), wanted).clamp_(1, len(there) - 2) + 1
    weight = ((wanted - there[right - 1]) / (there[right] - there[right - 1])).clamp_(0, 1)
    between = torch.lerp(profile[:, right - 1], profile[:, right], weight)
    return torch.cat([profile[:, :1], between], dim=-1)


def ratio_gains(own: torch.Tensor, target: torch.Tensor, strength: torch.Tensor, settings: MatchSettings,
                counts: torch.Tensor) -> torch.Tensor:
    """Returns the gain of each ring, (B, C, R) > 0, that draws radial means `own` (B, C, R) towards `target` (C, R).

    Args:
        target: whose rings but the first add up to 1, or to its level under keep "nothing". strength: (B, 1, 1).
        counts: coefficients in each ring, (R,).
    """
    rings, levels, exponent, n = (x.cpu().numpy() for x in (own, target, strength, counts))  # too little for torch
    mass = rings[..., 1:].sum(-1, keepdims=True)
    wanted = levels if settings.keep == "nothing" else levels * mass
    gains = ((wanted / rings.clip(LEAST)) ** exponent).clip(1 / settings.limit, settings.limit)
    gains[rings <= NOTHING * mass] = 1
    if settings.keep == "contrast":
        # The radial means stand for the amplitudes of their rings: one reduction less than the exact energies.
        energy = (n * rings * rings)[..., 1:]
        before, after = energy.sum(-1, keepdims=True), (energy * np.square(gains[..., 1:])).sum(-1, keepdims=True)
        gains *= np.sqrt((before + LEAST) / (after + LEAST))
    gains[..., 0] = 1
    return torch.from_numpy(gains).to(own.device)


def _ratio(images: torch.Tensor, target: torch.Tensor, strength: torch.Tensor, settings: MatchSettings) -> torch.Tensor:
    n = rows_at_a_time(images)
    view = view_within(images, settings.border)  # for all at once: what is small costs by the call
    views = [None] * len(images.split(n)) if view is None else view.split(n)
    grid = finest_grid(padded_shape(images, settings.border), images.device)
    target = at_rings(target, grid.n_rings)
    # A prior measures values in [0, 1]: half as high as in [-1, 1].
    target = 2 * target if settings.keep == "nothing" else target / target[:, 1:].sum(-1, keepdim=True).clamp_min(LEAST)
    made = torch.empty_like(images, memory_format=torch.contiguous_format)
    for some, seen, exponent, out in zip(images.split(n), views, strength.split(n), made.split(n), strict=True):
        spectrum = spectrum_within(some, seen, settings.border)
        own = ring_means(amplitude_of(spectrum.coefficients), grid)
        gains = ratio_gains(own, target, exponent, settings, grid.counts[:-1])
        spectrum.close(spectrum.coefficients.mul_(to_coefficients(gains, grid)), out=out)
    return made


def _coded(images: torch.Tensor, target: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    shape = tuple(images.shape[-2:])
    grid = grid_of(shape, min(shape) // 2, device=str(images.device))
    values = (images.float() + 1) / 2
    coefficients = torch.fft.rfft2(values, norm="ortho")
    own, target = ring_means(amplitude_of(coefficients), grid), at_rings(target, grid.n_rings)
    energy = own.sum(-1, keepdim=True)
    profile = (1 - gamma) * own / (energy + CODED_EPS) + gamma * target / (target.sum(-1, keepdim=True) + CODED_EPS)
    changed = torch.polar(to_coefficients(energy * profile, grid), coefficients.angle())
    made = torch.fft.irfft2(changed, s=shape, norm="ortho") * 2 - 1
    return torch.where(gamma[..., None] > 0, made, images.float()).to(images.dtype)

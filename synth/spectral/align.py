"""Images of one centre brought to the mean spectrum of another's: one linear filter for all, fitted without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field

from synth.core.checks import UserError
from synth.core.config import Settings
from synth.spectral.borders import Border
from synth.spectral.match import NOTHING, at_rings
from synth.spectral.prior import FrequencyPrior
from synth.spectral.transform import check_unit, open_spectrum


class AlignSettings(Settings):
    """How far images are brought to another mean spectrum.

    Attributes:
        strength: exponent of the gains; 0 changes nothing, 1 goes all the way. limit: gains are clamped to [1 / limit,
            limit], for what a centre has lost in noise cannot be brought back.
    """

    strength: float = Field(1.0, ge=0, le=1)
    limit: float = Field(4.0, gt=1)
    border: Border = Border()


@dataclass(frozen=True)
class Alignment:
    """The filter: `gains` (C, R) float64 > 0 of each ring, for images of `size` px; None = of any size."""

    gains: torch.Tensor
    size: int | None
    border: Border


def fit_alignment(training: FrequencyPrior, own: FrequencyPrior, settings: AlignSettings | None = None) -> Alignment:
    """Returns the filter that brings images of mean spectrum `own` to that of `training`.

    Gains are (T(r) / S(r))^strength, T and S the radial mean amplitudes of the two sets, channel by channel; the mean
    brightness stays. It assumes that the sets differ in how they were taken (optics, resolution, sharpening, contrast)
    and show alike things at a like scale: what one set shows and the other does not is taken for a property of its
    camera. Every image goes through the same filter, so that images keep what distinguishes them; matched one by one,
    each would get the same spectrum, whatever it shows.

    Raises:
        UserError: if one of them is not of kind "whole", or they were not measured alike.
    """
    settings = settings or AlignSettings()
    for prior in (training, own):
        if prior.settings.kind != "whole":
            raise UserError(f"a prior of kind {prior.settings.kind}", rule="images are aligned by the spectra of whole "
                            "images: new ones have no outlines", repair="fit it with kind=whole on the training images")
    training.check_alike(own)
    wanted, there = training.profile(), own.profile()
    known = (there > NOTHING * there[:, 1:].sum(1, keepdim=True)) & (wanted > 0)
    gains = (wanted / there.clamp_min(1e-30)).pow(settings.strength).clamp(1 / settings.limit, settings.limit)
    gains = torch.where(known, gains, 1.0)
    gains[:, 0] = 1
    return Alignment(gains, training.settings.size, settings.border)


def align_images(images: torch.Tensor, alignment: Alignment) -> torch.Tensor:
    """Returns unit images (B, C, H, W) through the filter; phases stay, so that nothing moves.

    Raises:
        UserError: if they are no unit images, or of another size or number of channels than the filter.
    """
    check_unit(images)
    shape = tuple(images.shape[-2:])
    if alignment.size is not None and shape != (alignment.size, alignment.size):
        raise UserError(f"images of {shape[0]}x{shape[1]} px", rule=f"this filter was fitted at {alignment.size} px, "
                        "where its frequencies mean something else", repair=f"fit both priors with size={min(shape)}")
    if len(alignment.gains) not in (1, images.shape[1]):
        raise UserError(f"images of {images.shape[1]} channel(s)", rule=f"this filter has {len(alignment.gains)}",
                        repair="fit both priors on such images, or with channels=grey")
    spectrum = open_spectrum(images, alignment.border)
    gains = at_rings(alignment.gains, spectrum.grid().n_rings).to(device=images.device, dtype=torch.float32)
    return spectrum.close(spectrum.scaled(gains.expand(len(images), images.shape[1], -1)))

"""Alignment of a centre's spectrum: nothing to do is the identity, a known filter is undone, nothing moves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from phantom import make_phantom

from synth.core.checks import UserError
from synth.core.pairs import ImageSet, PairSet, memory_set
from synth.core.space import pixels_to_unit, to_channels
from synth.spectral import AlignSettings, Border, FrequencyPrior, align_images, fit_alignment, low_pass
from synth.spectral.grid import grid_of, ring_means

SIZE = 64


def bright_phantoms() -> PairSet:
    """Returns phantoms with their grey values turned round: no dark air, so no frame that operations leave alone."""
    pairs = make_phantom(8, size=SIZE, n_groups=4, bit_depth=16)
    turned = [(pairs.info.intensity_range[1] - p.image).astype(p.image.dtype) for p in pairs]
    return memory_set(turned, [p.mask for p in pairs], pairs.info, ids=pairs.ids, groups=pairs.groups)


PAIRS = bright_phantoms()


def unit_of(images: ImageSet) -> torch.Tensor:
    """Returns the unit images (B, 1, S, S) of a set."""
    return pixels_to_unit(np.stack([to_channels(p.image) for p in images]), images.info.intensity_range)


def set_of(unit: torch.Tensor) -> ImageSet:
    """Returns unit images (B, 1, S, S) as a set without masks, 16 bit."""
    low, high = PAIRS.info.intensity_range
    pixels = ((unit.double() + 1) / 2 * (high - low) + low).round().numpy().astype(np.uint16)
    return memory_set(list(pixels[:, 0]), None, PAIRS.info, ids=PAIRS.ids, groups=PAIRS.groups)


def prior_of(images: ImageSet, **changes: object) -> FrequencyPrior:
    """Returns the prior of whole images."""
    return FrequencyPrior.fit(images, **{"kind": "whole", "size": SIZE, **changes})


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the peak signal to noise ratio, dB, of unit images (B, C, H, W): their range is 2."""
    return 10 * math.log10(4 / max(float((a.double() - b.double()).square().mean()), 1e-30))


def blurred(unit: torch.Tensor) -> torch.Tensor:
    """Returns unit images (B, C, H, W) through a mild Gaussian, whose inverse stays below the limit of gains."""
    return low_pass(unit, sigma_px=0.5)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_images_with_the_training_spectrum_stay_as_they_are(strength: float) -> None:
    prior, unit = prior_of(PAIRS), unit_of(PAIRS)
    own = prior if strength else prior_of(set_of(blurred(unit)))
    assert psnr(align_images(unit, fit_alignment(prior, own, AlignSettings(strength=strength))), unit) > 100


def test_a_known_filter_is_undone() -> None:
    prior, sharp = prior_of(PAIRS), unit_of(PAIRS)
    soft = blurred(sharp)
    alignment = fit_alignment(prior, prior_of(set_of(soft)))
    half = fit_alignment(prior, prior_of(set_of(soft)), AlignSettings(strength=0.5))
    before, midway, after = (psnr(x, sharp) for x in (soft, align_images(soft, half), align_images(soft, alignment)))
    assert after > midway + 3 and midway > before + 3, (before, midway, after)
    point = torch.zeros(1, 1, SIZE, SIZE)
    point[..., SIZE // 2, SIZE // 2] = 1
    response = ring_means(torch.fft.rfft2(blurred(point)).abs(), grid_of((SIZE, SIZE), SIZE // 2))[0, 0]
    assert torch.allclose(alignment.gains[0, 1:].float(), 1 / response[1:], rtol=0.12), "its inverse, ring by ring"


def test_one_filter_for_all_keeps_what_tells_images_apart() -> None:
    unit = unit_of(PAIRS)
    plain = AlignSettings(border=Border(pad=0, field_of_view="all", clamp=False))
    alignment = fit_alignment(prior_of(PAIRS), prior_of(set_of(blurred(unit))), plain)
    one = align_images(unit[2:3], alignment)
    assert torch.allclose(align_images(unit, alignment)[2:3], one, atol=1e-6)
    before, after = torch.fft.rfft2(unit[2, 0].double()), torch.fft.rfft2(one[0, 0].double())
    strong = before.abs() > 1
    assert (after / before)[strong].angle().abs().max() < 1e-4 and (after / before)[strong].abs().max() > 1.5
    assert torch.isclose(before[0, 0], after[0, 0], rtol=1e-5), "phases and mean brightness stay"


def test_gains_are_limited_and_dead_rings_left_alone() -> None:
    training = prior_of(PAIRS)
    flat = set_of(torch.zeros(8, 1, SIZE, SIZE))
    assert (fit_alignment(training, prior_of(flat)).gains == 1).all()
    gains = fit_alignment(training, prior_of(set_of(low_pass(unit_of(PAIRS), sigma_px=3))), AlignSettings(limit=2.5))
    assert float(gains.gains.max()) == 2.5 and (gains.gains[:, 0] == 1).all()


def test_priors_that_cannot_align_are_refused() -> None:
    prior = prior_of(PAIRS)
    with pytest.raises(UserError, match="kind=whole"):
        fit_alignment(FrequencyPrior.fit(PAIRS, size=SIZE), prior)
    with pytest.raises(UserError, match="measured alike"):
        fit_alignment(prior, prior_of(PAIRS, size=32))
    alignment = fit_alignment(prior, prior)
    with pytest.raises(UserError, match="size=32"):
        align_images(torch.zeros(1, 1, 32, 32), alignment)
    colour = make_phantom(2, size=SIZE, channels=3)
    with pytest.raises(UserError, match="channels=grey"):
        align_images(torch.zeros(1, 1, SIZE, SIZE), fit_alignment(prior_of(colour), prior_of(colour)))

"""Spectral operations: identity at strength 0, phases kept, batch == alone, frames kept, and the paper's own form."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from phantom import make_phantom

import synth.core.device as device
import synth.spectral as spectral
from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.frame import field_of_view
from synth.core.rng import sample_rng
from synth.spectral import (
    BandSettings,
    Border,
    FrequencyPrior,
    KspaceSettings,
    MatchSettings,
    MixSettings,
    SwapSettings,
    draw_band_gains,
    draw_kspace_noise,
    draw_match,
    draw_mix,
    draw_swap,
    kspace_noise,
    match_amplitude,
    mix_amplitude,
    open_spectrum,
    reweight_as_far,
    reweight_bands,
    split_bands,
    swap_amplitude,
)
from synth.spectral.borders import extend, fill_frame, view_of
from synth.spectral.grid import ring_means
from synth.spectral.match import at_rings
from synth.spectral.transform import amplitude_of, energy_of

SIDE = 32
BARE = Border(pad=0, field_of_view="all", clamp=False)
SHAPES = [(1, 32, 32), (3, 32, 32), (1, 33, 33), (3, 27, 40)]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def unit(*shape: int, n: int = 3, seed: int = 0) -> torch.Tensor:
    """Returns smooth random unit images (n, *shape) well within [-1, 1]."""
    noise = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = spectral.low_pass(noise, sigma_px=1.5) + 0.1 * noise
    return 0.15 * smooth / smooth.std() + 0.2


@cache
def prior_of(channels: int, *, kind: str = "whole", size: int | None = None) -> FrequencyPrior:
    """Returns a prior of phantoms, by default at native size, for images of any."""
    return FrequencyPrior.fit(make_phantom(4, size=SIDE, channels=channels), kind=kind, size=size,
                              bands=16 if size is None else None)


@dataclass(frozen=True)
class Operation:
    """One operation: `run(images, strength, border)`; whether phases stay, and whether the mean brightness does."""

    run: Callable[[torch.Tensor, float, Border], torch.Tensor]
    keeps_phase: bool = True
    keeps_mean: bool = True


def _match(form: str, kind: str) -> Callable[[torch.Tensor, float, Border], torch.Tensor]:
    def run(images: torch.Tensor, strength: float, border: Border) -> torch.Tensor:
        settings = MatchSettings(form=form, strength=(strength, strength), border=border)
        return match_amplitude(images, prior_of(images.shape[1], kind=kind), draw_match(rngs(images), settings))
    return run


def _reweighted(images: torch.Tensor, strength: float, border: Border) -> torch.Tensor:
    return reweight_bands(images, draw_band_gains(rngs(images), BandSettings(log_gain=strength, border=border)))


def _swapped(images: torch.Tensor, strength: float, border: Border) -> torch.Tensor:
    settings = SwapSettings(p=1.0 if strength else 0.0, beta=(0.1, 0.1), border=border)
    return swap_amplitude(images, images.flip(0).flip(-1), draw_swap(rngs(images), settings))


def _mixed(images: torch.Tensor, strength: float, border: Border) -> torch.Tensor:
    settings = MixSettings(share=(strength, strength), border=border)
    return mix_amplitude(images, images.flip(0).flip(-1), draw_mix(rngs(images), settings))


def _noisy(colour: str) -> Callable[[torch.Tensor, float, Border], torch.Tensor]:
    def run(images: torch.Tensor, strength: float, border: Border) -> torch.Tensor:
        settings = KspaceSettings(sigma=(strength, strength), colour=colour, border=border)
        return kspace_noise(images, draw_kspace_noise(rngs(images), settings))
    return run


def _control(images: torch.Tensor, strength: float, border: Border) -> torch.Tensor:
    like = images * (1 - 0.2 * strength)
    return reweight_as_far(images, like, draw_band_gains(rngs(images), BandSettings(border=border)))


OPERATIONS = {
    "ratio": Operation(_match("ratio", "whole")), "ratio_edge": Operation(_match("ratio", "edge_raw")),
    "coded": Operation(_match("coded", "edge_raw"), keeps_mean=False), "bands": Operation(_reweighted),
    "swap": Operation(_swapped, keeps_mean=False), "mix": Operation(_mixed, keeps_mean=False),
    "white": Operation(_noisy("white"), keeps_phase=False), "own": Operation(_noisy("own"), keeps_phase=False),
    "control": Operation(_control),
}
NAMES = sorted(OPERATIONS)


def rngs(images: torch.Tensor) -> list[torch.Generator]:
    """Returns one generator per image; its seed is read off the image, so that it goes with it in any batch."""
    return [sample_rng(int(1e6 * float(image.flatten()[0].abs())), "row") for image in images.cpu()]


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio of unit images (B, C, H, W), dB, as (B,)."""
    return 10 * torch.log10(4 / (a.double() - b.double()).square().mean((1, 2, 3)).clamp_min(1e-30))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_strength_0_is_the_identity_and_any_other_is_not(name: str, shape: tuple[int, ...]) -> None:
    images = unit(*shape)
    for border in (Border(), BARE):
        assert psnr(OPERATIONS[name].run(images, 0.0, border), images).min() > 100
    changed = OPERATIONS[name].run(images, 0.3, Border())
    assert changed.shape == images.shape and changed.dtype == images.dtype and changed.isfinite().all()
    assert psnr(changed, images).max() < 60


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in NAMES if OPERATIONS[name].keeps_phase])
def test_phases_are_untouched(name: str, shape: tuple[int, ...]) -> None:
    images = unit(*shape)
    changed = OPERATIONS[name].run(images, 0.5, BARE)
    before, after = (torch.fft.rfft2((x.double() + 1) / 2, norm="ortho") for x in (images, changed))
    assert (before.abs() - after.abs()).abs().max() > 1e-2, "no amplitude was changed"
    seen = (before.abs() > 1e-3) & (after.abs() > 1e-3)  # below, float32 has no phase to speak of
    turned = torch.angle(after * before.conj())[seen]
    assert seen.float().mean() > 0.8 and turned.abs().max() < 2e-3
    if OPERATIONS[name].keeps_mean:
        assert torch.allclose(images.mean((2, 3)), changed.mean((2, 3)), atol=1e-6)


def test_noise_changes_phases() -> None:
    images = unit(1, SIDE, SIDE)
    before, after = (torch.fft.rfft2(x) for x in (images, OPERATIONS["own"].run(images, 0.3, BARE)))
    assert torch.angle(after * before.conj()).abs().mean() > 0.05


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_batch_is_alone_on_every_device(name: str, device: str) -> None:
    images = unit(3, SIDE, 24, n=4)
    images[2, :, :6] = images[2, :, -6:] = -1  # one with a frame among others without
    images[2, :, 6, 0] = 0.5
    there = OPERATIONS[name].run(images.to(device), 0.4, Border()).cpu()
    partners = images.flip(0)
    for i in range(4):
        if name in ("swap", "mix"):  # their partner is part of the row
            row = OPERATIONS[name].run(torch.stack([images[i], partners[i]]), 0.4, Border())[:1]
        else:
            row = OPERATIONS[name].run(images[i:i + 1], 0.4, Border())
        assert torch.allclose(there[i:i + 1], row, atol=2e-6), i


def test_pieces_of_a_batch_are_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = unit(3, SIDE, 24, n=5)
    images[1, :, :6] = images[1, :, -6:] = -1
    images[4, :, :, :5] = images[4, :, :, -5:] = -1
    whole = OPERATIONS["ratio"].run(images, 0.4, Border())
    for n in (1, 2):
        monkeypatch.setattr(device, "CACHED", n * images[0].numel())
        assert device.rows_at_a_time(images) == n
        assert torch.allclose(OPERATIONS["ratio"].run(images, 0.4, Border()), whole, atol=2e-6)
    assert torch.equal(whole[1, :, :6], images[1, :, :6]) and torch.equal(whole[4, ..., :5], images[4, ..., :5])


def test_no_operation_ever_receives_a_mask() -> None:
    operations = [match_amplitude, swap_amplitude, mix_amplitude, reweight_bands, reweight_as_far, kspace_noise,
                  split_bands]
    for function in operations:
        arguments = set(inspect.signature(function).parameters)
        assert arguments <= {"images", "prior", "reference", "like", "params", "kind", "sigma_px", "levels"}
    assert not any("mask" in name or "label" in name for name in spectral.__all__)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0.0, 0.125, 0.5])
def test_there_and_back_and_parseval(shape: tuple[int, ...], pad: float) -> None:
    images = unit(*shape)
    spectrum = open_spectrum(images, Border(pad=pad))
    assert psnr(spectrum.close(spectrum.coefficients), images).min() > 120
    filled = extend(images, spectrum.shape)
    assert torch.allclose(energy_of(spectrum.coefficients, spectrum.grid()).sum(-1), filled.square().sum((2, 3)))
    assert torch.equal(filled[..., :shape[1], :shape[2]], images)


def test_the_margin_closes_the_picture_without_a_step() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    wide = extend(ramp, (64, 80))[0, 0, 0]
    assert (wide - wide.roll(1)).abs().max() < 0.3 < (ramp[0, 0, 0] - ramp[0, 0, 0].roll(1)).abs().max()


def test_full_strength_gives_the_prior_and_the_own_contrast() -> None:
    images, prior = unit(1, SIDE, SIDE), prior_of(1, size=SIDE)
    for keep in ("contrast", "mass", "nothing"):
        settings = MatchSettings(strength=(1, 1), limit=1e6, keep=keep, border=BARE)
        matched = match_amplitude(images, prior, draw_match(rngs(images), settings))
        spectrum, before = open_spectrum(matched, BARE), open_spectrum(images, BARE)
        got = spectral_profile(spectrum)[:, 0, 1:]
        wanted = prior.profile().float()[:, 1:] * (2 if keep == "nothing" else 1)
        scale = (got / wanted).mean(1, keepdim=True)
        assert torch.allclose(got / scale, wanted.expand_as(got), rtol=1e-3)
        if keep == "nothing":
            assert torch.allclose(scale, torch.ones(()), atol=1e-3)
        if keep == "mass":
            assert torch.allclose(got.sum(1), spectral_profile(before)[:, 0, 1:].sum(1), rtol=1e-3)
        if keep == "contrast":
            assert torch.allclose(matched.std((2, 3)), images.std((2, 3)), rtol=0.2)


def spectral_profile(spectrum: spectral.Spectrum) -> torch.Tensor:
    """Returns the radial mean amplitudes (B, C, R) of a spectrum."""
    return ring_means(amplitude_of(spectrum.coefficients), spectrum.grid())


def test_gains_are_clamped_and_strength_is_an_exponent() -> None:
    images, prior = unit(1, SIDE, SIDE), prior_of(1, kind="edge_raw", size=SIDE)
    gains = []
    for strength in (0.1, 0.2):
        settings = MatchSettings(strength=(strength,) * 2, keep="mass", border=BARE, limit=1e6)
        matched = match_amplitude(images, prior, draw_match(rngs(images), settings))
        gains.append(spectral_profile(open_spectrum(matched, BARE)) / spectral_profile(open_spectrum(images, BARE)))
    assert torch.allclose(gains[0].square(), gains[1], rtol=5e-3)
    settings = MatchSettings(strength=(1, 1), keep="mass", border=BARE, limit=1.5)
    matched = match_amplitude(images, prior, draw_match(rngs(images), settings))
    gain = spectral_profile(open_spectrum(matched, BARE)) / spectral_profile(open_spectrum(images, BARE))
    assert gain.max() == pytest.approx(1.5, rel=1e-3) and gain.min() == pytest.approx(1 / 1.5, rel=1e-3)


def test_coded_is_what_the_released_code_computes() -> None:
    """The formulas of FPGM's code (research notes, section 2.2), written out coefficient by coefficient in numpy."""
    images = unit(3, SIDE, SIDE, n=2)
    prior = FrequencyPrior.fit(make_phantom(4, size=SIDE, channels=3), kind="edge_raw", channels="grey", size=SIDE)
    settings = MatchSettings(form="coded", strength=(0.05, 0.05))
    made = (match_amplitude(images, prior, draw_match(rngs(images), settings)).numpy() + 1) / 2
    steps = np.fft.fftfreq(SIDE) * SIDE
    radius, target = np.hypot(steps[:, None], steps[None]).astype(int), prior.profile()[0].numpy()
    for i, c in np.ndindex(2, 3):
        spectrum = np.fft.fft2((images[i, c].double().numpy() + 1) / 2, norm="ortho")
        own = np.array([np.abs(spectrum)[radius == r].mean() for r in range(SIDE // 2)])
        energy = own.sum()
        profile = energy * (0.95 * own / energy + 0.05 * target / target.sum())
        amplitude = profile[np.minimum(radius, SIDE // 2 - 1)]
        expected = np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectrum)), norm="ortho").real
        assert np.abs(made[i, c] - expected).max() < 1e-4
    spread = make_phantom(1, size=SIDE).arrays(SIDE).images / 127.5 - 1
    bright = match_amplitude(torch.from_numpy(spread).float(), prior, draw_match([sample_rng(0)], settings))
    assert bright.abs().max() > 1, "the released code does not clamp"


def test_coded_loses_directions_and_ratio_keeps_them() -> None:
    x = torch.arange(SIDE) * (2 * math.pi / SIDE)
    images = (0.3 * torch.cos(8 * x) + 0 * x[:, None]).expand(1, 1, SIDE, SIDE) + 0.02 * unit(1, SIDE, SIDE, n=1)
    upright = {}
    for form in ("coded", "ratio"):
        settings = MatchSettings(form=form, strength=(0.01, 0.01), border=BARE)
        made = match_amplitude(images, prior_of(1, size=SIDE), draw_match([sample_rng(0)], settings))
        amplitude = torch.fft.rfft2(made)[0, 0].abs()
        upright[form] = float(amplitude[0, 8] / amplitude[8, 0])
    assert upright["coded"] == pytest.approx(1, rel=0.01) and upright["ratio"] > 100


def test_a_prior_is_read_between_its_rings() -> None:
    falling = 1 / (torch.arange(16.0)[None] + 1)
    assert torch.equal(at_rings(falling, 16), falling)
    finer = at_rings(torch.linspace(0, 15, 16)[None] + 0.5, 64)[0]
    middles = (torch.arange(64.0) + 0.5) / 4
    assert torch.allclose(finer[6:-3], middles[6:-3]) and (finer.diff() >= -1e-6).all()


def test_fda_swaps_a_square_of_low_amplitudes() -> None:
    images, reference = unit(1, SIDE, SIDE), unit(1, SIDE, SIDE, seed=9) - 0.3
    params = draw_swap(rngs(images), SwapSettings(beta=(0.1, 0.1), border=BARE))
    swapped = swap_amplitude(images, reference, params)
    own, theirs, made = (torch.fft.fft2((x + 1) / 2).abs() for x in (images, reference, swapped))
    low = torch.fft.fftfreq(SIDE).abs() * SIDE <= math.floor(0.1 * SIDE)
    square = low[:, None] & low
    assert int(square.sum()) == 7**2
    assert torch.allclose(made[..., square], theirs[..., square], rtol=1e-3, atol=1e-2)
    assert torch.allclose(made[..., ~square], own[..., ~square], rtol=1e-3, atol=1e-2)
    kept = swap_amplitude(images, reference, draw_swap(rngs(images), SwapSettings(keep_dc=True, border=BARE)))
    assert torch.allclose(kept.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-6)


def test_amplitude_mix_is_linear_in_its_share() -> None:
    images, reference = unit(3, SIDE, SIDE), unit(3, SIDE, SIDE, seed=9)
    made = mix_amplitude(images, reference, draw_mix(rngs(images), MixSettings(share=(0.25, 0.25), border=BARE)))
    own, theirs, mixed = (torch.fft.fft2((x + 1) / 2).abs() for x in (images, reference, made))
    assert torch.allclose(mixed, 0.75 * own + 0.25 * theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("shape", ["random", "tilt", "blur", "sharpen"])
def test_the_control_is_as_far_as_what_it_controls(shape: str) -> None:
    images = unit(3, 27, 40)
    like = match_amplitude(images, prior_of(3), draw_match(rngs(images), MatchSettings(strength=(0.2, 0.5))))
    like[1] = images[1]
    control = reweight_as_far(images, like, draw_band_gains(rngs(images), BandSettings(shape=shape)))
    assert torch.equal(control[1], images[1])
    assert torch.allclose(psnr(control, images)[[0, 2]], psnr(like, images)[[0, 2]], atol=0.2)
    detail = (control[0] - spectral.low_pass(control[:1], sigma_px=2)[0]).std() / (
        images[0] - spectral.low_pass(images[:1], sigma_px=2)[0]).std()
    assert {"blur": detail < 1, "sharpen": detail > 1}.get(shape, True)


def test_a_tilt_is_a_power_of_the_frequency() -> None:
    images = unit(1, 64, 64, n=1)
    params = draw_band_gains([sample_rng(3)], BandSettings(shape="tilt", log_gain=1, octaves=6, border=BARE))
    gain = spectral_profile(open_spectrum(reweight_bands(images, params), BARE)) / spectral_profile(
        open_spectrum(images, BARE))
    frequency, slope = (torch.arange(32) + 0.5) / 64, float(params.log_gains.diff()[0, 0]) / math.log(2)
    fitted = np.polyfit(frequency[2:].log().numpy(), gain[0, 0, 2:].log().numpy(), 1)
    assert fitted[0] == pytest.approx(slope, rel=1e-2) and abs(slope) > 0.01


def test_noise_has_the_deviation_and_colour_that_was_asked_for() -> None:
    images = unit(1, 64, 64, n=4)
    white = OPERATIONS["white"].run(images, 0.1, BARE) - images
    assert float(white.std()) == pytest.approx(0.1, rel=0.05)
    own = spectral_profile(open_spectrum(OPERATIONS["own"].run(images, 0.1, BARE) - images, BARE))[..., 2:].mean(0)
    expected = 0.1 * math.sqrt(math.pi) / 2 * spectral_profile(open_spectrum(images, BARE))[..., 2:].mean(0)
    assert float((own / expected).mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["gaussian", "haar"])
def test_two_bands_add_up(kind: str, shape: tuple[int, ...]) -> None:
    images = unit(*shape)
    low, high = split_bands(images, kind=kind)
    assert torch.allclose(low + high, images, atol=1e-6) and low.std() < images.std()
    assert torch.allclose(split_bands(images[1:2], kind=kind)[0], low[1:2], atol=1e-6)
    flat = torch.full((1, 1, 12, 9), 0.7)
    assert split_bands(flat, kind=kind)[1].abs().max() < 1e-6


def test_haar_bands_are_orthogonal_and_twice_is_once() -> None:
    images = unit(1, SIDE, SIDE)
    low, high = split_bands(images, kind="haar", levels=2)
    assert (low * high).sum((1, 2, 3)).abs().max() < 1e-3
    energies = [x.square().sum() for x in (low, high, images)]
    assert float(energies[0] + energies[1]) == pytest.approx(float(energies[2]), rel=1e-5), "Parseval"
    assert torch.allclose(split_bands(low, kind="haar", levels=2)[0], low, atol=1e-6)
    assert torch.equal(split_bands(images, kind="haar", levels=0)[0], images)


def disc(n: int = 64, radius: float = 28.0) -> torch.Tensor:
    """Returns a round field of view (n, n) bool."""
    steps = torch.arange(n) - n / 2 + 0.5
    return torch.hypot(steps[:, None], steps[None]) < radius


def test_a_dark_frame_is_found_and_what_is_none_is_not() -> None:
    view = disc()
    images = unit(3, 64, 64, n=4)
    images[0] = torch.where(view, images[0], -0.97 + 0.02 * torch.rand(3, 64, 64))
    dots = torch.zeros(64, 64, dtype=torch.bool)
    dots[8:12, 8:12] = dots[50:54, 20:24] = dots[30:34, 50:54] = True
    images[1] = torch.where(dots, images[1], torch.tensor(-1.0))  # nuclei on a dark ground
    steps = torch.linspace(-1, 1, 64)
    images[2] = 1 - (steps[:, None].square() + steps.square())  # corners that darken smoothly
    found = field_of_view(images)
    assert torch.equal(found[0, 0], view) and found[1:].all()
    assert field_of_view(images[1:]) is None and field_of_view(torch.zeros(1, 1, 16, 16)) is None


def test_a_frame_comes_out_untouched_and_does_not_ring() -> None:
    view = disc()
    plain = unit(1, 64, 64, n=1)
    images = torch.where(view, plain, torch.tensor(-1.0))
    settings = BandSettings(log_gain=1.0, shape="sharpen")
    params = draw_band_gains([sample_rng(1)], settings)
    kept = reweight_bands(images, params)
    assert torch.equal(kept[..., ~view], images[..., ~view])
    rim, free = view & ~disc(radius=25), reweight_bands(plain, params)
    bare = draw_band_gains([sample_rng(1)], settings.model_copy(update={"border": Border(field_of_view="all")}))
    ringing = reweight_bands(images, bare)
    assert (kept - free)[..., rim].abs().mean() < 0.3 * (ringing - free)[..., rim].abs().mean()
    assert (ringing - images)[..., ~view].abs().max() > 1e-3


def test_what_is_filled_is_smooth_and_what_is_known_stays() -> None:
    ramp = torch.linspace(-1, 1, 40).expand(1, 2, 40, 40)
    inside = disc(40, 15.0)[None, None]
    framed = torch.where(inside, ramp, torch.tensor(-5.0))
    filled = fill_frame(framed, view_of(framed, inside))
    assert torch.equal(filled[inside.expand_as(filled)], ramp[inside.expand_as(ramp)])
    assert filled.amin() >= -1 and filled.amax() <= 1 and filled.diff(dim=-1).abs().max() < 0.5


@pytest.mark.parametrize("shape", [(40, 40), (33, 2100), (300, 257)])
def test_a_frame_is_filled_from_what_is_nearest(shape: tuple[int, int]) -> None:
    """However far the picture is, and whatever the size of cells."""
    images = torch.full((2, 1, *shape), -5.0)
    inside = torch.zeros(2, 1, *shape, dtype=torch.bool)
    images[:, :, :, :10], inside[:, :, :, :10] = 0.8, True
    images[:, :, :, -10:], inside[:, :, :, -10:] = 0.4, True
    filled = fill_frame(images, view_of(images, inside))
    assert filled.amin() >= 0.4 - 1e-6 and filled.amax() <= 0.8 + 1e-6
    assert (filled[..., 12] > 0.75).all() and (filled[..., -13] < 0.45).all()
    assert (filled.diff(dim=-1) < 1e-3).all()


def test_half_precision_comes_back_as_it_went_in() -> None:
    images = unit(1, SIDE, SIDE).half()
    made = OPERATIONS["ratio"].run(images, 0.0, Border())
    assert made.dtype == torch.float16 and (made - images).abs().max() < 2e-3


def test_flat_images_stay_flat() -> None:
    flat = torch.full((2, 1, SIDE, SIDE), 0.3)
    for name in ("ratio", "bands"):
        assert torch.allclose(OPERATIONS[name].run(flat, 1.0, Border()), flat, atol=1e-5), name


def test_rows_are_drawn_alone_and_within_their_range() -> None:
    settings = MatchSettings(strength=(0.1, 0.2), p=0.5)
    drawn = draw_match([sample_rng(0, i) for i in range(200)], settings).strength
    assert torch.equal(draw_match([sample_rng(0, 7)], settings).strength, drawn[7:8])
    hit = drawn[drawn > 0]
    assert 70 < len(hit) < 130 and hit.min() >= 0.1 and hit.max() <= 0.2


@pytest.mark.parametrize("name", ["pixels", "small", "volume"])
def test_what_is_no_unit_image_is_refused(name: str) -> None:
    bad = {"pixels": torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8), "small": torch.zeros(1, 1, 4, SIDE),
           "volume": torch.zeros(1, 1, SIDE, SIDE, SIDE)}[name]
    with pytest.raises(UserError, match="unit images"):
        reweight_bands(bad, draw_band_gains([sample_rng(0)], BandSettings()))


def test_what_does_not_go_together_is_refused() -> None:
    images = unit(1, SIDE, SIDE)
    params = draw_match(rngs(images), MatchSettings())
    with pytest.raises(UserError, match="fitted at 16x16"):
        match_amplitude(images, prior_of(1, size=16), params)
    with pytest.raises(UserError, match="channels"):
        match_amplitude(images, prior_of(3), params)
    with pytest.raises(UserError, match="parameters for 3"):
        match_amplitude(images[:2], prior_of(1), params)
    with pytest.raises(UserError, match="thin"):
        match_amplitude(images, prior_of(1, kind="edge_raw"), draw_match(rngs(images), MatchSettings(keep="nothing")))
    with pytest.raises(UserError, match="resize the reference"):
        swap_amplitude(images, images[..., :-1], draw_swap(rngs(images), SwapSettings()))
    with pytest.raises(UserError, match="gaussian or haar"):
        split_bands(images, kind="wavelet")
    with pytest.raises(UserError, match="fewer levels"):
        split_bands(images, kind="haar", levels=6)


@pytest.mark.parametrize("strength", [(0.5, 0.2), (-0.1, 0.2), (0.0, 1.5)])
def test_impossible_ranges_are_refused(strength: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="smaller number first"):
        draw_match([sample_rng(0)], MatchSettings(strength=strength))
    with pytest.raises(UserError):
        load_config(MatchSettings, {}, ["form=power"])

"""The frequency prior: closed forms, one image at a time or all at once, merged, saved, shown, compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom

import synth
from synth.core.checks import UserError
from synth.core.pairs import DataInfo, ImageSet, PairSet, memory_set
from synth.spectral import FrequencyPrior, PriorSettings
from synth.spectral.grid import grid_of, ring_frequencies, ring_means, ring_sums, sector_means, to_coefficients
from synth.spectral.regions import measure, outline_bands
from synth.spectral.transform import amplitude_of

RNG = np.random.default_rng(0)
KINDS = ("edge_raw", "edge_mean_removed", "whole", "contour_only")


def image_set(images: Sequence[np.ndarray], *, groups: Sequence[str] | None = None, bits: int = 8) -> ImageSet:
    """Returns a set over pixels (H, W[, 3]), every image a group of its own unless said otherwise."""
    info = DataInfo(("background", "object"), 1 if images[0].ndim == 2 else 3, bits, (0.0, 2.0**bits - 1))
    names = [f"image_{i}" for i in range(len(images))]
    return memory_set(images, None, info, ids=names, groups=groups or names)


def power_law(n: int, exponent: float, *, size: int = 64, seed: int = 0) -> ImageSet:
    """Returns 16-bit images of noise whose amplitude falls as frequency^-exponent, periodic."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    images = []
    for _ in range(n):
        values = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * frequency**-exponent, s=(size, size))
        images.append(np.clip(32768 + 6000 * values / values.std(), 0, 65535).astype(np.uint16))
    return image_set(images, bits=16)


@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (16, 17), (15, 40)])
def test_rings_and_sectors_of_the_half_spectrum_are_those_of_the_full_one(shape: tuple[int, int]) -> None:
    values = torch.from_numpy(RNG.standard_normal((2, 3, *shape)))
    full, n, n_sectors = torch.fft.fft2(values, norm="ortho").abs(), min(shape) // 2, 4
    grid = grid_of(shape, n, n_sectors=n_sectors)
    half = amplitude_of(torch.fft.rfft2(values, norm="ortho"))
    fy, fx = torch.fft.fftfreq(shape[0], dtype=torch.float64)[:, None], torch.fft.fftfreq(shape[1], dtype=torch.float64)
    ring = (torch.hypot(fy, fx[None]) * 2 * n + 1e-9).floor().clamp(1, n)
    ring[0, 0] = 0
    sector = ((torch.atan2(fy, fx[None]) / torch.pi * n_sectors + 0.5).floor() % n_sectors).long()
    radial, polar = ring_means(half, grid), sector_means(half, grid)
    for r in range(n):
        assert torch.allclose(radial[..., r], full[..., ring == r].mean(-1))
        for a in range(n_sectors):
            cell = (ring == r) & (sector == a)
            expected = full[..., cell].mean(-1) if cell.any() else radial[..., r]
            assert torch.allclose(polar[..., r, a], expected, atol=1e-6), (r, a)
    assert int(grid.counts.sum()) == shape[0] * shape[1] == int(grid.cell_counts.sum())
    assert torch.allclose(ring_sums(half.square(), grid).sum(-1), values.square().sum((-2, -1))), "Parseval"
    table = torch.arange(n, dtype=torch.float64)[None, None]
    assert torch.equal(to_coefficients(table, grid)[0, 0], ring[:, : shape[1] // 2 + 1].clamp(max=n - 1))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.5])
def test_a_power_law_is_recovered_and_white_noise_is_flat(exponent: float) -> None:
    prior = FrequencyPrior.fit(power_law(12, exponent), kind="whole", size=64)
    x, y = prior.frequencies[2:-1].log().numpy(), prior.radial[0, 0, 2:-1].log().numpy()
    assert np.polyfit(x, y, 1)[0] == pytest.approx(-exponent, abs=0.06)


def test_the_amplitude_of_white_noise_is_its_deviation_whatever_the_size() -> None:
    for size in (32, 65):
        images = [(128 + 20 * RNG.standard_normal((size, size))).round().astype(np.uint8) for _ in range(8)]
        prior = FrequencyPrior.fit(image_set(images), kind="whole", size=None, bands=8)
        # Rayleigh: the mean amplitude of complex Gaussian coefficients is sqrt(pi) / 2 of their root mean square. The
        # faded margin is smoother than the noise itself, so a little is missing.
        assert prior.radial[0, 0, 1:].mean() == pytest.approx(math.sqrt(math.pi) / 2 * 20 / 255, rel=0.08)
        assert prior.radial[0, 0, 0] == pytest.approx(128 / 255 * size, rel=0.2)


def test_a_wave_is_one_line_in_its_direction() -> None:
    wave = 0.5 + 0.25 * torch.cos(2 * math.pi * 8 * torch.arange(64, dtype=torch.float64) / 64).expand(1, 1, 64, 64)
    grid = grid_of((64, 64), 32, n_sectors=8)
    amplitude = amplitude_of(torch.fft.rfft2(wave, norm="ortho"))
    energy = ring_sums(amplitude.square(), grid)[0, 0]
    assert energy[8] == pytest.approx(64**2 * 0.25**2 / 2) and energy[0] == pytest.approx(64**2 * 0.25)
    energy[[0, 8]] = 0
    assert energy.max() < 1e-12
    for image, sector in ((wave, 0), (wave.mT, 4)):
        polar = sector_means(amplitude_of(torch.fft.rfft2(image, norm="ortho")), grid)[0, 0, 8]
        assert int(polar.argmax()) == sector and polar.sum() == pytest.approx(float(polar[sector]))


def test_edge_raw_in_grey_is_the_paper_form_in_plain_numpy(phantom_pairs: PairSet) -> None:
    prior = FrequencyPrior.fit(phantom_pairs, kind="edge_raw", size=32, channels="grey")
    profiles = []
    for pair in phantom_pairs:
        mask = np.pad(pair.mask == 1, 2, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(mask, (5, 5))
        band = windows.any((2, 3)) & ~windows.all((2, 3))
        amplitude = np.abs(np.fft.fft2(pair.image / 255.0 * band, norm="ortho"))
        steps = np.fft.fftfreq(32) * 32
        radius = np.hypot(steps[:, None], steps[None]).astype(int)
        profiles.append([amplitude[radius == r].mean() for r in range(16)])
    assert np.allclose(prior.radial[0, 0].numpy(), np.mean(profiles, axis=0), atol=1e-6)
    assert np.allclose(prior.radial_sd[0, 0].numpy(), np.std(profiles, axis=0, ddof=1), atol=1e-6)


@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (3, 8), (1, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_one_by_one_is_all_at_once(kind: str, channels: int, bits: int) -> None:
    pairs = make_phantom(5, size=33, channels=channels, bit_depth=bits, n_classes=3)
    prior = FrequencyPrior.fit(pairs, kind=kind, size=31)
    arrays, settings = pairs.arrays(31), PriorSettings(kind=kind, size=31)
    unit = torch.from_numpy(arrays.images.astype(np.float32)) / (pairs.info.intensity_range[1] / 2) - 1
    parts = [measure(unit[i:i + 1], torch.from_numpy(arrays.masks[i].astype(np.int64)), settings, n_classes=3, name="x")
             for i in range(5)]
    there = torch.stack([part.present for part in parts])
    assert torch.equal(prior.n, there.double().sum(0)) and prior.regions == (("image",) if kind == "whole" else
                                                                             ("object_1", "object_2"))
    for name in ("radial", "polar"):
        every = torch.stack([getattr(part, name) for part in parts])
        for k in range(len(prior.regions)):
            seen = every[there[:, k], k]
            assert torch.allclose(getattr(prior, name)[k], seen.mean(0), rtol=1e-5, atol=1e-8)
            assert torch.allclose(getattr(prior, f"{name}_sd")[k], seen.std(0), rtol=1e-3, atol=1e-6)
    assert prior.n_channels == (1 if kind == "contour_only" else channels)


@pytest.mark.parametrize("kind", ["edge_raw", "whole"])
def test_two_fits_merged_are_one_fit_and_order_is_of_no_account(kind: str, phantom_pairs: PairSet) -> None:
    one = FrequencyPrior.fit(phantom_pairs, kind=kind, size=32)
    a, b = (FrequencyPrior.fit(phantom_pairs.select(rows), kind=kind, size=32) for rows in (range(5), range(5, 12)))
    for merged in (a.merged(b), b.merged(a)):
        assert merged.seen == one.seen and merged.settings == one.settings
        for name, value in one.sums.items():
            assert torch.allclose(merged.sums[name], value, rtol=1e-12), name
    with pytest.raises(UserError, match="measured alike"):
        one.merged(FrequencyPrior.fit(phantom_pairs, kind=kind, size=32, sectors=4))


def test_provenance_says_what_was_seen(phantom_pairs: PairSet) -> None:
    prior = FrequencyPrior.fit(phantom_pairs, size=32)
    assert prior.seen.n_images == 12 and prior.seen.groups == ("patient_00", "patient_01", "patient_02")
    less = FrequencyPrior.fit(phantom_pairs.select(range(11)), size=32)
    assert less.seen.ids_hash != prior.seen.ids_hash and less.content_hash() != prior.content_hash()
    other = image_set([p.image for p in phantom_pairs], groups=phantom_pairs.groups)
    same = memory_set([p.image for p in other], None, other.info, ids=phantom_pairs.ids, groups=phantom_pairs.groups)
    whole = FrequencyPrior.fit(same, kind="whole", size=32)
    assert whole.seen.ids_hash == prior.seen.ids_hash and whole.seen.fingerprint != prior.seen.fingerprint


def test_outlines_lie_on_both_sides_and_not_at_borders_or_ignored_pixels() -> None:
    labels = torch.zeros(24, 24, dtype=torch.int64)
    labels[:12] = 1
    band = outline_bands(labels, n_classes=2, edge_px=2)[0]
    assert torch.equal(band.any(1).nonzero()[:, 0], torch.arange(10, 14)) and band[10:14].all()
    labels[12:] = 255
    assert not outline_bands(labels, n_classes=2, edge_px=2).any()
    labels[12:] = 2
    first, second = outline_bands(labels, n_classes=3, edge_px=2)
    assert torch.equal(first, second) and first.any()


def test_the_control_sees_no_image_and_a_flat_one_has_no_edge_without_its_mean(phantom_pairs: PairSet) -> None:
    flat = memory_set([np.full((32, 32), 90, np.uint8)] * 12, [p.mask for p in phantom_pairs], phantom_pairs.info,
                      ids=phantom_pairs.ids, groups=phantom_pairs.groups)
    contours = [FrequencyPrior.fit(pairs, kind="contour_only", size=32) for pairs in (flat, phantom_pairs)]
    assert torch.equal(contours[0].radial, contours[1].radial)
    raw, removed = (FrequencyPrior.fit(flat, kind=k, size=32) for k in ("edge_raw", "edge_mean_removed"))
    assert torch.allclose(raw.radial, contours[0].radial * 90 / 255, atol=1e-6) and removed.radial.max() < 1e-6


def test_the_profile_is_one_region_or_the_mean_of_all() -> None:
    prior = FrequencyPrior.fit(make_phantom(6, size=32, n_classes=3), size=32)
    n = prior.n[:, None, None]
    assert torch.equal(prior.profile("object_2"), prior.radial[1])
    assert torch.allclose(prior.profile(), (n * prior.radial).sum(0) / n.sum())
    with pytest.raises(UserError, match="object_1, object_2"):
        prior.profile("polyp")


def test_saved_is_loaded(tmp_path: Path, phantom_pairs: PairSet) -> None:
    prior = synth.FrequencyPrior.fit(phantom_pairs, size=32, bands=12)
    prior.save_pretrained(tmp_path / "prior")
    again = FrequencyPrior.from_pretrained(tmp_path / "prior")
    assert again.content_hash() == prior.content_hash() and again.seen == prior.seen
    assert all(torch.equal(again.sums[k], v) for k, v in prior.sums.items())
    assert again.distance(prior, n_boot=0).value == 0
    facts = tmp_path / "prior" / "config.json"
    facts.write_text(facts.read_text().replace('"bands": 12', '"bands": 13'))
    with pytest.raises(UserError, match="not those of"):
        FrequencyPrior.from_pretrained(tmp_path / "prior")
    (tmp_path / "prior" / "prior.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="damaged"):
        FrequencyPrior.from_pretrained(tmp_path / "prior")
    with pytest.raises(UserError, match="no frequency prior"):
        FrequencyPrior.from_pretrained(tmp_path)


def test_it_shows_a_panel_per_region_and_a_line_per_channel() -> None:
    figure = FrequencyPrior.fit(make_phantom(4, size=32, channels=3, n_classes=3), size=32).show()
    assert len(figure.axes) == 2 and all(len(axis.lines) == 3 for axis in figure.axes)
    assert "object_1 (4 images)" in figure.axes[0].get_title()


def test_two_centres_are_told_apart_and_one_is_not() -> None:
    a, same, other = (FrequencyPrior.fit(power_law(10, exponent, size=32, seed=seed), kind="whole", size=32)
                      for exponent, seed in ((1.0, 1), (1.0, 2), (1.3, 3)))
    itself, chance, apart = a.distance(a), a.distance(same), a.distance(other)
    assert itself.value == 0 < itself.floor and itself.p == 1 and not itself.differs
    assert not chance.differs and chance.p > 0.05
    assert apart.differs and apart.p < 0.05
    assert apart == a.distance(other) and apart.value == pytest.approx(other.distance(a).value)
    assert a.distance(other, n_boot=0).value == apart.value and math.isnan(a.distance(other, n_boot=0).floor)


def test_brightness_and_contrast_are_no_distance() -> None:
    images = [p.image for p in power_law(4, 1.0, size=32)]
    dim = [(1000 + i * 0.5).astype(np.uint16) for i in images]
    a, b = (FrequencyPrior.fit(image_set(some, bits=16), kind="whole", size=32) for some in (images, dim))
    assert a.distance(b, n_boot=0).value < 0.01


def test_patients_are_resampled_and_not_their_images() -> None:
    """Ten copies of two patients' images are no more evidence than the two: the floor stays."""
    images = [p.image for p in power_law(4, 1.0, size=32)]
    few = [FrequencyPrior.fit(image_set(images[i:i + 2], bits=16), kind="whole", size=32) for i in (0, 2)]
    many = []
    for i in (0, 2):
        groups = ["image_0"] * 10 + ["image_1"] * 10
        pixels = [images[i]] * 10 + [images[i + 1]] * 10
        many.append(FrequencyPrior.fit(image_set(pixels, groups=groups, bits=16), kind="whole", size=32))
    assert many[0].distance(many[1]).value == pytest.approx(few[0].distance(few[1]).value)
    assert many[0].distance(many[1]).floor == pytest.approx(few[0].distance(few[1]).floor)
    with pytest.raises(UserError, match="at least 2"):
        FrequencyPrior.fit(image_set(images[:1], bits=16), kind="whole", size=32).distance(few[0])


def test_native_sizes_differ_and_memory_does_not_grow_with_images() -> None:
    images = [RNG.integers(0, 255, shape).astype(np.uint8) for shape in ((40, 64), (51, 33), (32, 32))]
    prior = FrequencyPrior.fit(image_set(images), kind="whole", size=None, bands=16)
    assert prior.seen.n_images == 3 and prior.radial.isfinite().all()
    many = FrequencyPrior.fit(image_set([images[2]] * 40, groups=["one"] * 40), kind="whole", size=None, bands=16)
    assert sum(t.numel() for t in many.sums.values()) < sum(t.numel() for t in prior.sums.values())
    with pytest.raises(UserError, match="image_0.*40x64.*fewer bands"):
        FrequencyPrior.fit(image_set(images), kind="whole", size=None, bands=32)


@pytest.mark.parametrize("wrong", [{"kind": "edges"}, {"size": 8}, {"bands": 2}, {"sectors": 3}, {"edge_px": 0},
                                   {"channels": "luma"}, {"bands": 17}])
def test_impossible_settings_are_refused(wrong: dict[str, str | int], phantom_pairs: PairSet) -> None:
    with pytest.raises(UserError, match="Repair"):
        FrequencyPrior.fit(phantom_pairs, **{"size": 32, **wrong})


def test_what_has_no_outline_is_refused(phantom_pairs: PairSet) -> None:
    with pytest.raises(UserError, match="kind=whole"):
        FrequencyPrior.fit(image_set([p.image for p in phantom_pairs]), size=32)
    empty = memory_set([p.image for p in phantom_pairs], [np.zeros((32, 32), np.uint8)] * 12, phantom_pairs.info,
                       ids=phantom_pairs.ids, groups=phantom_pairs.groups)
    with pytest.raises(UserError, match="no image has an outline"):
        FrequencyPrior.fit(empty, size=32)


def test_rings_are_counted_in_cycles_per_pixel() -> None:
    assert ring_frequencies(4).tolist() == [0, 0.1875, 0.3125, 0.4375]

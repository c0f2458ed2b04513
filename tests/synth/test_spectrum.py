"""The spectrum gate and `synth audit --spectrum`: real images pass at their rate, decoders' marks are found."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import squares, tiny_pipeline

import synth
from synth.audit_spectrum import audit_spectrum, compare_spectra, spectrum_figure, spectrum_lines
from synth.cli import app
from synth.core.checks import UserError
from synth.core.pairs import Arrays, DataInfo
from synth.core.shell import run
from synth.core.space import pixels_to_unit, unit_to_pixels
from synth.gates import GateSettings, default_gates, run_gates
from synth.gates.scores import spectrum_score
from synth.gates.spectrum import difference, expected_beyond, spectrum_reference
from synth.spectral.fingerprint import N_BANDS, combs, fingerprint, places_of

SIZE = 64
INFO = DataInfo(("background", "thing"), 1, 8, (0.0, 255.0))


def textures(n: int, *, seed: int, size: int = SIZE) -> torch.Tensor:
    """Returns unit images (n, 1, S, S) of random phases whose amplitude falls as 1 / f, each a little otherwise."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    made = []
    for _ in range(n):
        noise = np.fft.rfft2(rng.standard_normal((size, size)))
        image = np.fft.irfft2(noise / radius**rng.normal(1.0, 0.07), s=(size, size))
        made.append(0.25 * image / image.std() * rng.uniform(0.6, 1.4) + 0.02 * rng.standard_normal((size, size)))
    return torch.from_numpy(np.stack(made)[:, None]).float().clamp(-1, 1)


def arrays_of(images: torch.Tensor, *, prefix: str = "r", n_groups: int = 20) -> Arrays:
    """Returns unit images as a set of 8-bit pixels."""
    n = len(images)
    return Arrays(unit_to_pixels(images, INFO.intensity_range, np.dtype(np.uint8)), None,
                  tuple(f"{prefix}{i}" for i in range(n)), tuple(f"g{i % n_groups}" for i in range(n)), INFO)


def upsampled(images: torch.Tensor) -> torch.Tensor:
    """Returns images as a decoder draws them whose last step repeats pixels: half the size, nearest x 2."""
    return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="nearest")


def transposed(images: torch.Tensor) -> torch.Tensor:
    """Returns images as a transposed convolution of kernel 3 and stride 2 draws them: its overlaps are uneven."""
    kernel = torch.full((1, 1, 3, 3), 0.5)
    kernel[..., 1, 1] = 1
    made = F.conv_transpose2d(F.avg_pool2d(images, 2), kernel, stride=2, padding=1, output_padding=1)
    return (0.6 * made).clamp(-1, 1)


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Returns images without their high bands."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)


MARKS = {"nearest": upsampled, "transposed": transposed, "blurred": blurred}
REAL = arrays_of(textures(60, seed=0))


def test_the_score_is_the_strangest_feature_and_a_missing_peak_is_not_strange() -> None:
    mean, sd = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 0.5])
    features = torch.tensor([[0.0, 1.0, 2.0], [-3.0, 1.0, 2.0], [0.0, 9.0, 2.0], [0.0, 1.0, -7.0], [0.0, 1.0, 3.0]])
    assert spectrum_score(features, mean, sd, n_bands=2).tolist() == [0, 3, 4, 0, 2]


def test_places_cover_bands_and_compare_peaks_with_other_directions() -> None:
    places = places_of((72, 72))
    for share in (places.bands, places.peaks, places.around):
        assert torch.allclose(share.sum(1), torch.ones(len(share)))
    assert not ((places.peaks.sum(0) > 0) & (places.around.sum(0) > 0)).any()
    assert len(places.names) == 12 and places.frequencies[-1] < 0.5


def test_a_comb_is_what_repeated_pixels_have_and_a_picture_has_not() -> None:
    plain = textures(8, seed=4)
    assert combs(plain).max() < 0.5 and combs(torch.zeros(1, 1, 32, 32)).max() == 0
    assert combs(upsampled(plain))[:, 0].min() > 2, "every other step is 0"
    twice = F.interpolate(F.avg_pool2d(plain, 4), scale_factor=4, mode="nearest")
    assert combs(twice)[:, 1].min() > 2


def test_contrast_and_brightness_are_no_features() -> None:
    images = textures(3, seed=5) * 0.8
    a, b = fingerprint(images).features(), fingerprint(0.5 * images + 0.2).features()
    assert torch.allclose(a, b, atol=0.03), "but for the least step"
    assert torch.equal(fingerprint(images[1:2]).features()[0], a[1]), "alone as in a batch"


def test_real_images_held_aside_pass_at_the_nominal_rate() -> None:
    reference = spectrum_reference(REAL, quantile=0.9)
    scores = reference.score(textures(300, seed=1))
    assert 0.82 < float((scores <= reference.threshold).float().mean()) < 0.97


@pytest.mark.parametrize("mark", sorted(MARKS))
def test_marks_of_decoders_are_caught(mark: str) -> None:
    reference = spectrum_reference(REAL, quantile=0.99)
    plain = textures(30, seed=2)
    assert (reference.score(MARKS[mark](plain)) > reference.threshold).float().mean() > 0.9
    assert (reference.score(plain) > reference.threshold).float().mean() < 0.15


def test_a_checkerboard_is_named_where_it_is_and_a_blur_has_none() -> None:
    plain = textures(30, seed=3)
    board = compare_spectra(arrays_of(transposed(plain), prefix="m"), REAL)
    place = board.peaks.index("peak at 0.5, 0.5")
    assert board.at.lo[place] > 6 and any("peak at 0.5, 0.5" in line for line in spectrum_lines(board))
    soft = compare_spectra(arrays_of(blurred(plain), prefix="m"), REAL)
    assert soft.bands.hi[-1] < -3 and abs(soft.bands.value[2]) < 3
    same = compare_spectra(arrays_of(plain, prefix="m"), REAL)
    assert np.abs(same.bands.value).max() < 3 and same.share_beyond < 0.15


def test_the_interval_counts_groups_and_not_images() -> None:
    rng = np.random.default_rng(0)
    level = rng.normal(0, 1, 8)
    few = np.repeat(level, 25)[:, None] + 0.01 * rng.standard_normal((200, 1))
    names = [f"g{i // 25}" for i in range(200)]
    wide = difference(few, few, made_groups=names, real_groups=names)
    narrow = difference(few, few, made_groups=[str(i) for i in range(200)], real_groups=[str(i) for i in range(200)])
    assert wide.value[0] == 0 and (wide.hi - wide.lo)[0] > 3 * (narrow.hi - narrow.lo)[0]


@pytest.mark.parametrize(("n_made", "n_real"), [(1, 20), (20, 1), (1, 1)])
def test_one_group_on_a_side_leaves_no_interval(n_made: int, n_real: int) -> None:
    made = arrays_of(textures(20, seed=5), prefix="m", n_groups=n_made)
    found = compare_spectra(made, arrays_of(textures(30, seed=6), n_groups=n_real))
    lines = spectrum_lines(found)
    assert "without intervals: one side is of a single group" in lines[0]
    assert not any(" to " in line or "no marks" in line for line in lines[:-1])
    assert len(lines) == 2 + len(found.frequencies) + len(found.peaks)
    assert {row["lo"] for part in ("bands", "peaks") for row in found.words()[part]} == {None}
    spectrum_figure(found).savefig(io.BytesIO(), format="png")


def test_one_real_image_sets_no_threshold_and_rejects_nothing() -> None:
    real = arrays_of(textures(1, seed=6), n_groups=1)
    found = compare_spectra(arrays_of(textures(4, seed=5), prefix="m"), real)
    assert spectrum_lines(found)[-1].endswith("one real image sets no threshold")
    assert found.words()["score"]["threshold"] is None and found.share_beyond == found.real_beyond == 0
    assert json.loads(json.dumps(found.words(), allow_nan=False))
    alone = squares(1, size=SIZE)
    gates = default_gates(None, alone, size=SIZE, settings=GateSettings(spectrum="reject"))
    _, verdicts = run_gates(textures(2, seed=7), torch.zeros(2, SIZE, SIZE, dtype=torch.long), gates)
    assert all("spectrum" in v.scores and "spectrum" not in v.reason for v in verdicts)


def test_the_gate_reports_by_default_and_rejects_when_asked() -> None:
    pairs = squares(12, size=SIZE, n_groups=6)
    arrays = pairs.arrays(SIZE)
    images = pixels_to_unit(arrays.images, arrays.info.intensity_range)
    labels = torch.from_numpy(arrays.masks.astype(np.int64))
    board = (images + 0.3 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(SIZE // 2, SIZE // 2)).clamp(-1, 1)
    for how, kept in (("report", True), ("reject", False)):
        gates = dataclasses.replace(default_gates(None, pairs, size=SIZE, settings=GateSettings(spectrum=how)),
                                    max_correlation=2.0)
        _, verdicts = run_gates(board, labels, gates)
        assert all(v.scores["spectrum"] > gates.spectrum.threshold and v.kept is kept for v in verdicts)
        assert all(v.reason.startswith("spectrum ") is not kept for v in verdicts)
    ids = {default_gates(None, pairs, size=SIZE, settings=s).identity for s in (
        GateSettings(), GateSettings(spectrum="reject"), GateSettings(spectrum_quantile=0.5))}
    assert len(ids) == 3


def test_at_another_size_there_is_no_score() -> None:
    gates = default_gates(None, squares(6), size=32)
    _, verdicts = run_gates(torch.zeros(1, 1, 48, 48), torch.zeros(1, 48, 48, dtype=torch.long), gates)
    assert "spectrum" not in verdicts[0].scores


def _cli(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(lambda: app([str(w) for w in words]))
    return int(stopped.value.code or 0)


def test_the_command_prints_draws_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pairs = squares(12, size=40)
    synth.write_folder(pairs, tmp_path / "labelled")
    synth.draw(tiny_pipeline(), pairs, n=8, out=tmp_path / "made")
    words = ("audit", "--spectrum", tmp_path / "made", f"data.labelled={tmp_path}/labelled")
    assert _cli(*words, f"out={tmp_path}/s.png", "--json", tmp_path / "s.json") == 0
    said = capsys.readouterr().out
    assert "8 synthetic images" in said and "score: median" in said and (tmp_path / "s.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "s.json").read_text())["spectrum"]
    assert len(written["bands"]) == N_BANDS and written["score"]["n_made"] == 8
    assert all(b["lo"] <= b["db"] <= b["hi"] for b in written["bands"])
    assert _cli(*words, "--dry-run") == 0 and _cli(*words, "size=3") == 2
    assert _cli(*words, "out=a.pdf") == 2 and _cli(*words, "--seam", tmp_path) == 2


def test_real_images_are_resized_to_what_the_generator_saw() -> None:
    """At their own 64 px the same pictures have other frequencies: the halved set would look blurred or sharp."""
    pairs = squares(12, size=SIZE)
    small = [(p, p.image) for p in pairs]
    made = synth.core.pairs.memory_set(
        [F.interpolate(torch.from_numpy(i)[None, None].float(), (32, 32), mode="bilinear", antialias=True)[0, 0]
         .round().byte().numpy() for _, i in small], [p.mask[::2, ::2] for p, _ in small], pairs.info, ids=pairs.ids,
        groups=pairs.groups)
    assert np.abs(audit_spectrum(made, pairs).bands.value).max() < 1e-6


def test_sets_of_several_sizes_are_refused() -> None:
    pairs = squares(4)
    mixed = synth.core.pairs.memory_set([pairs[0].image, pairs[1].image[:16]], [pairs[0].mask, pairs[1].mask[:16]],
                                        pairs.info, ids=["a", "b"], groups=["a", "b"])
    with pytest.raises(UserError, match="one square working size"):
        audit_spectrum(mixed, pairs)


def test_the_threshold_of_few_images_is_said_to_leave_out_more_than_is_asked_for() -> None:
    assert expected_beyond(9, quantile=0.99) == pytest.approx(1 / 10)
    assert expected_beyond(1, quantile=0.99) == 0.5
    assert expected_beyond(199, quantile=0.99) == pytest.approx(0.01)

"""The placebo test: where placebos lie, the AUC's closed form, nothing or something to find, the probe and the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny import squares

from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.core.space import labels_to_keep, pixels_to_unit
from synth.gates import Gates, default_gates, run_gates
from synth.gates.placebo import GAP_PX, MAX_SHARE, MIN_SHARE, draw_placebo
from synth.gates.probe import SeamProbe, fit_seam_probe
from synth.gates.seam import group_folds, mean_over_groups, paint_placebos, placebo_test, within_auc, within_dice
from synth.gates.seam_net import SeamNet, SeamSettings, balanced_loss, build_seam_net, seam_logits

PAIRS = squares(40, n_groups=10)
ARRAYS = PAIRS.arrays(32)
IMAGES = pixels_to_unit(ARRAYS.images, ARRAYS.info.intensity_range)
LABELS = torch.from_numpy(ARRAYS.masks.astype(np.int64))
QUICK = SeamSettings(steps=60, batch_size=8, n_resamples=500)
DATA = {"groups": ARRAYS.groups, "info": ARRAYS.info}


def untouched(images: torch.Tensor, keep: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Returns the images (B, C, H, W) as they are: there is no seam."""
    return images


def noised(images: torch.Tensor, keep: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Returns the images (B, C, H, W) under heavy noise: a surrounding as plain as can be."""
    noise = torch.stack([torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(s % 2**32))
                         for s in seeds])
    return (images + 0.3 * noise).clamp(-1, 1)


def grainy(pairs: PairSet = PAIRS) -> torch.Tensor:
    """Returns the images of `pairs` with grain, unit (N, 1, 32, 32): something for a blur to take away."""
    arrays = pairs.arrays(32)
    grain = np.random.default_rng(5).normal(0, 12, arrays.images.shape)
    return pixels_to_unit(np.clip(np.rint(arrays.images + grain), 0, 255), (0.0, 255.0))


def blurred(images: torch.Tensor, keep: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Returns the images (B, C, H, W) as a decoder without detail would give them."""
    return torch.from_numpy(ndimage.gaussian_filter(images.numpy(), (0, 0, 1.5, 1.5)))


# Where placebos lie.


def test_placebos_touch_no_foreground_and_keep_within_the_bounds_of_area() -> None:
    drawn = draw_placebo(LABELS, seed=3, groups=ARRAYS.groups)
    assert drawn.rows == tuple(range(40))
    wide = np.ones((2 * GAP_PX + 1, 2 * GAP_PX + 1), bool)
    for masks in (drawn.keep, drawn.decoy):
        assert masks.shape == (40, 32, 32) and masks.dtype == torch.bool
        shares = masks.float().mean((1, 2))
        assert float(shares.min()) >= MIN_SHARE and float(shares.max()) <= MAX_SHARE
        for mask, label in zip(masks.numpy(), LABELS.numpy(), strict=True):
            assert not (ndimage.binary_dilation(mask, wide) & (label > 0)).any()
    assert not torch.equal(drawn.keep, drawn.decoy)


def test_a_placebo_depends_on_seed_and_row_alone() -> None:
    first, again, other = (draw_placebo(LABELS, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.keep, again.keep) and torch.equal(first.decoy, again.decoy)
    assert not torch.equal(first.keep, other.keep)


def test_placebos_have_the_shapes_of_other_groups() -> None:
    """Group a has squares, group b bars: a square's image gets bars, and the other way round."""
    labels = torch.zeros(8, 48, 48, dtype=torch.long)
    labels[:4, 2:12, 2:12], labels[4:, 2:6, 2:27] = 1, 1
    drawn = draw_placebo(labels, seed=0, groups=["a"] * 4 + ["b"] * 4)
    for row, mask in zip(drawn.rows, drawn.keep.numpy(), strict=True):
        where = np.argwhere(mask)
        sides = where.max(0) - where.min(0) + 1
        assert mask.sum() == sides.prod(), "a rectangle stays one under turns by 90 degrees"
        assert (sides.max() / sides.min() > 3) == (row < 4)


def test_without_labels_placebos_are_discs_and_without_room_the_image_is_left_out() -> None:
    labels = torch.zeros(3, 32, 32, dtype=torch.long)
    labels[1], labels[2, 8:] = 1, 255  # all foreground; 8 rows that nobody called open
    drawn = draw_placebo(labels, seed=0, groups=["a", "a", "a"])
    assert drawn.rows == (0, 2)
    assert not (drawn.keep[1] & (labels[2] == 255)).any()
    with pytest.raises(UserError, match="none has background enough"):
        paint_placebos(untouched, IMAGES[:1], torch.ones(1, 32, 32, dtype=torch.long), groups=["a"], info=ARRAYS.info,
                       settings=QUICK)


def test_a_placebo_may_lie_anywhere_that_is_free() -> None:
    drawn = draw_placebo(torch.zeros(400, 16, 16, dtype=torch.long), seed=0)
    assert drawn.keep.any(0).float().mean() > 0.9
    counts = drawn.keep.float().mean(0)
    assert torch.allclose(counts.flip(0), counts, atol=0.12) and torch.allclose(counts.T, counts, atol=0.12)


# What is painted.


def test_kept_pixels_are_the_sources_and_the_rest_is_on_the_grey_levels() -> None:
    painted = paint_placebos(noised, IMAGES, LABELS, **DATA, settings=QUICK)
    keep = painted.placebos.keep[:, None]
    assert torch.equal(painted.images[keep], IMAGES[keep])
    levels = (painted.images + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert not torch.equal(painted.images, IMAGES)
    other = paint_placebos(noised, IMAGES, LABELS, **DATA, settings=QUICK.model_copy(update={"paint_batch": 7}))
    assert torch.equal(other.images, painted.images), "a seed belongs to the image, not to its batch"


def test_what_is_redrawn_is_seen_as_it_was_painted() -> None:
    def redraw(images: torch.Tensor, keep: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        return -images

    assert torch.allclose(paint_placebos(redraw, IMAGES, LABELS, **DATA, settings=QUICK, shown=None).images, -IMAGES,
                          atol=1 / 255)


def test_images_must_be_square() -> None:
    with pytest.raises(UserError, match="32 x 24 px"):
        paint_placebos(untouched, IMAGES[..., :24], LABELS[..., :24], **DATA, settings=QUICK)


# Scores.


@pytest.mark.parametrize(("scores", "positive", "expected"), [
    ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
    ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
    ([1, 2, 3, 4], [0, 1, 0, 1], 0.75),
    ([5, 5, 5, 5], [0, 1, 0, 1], 0.5),  # all tied
    ([1, 2, 2, 3], [0, 1, 0, 1], 0.875),  # of four comparisons three are won and one is tied
])
def test_auc_is_the_chance_that_a_positive_wins(scores: list[float], positive: list[int], expected: float) -> None:
    auc = within_auc(torch.tensor([[scores]]).float(), torch.tensor([[positive]]).bool())
    assert auc.tolist() == [pytest.approx(expected)]


def test_auc_agrees_with_counting_and_leaves_out_what_does_not_count() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, (1, 5, 9)).astype(np.float32), rng.random((1, 5, 9)) < 0.3
    counted = rng.random((1, 5, 9)) < 0.7
    a, b = scores[positive & counted][:, None], scores[~positive & counted][None]
    expected = float(((a > b) + 0.5 * (a == b)).mean())
    found = within_auc(*(torch.from_numpy(x) for x in (scores, positive)), counted=torch.from_numpy(counted))
    assert float(found) == pytest.approx(expected)
    assert within_auc(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).bool()).isnan().all()


def test_dice_counts_only_what_it_is_told_to() -> None:
    a, b = torch.tensor([[[1, 1, 0, 0]]]).bool(), torch.tensor([[[1, 0, 1, 0]]]).bool()
    assert within_dice(a, b).tolist() == [0.5]
    assert within_dice(a, b, counted=torch.tensor([[[1, 0, 0, 1]]]).bool()).tolist() == [1.0]


def test_loss_weighs_kept_and_painted_alike() -> None:
    keep = torch.zeros(1, 10, 10, dtype=torch.bool)
    keep[:, 0, :2] = True
    everything, nothing = (torch.full((1, 10, 10), v) for v in (3.0, -3.0))
    assert float(balanced_loss(everything, keep)) == pytest.approx(float(balanced_loss(nothing, keep)), rel=1e-5)


def test_folds_hold_whole_groups_and_about_equal_numbers() -> None:
    groups = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    folds = group_folds(groups, 2, seed=0)
    assert all(len({f for f, g in zip(folds, groups, strict=True) if g == name}) == 1 for name in "abcd")
    assert 5 <= (folds == 0).sum() <= 9
    with pytest.raises(UserError, match="1 group"):
        group_folds(["a", "a"], 2, seed=0)


def test_interval_over_groups_is_wider_than_over_images() -> None:
    values = np.repeat([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 20)
    _, low, high = mean_over_groups(values, np.repeat(list("abcdef"), 20).tolist(), seed=0, n_resamples=500)
    _, narrow_low, narrow_high = mean_over_groups(values, [str(i) for i in range(120)], seed=0, n_resamples=500)
    assert low < narrow_low < 0.75 < narrow_high < high
    assert mean_over_groups(np.array([0.5, np.nan]), ["a", "b"], seed=0, n_resamples=500) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("size", [32, 33, 50])
def test_the_network_takes_any_size_and_judges_an_image_the_same_alone(size: int) -> None:
    net = build_seam_net(1, widths=(8, 16, 32), seed=0).eval()
    images = torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    logits = seam_logits(net, images)
    assert logits.shape == (3, size, size) and torch.equal(seam_logits(net, images[1:2])[0], logits[1])
    assert SeamNet(3, widths=(8,))(torch.zeros(1, 3, size, size)).shape == (1, size, size)


# The test itself.


def test_nothing_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    result = placebo_test(untouched, IMAGES, LABELS, settings=QUICK, **DATA, out=tmp_path / "out")
    assert result.paired_lo < 0.5 and abs(result.paired_auc - 0.5) < 0.2
    assert abs(result.auc - result.chance_auc) < 0.15 and result.n_images == 40 and result.n_groups == 10
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"run.json", "fold-0", "fold-1"}
    again = placebo_test(untouched, IMAGES, LABELS, settings=QUICK, **DATA, out=tmp_path / "out")
    assert again == result, "a finished test is only scored again"
    with pytest.raises(UserError, match="another placebo run"):
        placebo_test(noised, IMAGES, LABELS, settings=QUICK, **DATA, out=tmp_path / "out")


def test_a_blurred_surrounding_is_found() -> None:
    result = placebo_test(blurred, grainy(), LABELS, settings=QUICK, **DATA)
    assert result.auc > 0.8 and result.auc_lo > 0.75 and result.paired_lo > 0.5
    assert result.auc_lo <= result.auc <= result.auc_hi and result.dice_lo <= result.dice <= result.dice_hi
    assert result.chance_auc < 0.75 and result.dice > result.chance_dice + 0.1
    assert result.n_keep_pixels == int(draw_placebo(LABELS, seed=0, groups=ARRAYS.groups).keep.sum())


# The gate.


@pytest.fixture(scope="module")
def probe() -> SeamProbe:
    """Returns a probe of the blurring generator."""
    return fit_seam_probe(blurred, grainy(), LABELS, settings=QUICK, **DATA)


def pairs_to_gate(*, seam: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns grainy images of other pairs, unit (6, 1, 32, 32), with or without a blurred surrounding, and labels."""
    pairs = squares(6, seed=9)
    images, labels = grainy(pairs), torch.from_numpy(pairs.arrays(32).masks.astype(np.int64))
    keep = labels_to_keep(labels)
    return torch.where(keep[:, None], images, blurred(images, keep, range(6))) if seam else images, labels


def gates_with(probe: SeamProbe | None) -> Gates:
    """Returns gates that let any novelty pass."""
    return dataclasses.replace(default_gates(None, PAIRS, size=32, seam=probe), max_correlation=2.0)


def test_the_gate_rejects_a_seam_and_passes_a_pair_without_one(probe: SeamProbe) -> None:
    assert probe.auc > 0.95 and 0.75 <= probe.threshold < 1
    gates = gates_with(probe)
    images, labels = pairs_to_gate(seam=True)
    gated, verdicts = run_gates(images, labels, gates)
    assert torch.equal(gated, labels)
    assert all(not v.kept and v.reason == f"seam {v.scores['seam']:.2f} > {probe.threshold:.2f}" for v in verdicts)
    _, verdicts = run_gates(*pairs_to_gate(seam=False), gates)
    assert all(v.kept and v.scores["seam"] <= probe.threshold for v in verdicts)


def test_a_pair_is_scored_the_same_alone_and_without_a_kept_place_as_chance(probe: SeamProbe) -> None:
    images, labels = pairs_to_gate(seam=True)
    keep = labels_to_keep(labels)
    assert torch.equal(probe.score(images, keep)[2:3], probe.score(images[2:3], keep[2:3]))
    assert probe.score(images, torch.zeros_like(keep)).tolist() == [0.5] * 6
    with pytest.raises(UserError, match="3 channel"):
        probe.score(images.expand(-1, 3, -1, -1), keep)


def test_a_probe_comes_back_from_its_folder(probe: SeamProbe, tmp_path: Path) -> None:
    probe.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"seam.json", "seam.safetensors"}
    loaded = SeamProbe.load(tmp_path)
    images, labels = pairs_to_gate(seam=True)
    assert torch.equal(loaded.score(images, labels_to_keep(labels)), probe.score(images, labels_to_keep(labels)))
    assert (loaded.threshold, loaded.auc, loaded.identity()) == (probe.threshold, probe.auc, probe.identity())
    with pytest.raises(UserError, match="no seam probe here"):
        SeamProbe.load(tmp_path / "nowhere")


def test_the_probe_is_part_of_the_identity_and_its_absence_changes_nothing(probe: SeamProbe) -> None:
    other = dataclasses.replace(probe, threshold=0.99)
    assert len({gates_with(p).identity for p in (None, probe, other)}) == 3
    _, verdicts = run_gates(IMAGES[:2], LABELS[:2], gates_with(None))
    assert all(set(v.scores) == {"correlation", "spectrum"} for v in verdicts)

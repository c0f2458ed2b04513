"""The gates: closed forms of each score, what becomes ignore, what is rejected and why, and calibration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny import blind_judge, brightness_judge, squares

from synth.core.checks import UserError
from synth.core.pairs import ImageSet, PairSet, memory_set
from synth.core.space import pixels_to_unit
from synth.gates import Gates, GateSettings, default_gates, run_gates
from synth.gates.gates import LEAST_FAITHFULNESS, NO_SECOND_GROUP
from synth.gates.scores import faithfulness, false_foreground, highest_correlation, thumbnails

PAIRS = squares(6)


def unit(pairs: PairSet) -> torch.Tensor:
    """Returns the pairs' images, unit (N, 1, 32, 32)."""
    return pixels_to_unit(pairs.arrays(32).images, pairs.info.intensity_range)


def labels_of(pairs: PairSet) -> torch.Tensor:
    """Returns the pairs' labels (N, 32, 32)."""
    return torch.from_numpy(pairs.arrays(32).masks.astype(np.int64))


def certain(predicted: list[int], n_classes: int) -> torch.Tensor:
    """Returns probabilities (1, K, 1, W) of a judge that is sure of `predicted`."""
    return torch.nn.functional.one_hot(torch.tensor([predicted]), n_classes).float().permute(0, 2, 1)[:, :, None]


@pytest.mark.parametrize(("predicted", "labels", "expected"), [
    ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
    ([1, 0, 0, 0], [1, 1, 0, 0], 2 / 3),
    ([0, 0, 1, 1], [1, 1, 0, 0], 0.0),
    ([1, 1, 1, 1], [1, 1, 0, 0], 2 / 3),
    ([1, 1, 1, 1], [1, 1, 255, 255], 1.0),  # ignored pixels count for neither side
    ([1, 2, 0, 0], [1, 1, 2, 2], 1 / 3),  # class 1: 2/3, class 2: 0
    ([1, 1, 2, 0], [1, 1, 0, 0], 1.0),  # class 2 is not in the mask: no class to be faithful to
])
def test_faithfulness_is_the_mean_dice_of_the_classes_there(predicted: list[int], labels: list[int],
                                                            expected: float) -> None:
    score = faithfulness(certain(predicted, 3), torch.tensor([[labels]]))
    assert score.shape == (1,) and float(score) == pytest.approx(expected)


def test_false_foreground_is_confident_and_outside() -> None:
    p = torch.tensor([[[[0.05, 0.05, 0.2, 0.5, 0.1]], [[0.05, 0.9, 0.8, 0.5, 0.0]], [[0.9, 0.05, 0, 0, 0.9]]]])
    outside = torch.tensor([[[True, False, True, True, True]]])
    assert false_foreground(p, outside, confidence=0.8).tolist() == [[[True, False, False, False, True]]]


def test_thumbnails_are_means_of_grey() -> None:
    image = torch.arange(48.0).view(1, 3, 4, 4)
    expected = image.mean(1).view(1, 2, 2, 2, 2).mean((2, 4)).flatten(1)
    assert torch.allclose(thumbnails(image, 2), expected)


def test_correlation_is_pearsons_within_the_region() -> None:
    rng = np.random.default_rng(0)
    thumbs, bank = rng.standard_normal((3, 64)), rng.standard_normal((5, 64)) + 2
    region = rng.random((3, 64)) < [[0.3], [0.6], [1.0]]
    expected = [max(np.corrcoef(t[r], b[r])[0, 1] for b in bank) for t, r in zip(thumbs, region, strict=True)]
    score = highest_correlation(*(torch.from_numpy(x).float() for x in (thumbs, region, bank)))
    assert np.allclose(score, expected, atol=1e-5)


def test_correlation_sees_through_brightness_and_contrast_but_not_through_inversion() -> None:
    rng = torch.Generator().manual_seed(0)
    x, region = torch.randn(1, 64, generator=rng), torch.ones(1, 64)
    assert float(highest_correlation(0.1 * x - 3, region, x)) == pytest.approx(1, abs=1e-5)
    assert float(highest_correlation(-x, region, x)) == pytest.approx(-1, abs=1e-5)


def test_a_copy_is_found_in_a_dark_flat_region_too() -> None:
    """Sums of squares that cancel to nothing in single precision."""
    rng = torch.Generator().manual_seed(0)
    bank = -0.98 + 0.004 * torch.randn(2, 1024, generator=rng)
    assert float(highest_correlation(bank[:1], torch.ones(1, 1024), bank)) == pytest.approx(1, abs=1e-4)
    assert float(highest_correlation(bank[:1], torch.ones(1, 1024), bank[1:])) < 0.2


def test_a_region_of_a_few_cells_has_nothing_to_remember() -> None:
    x, region = torch.randn(1, 100, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 100)
    region[:, :4] = 1
    assert float(highest_correlation(x, region, x)) == -1
    region[:, 4] = 1
    assert float(highest_correlation(x, region, x)) == pytest.approx(1)


def gates_for(pairs: PairSet = PAIRS, *, judge: object = brightness_judge, training: ImageSet | None = None,
              **settings: float) -> Gates:
    """Returns calibrated gates that let any novelty pass (unless novelty_quantile is given)."""
    gates = default_gates(judge, pairs, training=training, size=32, settings=GateSettings(**settings))
    return gates if "novelty_quantile" in settings else dataclasses.replace(gates, max_correlation=2.0)


def test_real_pairs_pass_and_their_labels_stay() -> None:
    labels, verdicts = run_gates(unit(PAIRS), labels_of(PAIRS), gates_for())
    assert torch.equal(labels, labels_of(PAIRS)) and all(v.kept and not v.reason for v in verdicts)
    assert all(v.scores["faithfulness"] == 1 and v.scores["false_foreground"] == 0 for v in verdicts)


def test_a_judge_of_other_classes_is_refused() -> None:
    def knows_a_third(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([brightness_judge(images), torch.zeros_like(images)], dim=1)

    with pytest.raises(UserError, match=r"judge or referee of 3 classes: the pairs have 2"):
        gates_for(judge=knows_a_third)


def with_second_square(side: int, *, distance: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a unit image (1, 1, 32, 32) with its own square and an unlabelled one of `side`, and its labels."""
    image, labels = torch.full((1, 1, 32, 32), -0.5), torch.zeros(1, 32, 32, dtype=torch.long)
    image[..., 4:14, 4:14], labels[:, 4:14, 4:14] = 0.9, 1
    image[..., 4:4 + side, 13 + distance:13 + distance + side] = 0.9
    return image, labels


def test_a_small_second_object_becomes_ignore() -> None:
    image, labels = with_second_square(4, distance=8)
    gated, (verdict,) = run_gates(image, labels, gates_for())
    assert verdict.kept and verdict.scores["false_foreground"] > 0
    expected = labels.clone()
    expected[:, 4:8, 21:25] = 255
    assert torch.equal(gated, expected)
    outside = 32 * 32 - 18 * 18  # the square grown by clear_px = 4, all within the frame
    assert verdict.scores["false_foreground"] == pytest.approx(16 / outside, abs=1e-5)


def test_a_large_second_object_is_a_rejection() -> None:
    image, labels = with_second_square(9, distance=8)
    _, (verdict,) = run_gates(image, labels, gates_for())
    assert not verdict.kept and verdict.reason.startswith("false_foreground")
    _, (lenient,) = run_gates(image, labels, gates_for(max_false_foreground=0.5))
    assert lenient.kept


def test_the_judge_may_err_close_to_the_outline_and_where_the_label_is_open() -> None:
    image, labels = with_second_square(3, distance=2)  # within clear_px = 4 for the most part
    gated, (verdict,) = run_gates(image, labels, gates_for())
    assert verdict.scores["false_foreground"] == 0 and torch.equal(gated, labels) and verdict.kept
    image, labels = with_second_square(9, distance=8)
    labels[:, :, 18:] = 255
    gated, (verdict,) = run_gates(image, labels, gates_for())
    assert verdict.scores["false_foreground"] == 0 and torch.equal(gated, labels)


def test_an_image_that_does_not_show_its_mask_is_rejected() -> None:
    labels = labels_of(PAIRS)
    _, verdicts = run_gates(torch.full((6, 1, 32, 32), -0.5), labels, gates_for())
    assert all(not v.kept and v.reason.startswith("faithfulness 0.00 < 0.60") for v in verdicts)


def test_a_judge_that_sees_nothing_keeps_nothing() -> None:
    gates = gates_for(judge=blind_judge)
    assert gates.min_faithfulness == LEAST_FAITHFULNESS
    _, verdicts = run_gates(unit(PAIRS), labels_of(PAIRS), gates)
    assert all(not v.kept and v.reason == "faithfulness 0.00 < 0.01" for v in verdicts)


def test_without_a_judge_novelty_and_spectrum_are_scored() -> None:
    labels = labels_of(PAIRS)
    gated, verdicts = run_gates(unit(PAIRS), labels, gates_for(judge=None))
    assert torch.equal(gated, labels) and all(set(v.scores) == {"correlation", "spectrum"} and v.kept for v in verdicts)


def texture(seed: int) -> np.ndarray:
    """Returns smooth pixels (32, 32) uint8 that resemble those of no other seed."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((32, 32)), 2)
    return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def textured(groups: list[str], *, seeds: list[int] | None = None) -> PairSet:
    """Returns pairs of textures with one square each, of these groups; equal seeds give equal images."""
    seeds = seeds or list(range(len(groups)))
    mask = np.zeros((32, 32), np.uint8)
    mask[10:20, 10:20] = 1
    pairs = memory_set([texture(s) for s in seeds], [mask] * len(seeds), PAIRS.info,
                       ids=[f"t{i}" for i in range(len(seeds))], groups=groups)
    assert isinstance(pairs, PairSet)
    return pairs


def painted(seed: int, *, mirrored: bool = False, foreground: float = 0.9) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns texture `seed` around a foreground of its own as unit (1, 1, 32, 32), and its labels."""
    pixels = texture(seed)[:, ::-1] if mirrored else texture(seed)
    image, labels = pixels_to_unit(pixels[None, None].copy(), (0, 255)), torch.zeros(1, 32, 32, dtype=torch.long)
    image[..., 4:12, 16:26], labels[:, 4:12, 16:26] = foreground, 1
    return image, labels


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copied_surrounding_is_rejected_whatever_the_foreground(*, mirrored: bool) -> None:
    pairs = textured([f"g{i}" for i in range(8)])
    gates = gates_for(pairs, judge=None, novelty_quantile=0.99)
    assert gates.max_correlation < 0.9
    for foreground in (0.9, -0.9):
        image, labels = painted(3, mirrored=mirrored, foreground=foreground)
        _, (verdict,) = run_gates(image, labels, gates)
        assert not verdict.kept and verdict.reason.startswith("correlation")
        assert verdict.scores["correlation"] > 0.999
    image, labels = painted(77, mirrored=mirrored)
    _, (verdict,) = run_gates(image, labels, gates)
    assert verdict.kept and verdict.scores["correlation"] < 0.9


def test_the_copied_foreground_is_no_memorisation() -> None:
    """The kept region is the training image's by design: only what was painted is compared."""
    pairs = textured([f"g{i}" for i in range(8)])
    gates = gates_for(pairs, judge=None, novelty_quantile=0.99)
    image, labels = pixels_to_unit(texture(50)[None, None], (0, 255)), torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :24] = 1
    image[:, :, :24] = pixels_to_unit(texture(2)[None, None], (0, 255))[:, :, :24]
    _, (verdict,) = run_gates(image, labels, gates)
    _, (whole,) = run_gates(image, torch.zeros_like(labels), gates)
    assert verdict.scores["correlation"] < 0.6 and whole.scores["correlation"] > 0.7


def test_calibration_compares_images_of_other_groups_only() -> None:
    alike = gates_for(textured(["a", "a", "b", "b", "c"], seeds=[0, 0, 1, 1, 2]), judge=None, novelty_quantile=1.0)
    assert alike.max_correlation < 0.9, "two frames of one patient are alike, and say nothing about patients"
    leaking = gates_for(textured(["a", "b", "b", "c", "c"], seeds=[0, 0, 1, 1, 2]), judge=None, novelty_quantile=1.0)
    assert leaking.max_correlation == pytest.approx(1, abs=1e-5)
    single = gates_for(textured(["a"] * 4), judge=None, novelty_quantile=0.99)
    assert single.max_correlation == NO_SECOND_GROUP


def test_novelty_is_measured_against_all_training_images() -> None:
    pairs, more = textured(["a", "b", "c"]), textured(["a", "b", "c", "d"], seeds=[0, 1, 2, 40])
    image, labels = painted(40)
    _, (unseen,) = run_gates(image, labels, gates_for(pairs, judge=None, novelty_quantile=0.99))
    _, (seen,) = run_gates(image, labels, gates_for(pairs, judge=None, training=more, novelty_quantile=0.99))
    assert unseen.kept and not seen.kept


def test_the_identity_names_settings_judge_and_training_images() -> None:
    identities = [gates_for().identity, gates_for(judge=blind_judge).identity, gates_for(judge=None).identity,
                  gates_for(clear_px=3).identity, gates_for(squares(6, seed=1)).identity]
    assert len(set(identities)) == 5 and gates_for().identity == identities[0]


def test_a_pair_is_judged_the_same_alone_and_in_a_batch() -> None:
    images, labels = unit(PAIRS), labels_of(PAIRS)
    images[2] = -images[2]
    gates = gates_for(novelty_quantile=0.5)
    gated, verdicts = run_gates(images, labels, gates)
    for i in range(6):
        one, (verdict,) = run_gates(images[i:i + 1], labels[i:i + 1], gates)
        assert verdict == verdicts[i] and torch.equal(one[0], gated[i])

"""Metrics: closed forms on shifted squares, empty-mask rules, ignored pixels, another implementation."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import surface_distance
import torch
from scipy.ndimage import binary_erosion, gaussian_filter

from segtrain.metrics import Counts, count_pixels, dice, score_cases, surface_scores

SIDE, SIZE = 20, 64


def square(top: int = 10, left: int = 10) -> np.ndarray:
    """Returns a (64, 64) bool mask of one 20 x 20 square."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:top + SIDE, left:left + SIDE] = True
    return mask


def score(predicted: np.ndarray, truth: np.ndarray, n_classes: int = 2):
    """Returns the scores of one case, labels (H, W) each."""
    tensors = [torch.from_numpy(m.astype(np.int64))[None] for m in (predicted, truth)]
    return score_cases(*tensors, ids=["a"], groups=["g"], n_classes=n_classes, tolerance_px=1.0)[0]


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 19, 20, 30])
def test_dice_of_shifted_squares_is_their_overlap(rows: int) -> None:
    assert score(square(10 + rows), square()).dice[0] == pytest.approx(max(0, SIDE - rows) / SIDE)


def test_counts_add_up_to_the_areas() -> None:
    case = score(square(13), square())
    assert (case.tp[0], case.fp[0], case.fn[0]) == (20 * 17, 20 * 3, 20 * 3)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_hd95_of_a_small_shift_is_the_shift(rows: int) -> None:
    # 20 of 76 edge pixels lie `rows` away and none further, so the 95th percentile is the shift itself.
    assert surface_scores(square(10 + rows), square(), tolerance_px=1).hd95 == pytest.approx(rows, abs=1e-5)


def test_nsd_counts_edge_pixels_within_the_tolerance() -> None:
    # Shift of 2: of 76 edge pixels each, 36 coincide (two sides, 18 rows), 4 more are 1 px off, none is more than 2.
    shares = [surface_scores(square(12), square(), tolerance_px=t).nsd for t in (0, 1, 2)]
    assert shares == pytest.approx([36 / 76, 40 / 76, 1.0])


def test_metrics_do_not_care_which_is_the_prediction() -> None:
    a, b = square(13, 15), square()
    assert astuple(surface_scores(a, b, tolerance_px=1)) == pytest.approx(astuple(surface_scores(b, a, tolerance_px=1)))
    assert score(a, b).dice == score(b, a).dice


def test_both_empty_is_right_and_has_no_distance() -> None:
    empty = np.zeros((SIZE, SIZE), bool)
    case = score(empty, empty)
    assert (case.dice, case.nsd, case.hd95, case.asd) == ((1.0,), (1.0,), (None,), (None,))


@pytest.mark.parametrize("step", [1, -1])
def test_one_empty_is_as_wrong_as_can_be(step: int) -> None:
    case = score(*(np.zeros((SIZE, SIZE), bool), square())[::step])
    assert (case.dice, case.nsd) == ((0.0,), (0.0,))
    assert case.hd95[0] == case.asd[0] == pytest.approx(math.hypot(SIZE, SIZE))


def test_no_distance_exceeds_that_of_an_empty_mask() -> None:
    corners = [np.zeros((SIZE, SIZE), bool) for _ in range(2)]
    corners[0][0, 0] = corners[1][-1, -1] = True
    assert surface_scores(*corners, tolerance_px=1).hd95 < math.hypot(SIZE, SIZE)


def test_ignored_pixels_count_nowhere() -> None:
    truth = square().astype(np.int64)
    wrong = truth.copy()
    wrong[40:60, 40:60] = 1
    truth[38:62, 38:62] = 255
    case = score(wrong, truth)
    assert (case.dice, case.nsd, case.hd95, case.fp) == ((1.0,), (1.0,), (0.0,), (0,))


def test_classes_are_scored_apart() -> None:
    truth, predicted = np.zeros((SIZE, SIZE), int), np.zeros((SIZE, SIZE), int)
    truth[square()], predicted[square()] = 1, 2
    case = score(predicted, truth, n_classes=4)
    assert case.dice == (0.0, 0.0, 1.0)
    assert case.hd95[2] is None


def test_dice_from_counts_of_many_cases_equals_each_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    predicted, labels = (torch.randint(0, 3, (5, 16, 16), generator=rng) for _ in range(2))
    together = dice(count_pixels(predicted, labels, n_classes=3))
    alone = [dice(count_pixels(predicted[i:i + 1], labels[i:i + 1], n_classes=3))[0] for i in range(5)]
    assert np.array_equal(together, np.stack(alone))


def test_dice_formula() -> None:
    counts = Counts(*(np.array([[v]]) for v in (6, 2, 4)))
    assert dice(counts)[0, 0] == pytest.approx(12 / 18)


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns two random masks (H, W) that overlap in part."""
    rng = np.random.default_rng(seed)
    base, noise = (gaussian_filter(rng.standard_normal((SIZE, SIZE)), s) for s in (6, 4))
    return base + 0.6 * base.std() / noise.std() * noise > 0.6 * base.std(), base > 0.6 * base.std()


def test_random_blobs_agree_with_another_implementation() -> None:
    """`surface-distance` measures from corners between pixels and weighs surface elements by their length.

    MONAI counts edge pixels. So the two are no copies of each other: HD95 differs by about half a pixel in the median
    (a percentile may jump where few elements decide it), NSD by less than a tenth.
    """
    far, near = [], []
    for seed in range(30):
        predicted, truth = blobs(seed)
        found = surface_scores(predicted, truth, tolerance_px=1)
        other = surface_distance.compute_surface_distances(truth, predicted, (1.0, 1.0))
        far.append(abs(found.hd95 - surface_distance.compute_robust_hausdorff(other, 95)))
        near.append(abs(found.nsd - surface_distance.compute_surface_dice_at_tolerance(other, 1)))
    assert np.median(far) < 0.75 and np.quantile(far, 0.9) < 1.5
    assert max(near) < 0.1


def test_distances_by_brute_force() -> None:
    # The definition itself: edge pixels by 4-neighbour erosion, all distances, the larger directed 95th percentile.
    for seed in range(5):
        predicted, truth = blobs(seed)
        edges = [np.argwhere(m & ~binary_erosion(m)) for m in (predicted, truth)]
        distances = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=-1)
        expected = max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))
        found = surface_scores(predicted, truth, tolerance_px=1)
        assert found.hd95 == pytest.approx(expected, abs=1e-4)
        both = np.concatenate([distances.min(axis=0), distances.min(axis=1)])
        assert found.asd == pytest.approx(both.mean(), abs=1e-4)


def test_distances_follow_the_spacing_of_the_pixels() -> None:
    down, right = square(13), square(10, 14)
    assert surface_scores(down, square(), tolerance_px=1, spacing=(2.0, 0.5)).hd95 == pytest.approx(6)
    assert surface_scores(right, square(), tolerance_px=1, spacing=(2.0, 0.5)).hd95 == pytest.approx(2)
    plain, fine = (surface_scores(down, square(), tolerance_px=1, spacing=(s, s)) for s in (1.0, 0.25))
    assert (fine.hd95, fine.asd) == pytest.approx((plain.hd95 / 4, plain.asd / 4)) and fine.nsd == plain.nsd
    empty = surface_scores(np.zeros_like(down), down, tolerance_px=1, spacing=(3.0, 4.0))
    assert empty.hd95 == empty.asd == pytest.approx(5 * SIZE)

"""Each class keeps its share: what one threshold for all classes does to a rare one, and what quantiles do."""

from __future__ import annotations

import pytest
import torch
from scenes import make_scene

from segtrain.losses.consistency import Dice
from segtrain.scene import Scene
from segtrain.targets import Target, from_prob
from segtrain.targets.filters import argmax, confidence
from segtrain.targets.quantile import N_BINS, ClassQuantile, bins_of, count_by_class, least_bins

ROWS = {0: slice(0, 60), 1: slice(60, 62), 2: slice(62, 64)}
"""Of an image of 64 rows: the background, and two rare classes of 3 % each."""


def imbalanced(*, rare: tuple[float, float] = (0.5, 0.8), seed: int = 0) -> Target:
    """Returns a target (1, 3, 64, 100): a teacher sure of its background, in [.97, .999], and not of rare classes."""
    rng = torch.Generator().manual_seed(seed)
    sure = torch.rand(64, 100, generator=rng)
    prob = torch.zeros(3, 64, 100)
    for k, rows in ROWS.items():
        low, high = (0.97, 0.999) if k == 0 else rare
        best = low + (high - low) * sure[rows]
        prob[:, rows] = (1 - best) / 2
        prob[k, rows] = best
    return from_prob(prob[None])


def kept(target: Target) -> list[float]:
    """Returns the share of each class's pixels that is valid."""
    return [float(target.valid[0, rows].float().mean()) for rows in ROWS.values()]


def scene_with(memory: dict | None = None) -> Scene:
    """Returns a scene of three classes."""
    scene = make_scene(n_classes=3)
    scene.memory = {} if memory is None else memory
    return scene


def test_one_threshold_shuts_the_rare_out_and_quantiles_keep_the_same_share_of_each() -> None:
    target = imbalanced()
    assert kept(confidence(target, tau=0.95)) == [1.0, 0.0, 0.0]
    found = ClassQuantile(share=0.5)(target, scene_with())
    assert kept(found) == [pytest.approx(0.5, abs=0.03)] * 3
    surest = target.prob.amax(1)
    for rows in ROWS.values():
        passed = found.valid[0, rows]
        assert surest[0, rows][passed].min() > surest[0, rows][~passed].max(), "the surest"


def test_the_rare_class_is_taught_with_quantiles_and_not_without() -> None:
    target = argmax(imbalanced())
    taught = {}
    for name, narrowed in (("one", confidence(target, tau=0.95)), ("own", ClassQuantile()(target, scene_with()))):
        logits = torch.zeros(1, 3, 64, 100, requires_grad=True)
        Dice()(logits, narrowed).backward()
        taught[name] = [float(logits.grad[0, k, ROWS[k]].abs().sum()) for k in (1, 2)]
    assert taught["one"] == [0, 0] and min(taught["own"]) > 0


def test_a_sure_enough_pixel_passes_whatever_its_class_keeps() -> None:
    found = ClassQuantile(share=0.5, tau=0.95)(imbalanced(), scene_with())
    assert kept(found) == [1.0, pytest.approx(0.5, abs=0.03), pytest.approx(0.5, abs=0.03)]
    assert float(found.stats["kept_least"]) == pytest.approx(0.5, abs=0.03)


def test_the_estimate_runs_over_batches() -> None:
    scene = scene_with()
    member = ClassQuantile(share=0.5, decay=0.99)
    member(imbalanced(rare=(0.5, 0.6)), scene)
    later = kept(member(imbalanced(rare=(0.7, 0.8), seed=1), scene))
    assert later[1:] == [1.0, 1.0], "the surer half of both batches' pixels"
    assert kept(ClassQuantile(share=0.5)(imbalanced(rare=(0.7, 0.8), seed=1), scene_with()))[1] < 0.6
    for seed in range(300):  # what was long ago fades
        found = ClassQuantile(share=0.5, decay=0.9)(imbalanced(rare=(0.7, 0.8), seed=seed), scene)
    assert kept(found)[1] == pytest.approx(0.5, abs=0.1)


def test_a_class_that_shrinks_and_doubts_is_not_measured_by_what_it_was() -> None:
    scene, member = scene_with(), ClassQuantile(share=0.5)
    for _ in range(20):
        member(imbalanced(rare=(0.9, 0.95)), scene)
    few = imbalanced(rare=(0.5, 0.6)).prob[:, :, :61]  # one row of class 1, and none of class 2
    shares = [float(member(from_prob(few), scene).valid[0, 60].float().mean()) for _ in range(25)]
    assert shares[0] == 0 and shares[-1] > 0.3


def test_a_batch_without_a_class_leaves_its_threshold() -> None:
    scene = scene_with()
    member = ClassQuantile(share=0.5)
    member(imbalanced(), scene)
    before = least_bins(scene.memory["class_quantile "], share=0.5)
    for _ in range(5):
        member(from_prob(imbalanced().prob[:, :, :60]), scene)
    after = least_bins(scene.memory["class_quantile "], share=0.5)
    assert torch.equal(before[1:], after[1:])


def test_a_probe_of_labelled_images_is_narrowed_alike_and_not_remembered() -> None:
    scene = scene_with()
    member = ClassQuantile(share=0.5)
    member(imbalanced(), scene)
    before = scene.memory["class_quantile "].clone()
    scene.probe = True
    assert kept(member(imbalanced(rare=(0.5, 0.55)), scene))[1] < 0.01
    assert torch.equal(scene.memory["class_quantile "], before)


def test_views_of_other_estimates_do_not_meet() -> None:
    scene = scene_with()
    ClassQuantile(estimate="a")(imbalanced(), scene)
    ClassQuantile(estimate="b")(imbalanced(rare=(0.5, 0.6)), scene)
    assert set(scene.memory) == {"class_quantile a", "class_quantile b"}


def test_dropped_pixels_neither_count_nor_come_back() -> None:
    target = confidence(imbalanced(), tau=0.95)
    found = ClassQuantile(share=0.9)(target, scene_with())
    assert not (found.valid & ~target.valid).any() and float(found.stats["kept_least"]) == pytest.approx(0.9, abs=0.03)
    assert count_by_class(target)[1:].sum() == 0 and int(count_by_class(target)[0].sum()) == 6000


def test_bins_grow_with_confidence_and_an_unseen_class_has_no_lowest() -> None:
    sure = torch.tensor([0.34, 0.5, 0.9, 0.99, 0.9999, 1.0])
    bins = bins_of(sure)
    assert (bins.diff() > 0).all() and int(bins[-1]) == N_BINS - 1
    counts = torch.zeros(2, N_BINS)
    counts[0, [3, 5]] = 1
    assert least_bins(counts, share=0.5).tolist() == [5, N_BINS] and least_bins(counts, share=0.9).tolist()[0] == 3

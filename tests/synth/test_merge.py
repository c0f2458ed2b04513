"""Merging annotators: closed forms, a reference in plain Python, and there and back through the shell."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import segtrain
from segtrain.settings import SegmentSettings
from segtrain.streams import Streams
from synth.cli import app
from synth.core.checks import UserError
from synth.core.config import load_config
from synth.formats import load_pairs, write_folder
from synth.merge import MergeSettings, merge_labels
from synth.merge.agree import dice_with_merged, vote_weights, weighted_shares
from synth.merge.read import read_crowd
from synth.merge.staple import patterns_of, staple, union_box

RNG = np.random.default_rng(0)


def truths(n: int = 6, size: int = 40) -> list[np.ndarray]:
    """Returns n masks (size, size) of a disc each."""
    y, x = np.mgrid[:size, :size]
    return [(np.hypot(x - 14 - 2 * i, y - 20) < 9).astype(np.uint8) for i in range(n)]


def noisy(truth: np.ndarray, sensitivity: float, specificity: float) -> np.ndarray:
    """Returns a mask (H, W) of an annotator who errs pixel by pixel."""
    chance = RNG.random(truth.shape)
    return np.where(truth == 1, chance < sensitivity, chance > specificity).astype(np.uint8)


def estimate(images: list[np.ndarray], n_classes: int = 2):  # noqa: ANN201
    """Returns the estimation on masks (R, H, W) of several images, and their patterns."""
    patterns = [patterns_of(m, union_box(m)) for m in images]
    return staple(patterns, n_classes=n_classes, n_raters=len(images[0])), patterns


def test_perfect_annotators_are_perfect() -> None:
    found, patterns = estimate([np.stack([t, t, t]) for t in truths()])
    assert np.allclose(found.confusion, np.eye(2), atol=2e-6)
    assert all(np.array_equal(w[p.index].argmax(-1), t[p.box]) for w, p, t in zip(found.posteriors, patterns, truths(),
                                                                                 strict=True))


def test_sensitivities_are_recovered_and_an_adversary_is_found_out() -> None:
    # Everybody errs over the whole box, so that the union box is the image: what is known is what is estimated.
    ability = [(0.95, 0.9), (0.8, 0.97), (0.7, 0.8), (0.9, 0.85), (0.2, 0.15)]
    images = [np.stack([noisy(t, *a) for a in ability]) for t in truths(8)]
    found, patterns = estimate(images)
    for r, (p, q) in enumerate(ability):
        assert found.confusion[r, 1, 1] == pytest.approx(p, abs=0.03) and found.confusion[r, 0, 0] == pytest.approx(
            q, abs=0.03)
    right = np.concatenate([(w[p.index].argmax(-1) == t[p.box]).ravel() for w, p, t in
                            zip(found.posteriors, patterns, truths(8), strict=True)])
    vote = np.concatenate([((m.mean(0) > 0.5)[p.box] == t[p.box]).ravel() for m, p, t in
                           zip(images, patterns, truths(8), strict=True)])
    assert right.mean() > 0.97 > 0.95 > vote.mean(), "a plain vote counts the adversary against the truth"


def reference(decisions: np.ndarray, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Returns W, p, q after so many rounds over decisions (R, n), in plain Python."""
    n_raters, n = decisions.shape
    prior = float(decisions.mean())
    p, q = [0.9] * n_raters, [0.9] * n_raters
    for _ in range(rounds):
        w = []
        for i in range(n):
            a, b = prior, 1 - prior
            for j in range(n_raters):
                a *= p[j] if decisions[j, i] else 1 - p[j]
                b *= 1 - q[j] if decisions[j, i] else q[j]
            w.append(a / (a + b))
        prior = sum(w) / n
        p = [sum(w[i] for i in range(n) if decisions[j, i]) / sum(w) for j in range(n_raters)]
        q = [sum(1 - w[i] for i in range(n) if not decisions[j, i]) / sum(1 - v for v in w) for j in range(n_raters)]
    return w, p, q


def test_the_plain_estimation_comes_to_the_same() -> None:
    truth = truths(1, 24)[0]
    masks = np.stack([noisy(truth, 0.9, 0.9), noisy(truth, 0.8, 0.95), noisy(truth, 0.7, 0.85)])
    box = union_box(masks)
    w, p, q = reference(masks[(slice(None), *box)].reshape(3, -1), 300)
    found, (pattern,) = estimate([masks])
    assert np.allclose(found.posteriors[0][pattern.index][..., 1].ravel(), w, atol=1e-4)
    assert np.allclose(found.confusion[:, 1, 1], p, atol=1e-4) and np.allclose(found.confusion[:, 0, 0], q, atol=1e-4)


def test_the_size_of_the_background_changes_nothing() -> None:
    masks = np.stack([noisy(t, 0.9, 1.0) for t in [truths(1)[0]] * 3])
    large = np.pad(masks, ((0, 0), (50, 50), (50, 50)))
    assert np.allclose(estimate([masks])[0].confusion, estimate([large])[0].confusion)


def test_several_classes_and_many_annotators() -> None:
    truth = np.where(truths(1)[0] == 1, 1 + (np.arange(40)[:, None] > 20), 0).astype(np.uint8)
    swapped = np.array([0, 2, 1], np.uint8)[truth]
    found, (pattern,) = estimate([np.stack([truth] * 9 + [swapped])], n_classes=3)
    assert np.array_equal(found.posteriors[0][pattern.index].argmax(-1), truth[pattern.box])
    assert np.allclose(found.confusion[9], np.eye(3)[[0, 2, 1]], atol=1e-5)


def test_votes_weigh_and_leave_out() -> None:
    weights = vote_weights(np.array([0.9, 0.8, 0.3, np.nan]), least=0.5)
    assert weights.tolist() == pytest.approx([0.9, 0.8, 0, 2 / 3])
    shares = weighted_shares(np.array([[1, 0, 0, 1], [1, 255, 1, 255]]), weights, 2)
    assert shares[0] == pytest.approx([0.8 / (0.9 + 0.8 + 2 / 3), (0.9 + 2 / 3) / (0.9 + 0.8 + 2 / 3)])
    assert shares[1].tolist() == [0, 1]


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Returns a folder of six images, three annotators; the third labelled but four and draws too little."""
    root = tmp_path / "crowd"
    for i, truth in enumerate(truths()):
        for name, mask in (("ann", truth), ("bob", truth), ("cy", ndimage.binary_erosion(truth, iterations=3))):
            if name == "cy" and i > 3:
                continue
            folder = root / "annotators" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(folder / f"i{i}.png")
        (root / "images").mkdir(exist_ok=True)
        Image.fromarray((truth * 150 + RNG.integers(0, 60, truth.shape)).astype(np.uint8)).save(
            root / "images" / f"i{i}.png")
    return root


@pytest.mark.parametrize("method", ["staple", "staple_per_class", "vote", "soft"])
def test_there_and_back_through_the_shell(crowd: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "merged"
    app(["merge-labels", str(crowd), f"out={out}", f"method={method}"], standalone_mode=False)
    pairs, report = load_pairs(out), json.loads((out / "annotators.json").read_text())
    assert len(pairs) == 6 and pairs.info.n_classes == 2
    assert all(np.array_equal(pair.mask, truth) for pair, truth in zip(pairs, truths(), strict=True))
    ann, bob, cy = report["annotators"]
    assert ann["name"] == "ann" and cy["n_images"] == 4 and ann["dice_with_merged"] == 1 > cy["dice_with_merged"]
    assert cy["sensitivity"]["class_1"] < 0.6 and ann["sensitivity"]["class_1"] == pytest.approx(1, abs=1e-4)
    assert pairs.items[5].weight == 1 > pairs.items[0].weight == report["images"]["i0"]["weight"]
    assert sorted(p.name for p in (out / "confidence").iterdir()) == [f"i{i}.png" for i in range(6)]
    again = tmp_path / "again"
    write_folder(pairs, again)
    assert load_pairs(again).weights == pairs.weights


def test_a_doubtful_pixel_is_ignored(tmp_path: Path, crowd: Path) -> None:
    for path in (crowd / "annotators" / "cy").iterdir():
        path.unlink()
    (crowd / "annotators" / "cy").rmdir()
    for i, truth in enumerate(truths()):  # two equals differ: nobody can tell who is right
        Image.fromarray(ndimage.binary_dilation(truth, iterations=2).astype(np.uint8)).save(
            crowd / "annotators" / "bob" / f"i{i}.png")
    vote = merge_labels(crowd, MergeSettings(method="vote"))
    ring = ndimage.binary_dilation(truths()[0], iterations=2) & (truths()[0] == 0)
    assert (vote.images[0].labels[ring] == 255).all() and (vote.images[0].labels[~ring] == truths()[0][~ring]).all()


def two_annotators(root: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    """Returns the folder of what ann and bob say of each image, i0, i1, ..."""
    for folder in ("images", "annotators/ann", "annotators/bob"):
        (root / folder).mkdir(parents=True)
    for i, masks in enumerate(pairs):
        Image.fromarray(RNG.integers(0, 60, masks[0].shape).astype(np.uint8)).save(root / "images" / f"i{i}.png")
        for name, mask in zip(("ann", "bob"), masks, strict=True):
            Image.fromarray(mask.astype(np.uint8)).save(root / "annotators" / name / f"i{i}.png")
    return root


def test_an_image_whose_foreground_is_all_contested_is_written_and_read(tmp_path: Path) -> None:
    disc, none = truths(1)[0], np.zeros((40, 40), np.uint8)
    root, vote = two_annotators(tmp_path / "two", [(disc, disc), (disc, none)]), MergeSettings(method="vote")
    merge_labels(root, vote, out=tmp_path / "out")
    assert np.array_equal(load_pairs(tmp_path / "out")[1].mask, disc * np.uint8(255))
    alone = two_annotators(tmp_path / "alone", [(disc, none)])
    for name in ("ann", "bob"):  # two against two
        shutil.copytree(alone / "annotators" / name, alone / "annotators" / f"{name}2")
    with pytest.raises(UserError, match=r"alone: with method=vote no image keeps any foreground"):
        merge_labels(alone, MergeSettings(method="vote", min_dice=0), out=tmp_path / "nothing")
    assert not list(tmp_path.glob("*nothing*"))


def test_an_annotator_is_scored_over_all_that_it_says() -> None:
    merged = np.array([[1, 1, 255, 255, 0, 2]], np.uint8)
    for said, score in (([1, 1, 0, 0, 0, 2], 1), ([1, 1, 1, 1, 0, 2], (4 / 6 + 1) / 2), ([1, 1, 255, 255, 0, 2], 1),
                        ([255, 1, 2, 0, 0, 2], (1 + 2 / 3) / 2), ([0, 0, 1, 0, 0, 0], 0)):
        assert dice_with_merged(np.array([said], np.uint8), merged, 3) == pytest.approx(score), said


def test_what_is_contested_lowers_the_weight(tmp_path: Path) -> None:
    (disc, *_, other), none = truths(), np.zeros((40, 40), np.uint8)
    apart, near = np.roll(other, 8, 1) & ~disc & 1, ndimage.binary_dilation(disc, iterations=2)
    settings = MergeSettings(method="vote")
    alike = merge_labels(two_annotators(tmp_path / "alike", [(disc, disc), (none, none)]), settings)
    assert [one.weight for one in alike.images] == [1, 1]
    pairs = [(disc, disc), (other, other), (none, none), (disc, near), (disc, apart)]
    merged = merge_labels(two_annotators(tmp_path / "mixed", pairs), settings)
    same, again, empty, ring, torn = (one.weight for one in merged.images)
    assert merged.images[4].agreement == 0 and (merged.images[4].labels[(disc | apart) > 0] == 255).all()
    assert same == again == empty > ring > torn == 0
    lost = 2 * disc.sum() / (disc.sum() + near.sum())  # of bob, whose ring nobody shares
    trust = [rater.dice_with_merged for rater in merged.raters]
    assert trust == pytest.approx([4 / 5, (3 + lost) / 5], abs=1e-4)
    assert ring == pytest.approx((trust[0] + lost * trust[1]) / 2, abs=1e-4)


def test_who_is_left_out_decides_nothing(tmp_path: Path) -> None:
    masks = truths(4)
    for mask in masks:
        mask[:6] = 255  # those who count say nothing there
    root = two_annotators(tmp_path / "two", [(mask, mask) for mask in masks])
    apart = shutil.copytree(root, tmp_path / "three")
    (apart / "annotators" / "cy").mkdir()
    for i, mask in enumerate(masks):
        stray = np.zeros_like(mask)
        stray[34:] = 1
        Image.fromarray(stray).save(apart / "annotators" / "cy" / f"i{i}.png")
    one, other = (merge_labels(folder, MergeSettings(method="vote")) for folder in (root, apart))
    assert [rater.used for rater in other.raters] == [True, True, False]
    for a, b in zip(one.images, other.images, strict=True):
        assert np.array_equal(a.labels, b.labels) and np.array_equal(a.confidence, b.confidence)
        assert (b.labels[:6] == 255).all() and (b.confidence[:6] == 0).all() and a.weight == b.weight == 1
    assert one.raters == [replace(rater, dice_with_others=1.0) for rater in other.raters[:2]]
    assert other.raters[2].dice_with_merged == 0 == other.raters[2].sensitivity["class_1"]


def test_alone_but_for_one_who_is_left_out_it_says_nothing(tmp_path: Path) -> None:
    disc, near = truths(1)[0], ndimage.binary_dilation(truths(1)[0], iterations=2)
    root = two_annotators(tmp_path / "two", [(disc, near)] * 3)
    (root / "annotators" / "cy").mkdir()
    for i in range(3):
        Image.fromarray(1 - disc).save(root / "annotators" / "cy" / f"i{i}.png")
    (root / "annotators" / "ann" / "i2.png").unlink()
    ann, bob, cy = merge_labels(root, MergeSettings(method="vote", min_dice=0.4)).raters
    assert ann.used and bob.used and not cy.used
    assert bob.dice_with_merged == pytest.approx(2 * disc.sum() / (disc.sum() + near.sum()), abs=0.01)


def test_training_counts_a_pair_by_its_weight(crowd: Path, tmp_path: Path) -> None:
    merge_labels(crowd, out=tmp_path / "merged")
    pairs = load_pairs(tmp_path / "merged")
    settings = SegmentSettings(size=32, batch_size=4)
    batch = Streams.read(settings, pairs).batches(0, 0, 1)
    assert batch["weights"].tolist() == pytest.approx([pairs.weights[i] for i in batch["rows"].tolist()])
    config = {"size": 32, "batch_size": 4, "model": {"name": "tiny", "channels": [8, 16]}, "loop": {"steps": 2}}
    assert segtrain.fit(config, pairs, out=tmp_path / "run").result.steps == 2
    whole = [item.__class__(**{**item.__dict__, "weight": 1.0}) for item in pairs.items]
    assert "weights" not in Streams.read(settings, type(pairs)(whole, pairs.info)).batches(0, 0, 1)


def test_a_synthetic_pair_counts_by_its_weight_too(crowd: Path, tmp_path: Path) -> None:
    merge_labels(crowd, out=tmp_path / "merged")
    pairs = load_pairs(tmp_path / "merged")
    plain, made = (type(pairs)([replace(item, id=f"{name}{item.id}", weight=weight) for item in pairs.items],
                               pairs.info) for name, weight in (("p", 1.0), ("m", 0.25)))
    settings = SegmentSettings(size=32, batch_size=4, synthetic_share=0.5)
    batch = Streams.read(settings, plain, synthetic=made).batches(0, 0, 1)
    assert batch["weights"].tolist() == [1.0, 1.0, 0.25, 0.25]
    assert batch["synthetic"].tolist() == [False, False, True, True]
    assert "weights" not in Streams.read(settings, plain, synthetic=plain).batches(0, 0, 1)


def test_accents_of_one_letter_or_two_are_the_same_name(crowd: Path) -> None:
    (crowd / "images" / "i0.png").rename(crowd / "images" / "e\u0301.png")
    for name in ("ann", "bob", "cy"):
        (crowd / "annotators" / name / "i0.png").rename(crowd / "annotators" / name / "\u00e9.png")
    assert len(read_crowd(crowd).masks) == 6, "no mask is strange, no image without one"


def test_bad_input_is_named(crowd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="annotators/WHO"):
        merge_labels(tmp_path)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(crowd / "annotators" / "ann" / "other.png")
    with pytest.raises(UserError, match="other.png.*no image of this name"):
        merge_labels(crowd)
    (crowd / "annotators" / "ann" / "other.png").unlink()
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(crowd / "annotators" / "ann" / "i0.png")
    with pytest.raises(UserError, match="20x40"):
        merge_labels(crowd)
    (crowd / "annotators" / "ann" / "i0.png").unlink()
    (crowd / "annotators" / "bob" / "i0.png").unlink()
    (crowd / "annotators" / "cy" / "i0.png").unlink()
    with pytest.raises(UserError, match="no annotator labelled it"):
        merge_labels(crowd)
    Image.fromarray(np.eye(40, dtype=np.uint8) * 9).save(crowd / "annotators" / "ann" / "i0.png")
    with pytest.raises(UserError, match="2 to 8 never occur"):
        merge_labels(crowd)


@pytest.mark.parametrize(("setting", "method", "own"), [
    ("min_dice=0.7", "staple", "vote"), ("min_dice=0.5", "soft", "vote"), ("band=0.1", "vote", "soft"),
    ("band=0.2", "staple_per_class", "soft")])
def test_a_setting_of_another_method_is_refused(crowd: Path, setting: str, method: str, own: str) -> None:
    def settings(method: str) -> MergeSettings:
        return load_config(MergeSettings, {}, [setting, f"method={method}"])

    with pytest.raises(UserError, match=f"^{setting}: method={method} does not.*method={own}"):
        merge_labels(crowd, settings(method))
    assert merge_labels(crowd, settings(own)).images


def test_weights_are_numbers_from_0_to_1(crowd: Path, tmp_path: Path) -> None:
    merge_labels(crowd, out=tmp_path / "merged")
    (tmp_path / "merged" / "weights.csv").write_text("name,weight\n" + "".join(f"i{i},2\n" for i in range(6)))
    with pytest.raises(UserError, match="from 0 to 1"):
        load_pairs(tmp_path / "merged")

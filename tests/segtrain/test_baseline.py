"""The supervised baseline: deep supervision, fingerprint, given weights, clipped gradients, batches made ahead."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import PAIRS, SETTINGS, hard_target, native_pairs, random_images, run, weights
from torch import nn

import segtrain
from segtrain.losses.deep import level_weights, loss_of_levels, loss_of_rows, supervise_levels
from segtrain.losses.parts import pseudo_dice_ce
from segtrain.losses.supervised import DiceCe
from segtrain.method import load_method
from segtrain.models import Seen, build_model
from segtrain.models.weights import save_encoder
from segtrain.recipe import SegmentRecipe
from segtrain.segmenter import Segmenter
from segtrain.settings import ModelSettings, SegmentSettings
from segtrain.streams import Streams
from segtrain.streams.ahead import Ahead
from segtrain.streams.fingerprint import ByFingerprint, ByImage, Fingerprint, measure, percentile
from synth.core.checks import IGNORE, UserError
from synth.core.config import load_config
from synth.core.pairs import PairSet, memory_set
from synth.core.space import pixels_to_unit

ROOT = Path(__file__).parents[2]
DEEP = ModelSettings(name="tiny", channels=(8, 16, 16), deep_supervision=True)
CONFIG = {"size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "loop": {"steps": 4, "checkpoint_every": 3},
          "model": {"name": "tiny", "channels": [8, 16]}}
BASELINE = ("patch=16", "normalise=fingerprint", "flip_averaging=true", "model.channels=[8,16,16]",
            "model.deep_supervision=true", "augment.intensity.p_invert=0.5", "optim.name=sgd", "optim.nesterov=true",
            "optim.clip=1.0")


def test_weights_of_levels_halve_and_sum_to_one() -> None:
    assert level_weights(1) == [1.0]
    assert level_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_levels_are_taught_by_labels_of_their_own_size() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [IGNORE] * 4, [IGNORE] * 4]])
    coarse = torch.tensor([[[0, 1], [IGNORE, IGNORE]]])
    rng, loss = torch.Generator().manual_seed(0), DiceCe()
    levels = [torch.randn(1, 2, n, n, generator=rng) for n in (4, 2)]
    expected = 2 / 3 * loss(levels[0], labels, None) + 1 / 3 * loss(levels[1], coarse, None)
    assert torch.allclose(supervise_levels(loss, levels, labels, None), expected)
    weight = torch.ones(1, 4, 4)
    middle = supervise_levels(lambda _, own, __: own.sum().float(), [levels[0][..., :3, :3], levels[0][..., :1, :1]],
                              torch.arange(9).reshape(1, 3, 3), None)
    assert torch.allclose(middle, torch.tensor((2 * 36 + 4) / 3)), "the middle of nine pixels stands for them"
    assert torch.allclose(supervise_levels(loss, levels, labels, weight), expected)
    assert torch.equal(supervise_levels(loss, levels[:1], labels, None), loss(levels[0], labels, None))


def test_rows_of_one_kind_are_taught_alone() -> None:
    rng, loss = torch.Generator().manual_seed(0), DiceCe()
    logits, deep = torch.randn(3, 2, 4, 4, generator=rng), torch.randn(3, 2, 2, 2, generator=rng)
    labels, rows = torch.randint(0, 2, (3, 4, 4), generator=rng), torch.tensor([True, False, True])
    found = loss_of_rows(loss, Seen(logits, logits, logits, (deep,)), labels, None, rows)
    alone = Seen(logits[rows], logits[rows], logits[rows], (deep[rows],))
    assert torch.equal(found, loss_of_rows(loss, alone, labels[rows], None, torch.tensor([True, True])))
    assert loss_of_rows(loss, Seen(logits, logits, logits), labels, None, ~(rows | True)) == 0


def test_targets_of_a_mix_teach_every_level_in_both_parts() -> None:
    rng = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 2, n, n, generator=rng) for n in (4, 2)]
    coarse = torch.tensor([[[0, 1], [1, 0]], [[1, 1], [IGNORE, 0]]])
    pasted = torch.tensor([[[True, False], [False, False]]]).expand(2, -1, -1)
    targets = [replace(hard_target(labels), pasted=part, weight=torch.where(part, 1.0, 0.5)) for labels, part in (
        (double(coarse), double(pasted)), (coarse, pasted))]
    losses = [pseudo_dice_ce(logits, target) for logits, target in zip(levels, targets, strict=True)]
    seen = Seen(levels[0], levels[0], levels[0], (levels[1],))
    assert torch.allclose(loss_of_levels(pseudo_dice_ce, seen, targets[0]), 2 / 3 * losses[0] + 1 / 3 * losses[1])
    assert torch.equal(loss_of_levels(pseudo_dice_ce, replace(seen, deep=()), targets[0]), losses[0])


def double(values: torch.Tensor) -> torch.Tensor:
    """Returns values (B, H, W) at twice the size, each pixel four times."""
    return values.repeat_interleave(2, 1).repeat_interleave(2, 2)


@pytest.mark.parametrize(("name", "progress"), [("bcp", 0.0), ("bcp", 0.5), ("umct", 0.0)])
def test_deep_heads_learn_where_labels_come_by_views_alone(name: str, progress: float) -> None:
    settings = SETTINGS.model_copy(update={"model": DEEP})
    recipe = SegmentRecipe(settings, load_method(name), info=PAIRS.info, has_synthetic=False)
    recipe.step(Streams.read(settings, PAIRS, unlabelled=PAIRS).batches(0, 0, 1), progress)
    grads = [p.grad for p in recipe.nets["student"].deep.parameters()]
    assert grads and all(g is not None and g.any() for g in grads)


def test_no_deep_head_is_left_out_of_pre_training_which_data_parallelism_would_refuse() -> None:
    settings = SETTINGS.model_copy(update={"model": DEEP})
    recipe = SegmentRecipe(settings, load_method("contrastive_gl"), info=PAIRS.info, has_synthetic=False)
    recipe.step(Streams.read(settings, PAIRS, unlabelled=PAIRS).batches(0, 0, 1), 0.0)
    grads = [p.grad for p in recipe.nets["student"].parameters()]
    assert all(g is not None for g in grads)
    assert not any(p.grad.any() for p in recipe.nets["student"].deep.parameters())


@pytest.mark.parametrize("method", ["supervised", "fixmatch_ema"])
def test_deep_heads_learn_and_are_gone_from_the_predictor(method: str) -> None:
    settings = SETTINGS.model_copy(update={"model": DEEP})
    fresh = build_model("tiny", 1, 2, DEEP, seed=settings.loop.seed)
    recipe, logs = run(method, 2, unlabelled=method != "supervised", settings=settings)
    before, after = fresh.deep[0][0].weight, next(iter(recipe.nets.values())).deep[0][0].weight
    assert not torch.equal(before, after) and all(torch.isfinite(line["loss"]) for line in logs)
    plain, others = run(method, 2, unlabelled=method != "supervised", settings=SETTINGS.model_copy(
        update={"model": DEEP.model_copy(update={"deep_supervision": False})}))
    assert not torch.equal(weights(plain)[0], weights(recipe)[0]) and logs[0]["loss"] != others[0]["loss"]
    assert set(recipe.predictor().state_dict()) == set(plain.predictor().state_dict())


def test_deep_supervision_goes_with_several_decoders_and_networks() -> None:
    from scenes import changed

    settings = SETTINGS.model_copy(update={"model": DEEP})
    for topology in ({"multi_decoder": {"n": 2}}, "dual"):
        method = changed("supervised", topology=topology, predictor="mean" if topology == "dual" else "student")
        recipe, _ = run(method, 1, unlabelled=False, settings=settings)
        grads = [p.grad for net in recipe.nets.values() for p in net.deep.parameters()]
        assert grads and all(g is not None and g.abs().sum() > 0 for g in grads)



@pytest.mark.parametrize("share", [0, 0.5, 37, 99.5, 100])
def test_percentiles_of_counts_are_those_of_the_values(share: float) -> None:
    values = np.random.default_rng(0).integers(0, 40, 1001)
    assert percentile(np.bincount(values, minlength=64), share) == pytest.approx(np.percentile(values, share))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_fingerprint_is_that_of_the_foreground(channels: int) -> None:
    arrays = native_pairs(channels=channels).native(16)
    found = measure(arrays)
    pixels = [arrays.images[i][:, arrays.masks[i] == 1] for i in range(len(arrays))]
    unit = pixels_to_unit(np.concatenate(pixels, 1), (0.0, 255.0)).double()
    assert found.mean == pytest.approx(unit.mean(1).tolist(), abs=1e-6)
    assert found.sd == pytest.approx(unit.std(1, correction=0).tolist(), abs=1e-6)
    assert found.low == pytest.approx(np.percentile(unit, 0.5, axis=1), abs=1e-6)
    assert found.high == pytest.approx(np.percentile(unit, 99.5, axis=1), abs=1e-6)


def test_the_door_clips_and_standardises_and_nothing_else() -> None:
    mark = Fingerprint(low=(-0.5,), high=(0.5,), mean=(0.1,), sd=(0.2,))
    assert ByFingerprint(mark)(torch.tensor([-1, 0.3, 1.0]).reshape(3, 1, 1, 1)).flatten().tolist() == pytest.approx(
        [-3, 1, 2])
    model = ModelSettings(name="tiny", channels=(8, 16))
    plain, own = build_model("tiny", 1, 2, model), build_model("tiny", 1, 2, model, standard=mark)
    x = random_images()
    assert torch.equal(own(x), plain((x.clamp(-0.5, 0.5) - 0.1) / 0.2)) and not torch.equal(own(x), plain(x))
    assert set(own.state_dict()) == set(plain.state_dict())


def test_each_image_is_standardised_by_itself() -> None:
    x = random_images()
    seen = ByImage()(x)
    assert seen.mean((2, 3)).abs().max() < 1e-5
    assert (seen.square().mean((2, 3)) - 1).abs().max() < 1e-4
    assert torch.equal(ByImage()(x[1:2]), seen[1:2])
    cast = torch.tensor([0.2, 0.5, 0.7])[:x.shape[1], None, None]
    assert torch.allclose(ByImage()(x * cast - 0.1), seen, atol=1e-4)
    faint = torch.full((1, 1, 8, 8), -0.3)
    faint[..., 0] += 1e-4
    assert ByImage()(faint).abs().max() < 0.05, "what varies by less than a grey level stays small"
    assert not ByImage()(torch.full((2, 3, 8, 8), 0.4)).abs().max() > 1e-5


def test_a_segmenter_of_standardised_images_does_not_mind_a_device(tmp_path: Path) -> None:
    pairs = native_pairs(((32, 32),) * 4)
    answers = {}
    for normalise in ("range", "image"):
        segtrain.fit({**CONFIG, "normalise": normalise, "loop": {"steps": 30}}, pairs, out=tmp_path / normalise)
        segmenter = segtrain.Segmenter.load(tmp_path / normalise)
        x = pixels_to_unit(pairs.arrays(16).images, (0.0, 255.0))
        answers[normalise] = [segmenter.predict(seen) for seen in (x, 0.4 * x - 0.5)]
    assert torch.allclose(*answers["image"], atol=1e-4)
    assert (answers["range"][0] - answers["range"][1]).abs().max() > 0.01


def test_the_fingerprint_knows_labelled_training_images_alone(tmp_path: Path) -> None:
    def mark(labelled: PairSet, name: str, **others: object) -> Fingerprint:
        return segtrain.fit({**CONFIG, "normalise": "fingerprint", "loop": {"steps": 1}}, labelled,
                            out=tmp_path / name, **others).config.fingerprint

    pairs = native_pairs(((32, 32),) * 3)
    alone = mark(pairs, "alone")
    bright = memory_set([np.full((32, 32), 250, np.uint8)] * 3, None, pairs.info, ids=list("abc"), groups=list("abc"))
    assert mark(pairs, "pile", method="fixmatch_ema", unlabelled=bright) == alone
    assert mark(pairs, "made", synthetic=native_pairs(((32, 32),) * 4)) == alone
    other = memory_set([np.where(p.mask == 0, 7, p.image) for p in pairs], [p.mask for p in pairs], pairs.info,
                       ids=pairs.ids, groups=pairs.groups)
    assert mark(other, "background") == alone
    assert mark(pairs.select([0, 1]), "fewer") != alone


def test_a_foreground_of_one_grey_value_is_refused() -> None:
    pairs = native_pairs()
    flat = memory_set([np.full(p.mask.shape, 9, np.uint8) for p in pairs], [p.mask for p in pairs], pairs.info,
                      ids=pairs.ids, groups=pairs.groups)
    with pytest.raises(UserError, match="one grey value"):
        measure(flat.native(16))



@pytest.mark.parametrize("method", ["supervised", "fixmatch_ema"])
def test_the_whole_baseline_is_saved_and_predicts_the_same(method: str, tmp_path: Path) -> None:
    pairs = native_pairs()
    pile = memory_set([p.image for p in pairs], None, pairs.info, ids=list("abc"), groups=list("abc"))
    found = segtrain.fit(CONFIG, pairs, out=tmp_path, overrides=BASELINE, method=method,
                         unlabelled=pile if method == "fixmatch_ema" else None)
    again = Segmenter.load(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["tiles"] and config["size"] == 16 and config["fingerprint"]["mean"]
    for pair in pairs:
        x = pixels_to_unit(pair.image[None, None], (0.0, 255.0))
        prob = again.predict(x)
        assert prob.shape == (1, 2, *pair.image.shape) and torch.allclose(prob.sum(1), torch.ones(()), atol=1e-5)
        assert torch.allclose(prob, found.predict(x), atol=1e-5)
        assert torch.allclose(again.predict(x.flip(3)).flip(3), prob, atol=1e-5), "mirrored averaging"
    assert again.content_hash() == found.content_hash()
    paths = segtrain.predict(tmp_path, pile, out=tmp_path / "masks")
    native = again.predict_labels(pixels_to_unit(pairs[1].image[None, None], (0.0, 255.0)))
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(paths[1])), native[0].numpy())


def test_a_clipped_gradient_is_no_longer_than_asked() -> None:
    lengths = {}
    for clip in (None, 1e-3):
        optim = SETTINGS.optim.model_copy(update={"clip": clip})
        recipe, _ = run("supervised", 1, unlabelled=False, settings=SETTINGS.model_copy(update={"optim": optim}))
        lengths[clip] = float(nn.utils.get_total_norm([p.grad for p in weights(recipe)]))
    assert lengths[1e-3] <= 1.01e-3 < lengths[None]


def test_given_weights_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    model = ModelSettings(name="tiny", channels=(8, 16))
    for name, seed in (("a", 0), ("b", 1)):
        save_encoder(build_model("tiny", 1, 2, model, seed=seed), tmp_path / name)

    def fit(name: str) -> Segmenter:
        return segtrain.fit(CONFIG, PAIRS, out=tmp_path / "run", overrides=[f"model.weights={tmp_path / name}"])

    first = fit("a")
    assert first.config.model.weights.startswith("sha256:")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert fit("moved").content_hash() == first.content_hash()
    with pytest.raises(UserError, match="another segment run"):
        fit("b")


def test_the_baselines_settings_are_settings_that_train() -> None:
    settings = load_config(SegmentSettings, ROOT / "configs" / "baseline.yaml", [
        "patch=32", "model.channels=[8,16,16]", "batch_size=2", "loop.steps=2"])
    from segtrain.method import load_method
    from segtrain.recipe import SegmentRecipe

    streams = Streams.read(settings, native_pairs())
    recipe = SegmentRecipe(settings, load_method("supervised"), info=native_pairs().info, has_synthetic=False,
                           standard=measure(streams.labelled))
    assert torch.isfinite(recipe.step(streams.batches(0, 0, 1), 0.0)["loss"])



def test_batches_made_ahead_are_the_same_and_made_in_another_thread() -> None:
    streams, makers = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS), []

    def batches(step: int, rank: int, n_ranks: int) -> dict[str, torch.Tensor]:
        makers.append((step, threading.current_thread().name.startswith("batches")))
        return streams.batches(step, rank, n_ranks)

    with Ahead(batches, 5) as ahead:
        for step in (0, 1, 2, 4):  # 3 is skipped: what was foreseen is not what was asked for
            found = ahead(step, 0, 1)
            assert all(torch.equal(v, found[k]) for k, v in streams.batches(step, 0, 1).items())
    # 3 may have been called off before its turn came.
    assert set(makers) - {(3, True)} == {(0, True), (1, True), (2, True), (4, True)}
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_batches_are_made_on_one_thread_and_the_network_keeps_all_of_its_own() -> None:
    # Two teams of OpenMP threads on as many cores as one of them fills put each other to sleep at every barrier.
    n_threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        with Ahead(lambda *_: found.append(torch.get_num_threads()) or {}, 3) as ahead:
            for step in range(3):
                ahead(step, 0, 1)
        assert (found, torch.get_num_threads()) == ([1, 1, 1], 2)
    finally:
        torch.set_num_threads(n_threads)


def test_a_mistake_in_a_batch_made_ahead_is_raised_where_it_is_asked_for() -> None:
    def batches(step: int, rank: int, n_ranks: int) -> dict[str, torch.Tensor]:
        if step == 1:
            raise UserError("batch", rule="it is bad", repair="none")
        return {}

    with Ahead(batches, 5) as ahead:
        assert ahead(0, 0, 1) == {}
        with pytest.raises(UserError, match="it is bad"):
            ahead(1, 0, 1)

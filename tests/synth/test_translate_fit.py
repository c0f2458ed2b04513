"""Fitting a translator: what a fit leaves, resuming, who is held aside, collapse, refusals."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import Killed, stopping
from phantom import make_phantom
from tiny import TRANSLATE, files_of

import synth
from synth.core.checks import IGNORE, UserError
from synth.core.config import load_config
from synth.core.pairs import Arrays, ImageSet
from synth.core.space import pixels_to_unit
from synth.gan import fit as fit_module
from synth.gan.collapse import Health, Shown, enforce_health, measure_health
from synth.gan.fit import split_aside
from synth.gan.recipe import TranslateRecipe, build_discriminator, build_translator
from synth.gan.settings import CollapseSettings, TranslateSettings
from synth.gan.told import labels_to_told, pair_batches
from synth.gan.translate import TranslatePipeline
from synth.layouts import keep_in_of

PAIRS = make_phantom(8, size=32, n_groups=8)
CONFIGS = Path(__file__).parents[2] / "configs"
OPEN = ["collapse.min_diversity=0"]


@pytest.fixture(scope="module", params=["pix2pix", "spade", "oasis"])
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TranslatePipeline, Path]:
    """Returns a finished fit of each model, and its folder."""
    out = tmp_path_factory.mktemp("translate") / "run"
    return synth.fit({**TRANSLATE, "model": request.param}, PAIRS, out=out, overrides=OPEN), out


def test_a_fit_leaves_a_pipeline_with_logs_and_its_health(fitted: tuple[TranslatePipeline, Path]) -> None:
    pipeline, out = fitted
    assert {p.name for p in out.iterdir()} == {
        "run.json", "config.yaml", "health.json", "model_index.json", "translator", "translator_run", "taught.json"}
    assert {p.suffix for p in (out / "translator").iterdir()} == {".json", ".safetensors"}
    lines = [json.loads(line) for line in (out / "translator_run" / "stats.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [2, 4, 6] and lines[-1]["images_seen"] == 24
    assert {"sign_training", "sign_held_aside", "discriminator", "fooling"} <= lines[-1].keys()
    health = json.loads((out / "health.json").read_text())
    assert 0 <= health["diversity_ratio"] and -1 <= health["sign_held_aside"] <= 1 and health["overfit"] is not None
    loaded = synth.load_generator(out)
    assert isinstance(loaded, TranslatePipeline) and loaded.content_hash() == pipeline.content_hash()
    assert (loaded.size, loaded.channels, loaded.keeps) == (32, 1, "nothing")


def test_the_health_of_a_large_set_is_measured_a_few_images_at_a_time(
        fitted: tuple[TranslatePipeline, Path]) -> None:
    pipeline, n, seen = fitted[0], 40, []
    settings = load_config(TranslateSettings, {**TRANSLATE, "model": pipeline.config.model})
    words = {"channels": 1, "n_classes": pipeline.config.n_classes}
    judge = build_discriminator(settings, **words)
    judge.register_forward_hook(lambda _net, got, _made: seen.append(len(got[0])))
    recipe = TranslateRecipe(build_translator(settings, **words), judge, settings)
    recipe.device = torch.device("cpu")
    labels = torch.zeros(n, 32, 32, dtype=torch.long)
    frames = labels > 0
    shown = Shown(torch.rand(n, 1, 32, 32) * 2 - 1, labels, frames,
                  labels_to_told(labels, frames, n_classes=words["n_classes"]))
    health = measure_health(pipeline, recipe, shown, None, settings=settings.collapse)
    assert health.sign_training == pytest.approx(float(recipe.judge(shown.images, shown.told).sign().mean()), abs=1e-5)
    assert max(seen[:-1]) < n


def test_interrupted_and_resumed_it_ends_byte_for_byte_the_same(
        fitted: tuple[TranslatePipeline, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**TRANSLATE, "model": fitted[0].config.model}
    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "train", stopping(5))  # one step after the last checkpoint
        with pytest.raises(Killed):
            synth.fit(config, PAIRS, out=tmp_path / "run", overrides=OPEN)
    assert not (tmp_path / "run" / "model_index.json").exists()
    synth.fit(config, PAIRS, out=tmp_path / "run", overrides=OPEN)
    whole, again = files_of(fitted[1]), files_of(tmp_path / "run")
    same = ["translator_run/stats.jsonl", "translator/diffusion_pytorch_model.safetensors", "health.json"]
    assert all(whole[name] == again[name] for name in same)


def test_a_finished_fit_is_loaded_and_another_one_refused(fitted: tuple[TranslatePipeline, Path],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**TRANSLATE, "model": fitted[0].config.model}
    with pytest.raises(UserError, match="another translate run .*settings"):
        synth.fit(config, PAIRS, out=fitted[1], overrides=[*OPEN, "translator.lr=0.1"])
    monkeypatch.setattr(fit_module, "train", lambda *_, **__: pytest.fail("trained again"))
    shuffled = PAIRS.select(np.random.default_rng(0).permutation(8).tolist())
    assert synth.fit(config, shuffled, out=fitted[1], overrides=OPEN).content_hash() == fitted[0].content_hash()


def test_it_draws(fitted: tuple[TranslatePipeline, Path], tmp_path: Path) -> None:
    made = synth.draw(fitted[0], PAIRS, n=3, out=tmp_path / "made", config={"batch_size": 4})
    assert len(made) == 3 and {i.made.generator for i in made.items} == {fitted[0].content_hash()}


def test_a_translator_that_knows_one_image_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="diversity_ratio=.*collapsed.*loss.response"):
        synth.fit({**TRANSLATE, "model": "pix2pix"}, PAIRS, out=tmp_path / "run",
                  overrides=["collapse.min_diversity=99"])
    assert (tmp_path / "run" / "health.json").exists() and not (tmp_path / "run" / "model_index.json").exists()
    # Another limit is no other run: it is looked at again without training.
    synth.fit({**TRANSLATE, "model": "pix2pix"}, PAIRS, out=tmp_path / "run", overrides=OPEN)


def test_a_discriminator_that_knows_the_set_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    fine = Health(0.2, 0.4, 0.5, sign_training=0.6, sign_drawn=-0.5, sign_held_aside=0.5, overfit=0.1, features="")
    known = Health(0.2, 0.4, 0.5, sign_training=0.9, sign_drawn=-0.9, sign_held_aside=-0.8, overfit=1.7, features="")
    nan = Health(0.2, 0.4, float("nan"), sign_training=0.9, sign_drawn=0, sign_held_aside=None, overfit=None,
                 features="")
    with caplog.at_level(logging.WARNING):
        enforce_health(fine, CollapseSettings())
        assert not caplog.records
        enforce_health(known, CollapseSettings())
        assert "knows the set by heart" in caplog.text
    with pytest.raises(UserError, match="collapsed"):
        enforce_health(nan, CollapseSettings())


def test_whole_groups_are_held_aside_and_never_trained_on() -> None:
    pairs = make_phantom(12, size=32, n_groups=6).arrays(32)
    training, held = split_aside(pairs, 4, seed=0)
    assert len(held) == 4 and not set(training.groups) & set(held.groups) and len(training) == 8
    assert split_aside(pairs, 0, seed=0)[1] is None
    few = make_phantom(5, size=32, n_groups=1).arrays(32)
    assert split_aside(few, 2, seed=0)[1] is None, "the only patient is trained on"
    settings = load_config(TranslateSettings, TRANSLATE)
    batches = pair_batches(training, held, settings)
    first = batches(0, 0, 1)
    assert torch.equal(batches(0, 0, 1)["images"], first["images"]) and len(first["held_images"]) == 2
    assert not torch.equal(batches(9, 0, 1)["images"], first["images"])


def test_pairs_move_together_and_nothing_is_known_where_the_frame_moved_in() -> None:
    settings = load_config(TranslateSettings, {**TRANSLATE, "still_share": 0.0, "batch_size": 8,
                                               "layout": {"recombine": 0, "shift": 0.4, "keep_in": "frame"}})
    arrays = PAIRS.arrays(32)
    arrays.images[:] = np.where(arrays.masks[:, None] > 0, 200, 20)  # the image is its own mask
    batch = pair_batches(arrays, None, settings)(3, 0, 1)
    bright, labels = batch["images"][:, 0] > -0.15, batch["labels"]
    known = labels != IGNORE
    assert known.any() and (~known).any()
    assert (bright == (labels > 0))[known].float().mean() > 0.97, "but for the rim, which is interpolated"
    assert torch.equal(batch["told"][:, 0] + batch["told"][:, 1:-2].sum(1), known.float())


def test_a_frame_is_told_only_where_it_is_kept() -> None:
    arrays, told = PAIRS.arrays(32), {}
    arrays.images[..., :6], arrays.masks[..., :6] = 0, 0
    arrays.images[..., 6:] = arrays.images[..., 6:].clip(60)
    for keep_in in ("frame", "none"):
        settings = load_config(TranslateSettings, {**TRANSLATE, "still_share": 1.0, "layout": {
            "recombine": 0, "keep_in": keep_in}})
        told[keep_in] = pair_batches(arrays, arrays, settings)(0, 0, 1)
    frame = keep_in_of(arrays.images[0], arrays.masks[0])
    assert frame[:, :5].all(), "there is one"
    for prefix in ("", "held_"):
        parts = [told[keep_in][f"{prefix}told"] for keep_in in ("frame", "none")]
        assert not torch.equal(*parts)


@pytest.mark.parametrize(("override", "message"), [
    ("size=34", "size=34: with 3 widths the size is a multiple of 4"), ("layout.recombine=0.5", "layout.recombine=0.5"),
    ("layout.recombine=0 layout.balance=1", "layout.balance=1"),
    ("layout.recombine=0 layout.grow_px=3", "layout.grow_px=3"),
    ("layout.recombine=0 layout.bend_px=2", "layout.bend_px=2"),
    ("layout.recombine=0 layout.source=shape", "layout.source=shape"),
    ("layout.recombine=0 layout.rules.apart=[[1,2]]", "layout.rules.apart"),
    ("layout.recombine=0 layout.rules.learn=false", "layout.rules.learn"),
    ("kind=paint", "kind=paint: no such kind.*inpaint, translate"), ("model=stylegan", "model"),
    ("translater.lr=1", "did you mean translator")])
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path, override: str,
                                                                         message: str) -> None:
    with pytest.raises(UserError, match=message):
        synth.fit(TRANSLATE, PAIRS, out=tmp_path / "run", overrides=override.split())
    assert not (tmp_path / "run").exists()


PILE = ImageSet([dataclasses.replace(i, id=f"more_{i.id}") for i in make_phantom(6, size=32, seed=9).items], PAIRS.info)


@pytest.mark.parametrize(("overrides", "pile", "message"), [
    ((), PILE, "labelled pairs alone"), (("loss.unlabelled=1",), None, "there are no unlabelled images"),
    (("loss.unlabelled=1", "model=spade"), PILE, "judges an image by its mask"),
    (("loss.unlabelled=1",), ImageSet(PAIRS.items[:3], PAIRS.info), "is in the labelled set too"),
    (("loss.unlabelled=1",), ImageSet(make_phantom(4, size=32, channels=3).items, make_phantom(4, channels=3).info),
     r"3 channel\(s\).*labelled ones of 1 channel"),
])
def test_unlabelled_images_that_do_not_suit_are_refused(tmp_path: Path, overrides: tuple[str, ...],
                                                        pile: ImageSet | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        synth.fit({**TRANSLATE, "model": "oasis"}, PAIRS, pile, out=tmp_path / "run", overrides=overrides)
    assert not (tmp_path / "run").exists()


def test_unlabelled_images_are_real_to_the_discriminator_and_nothing_to_the_translator() -> None:
    settings = load_config(TranslateSettings, {**TRANSLATE, "model": "oasis", "loss": {"unlabelled": 1.0}})
    arrays, pile = PAIRS.arrays(32), PILE.arrays(32)

    def trained(pile: Arrays | None, n: int) -> TranslateRecipe:
        recipe = TranslateRecipe(*(build(settings, channels=1, n_classes=2)
                                   for build in (build_translator, build_discriminator)), settings)
        recipe.device, recipe.backward = torch.device("cpu"), lambda loss: loss.backward()
        batches = pair_batches(arrays, None, settings, pile=pile)
        torch.manual_seed(0)
        for step in range(n):
            recipe.step(batches(step, 0, 1), step / n)
        return recipe

    (one, other), names = (trained(pile, 1), trained(None, 1)), ("translator", "discriminator")
    same = {name: all(torch.equal(a, b) for a, b in zip(one.nets[name].parameters(), other.nets[name].parameters(),
                                                        strict=True)) for name in names}
    assert same == {"translator": True, "discriminator": False}  # the translator moves first, by the old judge
    images = pixels_to_unit(pile.images, PILE.info.intensity_range)
    told = torch.zeros(len(images), 4, 32, 32)
    signs = [float(trained(seen, 30).judge(images, told).mean()) for seen in (pile, None)]
    assert signs[0] > signs[1] + 0.1


def test_a_fit_with_unlabelled_images_ends_the_same_in_any_order_and_knows_which(tmp_path: Path) -> None:
    config = {**TRANSLATE, "model": "oasis", "loss": {"unlabelled": 1.0}}
    whole = synth.fit(config, PAIRS, PILE, out=tmp_path / "run", overrides=OPEN)
    lines = (tmp_path / "run" / "translator_run" / "stats.jsonl").read_text().splitlines()
    assert all("sign_unlabelled" in json.loads(line) for line in lines)
    assert synth.fit(config, PAIRS, PILE.select(range(5, -1, -1)), out=tmp_path / "other",
                     overrides=OPEN).content_hash() == whole.content_hash()
    with pytest.raises(UserError, match="unlabelled"):
        synth.fit(config, PAIRS, PILE.select(range(5)), out=tmp_path / "run", overrides=OPEN)


def test_one_pair_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 labelled pair: a translator needs two"):
        synth.fit(TRANSLATE, PAIRS.select([0]), out=tmp_path / "run", overrides=OPEN)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["translate.yaml", "tiny/translate.yaml"])
@pytest.mark.parametrize("model", ["pix2pix", "spade", "oasis"])
def test_the_presets_fit_together(name: str, model: str) -> None:
    settings = load_config(TranslateSettings, CONFIGS / name, [f"model={model}"])
    fit_module.check_settings(settings, n_ranks=1)

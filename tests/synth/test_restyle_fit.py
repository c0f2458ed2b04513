"""Fitting appearance translation: what it leaves, resuming, refusals, and that it translates and keeps the content."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import Killed, stopping
from scipy.ndimage import gaussian_filter
from tiny import APPEARANCE, files_of, squares
from typer.testing import CliRunner

import synth
from synth.cli import app
from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.pairs import DataInfo, ImageSet, PairSet, memory_set
from synth.core.space import pixels_to_unit
from synth.gan.restyle import fit as fit_module
from synth.gan.restyle.health import RestyleHealth, enforce_restyle
from synth.gan.restyle.looks import look_distance, look_of
from synth.gan.restyle.pipeline import AppearancePipeline
from synth.gan.restyle.settings import AppearanceSettings, RestyleHealthSettings
from synth.gan.structure import edge_distance

CONFIGS = Path(__file__).parents[2] / "configs"
TINT = np.array([1.0, 0.75, 0.35])


def with_domains(images: ImageSet, domains: list[str | None]) -> ImageSet:
    """Returns the set with a domain for each image."""
    items = [dataclasses.replace(item, domain=d) for item, d in zip(images.items, domains, strict=True)]
    return type(images)(items, images.info)


def scan_b(grey: np.ndarray) -> np.ndarray:
    """Returns grey pixels (H, W) as the second scanner shows them, (H, W, 3): gamma, blur, tint."""
    bright = gaussian_filter((grey / 255.0) ** 0.5, 0.7)
    return np.rint(255 * bright[..., None] * TINT).astype(np.uint8)


def two_scanners(n: int, *, seed: int = 0, prefix: str = "s") -> PairSet:
    """Returns n RGB pairs: every second one a grey picture of scanner A, the others of scanner B."""
    pairs = list(squares(n, seed=seed, n_groups=n))
    images = [np.repeat(p.image[..., None], 3, 2) if i % 2 == 0 else scan_b(p.image) for i, p in enumerate(pairs)]
    found = memory_set(images, [p.mask for p in pairs], DataInfo(("background", "square"), 3, 8, (0.0, 255.0)),
                       ids=[f"{prefix}{i}" for i in range(n)], groups=[f"{prefix}g{i}" for i in range(n)])
    return with_domains(found, ["A", "B"] * (n // 2))


PAIRS = two_scanners(12)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[AppearancePipeline, Path]:
    """Returns a finished fit, and its folder."""
    out = tmp_path_factory.mktemp("appearance") / "run"
    return synth.fit(APPEARANCE, PAIRS, out=out), out


def test_a_fit_leaves_a_pipeline_with_logs_health_and_a_grid(fitted: tuple[AppearancePipeline, Path]) -> None:
    pipeline, out = fitted
    assert {p.name for p in out.iterdir()} == {"run.json", "config.yaml", "health.json", "styles.png", "appearance_run",
                                               "model_index.json", "translator", "taught.json"}
    lines = [json.loads(line) for line in (out / "appearance_run" / "stats.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [2, 4, 6] and lines[-1]["images_seen"] == 24
    health = json.loads((out / "health.json").read_text())
    assert not health["clusters"] and health["labelled_styles"] == ["A", "B"] and health["recognised"] == 1
    ids = sum(health["styles"].values(), [])
    assert len(ids) == 10 and len(set(ids)) == 10, "two pairs are held aside"
    assert 0 <= health["coach_dice"] <= 1 and 0 <= health["coach_dice_translated"] <= 1
    loaded = synth.load_generator(out)
    assert isinstance(loaded, AppearancePipeline) and loaded.content_hash() == pipeline.content_hash()
    assert loaded.styles == ("A", "B") and loaded.keeps == "nothing" and loaded.config.bit_depth == 8


def test_interrupted_and_resumed_it_ends_byte_for_byte_the_same(
        fitted: tuple[AppearancePipeline, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "train", stopping(5))  # one step after the last checkpoint
        with pytest.raises(Killed):
            synth.fit(APPEARANCE, PAIRS, out=tmp_path / "run")
    assert not (tmp_path / "run" / "model_index.json").exists()
    synth.fit(APPEARANCE, PAIRS, out=tmp_path / "run")
    whole, again = files_of(fitted[1]), files_of(tmp_path / "run")
    same = ["appearance_run/stats.jsonl", "translator/diffusion_pytorch_model.safetensors", "health.json", "styles.png",
            "model_index.json"]
    assert all(whole[name] == again[name] for name in same)


def test_a_finished_fit_is_loaded_and_another_one_refused(fitted: tuple[AppearancePipeline, Path],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="another appearance run .*settings"):
        synth.fit(APPEARANCE, PAIRS, out=fitted[1], overrides=["translator.lr=0.1"])
    with pytest.raises(UserError, match="another appearance run .*domains"):
        synth.fit(APPEARANCE, with_domains(PAIRS, ["A"] * 6 + ["B"] * 6), out=fitted[1])
    monkeypatch.setattr(fit_module, "train", lambda *_, **__: pytest.fail("trained again"))
    shuffled = PAIRS.select(np.random.default_rng(0).permutation(12).tolist())
    assert synth.fit(APPEARANCE, shuffled, out=fitted[1]).content_hash() == fitted[0].content_hash()


def test_without_domains_styles_are_clusters_and_the_health_says_which(tmp_path: Path) -> None:
    bare = with_domains(PAIRS, [None] * 12)
    synth.fit(APPEARANCE, bare, out=tmp_path / "run", overrides=["styles.n_clusters=2"])
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    even = {i for i in sum(health["styles"].values(), []) if int(i[1:]) % 2 == 0}
    assert health["clusters"] and set(health["styles"]["cluster_0"]) == even, "the darker scanner, found by its look"


def test_sets_that_cannot_be_translated_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    one = with_domains(PAIRS, ["A"] * 12)
    for pairs, pile, words, message in (
            (one, None, [], "one style alone"), (PAIRS, PAIRS, [], "'s0' is in the labelled set too"),
            (PAIRS, squares(4), [], "unlabelled images of 1 channel"),
            (PAIRS, with_domains(two_scanners(4, prefix="u"), [None] * 4), [], "u0: 4 of 14 images have no domain"),
            (PAIRS, None, ["batch_size=3"], "batch_size=3: half of a batch is labelled"),
            (PAIRS, None, ["size=33"], "size=33: with 2 widths the size is a multiple of 2"),
            (PAIRS, None, ["coach.widths=[8]"], "two levels or more")):
        with pytest.raises(UserError, match=message):
            synth.fit(APPEARANCE, pairs, pile, out=tmp_path / "run", overrides=words)
    assert not (tmp_path / "run").exists()


def test_a_style_that_only_unlabelled_images_show_is_learnt_and_not_judged_by_the_coach(tmp_path: Path) -> None:
    pairs, pile = two_scanners(16).select(range(0, 16, 2)), two_scanners(8, seed=1, prefix="u")
    pipeline = synth.fit(APPEARANCE, pairs, pile, out=tmp_path / "run")
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    assert pipeline.styles == ("A", "B") and health["labelled_styles"] == ["A"]
    assert health["coach_dice"] is not None and health["coach_dice_translated"] is None


def _health(**words: float) -> RestyleHealth:
    plain = {"moved": 0.5, "edges": 0.1, "edges_apart": 0.5, "own": 0.05, "coach_dice": 0.8,
             "coach_dice_translated": 0.79}
    return RestyleHealth(clusters=False, styles={}, labelled_styles=[], recognised=1.0, moved_by={},
                         **{**plain, **words})


def test_a_translator_that_does_not_translate_is_refused_and_lost_labels_are_warned_of(
        caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        enforce_restyle(_health(), RestyleHealthSettings())
        assert not caplog.records
        enforce_restyle(_health(coach_dice_translated=0.3), RestyleHealthSettings())
        assert "labels may not hold" in caplog.text
    for moved in (0.0, float("nan")):
        with pytest.raises(UserError, match="moved=.*hardly translates"):
            enforce_restyle(_health(moved=moved), RestyleHealthSettings())


def test_the_commands_translate_and_draw(fitted: tuple[AppearancePipeline, Path], tmp_path: Path) -> None:
    synth.write_folder(PAIRS, tmp_path / "labelled")
    run, data = CliRunner(), f"data.unlabelled={tmp_path}/labelled"
    words = ["translate", str(fitted[1]), data, "style=B"]
    assert "style: B" in run.invoke(app, [*words, "--dry-run"]).output
    done = run.invoke(app, [*words, f"out={tmp_path}/more"], catch_exceptions=False)
    assert "24 images, 12 of them translated" in done.output
    found = synth.load_images(tmp_path / "more")
    assert {i.made.layout for i in found.items if i.made} == {'{"style": "B", "translated": true}'}
    for word, message in (("style=C", "style=C"), ("size=3", "no such setting here"), ("originals=2", "true or false")):
        refused = run.invoke(app, ["translate", str(fitted[1]), data, word, f"out={tmp_path}/x"])
        assert isinstance(refused.exception, UserError) and message in str(refused.exception)
    run.invoke(app, ["draw", str(CONFIGS / "draw.yaml"), f"generator={fitted[1]}", "sampler.style=A", "n=2",
                     f"data.labelled={tmp_path}/labelled", f"out={tmp_path}/made", "shard_size=2"],
               catch_exceptions=False)
    assert '"style": "A"' in synth.load_pairs(tmp_path / "made")[0].made.settings


@pytest.mark.parametrize("name", ["appearance.yaml", "tiny/appearance.yaml"])
def test_the_presets_fit_together(name: str) -> None:
    fit_module.check_settings(load_config(AppearanceSettings, CONFIGS / name), n_ranks=1)


SHORT = {**APPEARANCE, "batch_size": 8,
         "translator": {"widths": [12, 24], "n_blocks": 1, "n_code": 4, "lr": 0.002, "ema_decay": 0.98},
         "discriminator": {"width": 8, "lr": 0.002}, "coach": {"widths": [8, 16], "lr": 0.003},
         "health": {"min_moved": 0.1}, "loop": {"steps": 250, "log_every": 50, "checkpoint_every": 250}}


def box_found(image: torch.Tensor) -> np.ndarray:
    """Returns where an image (C, H, W) is brighter than halfway between its dark and its bright pixels, (H, W) bool."""
    grey = image.mean(0).numpy()
    low, high = np.quantile(grey, (0.3, 0.98))
    return grey > (low + high) / 2


@pytest.mark.slow
def test_it_translates_between_two_scanners_and_objects_stay_where_they_are(tmp_path: Path) -> None:
    pipeline = synth.fit(SHORT, PAIRS, two_scanners(24, seed=1, prefix="u"), out=tmp_path / "run")
    unseen = two_scanners(16, seed=7, prefix="t").arrays(32)
    images, masks = pixels_to_unit(unseen.images, (0.0, 255.0)), unseen.masks > 0
    centres, scale = torch.tensor(pipeline.config.centres), torch.tensor(pipeline.config.spread)
    for own in (0, 1):
        mine, other = images[own::2], 1 - own
        made = pipeline.draw(mine, [other] * 8, seeds=range(8))
        before, after = (look_distance(look_of(x), centres, scale) for x in (mine, made))
        assert (after[:, other] < before[:, other]).all(), "nearer to the style asked for than the image was"
        assert (after[:, other] < after[:, own]).float().mean() > 0.8, "and than to its own"
        found = np.stack([box_found(x) for x in made])
        dice = 2 * (found & masks[own::2]).sum() / (found.sum() + masks[own::2].sum())
        assert dice > 0.8, "the square is where the mask says, by a rule that nothing was trained on"
        kept = pipeline.draw(mine, [own] * 8, seeds=range(8))
        assert (kept - mine).abs().mean() < 0.5 * (made - mine).abs().mean(), "in its own style it hardly changes"
        assert edge_distance(mine, made) < 0.5 * edge_distance(mine, mine.roll(1, 0))

"""Fitting a generator: resumable after kill -9, one result for one set of images, refusals, two processes."""

from __future__ import annotations

import dataclasses
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from phantom import make_phantom
from safetensors.torch import save_file
from tiny import FIT, files_of, killed_and_whole, launch, room_of, tiny_pipeline

import synth
from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.files import replace_file
from synth.core.loop import TrainResult
from synth.core.loop import train as real_train
from synth.core.pairs import Arrays, ImageSet, PairSet, memory_set
from synth.diffusion import fit as fit_module
from synth.diffusion.autoencoder import LatentStatistics, build_autoencoder, encode_statistics
from synth.diffusion.codec import latent_factor
from synth.diffusion.fit import training_crops, training_images
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.plan import check_settings, median_thickness, resolve_settings
from synth.diffusion.settings import AutoencoderSettings, InpaintSettings
from synth.pipelines import save_pipeline

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"
PAIRS = make_phantom(6, size=32)


def pile(n: int = 4, *, channels: int = 1, bit_depth: int = 8, prefix: str = "u") -> ImageSet:
    """Returns unlabelled phantom images of other patients."""
    pairs = make_phantom(n, size=32, channels=channels, bit_depth=bit_depth, seed=7)
    return memory_set([p.image for p in pairs], None, pairs.info, ids=[f"{prefix}{i}" for i in range(n)],
                      groups=[prefix] * n)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[InpaintPipeline, Path]:
    """Returns a finished fit on labelled and unlabelled images, and its folder."""
    out = tmp_path_factory.mktemp("fit") / "run"
    return synth.fit(FIT, PAIRS, pile(), out=out), out


def lines(path: Path) -> list[dict[str, float]]:
    """Returns the log of one of the two trainings."""
    return [json.loads(line) for line in (path / "stats.jsonl").read_text().splitlines()]


def test_a_fit_leaves_a_pipeline_folder_with_its_settings_and_logs(fitted: tuple[InpaintPipeline, Path]) -> None:
    pipeline, out = fitted
    assert {p.name for p in out.iterdir()} == {
        "run.json", "config.yaml", "health.json", "model_index.json", "vae", "unet", "scheduler", "autoencoder",
        "denoiser", "taught.json"}
    assert {p.suffix for d in ("vae", "unet") for p in (out / d).iterdir()} == {".json", ".safetensors"}
    assert (pipeline.size, pipeline.channels, pipeline.intensity_range) == (32, 1, (0.0, 255.0))
    assert pipeline.sampler_settings()["n_steps"] == 3 and pipeline.factor == 4
    for part in ("autoencoder", "denoiser"):
        assert [x["step"] for x in lines(out / part)] == [2, 4, 6] and lines(out / part)[-1]["images_seen"] == 24
    loaded = synth.load_generator(out)
    assert isinstance(loaded, InpaintPipeline) and loaded.content_hash() == pipeline.content_hash()


def test_a_finished_folder_is_loaded_at_once(fitted: tuple[InpaintPipeline, Path],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, out = fitted
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    monkeypatch.setattr(fit_module, "train", lambda *_, **__: pytest.fail("trained again"))
    assert synth.fit(FIT, PAIRS, pile(), out=out).content_hash() == pipeline.content_hash()
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_how_it_paints_needs_no_other_fit_and_is_saved(fitted: tuple[InpaintPipeline, Path],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, out = fitted
    before = files_of(out)
    monkeypatch.setattr(fit_module, "train", lambda *_, **__: pytest.fail("trained again"))
    words = ["sampler.n_steps=5", "sampler.margin_cells=[0,2]", "health.border_px=1"]
    other = synth.fit(FIT, PAIRS, pile(), out=out, overrides=words)
    assert other.sampler.n_steps == 5 and pipeline.sampler.n_steps == 3
    loaded, saved = synth.load_generator(out), load_config(InpaintSettings, out / "config.yaml")
    assert loaded.content_hash() == other.content_hash() != pipeline.content_hash()
    assert loaded.sampler == other.sampler == saved.sampler
    assert saved.health.border_px == 2, "nothing was measured anew"
    after = files_of(out)
    assert {name for name in before if after[name] != before[name]} == {"model_index.json", "config.yaml"}
    synth.fit(FIT, PAIRS, pile(), out=out)
    assert files_of(out) == before


def test_stopped_between_autoencoder_and_denoiser_it_goes_on_from_there(
        fitted: tuple[InpaintPipeline, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(*args: object, label: str) -> TrainResult:
        if label == "denoiser":
            raise KeyboardInterrupt
        return real_train(*args, label=label)

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(fit_module, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            synth.fit(FIT, PAIRS, pile(), out=out)
    with pytest.raises(UserError, match="no finished generator"):
        synth.load_generator(out)
    before = (out / "autoencoder" / "checkpoint.pt").stat().st_mtime_ns
    assert synth.fit(FIT, PAIRS, pile(), out=out).content_hash() == fitted[0].content_hash()
    assert (out / "autoencoder" / "checkpoint.pt").stat().st_mtime_ns == before


def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    said = killed_and_whole("fit", tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for part in ("autoencoder", "denoiser"):
        assert (whole / part / "stats.jsonl").read_bytes() == (killed / part / "stats.jsonl").read_bytes(), said
    weights = [sorted(p.relative_to(d) for p in d.rglob("*.safetensors")) for d in (whole, killed)]
    assert weights[0] == weights[1] and len(weights[0]) == 2
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in weights[0]), said
    assert not list(killed.rglob(".*.tmp")) and not (killed / ".pipeline").exists()


@pytest.mark.parametrize("scale", ["fit", "native"])
def test_pixels_live_for_one_view_at_a_time_and_none_while_the_denoiser_is_trained(
        scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views, sets = [], []

    def encoding(vae: AutoencoderKL, images: torch.Tensor) -> LatentStatistics:
        assert not [view for view in views if view() is not None], "the one before is still there"
        views.append(weakref.ref(images))
        return encode_statistics(vae, images)

    def joining(*args: object, labels: bool) -> Arrays:
        sets.append(weakref.ref(joined := real_joined(*args, labels=labels)))
        return joined

    def training(*args: object, label: str) -> TrainResult:
        if label == "denoiser":
            assert len(views) == 3 and len(sets) == (3 if scale == "native" else 1)
            assert not [one for one in (*views, *sets) if one() is not None]
        return real_train(*args, label=label)

    real_joined = fit_module._joined
    for name, wrapped in (("encode_statistics", encoding), ("_joined", joining), ("train", training)):
        monkeypatch.setattr(fit_module, name, wrapped)
    synth.fit(FIT, PAIRS, pile(), out=tmp_path / "run", overrides=[f"scale={scale}", "denoiser.n_views=3"])


def test_a_pipeline_for_which_there_is_no_room_says_so_and_leaves_what_was_there(tmp_path: Path) -> None:
    for before in ({}, None):
        if before is None:
            save_pipeline(tiny_pipeline(), tmp_path)
            before = files_of(tmp_path)
        with room_of(20_000), pytest.raises(UserError, match=f"{tmp_path}: no space left"):
            save_pipeline(tiny_pipeline(seed=1), tmp_path)
        assert files_of(tmp_path) == before and not (tmp_path / ".pipeline").exists()


def test_weights_are_as_readable_as_any_file_beside_them(tmp_path: Path) -> None:
    save_pipeline(tiny_pipeline(), tmp_path / "pipeline")
    replace_file(tmp_path / "alone", lambda path: save_file({"x": torch.zeros(1)}, path))
    (tmp_path / "plain").write_text("")
    weights = [*tmp_path.rglob("*.safetensors"), tmp_path / "alone"]
    assert len(weights) > 1 and {p.stat().st_mode for p in weights} == {(tmp_path / "plain").stat().st_mode}


def shuffled(images: ImageSet, seed: int) -> ImageSet:
    """Returns the same images in another order."""
    return images.select(np.random.default_rng(seed).permutation(len(images)).tolist())


def test_the_order_of_the_files_does_not_matter(fitted: tuple[InpaintPipeline, Path], tmp_path: Path) -> None:
    pairs = shuffled(PAIRS, 1)
    assert isinstance(pairs, PairSet) and pairs.ids != PAIRS.ids
    again = synth.fit(FIT, pairs, shuffled(pile(), 2), out=tmp_path / "run")
    assert again.content_hash() == fitted[0].content_hash()
    assert synth.fit(FIT, pairs, shuffled(pile(), 2), out=fitted[1]).content_hash() == fitted[0].content_hash()


@pytest.mark.parametrize("scale", ["fit", "native"])
def test_weights_of_pairs_do_not_stop_a_fit_with_unlabelled_images(scale: str) -> None:
    weighted = PairSet([dataclasses.replace(item, weight=0.5) for item in PAIRS.items], PAIRS.info)
    settings = load_config(InpaintSettings, {**FIT, "scale": scale})
    join = (lambda pairs: training_crops(pairs, pile(), settings)) if scale == "native" else (
        lambda pairs: [training_images(pairs, pile(), 32, labels=True)])
    for mine, plain in zip(join(weighted), join(PAIRS), strict=True):
        assert mine.fingerprint() == plain.fingerprint() and len(mine) == len(PAIRS) + len(pile())


def test_another_run_in_the_same_folder_is_refused(fitted: tuple[InpaintPipeline, Path]) -> None:
    out = fitted[1]
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="another inpaint run .*settings"):
        synth.fit(FIT, PAIRS, pile(), out=out, overrides=["denoiser.lr=0.1"])
    with pytest.raises(UserError, match="another inpaint run .*images"):
        synth.fit(FIT, PAIRS, pile(5), out=out)
    with pytest.raises(UserError, match="another inpaint run .*images"):
        synth.fit(FIT, PAIRS, out=out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_sets_and_settings_that_do_not_go_together_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for unlabelled, message in ((pile(channels=3), "3 channel"), (pile(bit_depth=16), "16 bit"),
                                (pile(prefix="phantom_000"), "phantom_0000' is in the labelled set too")):
        with pytest.raises(UserError, match=message):
            synth.fit(FIT, PAIRS, unlabelled, out=tmp_path / "run")
    for override, message in (("size=36", "multiple of 8"), ("denoiser.attention=[true]", "one entry for each"),
                              ("autoencoder.widths=[8,12]", "multiple of 8"), ("autoencoder.widths=[]", "at least 1"),
                              ("denoiser.widths=[0,8]", "greater than 0"), ("denoiser.widths=[]", "at least 1"),
                              ("sampler.margin_cells=[3,1]", "fewest and the most"),
                              ("kind=[1]", "no such kind"), ("denoiser.sigma_min=50", "lies below denoiser.sigma_max"),
                              ("health.min_latent_std=100", "lies below health.max_latent_std"),
                              ("denoiser.widhts=[8]", "did you mean denoiser.widths"), ("kind=gan", "kind")):
        with pytest.raises(UserError, match=message):
            synth.fit(FIT, PAIRS, out=tmp_path / "run", overrides=[override])
    assert not (tmp_path / "run").exists()


def test_a_folder_without_one_of_our_generators_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished generator"):
        synth.load_generator(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="'StableDiffusionPipeline' is none of ours|none of our generators"):
        synth.load_generator(tmp_path)


def with_masks(masks: list[np.ndarray]) -> PairSet:
    """Returns PAIRS with other masks."""
    made = memory_set([p.image for p in PAIRS], masks, PAIRS.info, ids=PAIRS.ids, groups=PAIRS.groups)
    assert isinstance(made, PairSet)
    return made


def test_masks_are_learnt_from_only_if_asked(fitted: tuple[InpaintPipeline, Path], tmp_path: Path) -> None:
    other = with_masks([np.roll(p.mask, 5, axis=0) for p in PAIRS])

    def seen(pairs: PairSet, *, labels: bool) -> str:
        return training_images(pairs, pile(), 32, labels=labels).fingerprint()

    assert seen(other, labels=False) == seen(PAIRS, labels=False)
    assert seen(other, labels=True) != seen(PAIRS, labels=True)
    blind = [synth.fit(FIT, pairs, pile(), out=tmp_path / name, overrides=["denoiser.labels=false"])
             for name, pairs in (("a", PAIRS), ("b", other))]
    assert blind[0].content_hash() == blind[1].content_hash()
    assert not blind[0].config.tells_labels and fitted[0].config.tells_labels
    assert synth.fit(FIT, other, pile(), out=tmp_path / "c").content_hash() != fitted[0].content_hash()


def test_unlabelled_images_have_no_known_pixel() -> None:
    arrays = training_images(PAIRS, pile(), 32, labels=True)
    unknown = {name for name, mask in zip(arrays.ids, arrays.masks, strict=True) if (mask == 255).all()}
    assert unknown == {f"u{i}" for i in range(4)} and list(arrays.ids) == sorted(arrays.ids)


def test_thickness_is_the_median_widest_disc() -> None:
    masks = np.zeros((2, 40, 40), np.uint8)
    masks[0, 5:12, 3:30] = 1  # 7 px across
    masks[0, 20:23, 3:30] = 2  # 3 px
    masks[1, 4:33, 4:33] = 1  # 29 px
    assert median_thickness(masks) == pytest.approx(8, abs=0.1)
    assert median_thickness(np.full((1, 8, 8), 255, np.uint8)) is None


def test_what_is_left_open_is_decided_and_written_down(tmp_path: Path) -> None:
    quick = {**FIT, "autoencoder": {**FIT["autoencoder"], "kind": "auto", "patch": 4}}
    thin = with_masks([(np.arange(1024).reshape(32, 32) % 32 == 9).astype(np.uint8) for _ in PAIRS])
    assert type(synth.fit(quick, thin, out=tmp_path / "thin").vae).__name__ == "PixelCodec"
    assert "kind: pixels" in (tmp_path / "thin" / "config.yaml").read_text()
    assert not (tmp_path / "thin" / "autoencoder").exists(), "nothing to train"


@pytest.mark.parametrize(("size", "factor"), [(128, 4), (496, 4), (512, 8), (1024, 8)])
def test_open_widths_follow_the_size_and_stated_ones_stay(size: int, factor: int) -> None:
    own = AutoencoderSettings(kind="kl")
    decided = resolve_settings(InpaintSettings(size=size, autoencoder=own), PAIRS)
    assert 2 ** (len(decided.autoencoder.widths) - 1) == factor == latent_factor(build_autoencoder(
        own, channels=1, size=size))
    stated = InpaintSettings(size=size, autoencoder={"kind": "kl", "widths": [8, 16]})
    assert resolve_settings(stated, PAIRS) == stated
    for name, expected in (("inpaint.yaml", factor), ("tiny/inpaint.yaml", 4)):
        preset = load_config(InpaintSettings, CONFIGS / name, [f"size={size}", "autoencoder.kind=kl"])
        assert 2 ** (len(resolve_settings(preset, PAIRS).autoencoder.widths) - 1) == expected


def test_a_size_for_which_the_widths_are_too_deep_is_refused() -> None:
    settings = InpaintSettings(size=528, autoencoder={"kind": "kl"})
    with pytest.raises(UserError, match="size=528.*multiple of 32"):
        check_settings(resolve_settings(settings, PAIRS), n_ranks=1)


def test_a_codec_that_blurs_is_refused_before_the_denoiser_is_trained(tmp_path: Path) -> None:
    strict = {**FIT, "health": {}}
    with pytest.raises(UserError, match="border_error=.*may lose.*train the autoencoder longer"):
        synth.fit(strict, PAIRS, pile(), out=tmp_path / "run")
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    assert health["border_error"] > 0 and not (tmp_path / "run" / "denoiser").exists()


def test_an_autoencoder_of_ones_own_is_used_as_it_is(fitted: tuple[InpaintPipeline, Path], tmp_path: Path) -> None:
    folder = fitted[1] / "vae"
    made = synth.fit(FIT, PAIRS, pile(), out=tmp_path / "run", overrides=[f"autoencoder.pretrained={folder}"])
    assert not (tmp_path / "run" / "autoencoder").exists()
    for mine, theirs in zip(made.vae.parameters(), fitted[0].vae.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_fitted_generator_draws(fitted: tuple[InpaintPipeline, Path], tmp_path: Path) -> None:
    made = synth.draw(fitted[0], PAIRS, n=3, seed=0, out=tmp_path / "made",
                      gates=synth.default_gates(None, PAIRS, training=pile(), size=32), config={"batch_size": 4})
    assert len(made) == 3 and {i.made.generator for i in made.items} == {fitted[0].content_hash()}


@pytest.mark.slow
def test_two_processes_fit_one_generator(tmp_path: Path) -> None:
    synth.write_folder(PAIRS, tmp_path / "labelled")
    (tmp_path / "fit.yaml").write_text(json.dumps(FIT))  # JSON is YAML
    words = ["-m", "synth.cli", "fit", tmp_path / "fit.yaml", f"data.labelled={tmp_path}/labelled"]
    done = launch([*words, f"out={tmp_path}/run"], n_processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" px") == 1, "one voice"
    for part in ("autoencoder", "denoiser"):
        assert lines(tmp_path / "run" / part)[-1]["images_seen"] == 24, "as many images as one process sees"
    assert json.loads((tmp_path / "run" / "denoiser" / "done.json").read_text())["steps"] == 6
    assert synth.load_generator(tmp_path / "run").size == 32
    odd = launch([*words, f"out={tmp_path}/odd", "denoiser.batch_size=3"], n_processes=2)
    assert odd.returncode != 0 and "denoiser.batch_size=3" in odd.stderr and not (tmp_path / "odd").exists()

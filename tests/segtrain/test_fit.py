"""A whole run: files, budget, resume, refusals, saved weights, native-size masks, two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom
from PIL import Image

import segtrain
from segtrain.segmenter import Segmenter
from segtrain.train import make_plan
from synth.core.checks import UserError
from synth.core.loop import Recipe
from synth.core.pairs import ImageSet, PairSet, memory_set
from synth.core.space import pixels_to_unit
from synth.formats import write_folder

CONFIG = {
    "size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "model": {"name": "tiny", "channels": [8, 16]},
    "loop": {"steps": 6, "log_every": 2, "checkpoint_every": 4},
}
PAIRS = make_phantom(8, size=32, n_groups=4)


def pile(n: int = 6) -> ImageSet:
    """Returns unlabelled phantom images of other patients."""
    pairs = make_phantom(n, size=32, n_groups=3, seed=9)
    return memory_set([p.image for p in pairs], None, pairs.info, ids=[f"u{i}" for i in range(n)],
                      groups=[f"pile_{g}" for g in pairs.groups])


def unit() -> torch.Tensor:
    """Returns the phantom's images, unit (B, 1, 32, 32)."""
    return pixels_to_unit(PAIRS.arrays(32).images, PAIRS.info.intensity_range)


@pytest.fixture(scope="module")
def semi(tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Path]:
    """Returns a finished FixMatch run with synthetic pairs, and its folder."""
    out = tmp_path_factory.mktemp("semi") / "run"
    made = make_phantom(4, size=32, seed=3)
    segmenter = segtrain.fit(CONFIG, PAIRS, synthetic=made, unlabelled=pile(), method="fixmatch_ema", out=out)
    return segmenter, out


def test_a_run_counts_its_budget_and_leaves_its_files(semi: tuple[Segmenter, Path]) -> None:
    segmenter, out = semi
    assert segmenter.result.counts == {"images_seen": 24, "unlabelled_seen": 24}
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {"run.json", "config.yaml", "method.yaml", "stats.jsonl", "checkpoint.pt", "done.json",
                     "model/config.json", "model/model.safetensors", "model/taught.json"}
    last = json.loads((out / "stats.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "loss_labelled", "loss_synthetic", "loss_unlabelled", "lambda", "kept"} <= set(last)


def test_unlabelled_images_count_when_a_method_looks_at_them(tmp_path: Path) -> None:
    done = segtrain.fit(CONFIG, PAIRS, unlabelled=pile(), method="noisy_student", out=tmp_path)
    assert done.result.counts == {"images_seen": 24, "unlabelled_seen": 12}, "its first half has labels alone"


def test_running_again_returns_the_same_segmenter_at_once(semi: tuple[Segmenter, Path]) -> None:
    segmenter, out = semi
    before = (out / "checkpoint.pt").stat().st_mtime_ns
    again = segtrain.fit(CONFIG, PAIRS, synthetic=make_phantom(4, size=32, seed=3), unlabelled=pile(),
                         method="fixmatch_ema", out=out)
    assert (out / "checkpoint.pt").stat().st_mtime_ns == before
    assert again.content_hash() == segmenter.content_hash() and again.result == segmenter.result


def test_a_setting_that_a_run_never_reads_makes_no_other_run(tmp_path: Path) -> None:
    first = segtrain.fit(CONFIG, PAIRS, out=tmp_path, overrides=["loop.steps=2"])
    again = segtrain.fit(CONFIG, PAIRS, out=tmp_path, overrides=["loop.steps=2", "synthetic_share=0.5"])
    assert again.content_hash() == first.content_hash()
    with pytest.raises(UserError, match="another|differs"):
        segtrain.fit(CONFIG, PAIRS, synthetic=make_phantom(4, size=32), out=tmp_path, overrides=["loop.steps=2"])


def test_a_saved_segmenter_predicts_the_same(semi: tuple[Segmenter, Path]) -> None:
    segmenter, out = semi
    loaded = segtrain.load_segmenter(out)
    prob = loaded.predict(unit()).cpu()
    assert prob.shape == (8, 2, 32, 32) and torch.allclose(prob.sum(1), torch.ones(8, 32, 32))
    assert torch.allclose(prob, segmenter.predict(unit()).cpu(), atol=1e-5)
    assert torch.equal(loaded.predict_labels(unit()).cpu(), prob.argmax(1))
    assert loaded.info == PAIRS.info and loaded.size == 32
    assert loaded.predict(torch.zeros(1, 1, 50, 40)).shape == (1, 2, 50, 40)
    with pytest.raises(UserError, match="reads unit images"):
        loaded.predict(torch.zeros(1, 3, 32, 32))


def test_flip_averaging_makes_predictions_symmetric(tmp_path: Path) -> None:
    segmenter = segtrain.fit(CONFIG, PAIRS, out=tmp_path / "run", overrides=["flip_averaging=true", "loop.steps=2"])
    images = unit()
    assert segmenter.config.flips == ((3,),)
    assert torch.allclose(segmenter.predict(images.flip(3)).flip(3), segmenter.predict(images), atol=1e-5)


class Stop(Exception):
    """Stands for kill -9: nothing in the run catches it."""


@pytest.mark.parametrize("method", ["supervised", "fixmatch_ema", "sparse_seg"])
def test_a_killed_run_resumes_to_the_same_bytes(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: Path) -> Segmenter:
        unlabelled = None if method == "supervised" else pile()
        return segtrain.fit(CONFIG, PAIRS, unlabelled=unlabelled, method=method, out=out)

    whole = run(tmp_path / "whole")
    from segtrain.recipe import SegmentRecipe

    step: object = SegmentRecipe.step
    done = []

    def dies(self: Recipe, batch: dict, progress: float) -> dict:
        if len(done) == 5:  # past the checkpoint of step 4
            raise Stop
        done.append(progress)
        return step(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentRecipe, "step", dies)
        with pytest.raises(Stop):
            run(tmp_path / "cut")
    assert not (tmp_path / "cut" / "done.json").exists()
    resumed = run(tmp_path / "cut")
    assert (tmp_path / "cut/stats.jsonl").read_bytes() == (tmp_path / "whole/stats.jsonl").read_bytes()
    assert resumed.content_hash() == whole.content_hash()
    assert resumed.result.counts == whole.result.counts


def test_a_run_killed_before_its_weights_were_written_writes_them(tmp_path: Path) -> None:
    first = segtrain.fit(CONFIG, PAIRS, out=tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert segtrain.fit(CONFIG, PAIRS, out=tmp_path).content_hash() == first.content_hash()
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_training_learns_the_phantom(tmp_path: Path) -> None:
    segmenter = segtrain.fit(CONFIG, PAIRS, out=tmp_path, overrides=[
        "loop.steps=120", "optim.lr=0.005", "augment.geometry.p=0"])
    truth = torch.from_numpy(PAIRS.arrays(32).masks.astype(np.int64))
    found = segmenter.predict_labels(unit()).cpu()
    dice = 2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum())
    assert dice > 0.6


def refused(match: str, tmp_path: Path, **arguments: object) -> None:
    """Asserts that a fit with these arguments is refused and leaves nothing behind."""
    with pytest.raises(UserError, match=match):
        segtrain.fit(CONFIG, PAIRS, out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_held_out_groups_never_reach_training(tmp_path: Path) -> None:
    refused("labelled phantom_0001.*patient_01", tmp_path, held_out=["patient_01"])
    refused("unlabelled u2.*pile_patient_02", tmp_path, held_out=["pile_patient_02"], unlabelled=pile(),
            method="fixmatch_ema")


def test_sets_that_do_not_suit_the_method_are_refused(tmp_path: Path) -> None:
    refused("got none", tmp_path, method="fixmatch_ema")
    refused("does not use", tmp_path, unlabelled=pile())
    refused("multiple of 4 px", tmp_path, overrides=["size=30"])
    refused("did you mean batch_size", tmp_path, overrides=["batchsize=3"])


@pytest.mark.parametrize(("model", "extra", "method", "said"), [
    ({"name": "tiny", "encoder": "resnet34"}, {}, "supervised", "model.encoder=resnet34"),
    ({"name": "lite", "n_queries": 4}, {}, "supervised", "model.n_queries=4"),
    ({"name": "tiny"}, {"second": {"name": "lite"}}, "cps", "second: method cps"),
    ({"name": "unet", "encoder": "resnet34"}, {}, "supervised", None),
    ({"name": "tiny", "encoder": "resnet18"}, {}, "supervised", None),
    ({"name": "tiny"}, {"second": {"name": "lite"}}, "cross_teaching", None),
    ({"name": "tiny"}, {"second": {"name": "lite"}}, "mgd", None)])
def test_a_setting_that_nothing_reads_is_named(model: dict, extra: dict, method: str, said: str | None,
                                               caplog: pytest.LogCaptureFixture) -> None:
    make_plan({"model": model, **extra}, method=method)
    assert [text.startswith(said or "") for text in caplog.messages] == [True] * (said is not None)


def test_a_folder_of_another_run_or_of_other_files_is_refused(tmp_path: Path) -> None:
    segtrain.fit(CONFIG, PAIRS, out=tmp_path / "run", overrides=["loop.steps=1"])
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="another segment run"):
        segtrain.fit(CONFIG, PAIRS, out=tmp_path / "run", overrides=["loop.steps=1", "loop.seed=1"])
    with pytest.raises(UserError, match="labelled"):
        segtrain.fit(CONFIG, make_phantom(8, size=32, seed=5), out=tmp_path / "run", overrides=["loop.steps=1"])
    assert before == {p: p.read_bytes() for p in before}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        segtrain.fit(CONFIG, PAIRS, out=tmp_path / "mine")


def test_predict_writes_masks_at_each_images_own_size(semi: tuple[Segmenter, Path], tmp_path: Path) -> None:
    _, run = semi
    rng = np.random.default_rng(0)
    sizes = {"tall": (50, 36), "small": (20, 24), "same": (32, 32)}
    images = memory_set([rng.integers(0, 256, s).astype(np.uint8) for s in sizes.values()], None, PAIRS.info,
                        ids=list(sizes), groups=list(sizes))
    paths = segtrain.predict(run, images, out=tmp_path / "masks")
    assert [p.name for p in paths] == ["tall.png", "small.png", "same.png"]
    for path in paths:
        mask = np.asarray(Image.open(path))
        assert mask.shape == sizes[path.stem] and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
    native = Segmenter.load(run).predict_labels(pixels_to_unit(images[2].image[None, None], (0, 255)))
    assert np.array_equal(np.asarray(Image.open(paths[2])), native[0].cpu().numpy())
    with pytest.raises(UserError, match="another predict run"):
        segtrain.predict(run, images.select([0]), out=tmp_path / "masks")


def test_predict_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no fitted segmenter"):
        segtrain.predict(tmp_path, pile(), out=tmp_path / "masks")


@pytest.mark.slow
def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    assert isinstance(PAIRS, PairSet)
    write_folder(PAIRS, tmp_path / "labelled")
    write_folder(make_phantom(6, size=32, seed=9), tmp_path / "pile")
    words = [str(_yaml(tmp_path)), f"data.labelled={tmp_path}/labelled", f"data.unlabelled={tmp_path}/pile",
             "method=fixmatch_ema", f"out={tmp_path}/run"]
    done = launched(words)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run/done.json").read_text())["counts"] == {"images_seen": 24, "unlabelled_seen": 24}
    assert segtrain.load_segmenter(tmp_path / "run").predict(unit()).shape == (8, 2, 32, 32)


@pytest.mark.slow
def test_two_processes_say_a_mistake_once_and_stop(tmp_path: Path) -> None:
    write_folder(PAIRS, tmp_path / "labelled")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    done = launched([str(_yaml(tmp_path)), f"data.labelled={tmp_path}/labelled", f"out={tmp_path}/mine"])
    said = [line for line in done.stderr.splitlines() if "this folder is not empty" in line]
    assert done.returncode != 0 and sum(line.startswith("error: ") for line in said) == 1
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def launched(words: list[str]) -> subprocess.CompletedProcess:
    """Returns `segtrain fit WORDS` as two processes under accelerate."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
               "-m", "segtrain.cli", "fit", *words]
    # --multi_gpu starts two processes without a GPU too; --cpu starts one, whatever number it is given.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def _yaml(folder: Path) -> Path:
    (folder / "tiny.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    return folder / "tiny.yaml"

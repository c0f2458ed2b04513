"""Learning from labels that may be wrong: losses, rounds of relabelling, and a run without any labelled pair."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom
from PIL import Image
from scenes import PAIRS, SETTINGS, changed, extras_of, rand, run

import segtrain
from segtrain import cli
from segtrain.losses.noisy import noise_robust_dice, noise_weighted_dice
from segtrain.method import METHODS, load_method
from segtrain.metrics import count_pixels, dice
from segtrain.recipe import SegmentRecipe
from segtrain.scene import Scene
from segtrain.streams import Streams
from segtrain.streams.stored import info_of
from segtrain.targets import Target, from_labels
from segtrain.targets.rounds import agreement, label_dice
from synth.core.checks import IGNORE, UserError
from synth.core.loop import Batch, LoopSettings
from synth.core.pairs import ImageSet, memory_set
from synth.core.space import pixels_to_unit
from synth.formats import write_folder

CONFIG = {"size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "model": {"name": "tiny", "channels": [8, 16]},
          "loop": {"steps": 9, "log_every": 1, "checkpoint_every": 4}}
LONG = SETTINGS.model_copy(update={"loop": LoopSettings(steps=18)})


def target_of(labels: torch.Tensor, weight: torch.Tensor | None = None) -> Target:
    """Returns the target that says `labels` (B, H, W), perhaps with weights."""
    target = from_labels(labels, 2)
    return target if weight is None else dataclasses.replace(target, weight=weight)


def pile(n: int = 6, *, classes: tuple[str, ...] = ("background",)) -> ImageSet:
    """Returns phantom images without masks."""
    pairs = make_phantom(n, size=32, n_groups=3)
    return memory_set([p.image for p in pairs], None, dataclasses.replace(pairs.info, classes=classes),
                      ids=pairs.ids, groups=pairs.groups)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Returns a folder of the phantom's masks and an even confidence for each image, unlike from image to image."""
    for i, pair in enumerate(make_phantom(6, size=32, n_groups=3)):
        for name, value in (("masks", pair.mask), ("confidence", np.full_like(pair.mask, 100 + 20 * i))):
            (tmp_path / "stored" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(value).save(tmp_path / "stored" / name / f"{pair.id}.png")
    return tmp_path / "stored"


# Losses ---------------------------------------------------------------------------------------------------------------

def test_the_weighted_dice_is_its_formula_and_a_pixel_without_weight_teaches_nothing() -> None:
    logits = rand(2, 2, 4, 4).requires_grad_()
    labels = (rand(2, 4, 4, seed=1) > 0).long()
    weight = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2))
    weight[0, 0, 0] = 0
    loss = noise_weighted_dice(logits, target_of(labels, weight))
    p = logits.detach().softmax(1)
    expected = []
    for k in range(2):
        y = (labels == k).float()
        expected.append(1 - 2 * (weight * p[:, k] * y).sum() / (weight * (p[:, k] + y)).sum())
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-5)
    loss.backward()
    assert not logits.grad[0, :, 0, 0].any() and logits.grad[0, :, 0, 1].any()


def test_an_image_of_less_weight_teaches_less_in_one_dice_over_the_batch() -> None:
    labels = torch.ones(2, 4, 4, dtype=torch.long)
    labels[:, :2] = 0
    grads = []
    for own in (1.0, 0.25):
        logits = rand(2, 2, 4, 4).requires_grad_()
        weight = torch.tensor([1.0, own])[:, None, None].expand(2, 4, 4)
        noise_weighted_dice(logits, target_of(labels, weight)).backward()
        grads.append(logits.grad.abs().sum((1, 2, 3)))
    assert grads[1][1] / grads[1][0] < 0.5 * grads[0][1] / grads[0][0]


@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_the_robust_dice_is_its_formula(gamma: float) -> None:
    logits, labels = rand(2, 2, 4, 4), (rand(2, 4, 4, seed=1) > 0).long()
    p = logits.softmax(1)
    expected = [((p[:, k] - (labels == k).float()).abs() ** gamma).sum() / (p[:, k].sum() + (labels == k).sum())
                for k in range(2)]
    found = noise_robust_dice(logits, target_of(labels), gamma=gamma)
    assert torch.allclose(found, torch.stack(expected).mean(), atol=1e-5)
    surely = 40 * torch.stack([labels == 0, labels == 1], dim=1).float()
    assert float(noise_robust_dice(surely, target_of(labels), gamma=gamma)) == pytest.approx(0, abs=1e-5)


def test_a_wrong_label_pulls_less_than_a_hard_right_one_the_smaller_gamma() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, :2] = 1
    logits = torch.stack([-3.0 * (2 * labels - 1), 3.0 * (2 * labels - 1)], dim=1).float()
    logits[0, :, 0, 0] = -logits[0, :, 0, 0]  # the network disagrees surely with one label
    logits[0, :, 0, 1] = 0  # and is unsure of another
    shares = []
    for gamma in (1.0, 1.5, 2.0):
        own = logits.clone().requires_grad_()
        noise_robust_dice(own, target_of(labels), gamma=gamma).backward()
        pull = own.grad.abs().sum(1)[0]
        shares.append(float(pull[0, 0] / pull[0, 1]))
    assert shares[0] < shares[1] < shares[2]


def test_ignored_pixels_and_classes_that_no_label_shows_do_not_count() -> None:
    logits = rand(1, 2, 4, 4).requires_grad_()
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0] = IGNORE
    target = target_of(labels)
    (noise_weighted_dice(logits, target) + noise_robust_dice(logits, target, gamma=1.5)).backward()
    assert not logits.grad[0, :, 0].any() and logits.grad[0, :, 1:].any()
    nothing = torch.full((1, 4, 4), IGNORE)
    assert float(noise_weighted_dice(logits, target_of(nothing)).detach()) == 0


def test_agreement_is_one_minus_the_difference() -> None:
    y, p = torch.tensor([[1.0, 0.0, 0.3]]), torch.tensor([[0.9, 0.6, 0.3]])
    both = agreement(torch.stack([1 - y, y], 1)[..., None], torch.stack([1 - p, p], 1)[..., None])
    assert torch.allclose(both.flatten(), torch.tensor([0.9, 0.4, 1.0]))


def test_the_dice_of_labels_leaves_out_what_was_not_said_and_images_of_background() -> None:
    old, new = torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(2, 4, 4, dtype=torch.long)
    old[0, 0], new[0, 0, :2] = 1, 1
    found = label_dice(old, new, n_classes=3)
    assert float(found[0]) == pytest.approx(2 * 2 / 6) and found[1].isnan()
    old[0, 0, 2:] = IGNORE
    assert float(label_dice(old, new, n_classes=3)[0]) == 1


# Rounds ---------------------------------------------------------------------------------------------------------------

def rounds(n_steps: int, **memory: torch.Tensor) -> tuple[SegmentRecipe, list[Scene], list[Batch]]:
    """Returns the recipe after some steps of annotation_efficient, eighteen being a run, its scenes and its batches."""
    recipe = SegmentRecipe(LONG, load_method("annotation_efficient"), info=PAIRS.info, has_synthetic=False)
    recipe.memory |= memory
    streams = Streams.read(LONG, PAIRS, unlabelled=PAIRS, extras=extras_of(recipe.method))
    scenes, make = [], recipe._scene

    def kept(*arguments: object) -> Scene:
        scenes.append(make(*arguments))
        return scenes[-1]

    recipe._scene = kept
    batches = [streams.batches(i, 0, 1) for i in range(n_steps)]
    for i, batch in enumerate(batches):
        recipe.step(batch, i / 18)
    return recipe, scenes, batches


def test_the_first_round_learns_what_is_stored_with_its_confidence() -> None:
    recipe, scenes, batches = rounds(2)
    for scene, batch in zip(scenes, batches, strict=True):
        moved = scene.warp.move(batch["stored_labels"], nearest=True)
        target = scene.shown[0].target
        assert torch.equal(target.hard, moved) and (target.weight == 1).all() and not recipe.memory


def test_later_rounds_learn_what_the_round_before_says_weighed_by_how_much_all_views_agree() -> None:
    recipe, scenes, batches = rounds(10)
    teacher = recipe.averages["teacher"].net
    with torch.no_grad():
        said = teacher.eval()(batches[9]["unlabelled"]).argmax(1)
    scene, target = scenes[9], scenes[9].shown[0].target
    assert recipe.topology.stage == 1
    assert torch.equal(target.hard, scene.warp.move(said, nearest=True))
    assert not torch.equal(said, batches[9]["stored_labels"]), "they are others than the stored ones"
    assert target.weight.min() >= 0 and target.weight.max() <= 1 and target.weight.std() > 0
    assert {f"relabelled_prob {row}" for row in batches[9]["unlabelled_rows"].tolist()} <= set(recipe.memory)


def test_a_pixel_where_label_and_average_part_weighs_less() -> None:
    _, scenes, _ = rounds(10)
    scene, target = scenes[9], scenes[9].shown[0].target
    now = scene.said("teacher").logits.softmax(1)
    apart = (now.argmax(1) != target.hard) & target.valid
    assert apart.any() and target.weight[apart].mean() < target.weight[~apart & target.valid].mean()


def test_labels_that_have_settled_are_left_as_they_are() -> None:
    done = {"label_dice 1": torch.tensor([99e4, 1e6], dtype=torch.float64)}
    recipe, scenes, batches = rounds(14, **done)
    assert recipe.topology.stage == 2 and float(scenes[13].stats["settled"]) == 1
    assert not any(int(recipe.memory[key]) == 2 for key in recipe.memory if key.startswith("relabelled_in"))
    moving, _, _ = rounds(14)
    assert any(int(moving.memory[key]) == 2 for key in moving.memory if key.startswith("relabelled_in"))


def test_rounds_need_stages() -> None:
    with pytest.raises(UserError, match="staged"):
        run(changed("annotation_efficient", topology="single"), 1)


# No labelled pair -----------------------------------------------------------------------------------------------------

def test_a_run_without_labelled_pairs_learns_from_the_folder_alone(stored: Path, tmp_path: Path) -> None:
    found = segtrain.fit(CONFIG, None, unlabelled=pile(), stored=stored, method="annotation_efficient",
                         out=tmp_path / "run", overrides=[
                             "loop.steps=480", "optim.lr=0.005", "augment.geometry.p=0"])
    assert found.info.classes == ("background", "class_1")
    assert found.result.counts == {"images_seen": 0, "unlabelled_seen": 1920}
    pairs = make_phantom(6, size=32, n_groups=3)
    arrays = pairs.arrays(32)
    labels = found.predict_labels(pixels_to_unit(arrays.images, pairs.info.intensity_range)).cpu()
    scores = dice(count_pixels(labels, torch.from_numpy(arrays.masks.astype(np.int64)), n_classes=2))
    assert scores.mean() > 0.5
    last = json.loads((tmp_path / "run/stats.jsonl").read_text().splitlines()[-1])
    assert {"label_dice", "settled", "label_weight"} <= set(last) and "loss_labelled" not in last


class Stop(Exception):
    """Stands for kill -9."""


def test_it_resumes_to_the_same_bytes(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(out: Path) -> str:
        return segtrain.fit(CONFIG, None, unlabelled=pile(), stored=stored, method="annotation_efficient",
                            out=out).content_hash()

    whole, step = fit(tmp_path / "whole"), SegmentRecipe.step

    def dies(self: SegmentRecipe, batch: Batch, progress: float) -> dict:
        if progress > 0.7:  # in the third round, past the checkpoint of step 4 in the second
            raise Stop
        return step(self, batch, progress)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentRecipe, "step", dies)
        with pytest.raises(Stop):
            fit(tmp_path / "cut")
    assert fit(tmp_path / "cut") == whole
    assert (tmp_path / "cut/stats.jsonl").read_bytes() == (tmp_path / "whole/stats.jsonl").read_bytes()
    memories = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["extra"]["memory"]
                for name in ("whole", "cut")]
    assert memories[0].keys() == memories[1].keys() and len(memories[0]) > 12
    assert all(torch.equal(memories[0][key], memories[1][key]) for key in memories[0])


def test_what_needs_labelled_pairs_says_so(stored: Path, tmp_path: Path) -> None:
    def refused(match: str, **more: object) -> None:
        with pytest.raises(UserError, match=match):
            segtrain.fit(CONFIG, None, out=tmp_path / "run", **more)
        assert not (tmp_path / "run").exists()

    both = {"unlabelled": pile(), "stored": stored}
    refused("supervised.*labelled pairs and got none", method="supervised")
    refused("fixmatch_ema.*labelled pairs and got none", method="fixmatch_ema", unlabelled=pile())
    refused("without labelled pairs", method="annotation_efficient", synthetic=make_phantom(2, size=32), **both)
    refused("normalise=range", method="external", overrides=["normalise=fingerprint"], **both)
    refused("unlabelled images and got none", method="annotation_efficient", stored=stored)
    refused("pseudo-labels", method="annotation_efficient", unlabelled=pile())
    refused("held out", method="external", held_out=[pile().groups[0]], **both)
    without = {path.stem for path in METHODS.glob("*.yaml") if not load_method(path).needs_labels()}
    assert without == {"annotation_efficient", "external"}


def test_classes_are_those_declared_or_those_that_the_masks_show(stored: Path) -> None:
    assert info_of(pile(), stored).classes == ("background", "class_1")
    declared = ("background", "polyp", "other")
    assert info_of(pile(classes=declared), stored).classes == declared
    for path in (stored / "masks").glob("*.png"):
        Image.fromarray(np.where(np.asarray(Image.open(path)) > 0, 128, 0).astype(np.uint8)).save(path)
    with pytest.raises(UserError, match="go up to 128"):
        info_of(pile(), stored)


def test_the_shell_runs_without_labelled_pairs_and_says_when_it_cannot(
        stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(make_phantom(6, size=32, n_groups=3), tmp_path / "set")
    (tmp_path / "tiny.yaml").write_text(json.dumps(CONFIG))

    def shell(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["segtrain", "fit", str(tmp_path / "tiny.yaml"), *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    where = [f"data.unlabelled={tmp_path}/set/images", f"data.stored={stored}"]
    assert shell("method=annotation_efficient", f"out={tmp_path}/run", *where) == 0
    assert (tmp_path / "run/model/model.safetensors").exists()
    assert shell("method=fixmatch_ema", f"out={tmp_path}/other", *where) == 2
    assert "data.labelled" in capsys.readouterr().err

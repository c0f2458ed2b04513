"""Fitting without labels: what a fit leaves, that it draws and labels, and that a segmenter learns from its labels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contract_generator import GeneratorContract
from phantom import make_phantom
from PIL import Image
from tiny import UNPAIRED, files_of, tiny_translator

import segtrain
import synth
from segtrain.streams.stored import read_stored
from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.pairs import ImageSet, memory_set
from synth.formats import MaskSet, encode_png, write_folder
from synth.gan.translate import TranslatePipeline
from synth.gan.unpaired import fit as fit_module
from synth.gan.unpaired.label import load_labeller
from synth.gan.unpaired.settings import UnpairedSettings

PAIRS, OTHERS = make_phantom(8, size=40, n_groups=8), make_phantom(6, size=32, seed=9)
PILE = memory_set([p.image for p in PAIRS], None, replace(PAIRS.info, classes=("background",)), ids=PAIRS.ids,
                  groups=PAIRS.groups)
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> MaskSet:
    """Returns the masks of other phantoms, from a folder."""
    folder = tmp_path_factory.mktemp("masks")
    for pair in OTHERS:
        (folder / f"{pair.id}.png").write_bytes(encode_png(pair.mask))
    return synth.load_masks(folder)


@pytest.fixture(scope="module")
def run(masks: MaskSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a finished fit with a cycle."""
    out = tmp_path_factory.mktemp("unpaired") / "run"
    synth.fit(UNPAIRED, None, PILE, masks=masks, out=out)
    return out


class TestUnpaired(GeneratorContract):
    """What draws images of masks keeps the generator's contract."""

    @pytest.fixture(scope="class")
    def generator(self, run: Path) -> TranslatePipeline:
        """Returns it."""
        pipeline = synth.load_generator(run)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def test_a_fit_leaves_what_draws_and_what_labels(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {"run.json", "config.yaml", "health.json", "model_index.json",
                                               "translator", "labels", "unpaired_run", "taught.json"}
    assert {p.name for p in (run / "labels").iterdir()} == {"model_index.json", "labeller", "judge"}
    assert not [p for p in (run / "labels").rglob("*") if p.suffix in (".bin", ".pt")], "only safetensors"
    lines = [json.loads(line) for line in (run / "unpaired_run" / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["unlabelled_seen"] == lines[-1]["masks_seen"] == 24
    assert {"cycle_image", "cycle_mask", "shape", "image", "energy_masks", "energy_labels"} <= lines[-1].keys()
    health = json.loads((run / "health.json").read_text())
    assert {"exchanged", "place_labels", "hidden", "mask_use"} <= health.keys()


def test_a_refused_fit_is_looked_at_again_without_training(
        masks: MaskSet, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the labeller does not look"):
        synth.fit(UNPAIRED, None, PILE, masks=masks, out=tmp_path / "run", overrides=["health.max_alike=0"])
    assert (tmp_path / "run" / "health.json").exists() and not (tmp_path / "run" / "model_index.json").exists()
    synth.fit(UNPAIRED, None, PILE, masks=masks, out=tmp_path / "run")
    assert load_labeller(tmp_path / "run").content_hash() == load_labeller(run).content_hash()
    monkeypatch.setattr(fit_module, "train", lambda *_, **__: pytest.fail("trained again"))
    before = files_of(run)
    synth.fit(UNPAIRED, None, PILE, masks=masks, out=run)
    assert files_of(run) == before
    with pytest.raises(UserError, match="another unpaired run"):
        synth.fit(UNPAIRED, None, PILE, masks=masks, out=run, overrides=["labeller.lr=0.1"])


def test_how_fast_the_weight_falls_needs_no_other_fit_and_is_saved(
        masks: MaskSet, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "train", lambda *_, **__: pytest.fail("trained again"))
    before, energy = files_of(run), 2 * load_labeller(run).config.energy * torch.ones(1)
    synth.fit(UNPAIRED, None, PILE, masks=masks, out=run, overrides=["tau=0.25"])
    assert load_labeller(run).weigh(energy).item() == pytest.approx(math.exp(-1 / 0.25))
    assert load_config(UnpairedSettings, run / "config.yaml").tau == 0.25
    after = files_of(run)
    assert {name for name in before if after[name] != before[name]} == {"labels/model_index.json", "config.yaml"}
    synth.fit(UNPAIRED, None, PILE, masks=masks, out=run)
    assert files_of(run) == before


def test_masks_of_the_images_are_never_read(masks: MaskSet, run: Path, tmp_path: Path) -> None:
    wrong = memory_set([p.image for p in PAIRS], [1 - p.mask for p in PAIRS], PAIRS.info, ids=PAIRS.ids,
                       groups=PAIRS.groups)
    first, second = (synth.fit(UNPAIRED, None, some, masks=masks, out=tmp_path / str(i)).content_hash()
                     for i, some in enumerate((PAIRS, wrong)))
    assert first == second
    assert load_labeller(tmp_path / "0").content_hash() == load_labeller(tmp_path / "1").content_hash()


def test_labels_have_the_form_that_a_segmenter_reads(run: Path, tmp_path: Path) -> None:
    labeller = load_labeller(run)
    out = synth.label(labeller, PILE, out=tmp_path / "labels")
    stored = read_stored(out, PILE, 40, 2)
    lines = {x["id"]: x for x in map(json.loads, (out / "labels.jsonl").read_text().splitlines())}
    for i, pair in enumerate(PILE):
        mask = np.array(Image.open(out / "masks" / f"{pair.id}.png"))
        assert mask.shape == pair.image.shape and np.array_equal(mask, stored.labels[i])
        confidence = stored.confidence[i] / 255
        assert confidence.max() <= lines[pair.id]["weight"] + 1 / 255, "no pixel is surer than its image"
        assert confidence.min() >= 0.5 * lines[pair.id]["weight"] - 1 / 255, "the surer of two classes"
    alone = synth.label(labeller, PILE.select([5]), out=tmp_path / "alone")
    name = f"masks/{PILE.ids[5]}.png"
    assert (alone / name).read_bytes() == (out / name).read_bytes()
    config = {"size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "model": {"name": "tiny", "channels": [8, 16]},
              "loop": {"steps": 3, "log_every": 1, "checkpoint_every": 3}}
    done = segtrain.fit(config, None, unlabelled=PILE, stored=out, method="annotation_efficient", out=tmp_path / "net")
    assert done.result.steps == 3 and done.info.n_classes == 2


def test_labels_never_leave_their_folder(run: Path, tmp_path: Path) -> None:
    for name in ("../../escaped", "a/b", ".hidden"):
        odd = memory_set([PAIRS[0].image], None, PILE.info, ids=[name], groups=["g"])
        with pytest.raises(UserError, match="an id becomes a file name"):
            synth.label(run, odd, out=tmp_path / "below" / "labels")
    assert not any(tmp_path.iterdir())


def test_the_contrast_of_patches_takes_the_place_of_the_cycle(masks: MaskSet, tmp_path: Path) -> None:
    pipeline = synth.fit(UNPAIRED, None, PILE, masks=masks, out=tmp_path / "run", overrides=["translation=contrastive"])
    last = json.loads((tmp_path / "run" / "unpaired_run" / "stats.jsonl").read_text().splitlines()[-1])
    assert "contrast" in last and "cycle_image" not in last and pipeline.config.model == "contrastive"


def test_what_it_cannot_use_is_refused(masks: MaskSet, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for message, words in (("learns from masks", {"labelled": PAIRS}), ("learns from masks", {"labelled": None}),
                           ("at least 4 masks", {"labelled": None, "masks": masks.select([0, 1])})):
        with pytest.raises(UserError, match=message):
            synth.fit(UNPAIRED, words["labelled"], PILE, masks=words.get("masks"), out=out)
    with pytest.raises(UserError, match="data.unlabelled"):
        synth.fit(UNPAIRED, None, masks=masks, out=out)
    with pytest.raises(UserError, match="labelled images"):
        synth.fit({"kind": "translate"}, PAIRS, masks=masks, out=out)
    three = ImageSet(PILE.items, replace(PILE.info, classes=("background", "a", "b")))
    with pytest.raises(UserError, match="mask_map"):
        synth.fit(UNPAIRED, None, three, masks=masks, out=out)
    for override, message in (("size=34", "multiple of"), ("layout.recombine=0.5", "recombine"),
                              ("layout.grow_px=2", "grow_px"), ("layout.source=shape", "layout.source"),
                              ("layout.rules.learn=false", "layout.rules.learn"),
                              ("translator.widths=[8,8]", "translator.widths")):
        with pytest.raises(UserError, match=message):
            synth.fit(UNPAIRED, None, PILE, masks=masks, out=out, overrides=[override])
    assert not out.exists()
    tiny_translator("oasis").save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="no other kind labels"):
        load_labeller(tmp_path / "other")
    with pytest.raises(UserError, match="channel"):
        synth.label(run, make_phantom(2, size=32, channels=3), out=tmp_path / "labels")
    with pytest.raises(UserError, match="images of 16 bit, and LabelPipeline was fitted on 8"):
        synth.label(run, make_phantom(2, size=32, bit_depth=16), out=tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
    with pytest.raises(UserError, match="this labeller takes"):
        load_labeller(run)(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("name", ["unpaired.yaml", "tiny/unpaired.yaml"])
def test_the_presets_fit_together(name: str) -> None:
    fit_module.check_settings(load_config(UnpairedSettings, CONFIGS / name), n_ranks=1)


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from synth.cli import app

    write_folder(PAIRS, tmp_path / "images")
    write_folder(OTHERS, tmp_path / "others")
    (tmp_path / "fit.yaml").write_text(json.dumps(UNPAIRED))  # JSON is YAML
    for words in (["fit", tmp_path / "fit.yaml", f"data.unlabelled={tmp_path}/images",
                   f"data.masks={tmp_path}/others", f"out={tmp_path}/run"],
                  ["label", tmp_path / "run", f"data.unlabelled={tmp_path}/images", f"out={tmp_path}/labels"]):
        done = CliRunner().invoke(app, [str(w) for w in words])
        assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "labels" / "masks").glob("*.png"))) == 8
    wrong = CliRunner().invoke(app, ["fit", str(tmp_path / "fit.yaml"), f"data.labelled={tmp_path}/images",
                                     f"out={tmp_path}/x"])
    assert isinstance(wrong.exception, UserError) and "sees no labelled image" in str(wrong.exception)

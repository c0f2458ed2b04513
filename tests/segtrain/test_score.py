"""Scoring a segmenter: the numbers, at the images' own size, and what is refused because training knew it."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom

import segtrain
from segtrain import cli
from segtrain.segmenter import Segmenter, predict_pair
from segtrain.statistics import mean_interval
from synth.core.checks import UserError
from synth.core.pairs import ImageSet, PairSet, Provenance
from synth.core.taught import Taught
from synth.formats import encode_png, write_folder

SETTINGS = {"size": 32, "batch_size": 4, "model": {"name": "tiny", "channels": [8, 16], "weights": ""},
            "loop": {"steps": 3}}


def renamed(pairs: PairSet, prefix: str) -> PairSet:
    """Returns the same pairs as others' files: ids and groups begin with `prefix`."""
    items = [dataclasses.replace(i, id=f"{prefix}{i.id}", group=f"{prefix}{i.group}") for i in pairs.items]
    return PairSet(items, pairs.info, where=prefix)


EVERY = make_phantom(24, size=48, n_classes=3, n_groups=12)
LABELLED, PILE = EVERY.select(range(8)), EVERY.select(range(8, 12))
TEST = PairSet([dataclasses.replace(item, group=f"new_{i // 3}") for i, item in enumerate(EVERY.items[12:])],
               EVERY.info)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run that knew labelled, unlabelled and drawn images."""
    out = tmp_path_factory.mktemp("score") / "run"
    made = Provenance(("x",), ("far_patient",), 1, "g", "l", "s")
    drawn = PairSet([dataclasses.replace(i, id=f"made{i.id}", made=made) for i in LABELLED.items], LABELLED.info)
    segtrain.fit(SETTINGS, LABELLED, synthetic=drawn, unlabelled=ImageSet(PILE.items, PILE.info),
                 method="mean_teacher", out=out)
    return out


def test_scores_are_those_of_the_predictions_at_native_size(run: Path) -> None:
    found = segtrain.score(run, TEST, tolerance_px=2.0)
    segmenter = Segmenter.load(run)
    predicted = [predict_pair(segmenter, pair) for pair in TEST]
    assert predicted[0].shape == TEST[0].mask.shape
    for case, pair, ours in zip(found.cases, TEST, predicted, strict=True):
        for k in (1, 2):
            a, b = ours.numpy() == k, pair.mask == k
            size = a.sum() + b.sum()
            assert case.dice[k - 1] == pytest.approx(2 * (a & b).sum() / size if size else 1.0)
    values = np.array([np.mean(case.dice) for case in found.cases])
    assert found.means["dice"] == mean_interval(values, TEST.groups, seed=0)
    assert found.per_class["object_2"] == pytest.approx(np.mean([case.dice[1] for case in found.cases]))
    assert found.unit == "px"


def test_an_image_or_patient_of_training_is_refused(run: Path) -> None:
    for known, name in ((LABELLED, LABELLED.ids[0]), (PILE, PILE.ids[0])):
        with pytest.raises(UserError, match=rf"elsewhere_{name}.*trained with this image"):
            segtrain.score(run, renamed(known, "elsewhere_"))
    for group in (LABELLED.groups[0], PILE.groups[0], "far_patient"):  # the last by a drawn pair's parent alone
        items = [dataclasses.replace(i, group=group) for i in TEST.items]
        with pytest.raises(UserError, match=f"images of group {group}"):
            segtrain.score(run, PairSet(items, TEST.info))


def test_equal_file_names_of_two_centres_are_no_evidence(run: Path) -> None:
    names = [*LABELLED.groups, *TEST.ids][:len(TEST)]  # without groups.csv, an image's group is its name
    items = [dataclasses.replace(i, id=n, group=n)
             for i, n in zip(TEST.items, dict.fromkeys([*names, *TEST.ids]), strict=False)]
    assert len(segtrain.score(run, PairSet(items, TEST.info)).cases) == len(items)


def test_blank_images_are_no_copies_of_each_other() -> None:
    blank = make_phantom(2, size=16)
    items = [dataclasses.replace(i, read=lambda: (np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)))
             for i in blank.items]
    arrays = PairSet(items, blank.info).arrays(16)
    assert not Taught.of([arrays], []).images


def test_native_images_are_known_too(tmp_path: Path) -> None:
    settings = {**SETTINGS, "patch": 32}
    settings.pop("size")
    segtrain.fit(settings, LABELLED, method="supervised", out=tmp_path / "run")
    with pytest.raises(UserError, match="trained with this image"):
        segtrain.score(tmp_path / "run", renamed(LABELLED, "other_"))
    assert len(segtrain.score(tmp_path / "run", TEST).cases) == len(TEST)


def test_drawn_pairs_and_other_classes_are_refused(run: Path) -> None:
    made = Provenance(("x",), ("y",), 1, "g", "l", "s")
    with pytest.raises(UserError, match="a generator drew this pair"):
        segtrain.score(run, PairSet([dataclasses.replace(i, made=made) for i in TEST.items], TEST.info))
    with pytest.raises(UserError, match="its classes are"):
        segtrain.score(run, make_phantom(3, size=32, seed=5))


def test_distances_are_in_mm_only_where_every_spacing_is_known(run: Path) -> None:
    plain = segtrain.score(run, TEST)
    wide = PairSet([dataclasses.replace(i, spacing=(3.0, 3.0)) for i in TEST.items], TEST.info)
    scaled = segtrain.score(run, wide)
    assert (plain.unit, scaled.unit) == ("px", "mm")
    assert scaled.means["hd95"].mean == pytest.approx(3 * plain.means["hd95"].mean, rel=1e-5)
    some = segtrain.score(run, PairSet([*wide.items[:4], *TEST.items[4:]], TEST.info))
    assert some.unit == "px" and "4 of 12 images" in " ".join(some.notes)
    assert some.means["hd95"].mean == pytest.approx(plain.means["hd95"].mean)


def test_the_default_tolerance_is_one_pixel_of_the_network(run: Path) -> None:
    assert segtrain.score(run, TEST).cases == segtrain.score(run, TEST, tolerance_px=48 / 32).cases
    assert segtrain.score(run, TEST).cases != segtrain.score(run, TEST, tolerance_px=20.0).cases


def test_a_segmenter_of_before_says_that_it_does_not_know(run: Path, tmp_path: Path) -> None:
    Segmenter.load(run).save(tmp_path / "again")
    with pytest.raises(UserError, match="trained with this image"):  # saved again, it still knows
        segtrain.score(tmp_path / "again", renamed(LABELLED, "elsewhere_"))
    shutil.copytree(run / "model", tmp_path / "old")
    (tmp_path / "old" / "taught.json").unlink()
    found = segtrain.score(tmp_path / "old", TEST)
    assert any("not known" in note for note in found.notes)
    assert not any("not known" in note for note in segtrain.score(run, TEST).notes)


def test_the_command_prints_the_means_and_writes_the_cases(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(TEST, tmp_path / "test")
    for path in (tmp_path / "test" / "masks").iterdir():
        path.write_bytes(encode_png(np.array(TEST[TEST.ids.index(path.stem)].mask) * np.uint8(100)))
    words = ["segtrain", "score", str(run), f"data.labelled={tmp_path / 'test'}", "data.mask_map=0:0,100:1,200:2",
             f"out={tmp_path / 'scores'}", "--tolerance", "2"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    expected = segtrain.score(run, TEST, tolerance_px=2.0)
    mean = expected.means["dice"]
    assert f"{mean.low:.3f} to {mean.high:.3f}" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["means"]["dice"]["mean"] == mean.mean
    rows = list(csv.DictReader((tmp_path / "scores" / "scores.csv").open()))
    assert len(rows) == 2 * len(TEST) and {row["class"] for row in rows} == {"object_1", "object_2"}
    for row in rows:
        tp, fp, fn = (int(row[key]) for key in ("tp", "fp", "fn"))
        assert float(row["dice"]) == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0, abs=1e-5)

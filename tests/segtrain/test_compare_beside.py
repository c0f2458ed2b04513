"""Masks beside the images of a comparison: pseudo-labels of another program, further annotators."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom

import segtrain
from segtrain.compare.beside import TRUST
from segtrain.record import read_index
from segtrain.summary import read_result
from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.core.space import resize_mask
from synth.formats import encode_png
from synth.formats.decode import decode_mask

SETTINGS = {"size": 32, "n_labelled": 4, "draws": 2, "resamples": 199, "arms": ["real", "real+unlabelled:external"],
            "segment": {"batch_size": 4, "unlabelled_batch_size": 4, "optim": {"lr": 0.01},
                        "model": {"name": "tiny", "channels": [4, 8, 8]}, "loop": {"steps": 6}}}


def pairs() -> PairSet:
    """Returns 18 pairs of 6 patients at 48 px."""
    return make_phantom(18, size=48, n_groups=6)


def write_masks(folder: Path, *, test: set[str], flip: bool = False) -> Path:
    """Returns `folder` with a native mask of every image but those of `test`."""
    (folder / "masks").mkdir(parents=True)
    for pair in pairs():
        if pair.group not in test:
            mask = pair.mask[::-1].copy() if flip else pair.mask
            (folder / "masks" / f"{pair.id}.png").write_bytes(encode_png(mask))
    return folder


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Returns the groups that the split tests on."""
    out = tmp_path_factory.mktemp("split") / "out"
    segtrain.compare({**SETTINGS, "arms": ["real"], "draws": 1}, pairs(), out=out)
    return set(read_index(out).data.test_groups)


def cases(out: Path, arm: str) -> list[tuple]:
    """Returns what the runs of `arm` scored."""
    found = [read_result(out / path) for path in read_index(out).scores]
    return [run.cases for run in found if run.arm == arm]


def test_pseudo_labels_reach_their_arm_alone(tmp_path: Path, held_out: set[str]) -> None:
    right = write_masks(tmp_path / "right", test=held_out)  # none of a test image: none may be needed
    wrong = write_masks(tmp_path / "wrong", test=held_out, flip=True)
    arm, out = "real+unlabelled:external", tmp_path / "out"
    report = segtrain.compare({**SETTINGS, "data": {"stored": str(right)}}, pairs(), out=out)
    assert TRUST in report.index.notes
    by_right, real = cases(out, arm), cases(out, "real")
    assert len(by_right) == 2 and by_right != real
    written = {p.stem: decode_mask(p, str(p)) for p in (out / "cache").glob("stored-*/masks/*.png")}
    hidden = {pair.id: pair for pair in pairs() if pair.group not in held_out}
    assert written and written.keys() <= hidden.keys()
    for name, mask in written.items():
        np.testing.assert_array_equal(mask, resize_mask(hidden[name].mask, (32, 32)))
    by_wrong = segtrain.compare({**SETTINGS, "data": {"stored": str(wrong)}}, pairs(), out=out)
    assert cases(out, arm) != by_right and cases(out, "real") == real
    assert [run.seconds for run in by_wrong.arms if run.name == "real"] == [
        run.seconds for run in report.arms if run.name == "real"]  # found again
    segtrain.compare({**SETTINGS, "data": {"stored": str(right)}}, pairs(), out=out)
    assert cases(out, arm) == by_right


def test_observers_reach_their_arm(tmp_path: Path, held_out: set[str]) -> None:
    folders = [write_masks(tmp_path / name, test=held_out, flip=name == "b") for name in ("a", "b")]
    settings = {**SETTINGS, "arms": ["real", "real:observers"], "data": {"observers": [str(f) for f in folders]}}
    segtrain.compare(settings, pairs(), out=tmp_path / "out")
    assert cases(tmp_path / "out", "real:observers") != cases(tmp_path / "out", "real")
    again = {**settings, "data": {"observers": [str(folders[0]), str(folders[0])]}}
    segtrain.compare(again, pairs(), out=tmp_path / "same")
    assert cases(tmp_path / "same", "real:observers") != cases(tmp_path / "out", "real:observers")
    runs = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {arm["images_seen"] for arm in runs["arms"]} == {24}


@pytest.mark.parametrize(("data", "arms", "match"), [
    ({}, ["real", "real+unlabelled:external"], "stored="),
    ({}, ["real", "real:observers"], "observers="),
    ({"stored": "masks"}, ["real", "real+unlabelled"], "no arm's method reads it"),
    ({"observers": ["masks"]}, ["real"], "no arm's method reads it"),
    ({"stored": "elsewhere"}, ["real", "real+unlabelled:external"], "no such file"),
])
def test_what_does_not_go_together_is_named_before_training(tmp_path: Path, data: dict, arms: list[str], match: str,
                                                            held_out: set[str]) -> None:
    write_masks(tmp_path / "masks", test=held_out)
    paths = {k: [str(tmp_path / v) for v in value] if isinstance(value, list) else str(tmp_path / value)
             for k, value in data.items()}
    with pytest.raises(UserError, match=match):
        segtrain.compare({**SETTINGS, "arms": arms, "data": paths}, pairs(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""`synth audit --seam`: what it prints and writes, its dry run, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from synth_shell import mistake, synth_cli
from tiny import squares, tiny_pipeline

import synth
from synth.audit import audit_seam, generator_paint
from synth.core.checks import UserError
from synth.gates.probe import SeamProbe
from synth.gates.seam_net import SeamSettings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with labelled/ (24 pairs), unlabelled/ (12 images) and painter/ (untrained)."""
    home = tmp_path_factory.mktemp("seam")
    synth.write_folder(squares(24, n_groups=6), home / "labelled")
    synth.write_folder(squares(12, seed=4), home / "more")
    (home / "more" / "images").rename(home / "unlabelled")
    tiny_pipeline().save_pretrained(home / "painter")
    return home


def test_the_command_prints_and_writes_what_it_found(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An untrained generator paints nonsense, so its seams are plain."""
    words = ("audit", "--seam", home / "painter", f"data.labelled={home}/labelled", "steps=30", "batch_size=8")
    assert synth_cli(*words, f"data.unlabelled={home}/unlabelled", "n=40", f"out={tmp_path}/runs",
                     "--json", tmp_path / "seam.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("40 placebos in ") and lines[1].endswith("the seam shows")
    written = json.loads((tmp_path / "seam.json").read_text())
    assert written["seam"]["auc"] > 0.8 and written["settings"]["steps"] == 30 and len(written["generator"]) == 16
    assert (tmp_path / "runs" / "fold-1" / "done.json").exists()


def test_the_probe_becomes_a_gate_of_a_draw(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    probe = tmp_path / "probe"
    assert synth_cli("audit", "--seam", home / "painter", f"data.labelled={home}/labelled", "steps=10", "batch_size=8",
                     "n=20", f"probe={probe}") == 0
    assert f"takes it as seam={probe}" in capsys.readouterr().out
    draw = ("draw", "configs/draw.yaml", f"generator={home}/painter", f"data.labelled={home}/labelled", "n=3",
            "batch_size=4")
    assert synth_cli(*draw, f"seam={probe}", f"out={tmp_path}/gated") == 0
    assert synth_cli(*draw, f"out={tmp_path}/free") == 0
    scored = {name: [item.made.scores for item in synth.load_pairs(tmp_path / name).items]
              for name in ("gated", "free")}
    threshold = SeamProbe.load(probe).threshold
    assert all(scores["seam"] <= threshold for scores in scored["gated"])
    assert not any("seam" in scores for scores in scored["free"])


def test_a_dry_run_prints_every_setting(home: Path, capsys: pytest.CaptureFixture) -> None:
    assert synth_cli("audit", "--seam", "nowhere", "data.labelled=x", "lr=0.01", "--dry-run") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["n"] == 200 and printed["lr"] == 0.01 and set(SeamSettings.model_fields) < set(printed)


def test_mistakes_are_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    seam, labelled = ("audit", "--seam", home / "painter"), f"data.labelled={home}/labelled"
    (picture := tmp_path.parent / "folder.png").mkdir()
    assert "data.labelled=" in mistake(capsys, *seam)
    assert "no finished generator" in mistake(capsys, "audit", "--seam", tmp_path, labelled)
    assert "did you mean steps" in mistake(capsys, *seam, labelled, "step=3")
    assert "holds no run of ours" in mistake(capsys, *seam, labelled, f"probe={home}/labelled", "--json",
                                             tmp_path / "seam.json"), "before the audit, which would write its figures"
    assert "key=value" in mistake(capsys, *seam, labelled, "folder")
    assert "n=1" in mistake(capsys, *seam, labelled, "n=1")
    assert "whole number" in mistake(capsys, *seam, labelled, "n=many")
    assert "folder=" in mistake(capsys, "audit")
    assert "--json" in mistake(capsys, "audit", "somewhere", "--json", tmp_path / "x.json")
    assert "no such setting here" in mistake(capsys, "audit", "somewhere", "steps=3")
    for look in (seam, ("audit", "--spectrum", home / "labelled")):
        assert f"--json {tmp_path}: it is a folder" in mistake(capsys, *look, labelled, "--json", tmp_path)
    assert "out= " in mistake(capsys, "audit", "--spectrum", home / "labelled", labelled, f"out={picture}")
    assert "no ledger" in mistake(capsys, "audit", home / "labelled")
    assert list(tmp_path.iterdir()) == []


def test_a_generator_that_does_not_fit_or_keeps_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="do not fit a generator"):
        audit_seam(tiny_pipeline(value_range=(0, 100)), squares(6), n=4)
    with pytest.raises(UserError, match="keeps no pixels"):
        generator_paint(object())

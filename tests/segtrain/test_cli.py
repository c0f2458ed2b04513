"""The shell's view: fast help, dry runs, one clear line for a mistake, lean imports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from phantom import make_phantom

from segtrain import cli
from synth.formats import write_folder

CONFIGS = Path(__file__).parents[2] / "configs"


def shell(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Returns the exit code of `segtrain WORDS`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["segtrain", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_help_is_fast_and_names_the_commands() -> None:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "segtrain.cli", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 2
    assert all(name in done.stdout for name in ("fit", "predict", "compare", "report"))


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    code = ("import sys\n"
            "def check(*heavy): assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)\n"
            "import segtrain, segtrain.cli; check('diffusers', 'gradio', 'accelerate', 'torch')\n"
            "import segtrain.train; check('diffusers', 'gradio')\n")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_survive_imports_of_the_rooms() -> None:
    code = ("import segtrain.compare as room, types, segtrain; assert isinstance(sys.modules['segtrain.compare'], "
            "types.ModuleType); assert callable(segtrain.compare) and segtrain.compare.__name__ == 'compare';"
            "assert set(segtrain.__all__) <= set(dir(segtrain)); assert all(callable(getattr(segtrain, n)) for n in "
            "segtrain.__all__)")
    subprocess.run([sys.executable, "-c", "import sys; " + code], check=True)


@pytest.mark.parametrize("name", ["segment.yaml", "tiny/segment.yaml"])
def test_a_dry_run_prints_settings_that_can_be_read_again(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell(monkeypatch, "fit", str(CONFIGS / name), "optim.lr=0.5", "method=fixmatch_ema", "--dry-run") == 0
    settings, method = capsys.readouterr().out.split("# method\n")
    assert yaml.safe_load(settings)["optim"]["lr"] == 0.5
    assert yaml.safe_load(method)["name"] == "fixmatch_ema"
    assert not list(tmp_path.iterdir())
    (tmp_path / "again.yaml").write_text(settings)
    assert shell(monkeypatch, "fit", str(tmp_path / "again.yaml"), "--dry-run") == 0
    assert capsys.readouterr().out.split("# method\n")[0] == settings


@pytest.mark.parametrize(("words", "match"), [
    (["fit", str(CONFIGS / "tiny/segment.yaml"), "optim.lrr=1"], "did you mean optim.lr?"),
    (["fit", "nowhere.yaml"], "no such file"),
    (["fit", str(CONFIGS / "tiny/segment.yaml"), "out=x"], "data.labelled"),
    (["fit", str(CONFIGS / "tiny/segment.yaml"), "data.labelled=x"], "out="),
    (["fit", str(CONFIGS / "tiny/segment.yaml"), "data.labelled=nowhere", "out=x"], "no such folder"),
    (["predict", "nowhere", "images=x", "out=y"], "no fitted segmenter"),
    (["predict", "nowhere", "image=x"], "images="),
    (["score", "nowhere", "data.labelled=x"], "no fitted segmenter"),
    (["score", "nowhere"], "data.labelled="),
    (["score", "nowhere", "data.labelled=x", "--strength", "0.5"], "--strength"),
])
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], match: str, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_fit_and_predict_from_the_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(make_phantom(4, size=32), tmp_path / "labelled")
    words = [f"data.labelled={tmp_path}/labelled", f"out={tmp_path}/run", "size=32", "model.channels=[8, 16]",
             "batch_size=4", "loop.steps=2"]
    assert shell(monkeypatch, "fit", str(CONFIGS / "tiny/segment.yaml"), *words) == 0
    assert json.loads((tmp_path / "run/done.json").read_text())["counts"]["images_seen"] == 8
    assert shell(monkeypatch, "predict", f"{tmp_path}/run", f"images={tmp_path}/labelled/images",
                 f"out={tmp_path}/masks") == 0
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4
    assert "4 masks" in capsys.readouterr().out


def test_methods_are_listed_with_their_sources(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert shell(monkeypatch, "methods") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list((CONFIGS / "methods").glob("*.yaml")))
    assert any(line.startswith("bcp") and "unlabelled" in line and "Bai" in line for line in lines)
    assert shell(monkeypatch, "methods", "bcp") == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert told["name"] == "bcp" and told["deviations"] and told["topology"] == {"ema_teacher": {"decay": 0.99}}
    assert shell(monkeypatch, "methods", "bcq") == 2


def test_a_strength_without_alignment_is_refused(monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    words = ("predict", "model", "images=a", "out=b", "--dry-run", "--strength", "0.5")
    assert shell(monkeypatch, *words) == 2
    assert "add --align DIR" in capsys.readouterr().err
    assert shell(monkeypatch, *words, "--align", "c") == 0


def test_pseudo_labels_that_are_nowhere_name_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(make_phantom(2, size=32), tmp_path / "pile")
    (tmp_path / "pile" / "dataset.json").unlink()
    assert shell(monkeypatch, "fit", str(CONFIGS / "tiny/segment.yaml"), "method=external", f"out={tmp_path}/run",
                 f"data.unlabelled={tmp_path}/pile/images", f"data.stored={tmp_path}/nowhere") == 2
    assert f"{tmp_path}/nowhere: no folder masks/ here" in capsys.readouterr().err

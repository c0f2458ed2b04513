"""The command line: fast help, dry runs that touch nothing, one line and exit code 2 for a mistake, recall, import."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from phantom import make_phantom
from PIL import Image
from synth_shell import CONFIGS, mistake, synth_cli
from tiny import FIT, files_of, squares, tiny_pipeline

import segtrain
import synth
from synth.core import shell
from synth.core.checks import UserError
from synth.core.shell import run, take_number
from synth.formats import load_pairs, read_shards

PAIRS = squares(6)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with labelled/, painter/ (untrained), draw.yaml and made/ (six pairs, drawn by the command)."""
    home = tmp_path_factory.mktemp("cli")
    synth.write_folder(PAIRS, home / "labelled")
    tiny_pipeline().save_pretrained(home / "painter")
    (home / "draw.yaml").write_text(json.dumps({"shard_size": 3, "batch_size": 4}))  # JSON is YAML
    assert synth_cli("draw", home / "draw.yaml", f"generator={home}/painter", f"data.labelled={home}/labelled", "n=6",
                     "seed=1", f"out={home}/made") == 0
    return home


def test_help_takes_less_than_two_seconds_and_names_every_command() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "synth.cli", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, so that a busy machine does not fail the test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    for command in ("fit", "layouts", "draw", "audit", "export", "import", "show"):
        assert command in done.stdout


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    code = "import sys, synth.cli; sys.exit(bool({'torch', 'diffusers', 'datasets', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0


def test_a_dry_run_prints_every_setting_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert synth_cli("fit", CONFIGS / "tiny/inpaint.yaml", "size=32", f"out={out}", "--dry-run") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["size"] == 32 and printed["out"] == str(out)
    assert set(printed) == set(synth.diffusion.settings.InpaintSettings.model_fields)
    assert set(printed["denoiser"]) == set(synth.diffusion.settings.DenoiserSettings.model_fields)
    assert synth_cli("draw", CONFIGS / "draw.yaml", "n=7", "data.labelled=x", "layout.shift=0.1", f"out={out}",
                     "--dry-run") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["n"], printed["seed"], printed["data"]["labelled"]) == (7, 0, "x")
    assert printed["layout"]["shift"] == 0.1 and printed["max_tries"] > 0 and printed["out"] == str(out)
    assert synth_cli("layouts", "data.labelled=x", "size=48", f"out={out}.png", "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out)["size"] == 48
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_setting_names_the_nearest(home: Path, capsys: pytest.CaptureFixture) -> None:
    tiny = CONFIGS / "tiny/inpaint.yaml"
    assert "denoiser.lr" in mistake(capsys, "fit", tiny, "denoiser.lrr=1", "--dry-run")
    assert "layout.shift" in mistake(capsys, "draw", home / "draw.yaml", "layout.shfit=0.1", "--dry-run")
    assert "labelled" in mistake(capsys, "draw", home / "draw.yaml", "data.labeled=x", "--dry-run")
    assert "mask_map" in mistake(capsys, "layouts", "data.mask_mpa=0:0", "--dry-run")
    assert "key=value" in mistake(capsys, "fit", tiny, "size", "--dry-run")
    assert "whole number" in mistake(capsys, "draw", home / "draw.yaml", "n=many", "--dry-run")
    assert "no such file" in mistake(capsys, "fit", home / "no.yaml", "--dry-run")
    assert "shard_size" in mistake(capsys, "draw", home / "draw.yaml", "shard_size=0", "--dry-run")


def test_what_was_not_given_or_is_not_there_is_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny, labelled = CONFIGS / "tiny/inpaint.yaml", f"data.labelled={home}/labelled"
    painter, out = f"generator={home}/painter", f"out={tmp_path}/out"
    assert "data.labelled=" in mistake(capsys, "fit", tiny, out)
    assert "out=" in mistake(capsys, "fit", tiny, labelled)
    assert "generator=" in mistake(capsys, "draw", home / "draw.yaml", labelled, out)
    assert "no finished generator" in mistake(capsys, "draw", home / "draw.yaml", labelled, out,
                                              f"generator={tmp_path}")
    assert "no such folder" in mistake(capsys, "draw", home / "draw.yaml", "data.labelled=nowhere", painter, out)
    assert "no fitted segmenter" in mistake(capsys, "draw", home / "draw.yaml", labelled, painter, out,
                                            f"judge={tmp_path}")
    assert "size" in mistake(capsys, "draw", home / "draw.yaml", labelled, out, "--no-paint")
    assert "no ledger" in mistake(capsys, "audit", home / "labelled")
    assert "layouts.png" in mistake(capsys, "layouts", labelled, f"out={tmp_path}/folder")
    assert list(tmp_path.iterdir()) == []


def test_no_paint_writes_what_every_kept_pixel_equals(home: Path, tmp_path: Path) -> None:
    assert synth_cli("draw", home / "draw.yaml", f"data.labelled={home}/labelled", "n=6", "seed=1", "size=32",
                     f"out={tmp_path}/source", "--no-paint") == 0
    for painted, source in zip(read_shards(home / "made"), read_shards(tmp_path / "source"), strict=True):
        keep = painted.mask == 1
        assert np.array_equal(painted.image[keep], source.image[keep])


def test_audit_passes_what_is_whole_and_exits_2_on_tampering(home: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture) -> None:
    assert synth_cli("draw", home / "draw.yaml", f"generator={home}/painter", f"data.labelled={home}/labelled", "n=6",
                     "seed=1", f"out={tmp_path}/made") == 0
    assert files_of(tmp_path / "made") == files_of(home / "made")
    assert synth_cli("audit", tmp_path / "made") == 0
    assert "6 pairs" in capsys.readouterr().out
    victim = next((tmp_path / "made" / "data").glob("train-00001*"))
    victim.write_bytes(victim.read_bytes()[:-100])
    assert synth_cli("audit", tmp_path / "made") == 2
    said = capsys.readouterr()
    assert "shard 00001" in said.out and "draws the bad shards anew" in said.err


def test_a_recalled_group_leaves_no_child(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = read_shards(home / "made")
    group = made.groups[0]
    n_children = sum(group in item.made.parent_groups for item in made.items)
    assert 0 < n_children < 6
    assert synth_cli("export", home / "made", f"out={tmp_path}/rest", "--without-group", group) == 0
    assert f"{n_children} of group {group} left out" in capsys.readouterr().out
    rest = load_pairs(tmp_path / "rest")
    assert len(rest) == 6 - n_children and group not in rest.groups
    assert all(group not in item.made.parent_groups for item in rest.items)
    for form in ("folder", "imagefolder"):
        assert synth_cli("export", home / "made", f"out={tmp_path}/{form}", f"format={form}") == 0
        again = load_pairs(tmp_path / form)
        assert all(np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
                   for a, b in zip(made, again, strict=True))
    assert "no such format" in mistake(capsys, "export", home / "made", f"out={tmp_path}/x", "format=zarr")
    assert "no such setting" in mistake(capsys, "export", home / "made", f"out={tmp_path}/x", "kind=folder")
    assert synth_cli("export", home / "made", f"out={tmp_path}/x", "--dry-run") == 0
    assert not (tmp_path / "x").exists()


def test_import_maps_masks_and_writes_a_clean_set(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for pair in PAIRS:
        for name, pixels in (("images", pair.image), ("masks", np.where(pair.mask == 1, 255, 0).astype(np.uint8))):
            (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "raw" / name / f"{pair.id}.png")
    assert "mask_map='0:0,255:1'" in mistake(capsys, "import", tmp_path / "raw", f"out={tmp_path}/clean")
    assert synth_cli("import", tmp_path / "raw", f"out={tmp_path}/clean", "mask_map=0:0,255:1", "--dry-run") == 0
    assert not (tmp_path / "clean").exists()
    assert synth_cli("import", tmp_path / "raw", f"out={tmp_path}/clean", "mask_map=0:0,255:1") == 0
    clean = load_pairs(tmp_path / "clean")
    assert all(np.array_equal(a.mask, b.mask) and np.array_equal(a.image, b.image)
               for a, b in zip(clean, PAIRS, strict=True))


def test_layouts_and_show_draw_their_pictures(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("layouts", f"data.labelled={home}/labelled", "size=32", "n=4", f"out={tmp_path}/layouts.png")
    assert synth_cli(*words) == 0 and synth_cli(*words) == 0
    assert len(read_shards(tmp_path / "layouts")) == 4
    assert synth_cli("show", home / "made", "--out", tmp_path / "made.png") == 0
    assert "6 pairs" in capsys.readouterr().out
    for name in ("layouts", "made"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size[0] == 8 * 128


def test_fit_from_the_shell_saves_a_generator(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    synth.write_folder(make_phantom(6, size=32), tmp_path / "labelled")
    (tmp_path / "fit.yaml").write_text(json.dumps(FIT))
    words = ("fit", tmp_path / "fit.yaml", f"data.labelled={tmp_path}/labelled", f"out={tmp_path}/painter",
             "autoencoder.loop.steps=2", "denoiser.loop.steps=2")
    assert synth_cli(*words) == 0
    content = synth.load_generator(tmp_path / "painter").content_hash()
    assert content in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "painter" / "config.yaml").read_text())
    assert saved["autoencoder"]["loop"]["steps"] == 2
    assert "another inpaint run" in mistake(capsys, *words, "size=16")


def test_a_loss_that_explodes_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    synth.write_folder(make_phantom(6, size=32), tmp_path / "labelled")
    (tmp_path / "fit.yaml").write_text(json.dumps(FIT))
    assert synth_cli("fit", tmp_path / "fit.yaml", f"data.labelled={tmp_path}/labelled", f"out={tmp_path}/painter",
                     "autoencoder.lr=1e30") == 2
    assert "lower the learning rate" in capsys.readouterr().err


def test_numbers_are_whole() -> None:
    assert take_number(["n=3", "a=1", "n=-5"], "n", 9) == (-5, ["a=1"]) and take_number(["a=1"], "n", 9) == (9, ["a=1"])
    for text in ("--5", "²", "1.5", ""):
        with pytest.raises(synth.UserError, match="whole number"):
            take_number([f"n={text}"], "n", 0)


def test_a_group_that_nothing_stems_from_is_no_recall(home: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    group = read_shards(home / "made").groups[0]
    said = mistake(capsys, "export", home / "made", f"out={tmp_path}/rest", "--without-group", f"{group}x")
    assert f"did you mean {group}?" in said and not (tmp_path / "rest").exists()
    synth.write_folder(make_phantom(2, size=32, n_groups=1), tmp_path / "one")
    said = mistake(capsys, "export", tmp_path / "one", f"out={tmp_path}/rest", "--without-group", "patient_00")
    assert "everything in" in said and not (tmp_path / "rest").exists()


def test_a_set_of_rejected_pairs_alone_is_whole_and_says_why(home: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture) -> None:
    generator, labelled = synth.load_generator(home / "painter"), load_pairs(home / "labelled")
    gates = replace(synth.default_gates(None, labelled, size=generator.size), max_correlation=-1.0)
    with pytest.raises(UserError, match="none of .* drawn pairs passed the gates"):
        synth.draw(generator, labelled, n=2, gates=gates, out=tmp_path / "made", config={"shard_size": 2})
    capsys.readouterr()
    for command in ("audit", "show"):
        assert synth_cli(command, tmp_path / "made") == 0
        assert "no pair passed the gates" in (said := capsys.readouterr().out) and "rejected: correlation" in said
    assert "holds no pair" in mistake(capsys, "export", tmp_path / "made", f"out={tmp_path}/rest")
    next((tmp_path / "made" / "data").glob("train-*")).unlink()
    assert synth_cli("audit", tmp_path / "made") == 2


@pytest.mark.parametrize("size", [0, -4, 7])
def test_a_size_at_which_no_image_can_be_read_again_is_refused(home: Path, tmp_path: Path, size: int,
                                                               capsys: pytest.CaptureFixture) -> None:
    words = (f"data.labelled={home}/labelled", "n=2", f"size={size}")
    picture = f"out={tmp_path}/a.png"
    for command in (("draw", home / "draw.yaml", "--no-paint", f"out={tmp_path}/a"), ("layouts", picture),
                    ("layouts", "layout.grow_px=1", picture)):
        assert f"size={size}: an image has at least 8 px" in mistake(capsys, *command, *words)
    assert not list(tmp_path.iterdir())


def test_a_size_that_is_not_the_generators_is_refused(home: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    words = ("draw", home / "draw.yaml", f"generator={home}/painter", f"data.labelled={home}/labelled", "n=2")
    assert "draws at 32 px" in mistake(capsys, *words, "size=64", f"out={tmp_path}/made")
    assert synth_cli(*words, "size=32", f"out={tmp_path}/made") == 0


def test_an_out_that_is_a_file_or_lies_in_one_is_one_line(home: Path, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("mine")
    words = ("draw", home / "draw.yaml", f"data.labelled={home}/labelled", "n=2", "size=32", "--no-paint")
    assert "it is a file" in mistake(capsys, *words, f"out={tmp_path}/file")
    assert "Not a directory" in mistake(capsys, *words, f"out={tmp_path}/file/made")
    assert (tmp_path / "file").read_text() == "mine"


def test_whoever_draws_the_last_pairs_says_how_many_there_are(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("draw", home / "draw.yaml", f"data.labelled={home}/labelled", "n=2", "size=32", "--no-paint",
             f"out={tmp_path}/made")
    monkeypatch.setattr(shell, "is_main", lambda: False)
    assert synth_cli(*words) == 0 and "2 pairs kept of 2" in capsys.readouterr().out
    assert synth_cli(*words) == 0 and not capsys.readouterr().out, "they were there: the first process says so"
    monkeypatch.undo()
    assert synth_cli(*words) == 0 and "2 pairs kept of 2" in capsys.readouterr().out


def test_folders_that_nothing_would_read_are_refused_with_no_paint(home: Path, tmp_path: Path,
                                                                   capsys: pytest.CaptureFixture) -> None:
    words = ("draw", home / "draw.yaml", f"data.labelled={home}/labelled", "n=2", "size=32", f"out={tmp_path}/made")
    for word in ("generator", "judge", "referee", "seam", "shape", "appearance", "data.hosts", "data.held_out",
                 "data.unlabelled"):
        assert f"leave {word}= out" in mistake(capsys, *words, f"{word}=nowhere", "--no-paint")
    for word in ("window=1", "window=all", "clear.max_share=0.1", "repaint_share=0.5"):
        assert f"leave {word.partition('=')[0].partition('.')[0]}" in mistake(capsys, *words, word, "--no-paint")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("word", "reader"), [
    ("window=1", "a generator of scale native"), ("window=all", "a generator of scale native"),
    ("clear.max_share=0.1", "data.hosts="), ("gates.faithfulness=0.5", "judge="), ("gates.confidence=0.8", "judge="),
    ("gates.max_false_foreground=0.1", "judge="), ("gates.clear_px=2", "judge="), ("gates.plausibility=0.1", "shape=")])
def test_settings_that_a_painting_run_would_not_read_are_refused(
        home: Path, tmp_path: Path, capsys: pytest.CaptureFixture, word: str, reader: str) -> None:
    words = ("draw", home / "draw.yaml", f"generator={home}/painter", f"data.labelled={home}/labelled", "n=2",
             f"out={tmp_path}/made")
    assert f"nothing reads it without {reader}" in mistake(capsys, *words, word)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("word", ["data.unlabelled=x", "supply.oversample=2", "curate.ignore=1.25", "repaint_share=0.5",
                                  "appearance_share=0.5", "window=all"])
def test_layouts_refuse_what_only_painting_reads(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture, word: str
                                                 ) -> None:
    said = mistake(capsys, "layouts", f"data.labelled={home}/labelled", "size=32", f"out={tmp_path}/l.png", word)
    assert f"leave {word.partition('=')[0].partition('.')[0]}" in said and not list(tmp_path.iterdir())


def test_a_grid_is_no_jpeg(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert synth_cli("show", home / "made", "--out", tmp_path / "grid.jpg") == 2
    assert "ends in .png" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_the_machine_lacks_is_one_line_and_a_fault_of_ours_is_not(capsys: pytest.CaptureFixture) -> None:
    def fail(error: Exception) -> None:
        raise error

    for error, repair in ((PermissionError(errno.EACCES, "Permission denied", "/x"), "may read and write"),
                          (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "name of a file"),
                          (FileExistsError(errno.EEXIST, "File exists", "/x"), "name of a file"),
                          (RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 4 bytes"), "smaller size="),
                          (RuntimeError("CUDA out of memory. Tried to allocate"), "smaller size="),
                          (MemoryError("too much"), "smaller size=")):
        with pytest.raises(SystemExit) as stop:
            run(partial(fail, error))
        assert stop.value.code == 2
        assert repair in (said := capsys.readouterr().err) and said.count("\n") == 1
    for error in (RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "No such file", "/x")):
        with pytest.raises(type(error)):
            run(partial(fail, error))


def test_an_interrupted_command_says_that_it_goes_on(capsys: pytest.CaptureFixture) -> None:
    app = typer.Typer()

    @app.command()
    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(lambda: app([]))
    assert stop.value.code == 130
    said = capsys.readouterr().err.strip()
    assert said == "stopped; a command with out= goes on where it stopped when it is run again"


@pytest.mark.parametrize("name", ["labelled", "unlabelled"])
def test_a_path_where_a_set_is_wanted_says_how_it_is_read(tmp_path: Path, name: str) -> None:
    sets = {"labelled": make_phantom(4, size=32), "unlabelled": None, name: "data/x"}
    for fit in (partial(synth.fit, FIT), partial(segtrain.fit, {"size": 32})):
        with pytest.raises(UserError, match=rf"{name}='data/x': .* synth\.load_(pairs|images)\('data/x'\)"):
            fit(sets["labelled"], unlabelled=sets["unlabelled"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

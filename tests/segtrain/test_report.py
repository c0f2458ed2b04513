"""The report: one file that stands alone, escapes what it is given, and says what the numbers say."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from segtrain.metrics import CaseScores
from segtrain.plots import OUTLINES, Bar, Curve, interval_plot, loss_plot, tile
from segtrain.record import INDEX, DataFacts, DrawFacts, Index, MadeFacts, Row, Tile, read_index, versions, write_index
from segtrain.report import Report, interval, say, signed, write_report
from segtrain.summary import ComparisonSummary, RunResult, write_result
from synth.core.checks import UserError

NASTY = "<script>alert(1)</script>"
N_CASES = 12


def result(arm: str, draw: int, gain: float) -> RunResult:
    """Returns a run in which every case scores `gain` more than .5 + its index / 100, give or take."""
    scores = [0.5 + i / 100 + gain * (1 + i % 3) for i in range(N_CASES)]
    cases = tuple(CaseScores(f"c{i:02d}", f"g{i:02d}", (score,), (0.8,), (2.0,), (1.0,), tp=(5,), fp=(1,), fn=(1,))
                  for i, score in enumerate(scores))
    return RunResult(arm, draw, 0, f"cache/{arm}-{draw}", 10, 160, 0, 12.5, 8, 0, 0, cases)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Returns a finished comparison of three arms and two draws, written by hand."""
    paths = []
    for arm, gain in (("real", 0.0), ("real+copypaste", -0.02), ("real+inpaint", 0.03)):
        for draw in range(2):
            path = tmp_path / "cache" / f"{arm}-{draw}" / "scores.json"
            write_result(result(arm, draw, gain * (1 + draw / 8)), path)
            stats = [json.dumps({"step": s, "loss": 1 / s}) for s in (1, 2, 3)]
            (path.parent / "stats.jsonl").write_text("\n".join(stats) + "\n")
            paths.append(str(path.relative_to(tmp_path)))
    picture = tile(np.zeros((8, 8), np.uint8), None, intensity_range=(0, 255))
    (tmp_path / "a.png").write_bytes(picture)
    data = DataFacts("heads", "MRI", "somewhere", ("background", "object"), channels=1, size=64, n_training=40,
                     n_training_groups=10, n_test=N_CASES, n_test_groups=N_CASES, test_groups=("g00",), fingerprint="f",
                     draws=(DrawFacts(0, ("a",), 1, 39), DrawFacts(1, ("b",), 1, 39)))
    made = tuple(MadeFacts("inpaint", k, "m", 10, 6, 4, {"faithfulness": 3, NASTY: 1}, 2.0) for k in range(2))
    write_index(tmp_path / INDEX, Index(
        "real", (("real+copypaste", "real"), ("real+inpaint", "real")), tuple(paths), made, 30.0, data,
        (f"One averaged brain. {NASTY}",), (Row("rejected", f"rejected: {NASTY}", (Tile("a.png", "what it is"),)),),
        {"test_seed": 0, "resamples": 999, "nsd_tolerance_px": 1.0, "seeds": 1}, versions()))
    return tmp_path


def test_html_stands_alone(out: Path) -> None:
    write_report(out)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    assert "<link" not in html and "<script" not in html
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 3 and all(s.startswith("data:image/") for s in sources)


def test_what_comes_from_data_is_escaped(out: Path) -> None:
    write_report(out)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert NASTY not in html and html.count("&lt;script&gt;") == 3


def test_the_verdict_comes_first_and_the_notes_are_shown(out: Path) -> None:
    report = write_report(out)
    html = (out / "report.html").read_text(encoding="utf-8")
    body = html[html.index("<body>"):]
    assert report.verdict.startswith("real+inpaint helps. Dice +0.064 against real (95 % interval +0.0")
    assert body.index("real+inpaint helps") < body.index("One averaged brain") < body.index("<table>")


def test_numbers_of_page_table_and_json_agree(out: Path) -> None:
    report = write_report(out)
    tree = json.loads((out / "report.json").read_text(encoding="utf-8"))
    html = (out / "report.html").read_text(encoding="utf-8")
    console = Console(width=220, file=io.StringIO())
    console.print(report.table())
    terminal = console.file.getvalue()
    for arm in tree["arms"]:
        assert f"{arm['dice_mean']:.3f}" in html and f"{arm['dice_mean']:.3f}" in terminal
        assert interval(tuple(arm["dice_ci"])) in html and interval(tuple(arm["dice_ci"])) in terminal
    for c in tree["comparisons"]:
        assert signed(c["dice_diff"]) in html and signed(c["dice_diff"]) in terminal
    assert tree["gates"] == {"inpaint": {"asked": 20, "kept": 12, "rejected": 8, "seconds": 4.0,
                                         "reasons": {"faithfulness": 6, NASTY: 2}}}
    assert tree["seconds"] == 6 * 12.5 + 30 + 4


def test_the_same_scores_give_the_same_bytes(out: Path) -> None:
    write_report(out)
    first = (out / "report.html").read_bytes(), (out / "report.json").read_bytes()
    write_report(out)
    assert ((out / "report.html").read_bytes(), (out / "report.json").read_bytes()) == first


def test_the_index_comes_back_as_it_was_written(out: Path) -> None:
    index = read_index(out)
    write_index(out / "again.json", index)
    assert (out / "again.json").read_bytes() == (out / INDEX).read_bytes()


def test_no_comparison_is_a_clear_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished comparison"):
        write_report(tmp_path)


def comparison(ci: tuple[float, float] | None, verdict: str, p: float = 0.01, note: str = "") -> ComparisonSummary:
    """Returns a comparison of which the sentence reads only these."""
    return ComparisonSummary("all", "real", 0.02, ci, ci, 0.012, p, p, 0.0, None, (0.02,) * 5, 30, 12, verdict, note)


def test_sentences_say_what_the_interval_says() -> None:
    assert say(comparison((0.01, 0.03), "helps")) == (
        "all helps. Dice +0.020 against real (95 % interval +0.010 to +0.030, which leaves out 0; 5 label draws, 30 "
        "test cases of 12 groups; smallest detectable difference 0.012).")
    assert "cannot tell" in say(comparison((-0.01, 0.03), "cannot tell")) and "holds 0" in say(
        comparison((-0.01, 0.03), "cannot tell"))
    assert "leaves out 0, but p is 0.062" in say(comparison((0.01, 0.03), "cannot tell", p=0.0625))
    assert "no interval: one group only" in say(comparison(None, "cannot tell", note="one group only"))
    assert signed(-0.0125).startswith("\N{MINUS SIGN}")


def test_one_arm_alone_is_reported(out: Path) -> None:
    index = read_index(out)
    write_index(out / INDEX, dataclasses.replace(index, pairs=(), scores=index.scores[:2], made=(), gallery=()))
    report = write_report(out)
    assert isinstance(report, Report) and report.verdict == "Only real was run: nothing to compare."


def test_plots_are_valid_svg_and_repeatable() -> None:
    bars = [Bar("real", 0.5, (0.4, 0.6), (0.45, 0.55)), Bar("other <&>", 0.6, None)]
    for draw in (lambda: interval_plot(bars, bars), lambda: interval_plot(bars, []),
                 lambda: loss_plot([Curve("real", (1, 2), (0.5, 0.1)), Curve("real", (1, 2), (0.4, 0.0))])):
        assert ElementTree.fromstring(draw()).tag.endswith("svg")
        assert draw() == draw()


def test_a_tile_shows_the_image_and_its_outline() -> None:
    image = np.full((8, 8), 100, np.uint16)
    labels = np.zeros((8, 8), np.uint8)
    labels[2:6, 2:6] = 1
    labels[7, 7] = 255
    shown = np.array(Image.open(io.BytesIO(tile(image, labels, intensity_range=(0, 200), side=64))))
    assert shown.shape == (64, 64, 3)
    assert shown[0, 0].tolist() == [128] * 3 and shown[32, 32].tolist() == [128] * 3
    assert tuple(shown[16, 16]) == OUTLINES[0] and shown[63, 63].tolist() == [42] * 3
    plain = np.array(Image.open(io.BytesIO(tile(image, None, intensity_range=(0, 200), side=64))))
    assert (plain == 128).all()

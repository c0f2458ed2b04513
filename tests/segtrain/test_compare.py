"""The whole comparison on a phantom: equal budgets, no leak, resumed = uninterrupted, runs shared and reused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from phantom import make_phantom

import segtrain
from segtrain.compare.arms import arm_named, choose_arms
from segtrain.compare.settings import CompareSettings, load_settings
from segtrain.metrics import CaseScores
from segtrain.record import read_index
from segtrain.report import Report, write_report
from segtrain.summary import Judging, RunResult, check_budgets, compare_arms, read_result, summarise_arm, write_result
from synth.core.checks import UserError
from synth.fit import load_generator

STEPS, BATCH = 3, 4
SETTINGS = {
    "size": 32, "n_labelled": 4, "draws": 2, "resamples": 199, "synthetic": {"n": 4},
    "segment": {"batch_size": BATCH, "unlabelled_batch_size": 2, "model": {"name": "tiny", "channels": [4, 8, 8]},
                "loop": {"steps": STEPS, "log_every": 1}},
    "inpaint": {"autoencoder": {"kind": "kl", "widths": [8, 8, 8], "batch_size": 4, "perceptual_weight": 0,
                                "adversarial_weight": 0, "loop": {"steps": 2}},
                "health": {"max_border_error": 99, "max_gradient_error": 99, "min_latent_std": 0, "max_latent_std": 99},
                "denoiser": {"widths": [32, 32], "attention": [False, True], "layers": 1, "batch_size": 4, "n_views": 1,
                             "labels": False, "loop": {"steps": 2}},
                "sampler": {"n_steps": 2, "margin_cells": [1, 1]}},
}


def pairs():
    """Returns 18 pairs of 6 patients, three classes."""
    return make_phantom(18, size=32, n_groups=6, n_classes=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Report:
    """Returns the report of all five arms."""
    return segtrain.compare(SETTINGS, pairs(), out=tmp_path_factory.mktemp("compare") / "out")


def scores(out: Path) -> dict[str, list]:
    """Returns the scores of every run by file, without seconds, which no two runs share."""
    found = {}
    for path in read_index(out).scores:
        tree = json.loads((out / path).read_text())
        found[path] = [tree["cases"], tree["steps"], tree["images_seen"], tree["n_synthetic"]]
    return found


def stamps(out: Path) -> dict[str, int]:
    """Returns when each run's scores were written."""
    return {path: (out / path).stat().st_mtime_ns for path in read_index(out).scores}


def numbers(out: Path) -> dict[str, object]:
    """Returns report.json without seconds."""
    tree = json.loads((out / "report.json").read_text())
    for arm in tree["arms"]:
        arm.pop("seconds")
    for kind in tree["gates"].values():
        kind.pop("seconds")
    return {k: v for k, v in tree.items() if k not in ("seconds", "painter_seconds", "referee_seconds")}


def test_every_arm_ran_on_equal_budgets(finished: Report) -> None:
    assert [arm.name for arm in finished.arms] == list(CompareSettings().arms)
    for arm in finished.arms:
        assert (arm.steps, arm.images_seen, arm.runs) == (STEPS, STEPS * BATCH, 2)
        assert arm.unlabelled_seen == (STEPS * 2 if arm_named(arm.name).unlabelled else 0)
        assert arm.n_labelled == (4, 4) and arm.seconds > 0
    assert {arm.name: arm.n_synthetic for arm in finished.arms}["real+copypaste"] == (4, 4)


def test_test_cases_and_their_groups_are_nowhere_in_training(finished: Report) -> None:
    data = finished.index.data
    groups = dict(zip(pairs().ids, pairs().groups, strict=True))
    for draw in data.draws:
        assert not {groups[name] for name in draw.labelled} & set(data.test_groups)
    for facts in finished.index.made:
        from synth.formats import read_shards

        for item in read_shards(finished.out / facts.folder).items if facts.kept else ():
            assert not set(item.made.parent_groups) & set(data.test_groups)
            assert item.made.parents[0] in data.draws[facts.draw].labelled
    assert data.n_training + data.n_test == 18


def test_report_json_has_what_it_promises(finished: Report) -> None:
    tree = json.loads((finished.out / "report.json").read_text())
    for arm in tree["arms"]:
        assert {"name", "dice_mean", "dice_ci", "nsd_mean", "hd95_mean", "images_seen", "unlabelled_seen", "seconds",
                "runs", "n_cases"} <= set(arm)
        low, high = arm["dice_ci"]
        assert 0 <= low <= arm["dice_mean"] <= high <= 1
        assert list(arm["dice_per_class"]) == ["object_1", "object_2"]
    assert [(c["arm"], c["baseline"]) for c in tree["comparisons"]] == [
        ("real+copypaste", "real"), ("real+inpaint", "real"), ("real+unlabelled", "real"), ("all", "real"),
        ("real+inpaint", "real+copypaste")]
    means = {arm["name"]: arm["dice_mean"] for arm in tree["arms"]}
    for c in tree["comparisons"]:
        assert c["dice_diff"] == pytest.approx(means[c["arm"]] - means[c["baseline"]])
        assert len(c["per_draw"]) == 2 and sum(c["per_draw"]) / 2 == pytest.approx(c["dice_diff"])
        assert c["p"] <= c["p_holm"] <= 1
    assert set(tree["gates"]) == {"copypaste", "inpaint"}
    for facts in tree["gates"].values():
        assert facts["asked"] == 8 and facts["kept"] <= 8
    assert tree["settings"]["segment"]["optim"]["name"] == "adamw" and tree["versions"]["torch"]
    assert tree["seconds"] >= sum(arm["seconds"] for arm in tree["arms"]) - 1


def test_one_generator_serves_every_label_draw(finished: Report) -> None:
    assert len(list((finished.out / "cache").glob("painter-*"))) == 1
    assert finished.index.settings["inpaint"]["denoiser"]["labels"] is False
    judged = {facts.folder for facts in finished.index.made}
    assert len(judged) == 4


def test_a_generator_that_learns_labels_is_fitted_for_each_draw_on_its_own_masks(tmp_path: Path) -> None:
    """One that saw the masks of another draw would have been given labels that the baseline did not have."""
    inpaint = SETTINGS["inpaint"]
    learns = {**SETTINGS, "arms": ["real", "real+inpaint"],
              "inpaint": {**inpaint, "denoiser": {**inpaint["denoiser"], "labels": True}}}
    report = segtrain.compare(learns, pairs(), out=tmp_path / "out")
    painters = list((tmp_path / "out" / "cache").glob("painter-*"))
    assert len(painters) == 2
    shown = {load_generator(folder).content_hash() for folder in painters}
    assert len(shown) == 2 and report.index.painter_seconds > 0


def test_running_again_trains_nothing(finished: Report) -> None:
    before = stamps(finished.out)
    again = segtrain.compare(SETTINGS, pairs(), out=finished.out)
    assert stamps(finished.out) == before and numbers(finished.out) == numbers(again.out)


def test_a_lost_run_is_run_again_alone_and_scores_the_same(finished: Report, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.out, out)
    before, expected, report = stamps(out), scores(out), numbers(out)
    lost = next(p for p in read_index(out).scores if "real+unlabelled" in p)
    shutil.rmtree((out / lost).parent)
    segtrain.compare(SETTINGS, pairs(), out=out)
    after = stamps(out)
    assert [path for path in after if after[path] != before[path]] == [lost]
    assert scores(out) == expected and numbers(out) == report


def test_lost_pairs_are_drawn_again_byte_for_byte(finished: Report, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.out, out)
    facts = next(f for f in read_index(out).made if f.kept)
    shards = {p.name: p.read_bytes() for p in (out / facts.folder / "data").glob("*.parquet")}
    shutil.rmtree(out / facts.folder)
    segtrain.compare(SETTINGS, pairs(), out=out)
    assert {p.name: p.read_bytes() for p in (out / facts.folder / "data").glob("*.parquet")} == shards


def test_a_further_arm_reuses_what_is_there(tmp_path: Path) -> None:
    small = {**SETTINGS, "draws": 1, "arms": ["real"]}
    segtrain.compare(small, pairs(), out=tmp_path / "out")
    before = stamps(tmp_path / "out")
    report = segtrain.compare({**small, "arms": ["real", "real+unlabelled"]}, pairs(), out=tmp_path / "out")
    after = stamps(tmp_path / "out")
    assert len(after) == 2 and before.items() <= after.items()
    assert len(report.comparisons) == 1


def test_the_report_is_made_again_from_the_scores_alone(finished: Report, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.out, out, ignore=shutil.ignore_patterns("model", "checkpoint.pt", "data"))
    expected = [(out / name).read_bytes() for name in ("report.json", "report.html")]
    for name in ("report.json", "report.html"):
        (out / name).unlink()
    write_report(out)
    assert [(out / name).read_bytes() for name in ("report.json", "report.html")] == expected


def test_other_data_do_not_go_into_the_same_folder(finished: Report) -> None:
    with pytest.raises(UserError, match="another compare run"):
        segtrain.compare(SETTINGS, make_phantom(18, size=32, n_groups=6, seed=5), out=finished.out)


def test_gates_that_keep_nothing_leave_the_real_pairs_and_say_so(tmp_path: Path) -> None:
    # A judge that has learnt something, held to its median on its own training pairs, on what noise has painted.
    segment = {**SETTINGS["segment"], "loop": {"steps": 150}, "optim": {"lr": 0.01}}
    strict = {**SETTINGS, "segment": segment, "draws": 1, "arms": ["real", "real+inpaint"],
              "gates": {"faithfulness": 1.0, "confidence": 0.51, "max_false_foreground": 0.0, "clear_px": 0,
                        "novelty_quantile": 1e-6}, "draw": {"max_tries": 1, "batch_size": 4}}
    report = segtrain.compare(strict, make_phantom(18, size=32, n_groups=6), out=tmp_path / "out")
    assert report.gates["inpaint"].kept == 0
    assert any("kept no pair at all" in note for note in report.index.notes)
    real, painted = report.arms
    assert painted.n_synthetic == (0,) and painted.dice_mean == real.dice_mean
    assert report.gates["inpaint"].rejected == 4 and sum(report.gates["inpaint"].reasons.values()) >= 4
    # Any other mistake is no finding: nobody shall read that nothing was kept.
    folder = tmp_path / "out" / report.gates["inpaint"].folder
    (folder / "facts.json").unlink()
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"hash": "', '"hash": "0'))
    with pytest.raises(UserError, match="another .*run"):
        segtrain.compare(strict, make_phantom(18, size=32, n_groups=6), out=tmp_path / "out")


@pytest.mark.parametrize(("method", "changed", "match"), [
    ("cw_bass", {"n_labelled": 3}, "method cw_bass: group .* all belong to this one"),
    ("cross_teaching", {"size": 48}, "method cross_teaching: size 48: this network needs a multiple of 32 px"),
    ("mip", {"n_labelled": 1}, "method mip: labelled .* the only image of its group"),
])
def test_an_arm_that_cannot_train_is_found_out_before_another_has(tmp_path: Path, method: str, changed: dict, match: str
                                                                  ) -> None:
    arm = f"real:{method}" if method == "mip" else f"real+unlabelled:{method}"
    with pytest.raises(UserError, match=match):
        segtrain.compare({**SETTINGS, **changed, "arms": ["real", arm]}, pairs(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_leak_stops_before_anything_is_written(tmp_path: Path) -> None:
    everything = pairs()
    with pytest.raises(UserError, match="patient_0.*also in the test set"):
        segtrain.compare(SETTINGS, everything.select(range(12)), test=everything.select(range(12, 18)),
                         out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


COMMAND = """
import sys
sys.path[:0] = [{scripts!r}, {here!r}]
import segtrain
from test_compare import SETTINGS, pairs
segtrain.compare(SETTINGS, pairs(), out={out!r})
"""


@pytest.mark.slow
def test_killed_again_and_again_the_result_is_the_same(finished: Report, tmp_path: Path) -> None:
    out = tmp_path / "out"
    here = Path(__file__).parent
    code = COMMAND.format(scripts=str(here.parents[1] / "scripts"), here=str(here), out=str(out))
    for seconds in (6.0, 7.0, 8.5):  # importing takes about four of them
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    assert scores(out) == scores(finished.out) and numbers(out) == numbers(finished.out)
    for facts in finished.index.made:
        for path in sorted((finished.out / facts.folder / "data").glob("*.parquet")):
            assert (out / facts.folder / "data" / path.name).read_bytes() == path.read_bytes()


def run(arm: str, dice: list[float], *, draw: int = 0, images_seen: int = 12) -> RunResult:
    """Returns one run whose cases, each its own group, scored `dice`."""
    cases = tuple(CaseScores(f"c{i}", f"g{i}", (d,), (d,), (1.0,), (0.5,), tp=(1,), fp=(1,), fn=(1,))
                  for i, d in enumerate(dice))
    return RunResult(arm, draw, 0, "", 3, images_seen, 0, 1.0, 4, 0, 0, cases)


def test_an_arm_can_name_its_method() -> None:
    arm = arm_named("real+unlabelled:fixmatch_ema")
    assert (arm.name, arm.method, arm.unlabelled) == ("real+unlabelled:fixmatch_ema", "fixmatch_ema", True)
    assert arm_named("real").method is None
    for name, match in (("real:fixmatch_ema", "needs unlabelled.*write real.unlabelled:fixmatch_ema"),
                        ("all:supervised", "does not use unlabelled"),
                        ("real+unlabelled:fixmach", "no such method"),
                        ("reel:supervised", "no such arm")):
        with pytest.raises(UserError, match=match):
            arm_named(name)


def test_unequal_budgets_are_an_error() -> None:
    check_budgets([run("a", [0.5]), run("b", [0.7])])
    with pytest.raises(RuntimeError, match="unequal budgets.*b .draw 0"):
        check_budgets([run("a", [0.5]), run("b", [0.7], images_seen=13)])


def test_differences_are_arm_minus_baseline_and_averaged_over_runs_first() -> None:
    base, step = [0.1 * i for i in range(9)], [0.04, 0.05, 0.06] * 3
    runs = {"real": [run("real", base), run("real", base, draw=1)],
            "better": [run("better", [b + s for b, s in zip(base, step, strict=True)]),
                       run("better", [b + 1.02 * s for b, s in zip(base, step, strict=True)], draw=1)]}
    judging = Judging(seed=0, resamples=999)
    up, = compare_arms(runs, [("better", "real")], judging)
    assert up.dice_diff == pytest.approx(0.0505) and up.per_draw == pytest.approx((0.05, 0.051))
    assert up.verdict == "helps" and 0.03 < up.ci[0] < up.ci_groups[0] and up.ci_groups[1] < up.ci[1] < 0.07
    down, = compare_arms(runs, [("real", "better")], judging)
    assert down.verdict == "hurts" and down.dice_diff == pytest.approx(-0.0505)
    same, = compare_arms(runs, [("real", "real")], judging)
    assert same.verdict == "cannot tell" and same.ci == (0.0, 0.0) and same.p == 1.0


def test_an_undefined_distance_is_left_out_and_counted() -> None:
    case = CaseScores("c0", "g0", (1.0,), (1.0,), (None,), (None,), (0,), (0,), (0,))
    first = dataclasses.replace(run("a", [0.5, 0.5]), cases=(case, run("a", [0.5, 0.5]).cases[1]))
    summary = summarise_arm([first], classes=["object"], judging=Judging(0, 99))
    assert (summary.hd95_mean, summary.asd_mean, summary.undefined) == (1.0, 0.5, 0.5)
    assert (summary.both_empty, summary.one_empty) == (0.5, 0.0)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    result = run("real", [0.1, 0.25])
    write_result(result, tmp_path / "scores.json")
    assert read_result(tmp_path / "scores.json") == result


@pytest.mark.parametrize(("names", "baseline", "has_unlabelled", "match"), [
    (["real", "magic"], "real", 1, "no such arm"), (["real", "real"], "real", 1, "named twice"),
    (["real+inpaint"], "real", 1, "not among the arms"), (["real", "all"], "real", 0, "needs unlabelled images")])
def test_impossible_arms_are_refused(names: list[str], baseline: str, has_unlabelled: int, match: str) -> None:
    with pytest.raises(UserError, match=match):
        choose_arms(names, baseline=baseline, has_unlabelled=bool(has_unlabelled))


def test_parts_are_read_from_files_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "seg.yaml").write_text("size: 128\nbatch_size: 5\nloop: {steps: 7}\n")
    (tmp_path / "compare.yaml").write_text("segment: {config: seg.yaml}\n")
    settings = load_settings(tmp_path / "compare.yaml", ["segment.loop.steps=9"])
    assert settings.segment["batch_size"] == 5 and settings.segment["loop"]["steps"] == 9
    assert "size" not in settings.segment and settings.inpaint["kind"] == "inpaint"


@pytest.mark.parametrize(("override", "match"), [
    ("segment.size=64", "the comparison decides"), ("segment.stepz=1", "no such setting"),
    ("seedz=1", "did you mean seeds"), ("segment=nowhere.yaml", "no such file")])
def test_wrong_settings_are_named(override: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        load_settings(None, [override])


@pytest.mark.parametrize("name", ["compare.yaml", "tiny/compare.yaml"])
def test_shipped_settings_hold(name: str) -> None:
    settings = load_settings(Path(__file__).parents[2] / "configs" / name)
    assert isinstance(settings, CompareSettings) and settings.arms == CompareSettings().arms

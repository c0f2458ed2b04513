"""From the scores of single runs to arms and comparisons: averages over runs, intervals over draws and groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from segtrain.metrics import CaseScores
from segtrain.statistics import Estimate, crossed_interval, holm, mean_interval, wilcoxon_p
from synth.core.files import write_text

ALPHA = 0.05


@dataclass(frozen=True)
class RunResult:
    """One trained segmenter and what it scored on every test case.

    Attributes:
        arm, draw, seed: which run of the comparison. folder: where it lies, relative to the comparison.
        steps, images_seen, unlabelled_seen, seconds: as the training loop counted them.
        n_labelled, n_synthetic, n_unlabelled: how many different images it trained on.
    """

    arm: str
    draw: int
    seed: int
    folder: str
    steps: int
    images_seen: int
    unlabelled_seen: int
    seconds: float
    n_labelled: int
    n_synthetic: int
    n_unlabelled: int
    cases: tuple[CaseScores, ...]


@dataclass(frozen=True)
class Judging:
    """How results are turned into intervals: seed and number of resamples."""

    seed: int
    resamples: int


@dataclass(frozen=True)
class ArmSummary:
    """What one arm scored. Means are over cases (a case's score: mean over classes and runs).

    Attributes:
        dice_ci, nsd_ci: 95 % intervals over label draws and groups, None without one; note: why, or what weakens them.
        hd95_mean, asd_mean: px or mm; over what has a distance. undefined: share of (run, case, class) without one.
        both_empty, one_empty: share of (run, case, class) where both or just one of prediction and truth are empty.
        images_seen, unlabelled_seen, steps: per run. seconds: training, all runs together.
        dice_per_draw: mean Dice of each label draw. dice_per_class, nsd_per_class: by class name.
    """

    name: str
    dice_mean: float
    dice_ci: tuple[float, float] | None
    nsd_mean: float
    nsd_ci: tuple[float, float] | None
    hd95_mean: float | None
    asd_mean: float | None
    undefined: float
    both_empty: float
    one_empty: float
    images_seen: int
    unlabelled_seen: int
    steps: int
    seconds: float
    runs: int
    n_cases: int
    n_groups: int
    n_labelled: tuple[int, ...]
    n_synthetic: tuple[int, ...]
    n_unlabelled: tuple[int, ...]
    dice_per_draw: tuple[float, ...]
    dice_per_class: dict[str, float]
    nsd_per_class: dict[str, float]
    note: str = ""


@dataclass(frozen=True)
class ComparisonSummary:
    """How an arm differs from another, case by case.

    Attributes:
        dice_diff: mean paired difference. ci: its 95 % interval over label draws and groups: what other labels and
            other patients would say. ci_groups: over groups alone: other patients, these very labels.
        detectable: the smallest true difference that as many draws and groups would find in four of five attempts.
        p: two-sided, Wilcoxon's signed ranks of groups. p_holm: p adjusted for the number of comparisons.
        per_draw: difference within each label draw.
        verdict: "helps" or "hurts" if the interval leaves out 0 and p < 0.05; else "cannot tell".
    """

    arm: str
    baseline: str
    dice_diff: float
    ci: tuple[float, float] | None
    ci_groups: tuple[float, float] | None
    detectable: float | None
    p: float
    p_holm: float
    nsd_diff: float
    nsd_diff_ci: tuple[float, float] | None
    per_draw: tuple[float, ...]
    n_cases: int
    n_groups: int
    verdict: str
    note: str = ""


def write_result(result: RunResult, path: Path) -> None:
    """Writes one run's scores as JSON, atomically."""
    write_text(path, TypeAdapter(RunResult).dump_json(result, indent=1).decode() + "\n")


def read_result(path: Path) -> RunResult:
    """Returns what `write_result` wrote."""
    return TypeAdapter(RunResult).validate_json(path.read_bytes())


def check_budgets(runs: Sequence[RunResult]) -> None:
    """Returns nothing; raises if two runs differ in optimiser steps or in supervised images seen.

    Raises:
        RuntimeError: naming both runs; their comparison would be void.
    """
    first = runs[0]
    for run in runs[1:]:
        if (run.steps, run.images_seen) != (first.steps, first.images_seen):
            raise RuntimeError(f"unequal budgets, the comparison would be void: {first.arm} (draw {first.draw}) made "
                               f"{first.steps} steps over {first.images_seen} images, {run.arm} (draw {run.draw}) "
                               f"{run.steps} steps over {run.images_seen}")


def case_table(runs: Sequence[RunResult], metric: str) -> np.ndarray:
    """Returns (n_runs, n_cases): each case's mean over classes of `metric` ("dice", "nsd"), cases in one order."""
    return np.array([[np.mean(getattr(case, metric)) for case in run.cases] for run in runs])


def _ci(estimate: Estimate) -> tuple[float, float] | None:
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def _share_ci(estimate: Estimate) -> tuple[float, float] | None:
    """Returns the interval of a score that lies in [0, 1]: Student's knows nothing of its ends."""
    ci = _ci(estimate)
    return ci and (max(0.0, ci[0]), min(1.0, ci[1]))


def _groups(runs: Sequence[RunResult]) -> list[str]:
    ids = [case.id for case in runs[0].cases]
    if any([case.id for case in run.cases] != ids for run in runs):
        raise RuntimeError("the runs were not scored on the same cases; delete the comparison's folder")
    return [case.group for case in runs[0].cases]


def by_draw(runs: Sequence[RunResult], table: np.ndarray) -> np.ndarray:
    """Returns (n_draws, n_cases): the mean over the runs of each label draw of `table` (n_runs, n_cases)."""
    draws = np.array([run.draw for run in runs])
    return np.array([table[draws == k].mean(axis=0) for k in sorted(set(draws.tolist()))])


def summarise_arm(runs: Sequence[RunResult], *, classes: Sequence[str], judging: Judging) -> ArmSummary:
    """Returns the summary of one arm's runs; `classes` are the foreground classes' names."""
    groups, tables = _groups(runs), {m: case_table(runs, m) for m in ("dice", "nsd")}
    dice, nsd = (crossed_interval(by_draw(runs, t), groups, seed=judging.seed, resamples=judging.resamples)
                 for t in tables.values())
    hd95, asd = ([d for run in runs for case in run.cases for d in getattr(case, name)] for name in ("hd95", "asd"))
    tp, fp, fn = (np.array([getattr(c, k) for run in runs for c in run.cases]) for k in ("tp", "fp", "fn"))
    no_prediction, no_truth = tp + fp == 0, tp + fn == 0
    return ArmSummary(
        runs[0].arm, dice.mean, _share_ci(dice), nsd.mean, _share_ci(nsd), _mean_known(hd95), _mean_known(asd),
        undefined=hd95.count(None) / len(hd95), both_empty=float((no_prediction & no_truth).mean()),
        one_empty=float((no_prediction ^ no_truth).mean()),
        images_seen=runs[0].images_seen, unlabelled_seen=runs[0].unlabelled_seen, steps=runs[0].steps,
        seconds=sum(run.seconds for run in runs), runs=len(runs), n_cases=dice.n_cases, n_groups=dice.n_groups,
        n_labelled=tuple(r.n_labelled for r in runs), n_synthetic=tuple(r.n_synthetic for r in runs),
        n_unlabelled=tuple(r.n_unlabelled for r in runs),
        dice_per_draw=tuple(by_draw(runs, tables["dice"]).mean(axis=1).tolist()),
        dice_per_class=_per_class(runs, "dice", classes), nsd_per_class=_per_class(runs, "nsd", classes),
        note=dice.note)


def _mean_known(distances: Sequence[float | None]) -> float | None:
    known = [d for d in distances if d is not None]
    return float(np.mean(known)) if known else None


def _per_class(runs: Sequence[RunResult], metric: str, classes: Sequence[str]) -> dict[str, float]:
    values = np.array([getattr(case, metric) for run in runs for case in run.cases])
    return {name: float(v) for name, v in zip(classes, values.mean(0), strict=True)}


def _verdict(ci: tuple[float, float] | None, p: float) -> str:
    # Both: the interval speaks of the mean, and the ranks do not let one case in twenty decide.
    if ci is None or ci[0] <= 0 <= ci[1] or p >= ALPHA:
        return "cannot tell"
    return "helps" if ci[0] > 0 else "hurts"


def _compare_pair(arm: Sequence[RunResult], baseline: Sequence[RunResult], judging: Judging) -> ComparisonSummary:
    groups, how = _groups([*arm, *baseline]), {"seed": judging.seed, "resamples": judging.resamples}
    tables = {metric: by_draw(arm, case_table(arm, metric)) - by_draw(baseline, case_table(baseline, metric))
              for metric in ("dice", "nsd")}
    dice, nsd = (crossed_interval(table, groups, **how) for table in tables.values())
    alone = mean_interval(tables["dice"].mean(axis=0), groups, **how)
    p = wilcoxon_p(tables["dice"].mean(axis=0), groups)
    return ComparisonSummary(arm[0].arm, baseline[0].arm, dice.mean, _ci(dice), _ci(alone), dice.detectable, p, p,
                             nsd.mean, _ci(nsd), tuple(tables["dice"].mean(axis=1).tolist()), dice.n_cases,
                             dice.n_groups, _verdict(_ci(dice), p), dice.note)


def compare_arms(runs: dict[str, list[RunResult]], pairs: Sequence[tuple[str, str]],
                 judging: Judging) -> tuple[ComparisonSummary, ...]:
    """Returns the comparison of each (arm, baseline) in `pairs`, p adjusted over all of them by Holm's rule."""
    found = [_compare_pair(runs[arm], runs[baseline], judging) for arm, baseline in pairs]
    adjusted = holm([c.p for c in found])
    return tuple(dataclasses.replace(c, p_holm=p) for c, p in zip(found, adjusted, strict=True))

"""One comparison, as `segtrain compare` runs it, turned into rows; used by the scripts that compare."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from common import DataSet, Row, settings_for, shared_folder

from segtrain.compare import compare
from segtrain.compare.prepare import prepare
from segtrain.report import Report
from segtrain.statistics import crossed_interval
from segtrain.summary import Judging, RunResult, by_draw, case_table, check_budgets, compare_arms, read_result


@dataclass(frozen=True)
class Compared:
    """A finished comparison: every run by arm, and how intervals are taken."""

    runs: dict[str, list[RunResult]]
    judging: Judging
    report: Report

    def dice_row(self, name: str, arm: str) -> Row:
        """Returns the mean Dice of one arm over test cases and runs; its interval is over label draws and groups."""
        groups = [case.group for case in self.runs[arm][0].cases]
        found = crossed_interval(by_draw(self.runs[arm], case_table(self.runs[arm], "dice")), groups,
                                 seed=self.judging.seed, resamples=self.judging.resamples)
        return Row(name, found.mean, found.low, found.high)

    def diff_rows(self, pairs: Sequence[tuple[str, str]], name: str) -> list[Row]:
        """Returns the paired difference of Dice of each (arm, baseline) that was run; `name` has places for both."""
        there = [pair for pair in pairs if set(pair) <= set(self.runs)]
        return [Row(name.format(arm=c.arm, baseline=c.baseline), c.dice_diff, *(c.ci or (None, None)))
                for c in compare_arms(self.runs, there, self.judging)]

    def budget(self) -> str:
        """Returns the one budget that all runs had, in words.

        Raises:
            RuntimeError: if there is more than one.
        """
        flat = [run for runs in self.runs.values() for run in runs]
        check_budgets(flat)
        return (f"{len(flat)} runs of {flat[0].steps} steps over {flat[0].images_seen:,} supervised images each; "
                f"{flat[0].n_labelled} labelled images")


def ask_for_labels(arguments: argparse.ArgumentParser) -> None:
    """Adds how many label draws there are, and what each labels."""
    arguments.add_argument("--draws", type=int, default=5, help="label draws; default 5, quick 1")
    arguments.add_argument("--labels", type=int, default=20, help="labelled images of each; default 20")
    arguments.add_argument("--groups", type=int, default=None, help="label every image of so many groups instead")


def labels_of(args: argparse.Namespace) -> list[str]:
    """Returns the settings of a comparison that `ask_for_labels` asked for."""
    budget = [f"n_labelled={args.labels}"] if args.groups is None else ["n_labelled=null", f"n_groups={args.groups}"]
    return [f"draws={1 if args.quick else args.draws}", *budget]


def run_comparison(data: DataSet, name: str, args: argparse.Namespace, overrides: Sequence[str]) -> Compared:
    """Returns the comparison `name` on one data set: run, resumed or found again in --out, its cache shared."""
    settings = settings_for(data, args, overrides)
    folder = shared_folder(args.out / data.name, name, prepare(settings))
    report = compare(settings, out=folder)
    runs: dict[str, list[RunResult]] = {}
    for path in report.index.scores:
        result = read_result(folder / path)
        runs.setdefault(result.arm, []).append(result)
    assert all(np.equal([(r.draw, r.seed) for r in some], [(r.draw, r.seed) for r in next(iter(runs.values()))]).all()
               for some in runs.values()), "arms were run on different label draws"
    return Compared(runs, Judging(settings.test_seed, settings.resamples), report)


def seeds_of(found: Sequence[Compared]) -> list[int]:
    """Returns the seeds of all comparisons: of the split and of the synthetic pairs, each once."""
    settings = [one.report.index.settings for one in found]
    return sorted({s["split"]["seed"] for s in settings} | {s["synthetic"]["seed"] for s in settings})

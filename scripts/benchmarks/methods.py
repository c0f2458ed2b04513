"""Which method should train on few labels? Every method against the supervised baseline, on each data set.

    python scripts/benchmarks/methods.py --data DIR --out runs/benchmarks --json methods.json [KEY=VALUE ...]

One `segtrain compare` per set: the same label draws, test cases, optimiser steps and supervised images seen for every
method. An interrupted run resumes; a further method runs only itself. --labels counts images, --groups patients.
"""

from __future__ import annotations

import json

from common import Row, begin, comma, data_sets, parser, run_script, write
from comparing import Compared, ask_for_labels, labels_of, run_comparison, seeds_of

METHODS = ("mean_teacher", "fixmatch_ema", "unimatch", "bcp", "cps", "dsaif", "cfc_net")


def kept_rows(data: str, done: Compared, arms: dict[str, str]) -> list[Row]:
    """Returns the mean share of pixels that each method's filter kept over the second half of its runs."""
    rows = []
    for method, arm in arms.items():
        shares = []
        for run in done.runs[arm]:
            path = done.report.out / run.folder / "stats.jsonl"
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            shares += [line["kept"] for line in lines if "kept" in line and 2 * line["step"] > run.steps]
        if shares:
            rows.append(Row(f"kept_fraction/{data}/{method}", sum(shares) / len(shares), min(shares), max(shares)))
    return rows


def main() -> None:
    """Compares the methods on every data set and writes the rows."""
    arguments = parser(__doc__)
    ask_for_labels(arguments)
    arguments.add_argument("--methods", type=comma(str), default=METHODS, help=f"default {','.join(METHODS)}")
    args = begin(arguments)
    arms = {method: f"real+unlabelled:{method}" for method in args.methods}
    rows, found = [], []
    for data in data_sets(args):
        done = run_comparison(data, "methods", args, [*labels_of(args),
                                                      f"arms={json.dumps(['real', *arms.values()])}"])
        found.append(done)
        print(f"{data.name}: {done.budget()}")
        rows.append(done.dice_row(f"dice/{data.name}/supervised", "real"))
        for method, arm in arms.items():
            rows.append(done.dice_row(f"dice/{data.name}/{method}", arm))
            rows += done.diff_rows([(arm, "real")], f"dice_diff/{data.name}/{method}-supervised")
        rows += kept_rows(data.name, done, arms)
    write(rows, args, seeds_of(found))


if __name__ == "__main__":
    run_script(main)

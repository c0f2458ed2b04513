"""Do synthetic pairs help a segmenter, on each data set? Against real pairs alone, copy-paste, and further controls.

    python scripts/benchmarks/utility.py --data DIR --data DIR --out runs/benchmarks --json utility.json [KEY=VALUE ...]

One `segtrain compare` per set: the same label draws, test cases, optimiser steps and supervised images seen for every
arm. An interrupted run resumes.
"""

from __future__ import annotations

import json

from common import begin, comma, data_sets, parser, run_script, write
from comparing import run_comparison, seeds_of

ARMS = ("real", "real+copypaste", "real+affine", "real+roundtrip", "real+inpaint", "real+translate",
        "real+inpaint+translate", "real+inpaint_shuffled", "real+translate_shuffled")

PAIRS = (
    *((arm, "real") for arm in ARMS[1:]), ("real+inpaint", "real+roundtrip"), ("real+translate", "real+inpaint"),
    *((f"real+{made}", f"real+{control}") for made in ("inpaint", "translate", "inpaint+translate")
      for control in ("copypaste", "affine")),
    *((f"real+{engine}_shuffled", f"real+{engine}") for engine in ("inpaint", "translate")),
    *((f"real+{made}+unlabelled", "real+unlabelled") for made in ("inpaint", "translate", "inpaint+translate")))
"""Which arm is held against which, where both run. The arms with unlabelled images: --arms real,real+unlabelled,..."""


def main() -> None:
    """Compares the arms on every data set and writes the rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--draws", type=int, default=5, help="label draws; default 5, quick 1")
    arguments.add_argument("--labels", type=int, default=20, help="labelled images of each; default 20")
    arguments.add_argument("--arms", type=comma(str), default=ARMS, help=f"default {','.join(ARMS)}")
    args = begin(arguments)
    rows, found = [], []
    for data in data_sets(args):
        done = run_comparison(data, "utility", args, [f"draws={1 if args.quick else args.draws}",
                                                      f"n_labelled={args.labels}",
                                                      f"arms={json.dumps(list(args.arms))}"])
        found.append(done)
        print(f"{data.name}: {done.budget()}")
        for note in done.report.index.notes:
            print(f"  {note}")
        rows += [done.dice_row(f"dice/{data.name}/{arm}", arm) for arm in done.runs]
        rows += done.diff_rows(PAIRS, f"dice_diff/{data.name}/{{arm}}-{{baseline}}")
    write(rows, args, seeds_of(found))


if __name__ == "__main__":
    run_script(main)

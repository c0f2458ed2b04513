"""Where do painted pairs help? Each cell changes one thing of configs/tiny/compare.yaml and runs a comparison.

    python scripts/benchmarks/where_it_helps.py --data DIR --only steps --only share --json where.json [KEY=VALUE ...]

Cells share one cache, so that what two of them have in common is trained once; an interrupted run resumes. `--list`
names them all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

from common import DataSet, Row, begin, data_sets, parser, run_script, write
from comparing import Compared, run_comparison, seeds_of

from synth.core.checks import UserError

ARMS = ("real", "real+copypaste", "real+inpaint")
MAIN = ("real+inpaint", "real")
FURTHER = (("real+inpaint", "real+copypaste"), ("real+copypaste", "real"), ("real+affine", "real"),
           ("real+inpaint", "real+affine"))

LOOSE = ("gates.faithfulness=0", "gates.max_false_foreground=1", "gates.confidence=0.999999",
         "gates.novelty_quantile=1")
"""Gates that let (nearly) everything through and ignore (nearly) no pixel."""


@dataclass(frozen=True)
class Cell:
    """One comparison: which question it belongs to, and what it changes."""

    group: str
    value: str
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] = ARMS

    @property
    def name(self) -> str:
        """Name of the cell, and of its folder."""
        return f"{self.group}-{self.value}"


def _one(group: str, setting: str, values: Sequence[float], arms: tuple[str, ...] = ARMS) -> list[Cell]:
    return [Cell(group, f"{v:g}", (f"{setting}={v:g}",), arms) for v in values]


CELLS = (
    *_one("steps", "segment.loop.steps", (300, 600, 1200, 2400)),
    *_one("share", "segment.synthetic_share", (0.1, 0.25, 0.5)),
    Cell("gates", "on"), Cell("gates", "off", LOOSE),
    *_one("labels", "n_labelled", (5, 10, 20, 40)),
    Cell("mode", "surroundings", ("inpaint.denoiser.labels=true", "inpaint.sampler.mode=surroundings")),
    Cell("mode", "object", ("inpaint.denoiser.labels=true", "inpaint.sampler.mode=object")),
    Cell("backgrounds", "all", (), (*ARMS, "real+affine")),
    *_one("supply", "draw.supply.oversample", (1, 2, 4, 8), ("real", "real+inpaint")),
)
"""steps: when does `real` overfit? share: of synthetic pairs in a batch. gates: do they earn their keep? labels: how
few? mode: foreground kept or repainted. backgrounds: painted, real (copy-paste) or the source's own (affine). supply:
painted for each one kept."""


def chosen(only: Sequence[str]) -> list[Cell]:
    """Returns the cells whose question or name is in `only`; all if it is empty.

    Raises:
        UserError: for a name that is neither.
    """
    known = {c.group for c in CELLS} | {c.name for c in CELLS}
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}", rule="no such cell", repair=f"take one of {', '.join(sorted(known))}")
    return [c for c in CELLS if not only or {c.group, c.name} & set(only)]


def overrides_of(cell: Cell, args: argparse.Namespace) -> list[str]:
    """Returns the settings of one cell; the quick ones keep its step count's order, not its size."""
    changes = list(cell.overrides)
    if args.quick:
        changes = [f"segment.loop.steps={int(c.partition('=')[2]) // 20}" if c.startswith("segment.loop.steps=") else c
                   for c in changes]
    return [f"draws={1 if args.quick else args.draws}", f"arms={json.dumps(list(cell.arms))}", *changes]


def rows_of(cell: Cell, data: DataSet, done: Compared) -> list[Row]:
    """Returns the difference that the cell is about, the further ones, and the Dice of every arm."""
    where = f"{data.name}/{cell.name}"
    kept = [facts.kept for facts in done.report.index.made if facts.kind == "inpaint"]
    return [*done.diff_rows([MAIN], f"dice_diff/{where}"),
            *done.diff_rows(FURTHER, f"dice_diff/{where}/{{arm}}-{{baseline}}"),
            *(done.dice_row(f"dice/{where}/{arm}", arm) for arm in done.runs),
            *([Row(f"kept/{where}", sum(kept) / len(kept), min(kept), max(kept), "pairs")] if kept else [])]


def main() -> None:
    """Runs the chosen cells on every data set and writes the rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", action="append", default=[], metavar="NAME", help="a question or cell; repeatable")
    arguments.add_argument("--draws", type=int, default=5, help="label draws; default 5, quick 1")
    arguments.add_argument("--list", action="store_true", help="name the cells and stop")
    args = begin(arguments)
    cells = chosen(args.only or (["steps-300", "share-0.5", "gates-off", "mode-object"] if args.quick else []))
    if args.list:
        print("\n".join(f"{c.name}: {' '.join(c.overrides) or 'as it is'}" for c in cells))
        return
    rows, found = [], []
    for data in data_sets(args):
        for cell in cells:
            done = run_comparison(data, f"where/{cell.name}", args, overrides_of(cell, args))
            print(f"{data.name}, {cell.name}: {done.budget()}")
            found.append(done)
            rows += rows_of(cell, data, done)
    write(rows, args, seeds_of(found))


if __name__ == "__main__":
    run_script(main)

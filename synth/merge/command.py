"""The command `merge-labels`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from synth.core.config import load_config, to_yaml
from synth.core.shell import is_main, required, say, take
from synth.merge.run import Merge, MergeSettings, merge_labels


def _table(merged: Merge) -> Table:
    table = Table("annotator", "images", "Dice with others", "Dice with merged", "sensitivity", "specificity", "used")
    for rater in merged.raters:
        means = [[v for v in rates.values() if v is not None] for rates in (rater.sensitivity, rater.specificity)]
        words = [f"{sum(some) / len(some):.3f}" if some else "-" for some in means]
        others = "-" if rater.dice_with_others is None else f"{rater.dice_with_others:.3f}"
        table.add_row(rater.name, str(rater.n_images), others, f"{rater.dice_with_merged:.3f}", *words,
                      "yes" if rater.used else "no")
    return table


def run_merge(folder: Path, overrides: Sequence[str], *, dry_run: bool) -> None:
    """Merges, prints the table of annotators and, unless it is a dry run, writes the set.

    Raises:
        UserError: as `merge_labels`.
    """
    out, rest = take(overrides, "out")
    settings = load_config(MergeSettings, {}, rest)
    if dry_run:
        typer.echo(f"out: {out}\n" + to_yaml(settings), nl=False)
    merged = merge_labels(folder, settings, out=None if dry_run else required(out, "out", "data/labelled"))
    if is_main():
        Console().print(_table(merged))
    for name in merged.left_out:
        say(f"{name} is left out: none of its annotators counts")
    weights = sorted(one.weight for one in merged.images)
    say(f"{'would write' if dry_run else out}: {len(merged.images)} pairs, weights from {weights[0]:.2f} to "
        f"{weights[-1]:.2f}, median {weights[len(weights) // 2]:.2f}")

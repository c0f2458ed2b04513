"""How often do the intervals of `segtrain compare` hold the truth? By simulation with known truth.

    python scripts/benchmarks/coverage.py --json coverage.json [--repeats 2000] [--draws 5] [--groups 20,100]

A simulated paired difference in Dice of case i under label draw d is truth + draw effect + group effect + their
interaction + noise; its sizes are those seen in real comparisons. Beside ours: the bootstrap over groups alone, and the
hierarchical bootstrap that resamples draws and then groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from common import Row, begin, comma, parser, run_script, write
from scipy import stats

from segtrain.statistics import crossed_interval, mean_interval
from synth.core.rng import derive_seed

Interval = tuple[float, float]
RESAMPLES = 999


@dataclass(frozen=True)
class World:
    """Standard deviations of the effects on a difference in Dice, and whether groups are skewed.

    Attributes:
        draw, group, both, noise: of label draws, groups, their interaction, single cases.
        skewed: group effects are exponential: a few patients gain much, most a little.
    """

    name: str
    draw: float = 0.02
    group: float = 0.10
    both: float = 0.10
    noise: float = 0.05
    skewed: bool = False


WORLDS = (World("plain"), World("skewed", skewed=True), World("draws_alike", draw=0.0), World("draws_rule", draw=0.06))


def simulate(world: World, *, n_draws: int, n_groups: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Returns differences (n_draws, N) whose true mean is 0, and the group of each case; 1 to 4 cases a group."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(n_groups), rng.integers(1, 5, n_groups))
    group = rng.exponential(1.0, n_groups) - 1 if world.skewed else rng.standard_normal(n_groups)
    table = (world.draw * rng.standard_normal((n_draws, 1)) + world.group * group[index]
             + world.both * rng.standard_normal((n_draws, n_groups))[:, index]
             + world.noise * rng.standard_normal((n_draws, len(index))))
    return table, [f"g{i:04d}" for i in index]


def ours(table: np.ndarray, groups: list[str]) -> Interval:
    """Returns the interval that the report prints."""
    found = crossed_interval(table, groups, seed=0, resamples=RESAMPLES)
    return found.low, found.high


def groups_alone(table: np.ndarray, groups: list[str]) -> Interval:
    """Returns the bootstrap over groups, the draws taken as they are."""
    found = mean_interval(table.mean(axis=0), groups, seed=0, resamples=RESAMPLES)
    return found.low, found.high


def hierarchical(table: np.ndarray, groups: list[str]) -> Interval:
    """Returns the percentile bootstrap that resamples draws, then, for each, groups."""
    rng, (_, index) = np.random.default_rng(0), np.unique(groups, return_inverse=True)
    n_groups = index.max() + 1
    sums = np.stack([np.bincount(index, weights=row, minlength=n_groups) for row in table])
    counts = np.bincount(index, minlength=n_groups)
    draws = rng.integers(0, len(table), (RESAMPLES, len(table)))
    chosen = rng.integers(0, n_groups, (RESAMPLES, len(table), n_groups))
    means = sums[draws[..., None], chosen].sum(axis=(1, 2)) / counts[chosen].sum(axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


WAYS: dict[str, Callable[[np.ndarray, list[str]], Interval]] = {
    "ours": ours, "groups_alone": groups_alone, "hierarchical_bootstrap": hierarchical}


def covered(way: Callable[[np.ndarray, list[str]], Interval], world: World, *, n_draws: int, n_groups: int,
            repeats: int) -> int:
    """Returns in how many of `repeats` simulations the interval holds 0."""
    hits = 0
    for repeat in range(repeats):
        seed = derive_seed(0, world.name, n_draws, n_groups, repeat)
        low, high = way(*simulate(world, n_draws=n_draws, n_groups=n_groups, seed=seed))
        hits += low <= 0 <= high
    return hits


def share_row(name: str, hits: int, n: int) -> Row:
    """Returns a share with Wilson's 95 % interval."""
    found = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return Row(name, hits / n, found.low, found.high)


def main() -> None:
    """Simulates every world with every way and writes the rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=None, help="per row; default 2000, quick 200")
    arguments.add_argument("--draws", type=int, default=5, help="label draws; default 5")
    arguments.add_argument("--groups", type=comma(int), default=[20, 100], help="test groups; default 20,100")
    args = begin(arguments)
    repeats = args.repeats or (200 if args.quick else 2000)
    rows, total = [], {way: 0 for way in WAYS}
    for world in WORLDS:
        for n_groups in args.groups:
            for name, way in WAYS.items():
                hits = covered(way, world, n_draws=args.draws, n_groups=n_groups, repeats=repeats)
                total[name] += hits
                rows.append(share_row(f"coverage/{name}/{world.name}-{n_groups}", hits, repeats))
    n = repeats * len(WORLDS) * len(args.groups)
    head = [share_row("coverage" if name == "ours" else f"coverage/{name}", hits, n) for name, hits in total.items()]
    write([*head, *rows], args, [0])


if __name__ == "__main__":
    run_script(main)

"""What a method's machinery costs: our training step against a plain PyTorch loop that computes the same thing.

    python scripts/benchmarks/training.py --data DIR --json training.json [--methods supervised,fixmatch_ema]

Both train the same network from the same weights with the same batches' sizes, losses and optimiser, in one process, in
turn; once without augmentation, and once with the same augmentation functions. Ours runs in the real loop, batches,
log and all; a step lasts from one batch asked for to the next. The first steps of every round are not counted. Where
other work shares the processor, `cpu_ratio` is the steadier figure: processor time of this process, all its threads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common import (
    Row,
    Timing,
    alternate,
    begin,
    comma,
    only_set,
    parser,
    ratio_row,
    run_script,
    settings_for,
    spread_row,
    write,
)
from plain import PLAIN, Plain

from segtrain.compare.prepare import prepare
from segtrain.method import Method, load_method
from segtrain.recipe import SegmentRecipe
from segtrain.settings import SegmentSettings
from segtrain.streams import Streams
from segtrain.streams.ahead import Ahead
from synth.core.config import load_config
from synth.core.loop import Batch, Batches, train
from synth.core.pairs import ImageSet, PairSet

WARM = 3
"""Steps at the start of a round that are not counted."""

STILL = ("augment.geometry.flip_horizontal=false", "augment.geometry.p=0", "augment.intensity.p_colour=0",
         "augment.intensity.p_blur=0", "augment.intensity.p_noise=0", "augment.intensity.p_low_res=0")
"""Overrides under which nothing is augmented."""


@dataclass
class Clock:
    """Batches that note when they were asked for and given, and how much processor time had gone by."""

    batches: Batches
    asked: list[float] = field(default_factory=list)
    given: list[float] = field(default_factory=list)
    worked: list[float] = field(default_factory=list)

    def __call__(self, step: int, rank: int, n_ranks: int) -> Batch:
        """Returns the batch of a step."""
        self.worked.append(time.process_time())
        self.asked.append(time.perf_counter())
        batch = self.batches(step, rank, n_ranks)
        self.given.append(time.perf_counter())
        return batch

    def seconds(self) -> float:
        """Returns how long the counted steps took, all but the last, whose end nobody asks for."""
        return self.asked[-1] - self.asked[WARM]

    def work(self) -> float:
        """Returns how much processor time that was."""
        return self.worked[-1] - self.worked[WARM]

    def waited(self) -> float:
        """Returns how much of that was spent waiting for batches."""
        return sum(g - a for a, g in zip(self.asked[WARM:-1], self.given[WARM:-1], strict=True))


@dataclass(frozen=True)
class Track:
    """One method on one data set, augmented or not: what ours and the plain loop both run."""

    method: Method
    settings: SegmentSettings
    labelled: PairSet
    pile: ImageSet | None

    def ours(self) -> Clock:
        """Trains in the real loop; returns when its batches were asked for and given."""
        streams = Streams.read(self.settings, self.labelled, unlabelled=self.pile)
        recipe = SegmentRecipe(self.settings, self.method, info=self.labelled.info, has_synthetic=False)
        with tempfile.TemporaryDirectory() as folder, Ahead(streams.batches, self.settings.loop.steps) as ahead:
            clock = Clock(ahead)
            train(recipe, clock, Path(folder), self.settings.loop, label=self.method.name)
        return clock

    def plain(self) -> Clock:
        """Trains in the plain loop; returns the same."""
        loop = self.make_plain()
        clock = Clock(loop.batch)
        for step in range(self.settings.loop.steps):
            loop.step(clock(step, 0, 1), step / self.settings.loop.steps)
        return clock

    def make_plain(self) -> Plain:
        """Returns the plain loop before its first step."""
        return PLAIN[self.method.name](self.settings, self.labelled, self.pile)


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of this script."""
    found = parser(__doc__)
    found.add_argument("--methods", type=comma(str), default=list(PLAIN), help="of those that have a plain loop")
    found.add_argument("--rounds", type=int, help="of each loop; default 7, less with --quick")
    found.add_argument("--steps", type=int, help="counted in each round; default 20, less with --quick")
    return found


def without_views(method: Method) -> Method:
    """Returns the method with images shown as they are: nothing perturbs them."""
    views = tuple(view.model_copy(update={"perturb": ()}) for view in method.views)
    return load_method(method.model_copy(update={"views": views}))


def tracks(args: argparse.Namespace) -> dict[str, Track]:
    """Returns what is raced, by name: every method bare and augmented."""
    settings = settings_for(only_set(args), args)
    parts = prepare(settings)
    draw = parts.draws[0]
    base = load_config(SegmentSettings, {**settings.segment, "size": settings.size})
    loop = base.loop.model_copy(update={"steps": WARM + args.steps + 1})
    base, found = base.model_copy(update={"loop": loop}), {}
    for name in args.methods:
        method = load_method(name)
        pile = parts.unlabelled_of(draw) if method.needs("unlabelled") else None
        labelled = parts.labelled_of(draw)
        found[name] = Track(without_views(method), load_config(SegmentSettings, base, STILL), labelled, pile)
        found[f"{name}_augmented"] = Track(method, base, labelled, pile)
    return found


def race(found: Mapping[str, Track], *, rounds: int) -> dict[str, list[Clock]]:
    """Returns the clocks of every round, of "NAME/ours" and "NAME/bare", run in turn."""
    clocks: dict[str, list[Clock]] = {}
    calls: dict[str, Callable[[int], object]] = {}
    for name, track in found.items():
        for kind, go in (("ours", track.ours), ("bare", track.plain)):
            own = clocks.setdefault(f"{name}/{kind}", [])
            calls[f"{name}/{kind}"] = lambda _, go=go, own=own: own.append(go())
    alternate(calls, rounds=rounds)
    return clocks


def rows_of(clocks: Mapping[str, list[Clock]], *, n_steps: int) -> list[Row]:
    """Returns the ratios of step times and of processor times, the shares waited, and the step times themselves."""
    seconds = {name: Timing(tuple(clock.seconds() for clock in some)) for name, some in clocks.items()}
    work = {name: Timing(tuple(clock.work() for clock in some)) for name, some in clocks.items()}
    names = dict.fromkeys(name.partition("/")[0] for name in clocks)
    rows = []
    for kind, timings in (("ratio", seconds), ("cpu_ratio", work)):
        for name in names:
            method, augmented, _ = name.partition("_augmented")
            rows.append(ratio_row(f"{kind}/{method}_over_bare{augmented}", timings[f"{name}/ours"],
                                  timings[f"{name}/bare"]))
    rows += [spread_row(f"data_wait_share/{name}", [c.waited() / c.seconds() for c in clocks[f"{name}/ours"]])
             for name in names]
    return rows + [timing.row(f"s_per_step/{name}", per=n_steps) for name, timing in seconds.items()]


def main() -> None:
    """Races our loop against the plain one and writes the rows."""
    args = begin(arguments())
    args.rounds = args.rounds or (2 if args.quick else 7)
    args.steps = args.steps or (4 if args.quick else 20)
    found = tracks(args)
    seed = next(iter(found.values())).settings.loop.seed
    write(rows_of(race(found, rounds=args.rounds), n_steps=args.steps), args, [seed])


if __name__ == "__main__":
    run_script(main)

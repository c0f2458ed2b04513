"""Which sampler, and how many levels? Faithfulness, seam and seconds against evaluations, on one trained model.

    python scripts/benchmarks/schedules.py --data DIR --out runs/benchmarks --json schedules.json [KEY=VALUE ...]

The default of `sampler` is chosen from the table that this prints. Scores are cached per schedule; seconds are always
measured anew, all schedules in turn in one process.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass

from common import Row, Timing, alternate, begin, cached, comma, only_set, open_bench, parser, run_script, write
from painting import Paint, counted, ours
from rich.console import Console
from rich.table import Table
from scoring import SEED, Work, draw_work, faithfulness_row, seam_rows, utility_rows

from segtrain.compare.runs import Bench
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.settings import SamplerSettings
from synth.gates.seam_net import SeamSettings

STEPS, QUICK_STEPS = (4, 8, 12, 20, 35, 50), (2, 4)
SAMPLERS: dict[str, dict[str, str | float]] = {
    "dpmpp_2m": {"sampler": "dpmpp_2m", "eta": 0.0}, "dpmpp_2m_eta1": {"sampler": "dpmpp_2m", "eta": 1.0},
    "ddim": {"sampler": "ddim", "eta": 0.0}, "ddim_eta1": {"sampler": "ddim", "eta": 1.0},
    "heun": {"sampler": "heun", "eta": 0.0},
}
"""Euler is not among them: without churn it is DDIM at eta 0."""


@dataclass(frozen=True)
class Schedule:
    """One way to sample: its name, its pipeline (the shared networks), and how it paints."""

    name: str
    pipeline: InpaintPipeline
    paint: Paint


def schedules(pipeline: InpaintPipeline, args: argparse.Namespace) -> list[Schedule]:
    """Returns all schedules of the table; margin and mode stay the pipeline's own, resampling is --repeats."""
    own, found = pipeline.sampler.model_dump(), []
    for name in args.samplers:
        for n_steps in args.steps or (QUICK_STEPS if args.quick else STEPS):
            for repeats in args.repeats:
                other = pipeline.with_sampler(SamplerSettings(
                    **{**own, **SAMPLERS[name], "n_steps": n_steps, "jump_repeats": repeats}))
                label = f"{name}-{n_steps}" + (f"-r{repeats}" if repeats > 1 else "")
                found.append(Schedule(label, other, ours(other)))
    return found


def timings_of(some: list[Schedule], work: Work, *, rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """Returns seconds per round and evaluations per pair of every schedule, all on the same batch, in turn."""
    evaluations: dict[str, float] = {}

    def call(one: Schedule) -> None:
        with counted(one.pipeline.unet) as calls:
            one.paint(work.request)
        evaluations[one.name] = sum(calls) / len(work.groups)

    some[0].paint(work.request)  # the first call pays for what later ones find ready
    return alternate({s.name: (lambda _, s=s: call(s)) for s in some}, rounds=rounds), evaluations


def score(one: Schedule, bench: Bench, work: list[Work], args: argparse.Namespace) -> list[Row]:
    """Returns faithfulness and seam of one schedule, cached."""
    draw, n = bench.parts.draws[0], sum(len(w.groups) for w in work)
    identity = one.pipeline.content_hash()

    def make() -> dict[str, float | None]:
        found = faithfulness_row("", bench, draw, [(w, one.paint(w.request)) for w in work])
        return {"value": found.value, "lo": found.lo, "hi": found.hi}

    judged = [bench.judge_folder(draw).name, bench.settings.draw["layout"], bench.settings.resamples, draw.labelled]
    known = cached(bench.out / "scores", ["faithfulness", identity, judged, n, args.batch], make)
    settings = SeamSettings(steps=60 if args.quick else SeamSettings().steps, paint_batch=args.batch, seed=SEED)
    return [Row(f"faithfulness/{one.name}", **known),
            *seam_rows(one.name, bench, one.paint, n=args.seam_n, identity=f"schedule {identity}", settings=settings)]


def show(some: list[Schedule], rows: list[Row]) -> None:
    """Prints the table from which the default is chosen: one line per schedule, fewest evaluations first."""
    known = {row.name: row for row in rows}
    columns = [c for c in ("evals", "seconds", "faithfulness", "seam_auc", "utility")
               if f"{c}/{some[0].name}" in known]
    table = Table(title="schedules")
    for name in ("schedule", *columns):
        table.add_column(name, justify="left" if name == "schedule" else "right", no_wrap=True)
    for one in sorted(some, key=lambda s: known[f"evals/{s.name}"].value):
        cells = [known[f"{c}/{one.name}"] for c in columns]
        table.add_row(one.name, *(f"{r.value:.3g}" + (f" [{r.lo:.3g}, {r.hi:.3g}]" if r.lo is not None else "")
                                  for r in cells))
    Console(width=120).print(table)


def main() -> None:
    """Times and scores every schedule of the first data set's generator and writes the rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--samplers", type=comma(str), default=list(SAMPLERS), help=f"default {','.join(SAMPLERS)}")
    arguments.add_argument("--steps", type=comma(int), help=f"noise levels, as 4,8; default {STEPS}")
    arguments.add_argument("--repeats", type=comma(int), default=[1], help="of resampling, as 1,2; default 1: none")
    for name, full, small in (("n", 64, 4), ("batch", 8, 2), ("rounds", 3, 2), ("seam-n", 160, 12)):
        arguments.add_argument(f"--{name}", type=int, help=f"default {full}, quick {small}")
    arguments.add_argument("--utility", action="store_true", help="also train a segmenter on each schedule's pairs")
    args = begin(arguments)
    for name, full, small in (("n", 64, 4), ("batch", 8, 2), ("rounds", 3, 2), ("seam_n", 160, 12)):
        setattr(args, name, getattr(args, name) or (small if args.quick else full))
    bench = open_bench(only_set(args), args)
    draw = bench.parts.draws[0]
    pipeline = bench.generator("inpaint", draw)
    some, work = schedules(pipeline, args), draw_work(bench, draw, n=args.n, batch=args.batch)
    timings, evaluations = timings_of(some, work[0], rounds=args.rounds)
    rows = [timings[s.name].row(f"seconds/{s.name}", per=len(work[0].groups), unit="s per pair") for s in some]
    rows += [Row(f"evals/{s.name}", evaluations[s.name], unit="per pair") for s in some]
    for k, one in enumerate(some):
        logging.info("schedule %d of %d: %s", k + 1, len(some), one.name)
        rows += score(one, bench, work, args)
    if args.utility:
        for one in some:
            rows += [r for r in utility_rows(bench, draw, one.pipeline, {one.name: one.paint}, batch=args.batch,
                                             budgets={one.name: bench.settings.synthetic.n})
                     if r.name != "utility/real" or one is some[0]]
    show(some, rows)
    write(rows, args, [SEED, bench.settings.split.seed])


if __name__ == "__main__":
    run_script(main)

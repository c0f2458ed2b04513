"""How fast and how good: our sampler and its fast preset against naive DDIM-50 and diffusers' RePaint, on one model.

    python scripts/benchmarks/sampling.py --data DIR --out runs/benchmarks --json sampling.json [KEY=VALUE ...]

All methods paint the same pairs with the same network in one process, in turn. RePaint's 2,410 evaluations are slow,
so it paints few pairs (--slow-n); its speed is that of whole runs all the same, and every score says its n.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping

import torch
from common import Row, Timing, alternate, begin, only_set, open_bench, parser, ratio_row, run_script, spread_row, write
from painting import METHODS, SLOW, Paint, counted, methods
from scoring import SEED, Work, diversity_row, draw_work, faithfulness_row, seam_rows, utility_rows
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segtrain.compare.runs import Bench
from synth.diffusion.codec import latents_to_unit, unit_to_latents
from synth.diffusion.inpaint import InpaintPipeline
from synth.features import load_features
from synth.gates.seam_net import SeamSettings

MATMUL = 1024
"""Side of the matrices whose product measures the arithmetic ceiling."""

PRODUCTS = 8
"""Products per measurement."""

RATIOS = {"default_over_repaint": ("repaint_250_10_10", "default"), "fast_over_repaint": ("repaint_250_10_10", "fast"),
          "fast_over_ddim50": ("ddim50", "fast"), "default_over_ddim50": ("ddim50", "default")}
"""Name of a ratio of speeds: the slower and the faster method."""


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of this script."""
    found = parser(__doc__)
    for name, value, text in (("n", 64, "pairs painted and scored per method"), ("batch", 8, "pairs painted together"),
                              ("rounds", 3, "timed batches per method"), ("seam-n", 160, "images of the placebo test"),
                              ("slow-n", 8, "pairs, and placebos, of RePaint 250/10/10"),
                              ("masks", 8, "masks painted four times each, for the diversity")):
        found.add_argument(f"--{name}", type=int, default=None, help=f"{text}; default {value}, less with --quick")
        found.set_defaults(**{f"full_{name.replace('-', '_')}": value})
    found.add_argument("--method", action="append", choices=METHODS, help="only this one; repeatable")
    found.add_argument("--utility", action="store_true", help="also train a segmenter on each method's pairs")
    return found


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """Returns `args` with every budget that was not given set to its default."""
    quick = {"n": 4, "batch": 2, "rounds": 2, "seam_n": 12, "slow_n": 4, "masks": 1}
    for name, small in quick.items():
        if getattr(args, name) is None:
            setattr(args, name, small if args.quick else getattr(args, f"full_{name}"))
    args.n = max(args.n, args.rounds * args.batch)
    return args


def parts_of_painting(pipeline: InpaintPipeline, work: Work) -> dict[str, Callable[[int], object]]:
    """Returns what is timed beside the methods: encoder and decoder on the same batch, and matrix products."""
    image = work.request.image.to(pipeline.device)
    with torch.no_grad():
        latents = unit_to_latents(pipeline.vae, image)
    a, b = (torch.randn(MATMUL, MATMUL, device=pipeline.device) for _ in range(2))

    @torch.no_grad()
    def encode(_: int) -> float:
        return float(unit_to_latents(pipeline.vae, image).flatten()[0])

    @torch.no_grad()
    def decode(_: int) -> float:
        return float(latents_to_unit(pipeline.vae, latents).flatten()[0])

    def multiply(_: int) -> float:
        return float(sum((a @ b)[0, 0] for _ in range(PRODUCTS)))

    return {"encode": encode, "decode": decode, "matmul": multiply}


def flops_of(paint: Paint, work: Work) -> int:
    """Returns the floating-point operations of painting one batch; attention is counted as its matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        paint(work.request)
    return counter.get_total_flops()


class Race:
    """Paints and times: which batch was painted by which method, how long it took, how often the network was called."""

    def __init__(self, pipeline: InpaintPipeline, paints: Mapping[str, Paint], work: list[Work]) -> None:
        self.pipeline, self.paints, self.work = pipeline, paints, work
        self.painted: dict[str, dict[int, torch.Tensor]] = {name: {} for name in paints}
        self.evaluations: dict[str, list[float]] = {name: [] for name in paints}

    def paint(self, name: str, k: int) -> None:
        """Paints batch k by one method."""
        with counted(self.pipeline.unet) as calls:
            self.painted[name][k] = self.paints[name](self.work[k].request)
        self.evaluations[name].append(sum(calls) / len(self.work[k].groups))

    def run(self, *, rounds: int) -> dict[str, Timing]:
        """Returns the timings of all methods, encoder, decoder and matrix products, run in turn."""
        others = parts_of_painting(self.pipeline, self.work[0])
        for warm in (*others.values(), lambda _: self.paints[min(self.paints, key=SLOW.__contains__)](
                self.work[0].request)):
            warm(0)
        own = {name: (lambda k, name=name: self.paint(name, k)) for name in self.paints}
        return alternate({**own, **others}, rounds=rounds)

    def finish(self, name: str, *, n: int) -> list[tuple[Work, torch.Tensor]]:
        """Returns the first n pairs' batches as painted by one method, painting what is missing."""
        wanted = -(-n // len(self.work[0].groups))
        for k in range(min(wanted, len(self.work))):
            if k not in self.painted[name]:
                self.paint(name, k)
        return [(self.work[k], self.painted[name][k]) for k in sorted(self.painted[name])]


def speed_rows(race: Race, timings: Mapping[str, Timing]) -> list[Row]:
    """Returns pairs per second, evaluations, and the ratios between methods."""
    batch = len(race.work[0].groups)
    rows = [spread_row(f"pairs_per_s/{name}", [batch / s for s in timings[name].seconds], unit="1/s")
            for name in race.paints]
    rows += [spread_row(f"evals/{name}", race.evaluations[name], unit="per pair") for name in race.paints]
    return rows + [ratio_row(f"ratio/{name}", timings[slow], timings[quick])
                   for name, (slow, quick) in RATIOS.items() if {slow, quick} <= set(race.paints)]


def share_rows(race: Race, timings: Mapping[str, Timing]) -> list[Row]:
    """Returns which share of the ceiling each of our samplers reaches, and what encoder and decoder take of it."""
    products = 2 * MATMUL**3 * PRODUCTS
    peak = [products / s for s in timings["matmul"].seconds]
    rows = [spread_row("matmul_gflops", [p / 1e9 for p in peak], unit="GFLOP/s")]
    for name in [name for name in ("default", "fast") if name in race.paints]:
        flops = flops_of(race.paints[name], race.work[0])
        rows += [Row(f"gflop_per_pair/{name}", flops / 1e9 / len(race.work[0].groups), unit="GFLOP"),
                 spread_row(f"ceiling_share/{name}", [flops / s / p for s, p in
                                                      zip(timings[name].seconds, peak, strict=True)]),
                 ratio_row(f"decoder_share/{name}", timings["decode"], timings[name]),
                 ratio_row(f"encoder_share/{name}", timings["encode"], timings[name])]
    return rows


def score_rows(bench: Bench, race: Race, args: argparse.Namespace) -> list[Row]:
    """Returns faithfulness, seam and diversity of every method, each with the number of pairs it rests on."""
    draw, features, rows = bench.parts.draws[0], load_features(), []
    print(f"diversity by features of {features.name}")
    settings = SeamSettings(steps=60 if args.quick else SeamSettings().steps, paint_batch=args.batch, seed=SEED)
    for name, paint in race.paints.items():
        slow = name in SLOW
        done = race.finish(name, n=args.slow_n if slow else args.n)
        n_pairs, n_seam = sum(len(w.groups) for w, _ in done), args.slow_n if slow else args.seam_n
        logging.info("%s: %d pairs and %d placebos are scored", name, n_pairs, n_seam)
        rows += [faithfulness_row(f"faithfulness/{name}", bench, draw, done),
                 Row(f"faithfulness_n/{name}", n_pairs, unit="pairs"),
                 diversity_row(f"diversity/{name}", bench, paint, race.work, features=features,
                               n_masks=max(1, args.slow_n // 4) if slow else args.masks)]
        rows += seam_rows(name, bench, paint, n=n_seam, settings=settings,
                          identity=f"{name} {race.pipeline.content_hash()}")
    return rows


def main() -> None:
    """Fits or finds the generator of the first data set, races the methods, scores them, writes the rows."""
    args = resolve(begin(arguments()))
    bench = open_bench(only_set(args), args)
    draw = bench.parts.draws[0]
    pipeline = bench.generator("inpaint", draw)
    paints = methods(pipeline)
    paints = {name: paint for name, paint in paints.items() if name in (args.method or METHODS)}
    print(f"{bench.parts.labelled.where}: generator {pipeline.content_hash()}, {pipeline.sampler_settings()}")
    race = Race(pipeline, paints, draw_work(bench, draw, n=args.n, batch=args.batch))
    timings = race.run(rounds=args.rounds)
    rows = speed_rows(race, timings) + share_rows(race, timings) + score_rows(bench, race, args)
    if args.utility:
        budget = bench.settings.synthetic.n
        rows += utility_rows(bench, draw, pipeline, paints, batch=args.batch,
                             budgets={name: args.slow_n if name in SLOW else budget for name in paints},
                             baseline="default" if "default" in paints else None)
    write(rows, args, [SEED, bench.settings.split.seed, bench.settings.inpaint["denoiser"]["loop"]["seed"]])


if __name__ == "__main__":
    run_script(main)

"""Do drawn pairs show what their masks say, and what does one cost? Every engine, on each data set.

    python scripts/benchmarks/engines.py --data DIR --data DIR --out runs/benchmarks --json engines.json [KEY=VALUE ...]

The judge has another architecture than the comparison's segmenter and is trained on real pairs of groups that the
generators never saw. `faithfulness/<set>/<engine>` is its Dice with the masks of drawn pairs, no gate in between, over
its Dice on real test images; both means and the interval of the ratio are over groups. `shuffled/...` is the same with
exchanged masks: what a picture that ignores its mask would score.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from common import Row, alternate, begin, comma, data_sets, open_bench, parser, ratio_row, run_script, write
from scoring import SEED, Work, draw_work

from segtrain.compare.arms import ENGINES
from segtrain.compare.making import shuffle_masks
from segtrain.compare.runs import Bench
from segtrain.compare.splits import LabelDraw
from segtrain.metrics import score_cases
from segtrain.segmenter import Segmenter
from segtrain.train import fit
from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.core.pairs import Pair, PairSet
from synth.core.space import from_channels, pixels_to_unit, to_channels
from synth.draw import draw as draw_pairs
from synth.generator import Generator

RESAMPLES = 9999
BATCH = 8
"""Pairs drawn together where the cost is measured."""


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of this script."""
    found = parser(__doc__)
    found.add_argument("--engines", type=comma(str), default=list(ENGINES), help=f"default {','.join(ENGINES)}")
    found.add_argument("--labels", type=int, default=20, help="labelled images of the generators; default 20")
    found.add_argument("--n", type=int, help="pairs drawn by each; default 100, quick 8")
    found.add_argument("--rounds", type=int, default=3, help="timed batches of each; default 3")
    return found


@dataclass(frozen=True)
class Scores:
    """Mean Dice over foreground classes of each case, and the cases' groups."""

    dice: np.ndarray
    groups: tuple[str, ...]

    def resampled(self, rng: np.random.Generator) -> float:
        """Returns the mean Dice of as many groups, drawn with replacement."""
        names = sorted(set(self.groups))
        rows = {name: [i for i, g in enumerate(self.groups) if g == name] for name in names}
        return float(self.dice[[i for k in rng.integers(0, len(names), len(names)) for i in rows[names[k]]]].mean())


def score(judge: Segmenter, pairs: Sequence[Pair], bench: Bench) -> Scores:
    """Returns how well the judge's labels agree with the masks of pairs at the working resolution."""
    info = bench.parts.labelled.info
    unit = pixels_to_unit(np.stack([to_channels(p.image) for p in pairs]), info.intensity_range)
    predicted = torch.cat([judge.predict_labels(part).cpu() for part in unit.split(32)])
    masks = torch.from_numpy(np.stack([p.mask for p in pairs]).astype(np.int64))
    groups = tuple(p.group for p in pairs)
    cases = score_cases(predicted, masks, ids=[p.id for p in pairs], groups=groups, n_classes=info.n_classes,
                        tolerance_px=bench.settings.nsd_tolerance_px)
    return Scores(np.array([np.mean(case.dice) for case in cases]), groups)


def ratio_of(name: str, made: Scores, real: Scores) -> Row:
    """Returns mean over mean; the interval resamples the groups of both."""
    rng = np.random.default_rng(SEED)
    drawn = [made.resampled(rng) / max(real.resampled(rng), 1e-6) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Row(name, float(made.dice.mean() / max(real.dice.mean(), 1e-6)), float(low), float(high))


def independent_judge(bench: Bench, draw: LabelDraw) -> Segmenter:
    """Returns a segmenter of the referee's architecture, trained on labelled images of groups outside the label draw.

    Raises:
        UserError: if there are none.
    """
    pool = bench.parts.labelled
    seen = {g for i, g in zip(pool.ids, pool.groups, strict=True) if i in set(draw.labelled)}
    rows = [i for i, g in enumerate(pool.groups) if g not in seen]
    if not rows:
        raise UserError(pool.where, rule="no labelled group is left to train a judge on", repair="lower --labels")
    settings = {**bench.settings.segment, "model": bench.settings.referee}
    key = hash_json([settings, bench.parts.source, [pool.ids[i] for i in rows]])
    return fit(settings, pool.select(rows), method="supervised", out=bench.out / "cache" / f"outsider-{key}",
               held_out=tuple(sorted(set(bench.parts.test.groups))), overrides=(f"size={bench.settings.size}",))


def drawn(bench: Bench, draw: LabelDraw, engine: str, generator: Generator, *, n: int) -> PairSet:
    """Returns n pairs of an engine that no gate has seen."""
    key = hash_json([generator.content_hash(), generator.sampler_settings(), bench.drawing(engine), n])
    config = {k: v for k, v in bench.drawing(engine).items() if k not in ("supply", "curate")}
    return draw_pairs(generator, bench.parts.labelled_of(draw), n=n, seed=SEED, config=config,
                      out=bench.out / "cache" / f"ungated-{key}")


def cost_rows(generators: dict[str, Generator], work: Work, *, rounds: int, name: str) -> list[Row]:
    """Returns the seconds of translating a batch over those of painting it at default settings, run in turn."""
    r = work.request

    def sample(generator: Generator) -> float:
        return float(generator.sample(r.image, r.labels, seeds=r.seeds, keep_in=r.keep_in).flatten()[0])

    for generator in generators.values():
        sample(generator)  # warm
    found = alternate({k: (lambda _, g=g: sample(g)) for k, g in generators.items()}, rounds=rounds)
    rows = [timing.row(f"seconds_per_pair/{name}/{k}", per=len(work.groups)) for k, timing in found.items()]
    if {"inpaint", "translate"} <= set(found):
        rows.append(ratio_row(f"ratio/translate_cost_over_inpaint/{name}", found["translate"], found["inpaint"]))
    return rows


def main() -> None:
    """Fits or finds the engines of every data set, judges and times what they draw, writes the rows."""
    args = begin(arguments())
    n, rows = args.n or (8 if args.quick else 100), []
    for data in data_sets(args):
        bench = open_bench(data, args, [f"n_labelled={args.labels}", "draws=1"])
        draw = bench.parts.draws[0]
        judge, generators = independent_judge(bench, draw), {e: bench.generator(e, draw) for e in args.engines}
        test = bench.test
        cases = zip(test.ids, test.groups, test.images, test.masks, strict=True)
        real = score(judge, [Pair(i, group, from_channels(x), mask) for i, group, x, mask in cases], bench)
        rows.append(Row(f"dice_real/{data.name}", float(real.dice.mean())))
        for engine, generator in generators.items():
            made = drawn(bench, draw, engine, generator, n=n)
            right, wrong = (score(judge, list(some), bench) for some in (made, shuffle_masks(made, seed=SEED)))
            rows += [ratio_of(f"faithfulness/{data.name}/{engine}", right, real),
                     ratio_of(f"shuffled/{data.name}/{engine}", wrong, real)]
        rows += cost_rows(generators, draw_work(bench, draw, n=BATCH, batch=BATCH)[0], rounds=args.rounds,
                          name=data.name)
    write(rows, args, [SEED])


if __name__ == "__main__":
    run_script(main)

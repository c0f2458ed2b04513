"""Is our trainer level with published code? Released training steps beside our methods: same split, draws and budget.

    python scripts/benchmarks/published.py --data DIR/acdc --groups 3 --out runs/benchmarks --json published.json

The released steps are those of SSL4MIS (github.com/HiLab-git/SSL4MIS: supervised, mean_teacher, cps) and of BCP
(github.com/DeepMed-Lab-ECNU/BCP), written anew in `released.py` after what that code does, with its network, optimiser,
augmentation and weights. What runs for 30,000 steps there runs for `segment.loop.steps` here, ramps as shares of it; it
chooses by validation, here the last step is taken. Every arm makes as many steps over as many labelled images.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import torch
from common import Row, begin, code_hash, comma, data_sets, parser, run_script, settings_for, write
from comparing import Compared, ask_for_labels, labels_of, run_comparison, seeds_of
from released import RELEASED, Run

from segtrain.compare.data import Parts, fingerprint
from segtrain.compare.prepare import prepare
from segtrain.metrics import score_cases
from segtrain.settings import SegmentSettings
from segtrain.summary import RunResult, read_result, write_result
from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit


def released_run(name: str, parts: Parts, draw: int, segment: SegmentSettings, home: Path) -> RunResult:
    """Returns the scores of one released step on one label draw, trained unless `home` has them."""
    labelled, pile = parts.labelled_of(parts.draws[draw]), parts.unlabelled_of(parts.draws[draw])
    seed = derive_seed(segment.loop.seed, "released", draw) % 2**31
    budget = [segment.loop.steps, segment.batch_size, segment.unlabelled_batch_size, segment.size]
    identity = [code_hash(), name, *map(fingerprint, (labelled, pile, parts.test)), budget, seed]
    path = home / "released" / f"{hash_json(identity)}.json"
    if path.exists():
        return read_result(path)
    torch.manual_seed(seed)
    info, span = labelled.info, labelled.info.intensity_range
    pairs = labelled.arrays(segment.size)
    images, test = pixels_to_unit(pairs.images, span), parts.test.arrays(segment.size)
    unlabelled = None if pile is None else pixels_to_unit(pile.arrays(segment.size).images, span)
    done = RELEASED[name](Run(images, torch.from_numpy(pairs.masks).long(), unlabelled, n_classes=info.n_classes,
                              steps=segment.loop.steps,
                              batch_sizes=(segment.batch_size, segment.unlabelled_batch_size)))
    predicted = done.predict(pixels_to_unit(test.images, span))
    cases = score_cases(predicted, torch.from_numpy(test.masks.astype(np.int64)), ids=test.ids, groups=test.groups,
                        n_classes=info.n_classes, tolerance_px=1.0)
    result = RunResult(f"released_{name}", draw, 0, "", segment.loop.steps, done.images_seen, done.unlabelled_seen,
                       done.seconds, n_labelled=len(labelled), n_synthetic=0, n_unlabelled=0 if pile is None else
                       len(pile), cases=cases)
    write_result(result, path)
    return result


def main() -> None:
    """Runs both sides on every data set and writes the rows."""
    arguments = parser(__doc__)
    ask_for_labels(arguments)
    arguments.add_argument("--methods", type=comma(str), default=list(RELEASED), help=f"default {','.join(RELEASED)}")
    args = begin(arguments)
    if strange := sorted({*args.methods} - {*RELEASED}):
        raise UserError(f"--methods {strange[0]}", rule="no such released step",
                        repair=f"choose among {', '.join(RELEASED)}")
    arms = {m: "real" if m == "supervised" else f"real+unlabelled:{m}" for m in args.methods}
    chosen = [*labels_of(args), f"arms={json.dumps(list(dict.fromkeys(['real', *arms.values()])))}"]
    rows, found = [], []
    for data in data_sets(args):
        settings = settings_for(data, args, chosen)
        parts, segment = prepare(settings), SegmentSettings(**{**settings.segment, "size": settings.size})
        if "bcp" in args.methods and segment.batch_size != segment.unlabelled_batch_size:
            raise UserError("segment.unlabelled_batch_size", rule="the released step of bcp mixes as many unlabelled "
                            "images as labelled ones", repair="give segment.batch_size the same number")
        runs: dict[str, list[RunResult]] = {}
        for draw in range(settings.draws):
            for name in args.methods:
                one = released_run(name, parts, draw, segment, args.out / data.name)
                logging.info("%s, draw %d, released %s: Dice %.3f in %.0f s", data.name, draw, name,
                             np.mean([np.mean(case.dice) for case in one.cases]), one.seconds)
                runs.setdefault(one.arm, []).append(one)
        ours = run_comparison(data, "published", args, chosen)
        both = dataclasses.replace(ours, runs={**ours.runs, **runs})
        found.append(both)
        print(f"{data.name}: {both.budget()}")
        rows += rows_of(data.name, both, arms)
    write(rows, args, seeds_of(found))


def rows_of(data: str, both: Compared, arms: dict[str, str]) -> list[Row]:
    """Returns each method's Dice on either side, the difference, and what each side's method gains over its own
    supervised training."""
    rows = []
    for name, arm in arms.items():
        rows += [both.dice_row(f"dice/{data}/{name}", arm),
                 both.dice_row(f"dice/{data}/released_{name}", f"released_{name}"),
                 *both.diff_rows([(arm, f"released_{name}")], f"dice_diff/{data}/{name}-released_{name}")]
        if name != "supervised":
            rows += both.diff_rows([(arm, "real")], f"dice_diff/{data}/{name}-supervised")
            rows += both.diff_rows([(f"released_{name}", "released_supervised")],
                                   f"dice_diff/{data}/released_{name}-released_supervised")
    return rows


if __name__ == "__main__":
    run_script(main)

"""What painted pairs are worth: true to their masks, seamless, diverse, and useful to a segmenter."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from common import Row, cached
from painting import MethodGenerator, Paint, Request

from segtrain.compare.arms import REAL
from segtrain.compare.runs import Bench, Job
from segtrain.compare.splits import LabelDraw
from segtrain.metrics import score_cases
from segtrain.statistics import mean_interval
from segtrain.summary import Judging, RunResult, check_budgets, compare_arms
from segtrain.train import fit
from synth.core.files import hash_json
from synth.core.rng import derive_seed, sample_rng
from synth.core.space import labels_to_keep, pixels_to_unit, unit_to_pixels
from synth.diffusion.inpaint import InpaintPipeline
from synth.draw import draw as draw_pairs
from synth.draw.sources import rows_with_foreground, transform_pairs
from synth.features import FeatureNet, diversity
from synth.gates.scores import faithfulness
from synth.gates.seam import placebo_test
from synth.gates.seam_net import SeamSettings
from synth.layouts import LayoutSettings, learn_anatomy

SEED = 0


@dataclass(frozen=True)
class Work:
    """A batch of transformed pairs to paint around, and their parents' groups."""

    request: Request
    groups: tuple[str, ...]


def draw_work(bench: Bench, draw: LabelDraw, *, n: int, batch: int) -> list[Work]:
    """Returns n transformed labelled pairs in batches, the same for every method."""
    arrays = bench.parts.labelled_of(draw).arrays(bench.settings.size)
    layout = LayoutSettings(**bench.settings.draw["layout"])
    rows, anatomy = rows_with_foreground(arrays), learn_anatomy(arrays, layout)
    keys = [f"bench-{i:05d}" for i in range(n)]
    work = []
    for start in range(0, n, batch):
        sources = transform_pairs(arrays, keys[start:start + batch], rows=rows, seed=SEED, layout=layout,
                                  anatomy=anatomy)
        labels = torch.from_numpy(sources.labels.astype(np.int64))
        request = Request(pixels_to_unit(sources.pixels, arrays.info.intensity_range), labels_to_keep(labels),
                          sources.seeds, labels, torch.from_numpy(sources.keep_in))
        work.append(Work(request, tuple(arrays.groups[r] for r in sources.rows)))
    return work


def as_written(bench: Bench, painted: torch.Tensor) -> torch.Tensor:
    """Returns painted unit images (B, C, S, S) as a file would hold them: rounded to the data's grey levels."""
    info = bench.parts.labelled.info
    return pixels_to_unit(unit_to_pixels(painted, info.intensity_range, info.dtype), info.intensity_range)


def faithfulness_row(name: str, bench: Bench, draw: LabelDraw, done: Sequence[tuple[Work, torch.Tensor]]) -> Row:
    """Returns the mean Dice of the real-only judge with the masks of painted pairs; its interval is over groups."""
    judge, scores, groups = bench.judge(draw), [], []
    for work, painted in done:
        scores.append(faithfulness(judge.predict(as_written(bench, painted)).cpu(), work.request.labels))
        groups += work.groups
    found = mean_interval(torch.cat(scores).double().numpy(), groups, seed=SEED, resamples=bench.settings.resamples)
    return Row(name, found.mean, found.low, found.high)


def placebo_images(bench: Bench, *, n: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Returns n training images, unit (n, C, S, S), labels (n, S, S), and groups; groups take turns, so few are many.

    Masks say where an object is, so that no placebo covers one; images without masks come last. With fewer than n
    they come again, each time with another placebo.
    """
    parts, size = bench.parts, bench.settings.size
    sets = [parts.labelled.arrays(size)] + ([parts.pile.arrays(size)] if parts.pile else [])
    pixels = np.concatenate([s.images for s in sets])
    labels = np.concatenate([np.zeros((len(s), size, size), np.uint8) if s.masks is None else s.masks for s in sets])
    groups = [g for s in sets for g in s.groups]
    shuffled = torch.randperm(len(groups), generator=sample_rng(SEED, "placebo images")).tolist()
    turn: dict[str, int] = {}
    order = []
    for i in sorted(shuffled, key=lambda i: i >= len(sets[0])):
        order.append((turn.setdefault(groups[i], 0), i))
        turn[groups[i]] += 1
    ranked = [i for _, i in sorted(order, key=lambda pair: pair[0])]
    rows = [ranked[k % len(ranked)] for k in range(n)]
    info = parts.labelled.info
    return (pixels_to_unit(pixels[rows], info.intensity_range), torch.from_numpy(labels[rows].astype(np.int64)),
            [groups[i] for i in rows])


def seam_rows(name: str, bench: Bench, paint: Paint, *, n: int, identity: str, settings: SeamSettings) -> list[Row]:
    """Returns the placebo test of one method, cached under `identity`.

    `seam_auc` sets kept pixels against those of a decoy drawn by the same law, so 0.5 is exactly no seam;
    `seam_auc_all` sets them against all other pixels, where the place alone gives `seam_chance`.
    """
    def make() -> dict[str, float | None]:
        images, labels, groups = placebo_images(bench, n=n)
        found = placebo_test(lambda x, keep, seeds: paint(Request(x, keep, seeds)), images, labels, settings=settings,
                             groups=groups, info=bench.parts.labelled.info, shown=paint.shown)
        return dataclasses.asdict(found)

    known = cached(bench.out / "scores", ["seam", identity, bench.parts.source, n, settings.model_dump(mode="json")],
                   make)
    return [Row(f"seam_auc/{name}", known["paired_auc"], known["paired_lo"], known["paired_hi"]),
            Row(f"seam_auc_all/{name}", known["auc"], known["auc_lo"], known["auc_hi"]),
            Row(f"seam_chance/{name}", known["chance_auc"]), Row(f"seam_n/{name}", known["n_images"], unit="images")]


def diversity_row(name: str, bench: Bench, paint: Paint, work: Sequence[Work], *, n_masks: int, features: FeatureNet,
                  n_samples: int = 4) -> Row:
    """Returns the mean perceptual distance of `n_samples` paintings of one mask; the interval is over masks."""
    found, groups = [], []
    for one, i in [(w, i) for w in work for i in range(len(w.groups))][:n_masks]:
        r = one.request
        again = [derive_seed(r.seeds[i], "again", k) for k in range(n_samples)]
        same = Request(*(t[i:i + 1].expand(n_samples, *t.shape[1:]) for t in (r.image, r.keep)), again,
                       *(t[i:i + 1].expand(n_samples, *t.shape[1:]) for t in (r.labels, r.keep_in)))
        found.append(float(diversity(paint(same), features)))
        groups.append(str(len(groups)))
    mean = mean_interval(np.array(found), groups, seed=SEED, resamples=bench.settings.resamples)
    return Row(name, mean.mean, mean.low, mean.high)


# Utility --------------------------------------------------------------------------------------------------------------

def trained_on(bench: Bench, draw: LabelDraw, generator: MethodGenerator, *, n: int, batch: int) -> RunResult:
    """Returns what a segmenter scores on the test images that learnt from the real pairs and n drawn ones.

    No gates: what a method paints is what its segmenter gets. Steps and images seen are those of every other arm.
    """
    settings, labelled = bench.settings, bench.parts.labelled_of(draw)
    size, seed = settings.size, derive_seed(settings.split.seed, "training", draw.index, 0) % 2**31
    key = hash_json([generator.content_hash(), generator.sampler_settings(), settings.segment, settings.draw,
                     bench.parts.source, draw.labelled, n, batch, seed])
    made = draw_pairs(generator, labelled, n=n, seed=SEED, out=bench.out / "cache" / f"drawn-{key}",
                      config={**{k: v for k, v in settings.draw.items() if k != "supply"}, "batch_size": batch,
                              "shard_size": batch})
    segmenter = fit(settings.segment, labelled, synthetic=made, method="supervised",
                    out=bench.out / "cache" / f"trained-{key}", held_out=tuple(sorted(set(bench.parts.test.groups))),
                    overrides=(f"size={size}", f"loop.seed={seed}"))
    test, done = bench.test, segmenter.result
    images = pixels_to_unit(test.images, test.info.intensity_range)
    predicted = torch.cat([segmenter.predict_labels(part).cpu() for part in images.split(32)])
    cases = score_cases(predicted, torch.from_numpy(test.masks.astype(np.int64)), ids=test.ids, groups=test.groups,
                        n_classes=test.info.n_classes, tolerance_px=settings.nsd_tolerance_px)
    return RunResult(generator.name, draw.index, 0, f"trained-{key}", done.steps, done.counts["images_seen"], 0,
                     done.seconds, len(labelled), len(made), 0, cases)


def utility_rows(bench: Bench, draw: LabelDraw, pipeline: InpaintPipeline, paints: Mapping[str, Paint], *,
                 budgets: Mapping[str, int], batch: int, baseline: str | None = None) -> list[Row]:
    """Returns the Dice of a segmenter for each method, and how it differs from real pairs alone and from `baseline`.

    Args:
        budgets: pairs drawn by each method. baseline: a method; None = real pairs alone are the only baseline.
    """
    runs = {"real": [bench.result(Job(REAL, draw))]}
    for name, paint in paints.items():
        logging.info("utility: %s draws %d pairs and trains", name, budgets[name])
        runs[name] = [trained_on(bench, draw, MethodGenerator(pipeline, name, paint), n=budgets[name], batch=batch)]
    check_budgets([run for some in runs.values() for run in some])
    rows = [dice_row(f"utility/{name}", some, bench) for name, some in runs.items()]
    pairs = [(name, base) for name in paints for base in ("real", baseline) if base in runs and base != name]
    judging = Judging(bench.settings.test_seed, bench.settings.resamples)
    return rows + [Row(f"utility_diff/{c.arm}-{c.baseline}", c.dice_diff, *(c.ci or (None, None)))
                   for c in compare_arms(runs, pairs, judging)]


def dice_row(name: str, runs: Sequence[RunResult], bench: Bench) -> Row:
    """Returns the mean Dice over test cases; its interval is over groups."""
    dice = np.array([[np.mean(case.dice) for case in run.cases] for run in runs]).mean(0)
    found = mean_interval(dice, [c.group for c in runs[0].cases], seed=bench.settings.test_seed,
                          resamples=bench.settings.resamples)
    return Row(name, found.mean, found.low, found.high)

"""What a start without any label is worth: images of some patients, masks of others, Dice on a third part's patients.

    python scripts/benchmarks/zero_label.py --data DIR --out runs/benchmarks --json zero_label.json [KEY=VALUE ...]

DIR holds the sets as folders isic_skin and covid_cxr. In each draw, the masks of `--masks` images of drawn training
groups are the auxiliary set; their images are not used, but by `supervised`, which learns from those very pairs. The
images of the other training groups are unlabelled. Rows: `labeller` (the unpaired fit itself), `annotation_efficient`
(a segmenter taught by its labels), `supervised`, and two controls that learn nothing from an image: `mean_mask` (what
most auxiliary masks show) and `otsu` (a threshold of the grey image; foreground is the side that touches the border
less). The rows `dice_labels` are the Dice of the labels that the segmenter learns from. Fits resume.
KEY=VALUE are settings of configs/tiny/unpaired.yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import ROOT, Row, begin, comma, parser, run_script, write

from segtrain.compare.data import choose, hide, shrink
from segtrain.compare.splits import Member, draw_labels, split_test
from segtrain.metrics import CaseScores, score_cases
from segtrain.statistics import crossed_interval
from segtrain.train import fit as fit_segmenter
from synth.core.checks import UserError
from synth.core.files import hash_json, replace_file
from synth.core.pairs import Arrays, ImageSet, PairSet, memory_set
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit, unit_to_pixels
from synth.fit import fit as fit_generator
from synth.formats import encode_png, load_masks, load_pairs
from synth.gan.unpaired.batches import frames_of
from synth.gan.unpaired.label import LabelPipeline, label, load_labeller

SEED = 0
CLASSES = {"isic_skin": {0: 0, 1: 1}, "covid_cxr": {0: 0, 1: 1, 2: 1, 3: 0}}
"""Class of each mask value; of chest X-rays both lungs are one class, and the heart is background."""
NAMES = {"isic_skin": "lesion", "covid_cxr": "lung"}
TEST_SHARE = 0.3


@dataclass(frozen=True)
class Draw:
    """One draw: `known` pairs, whose masks are the auxiliary set, and the `pile` of other groups' images.

    Attributes:
        truth: the pile with its masks, to judge labels, for nothing else. test: of groups that are in neither.
    """

    known: PairSet
    pile: ImageSet
    truth: PairSet
    test: PairSet


def read_set(folder: Path, size: int) -> PairSet:
    """Returns a set at `size` px, its classes joined as `CLASSES` says."""
    pairs, table = shrink(load_pairs(folder), size), np.arange(256, dtype=np.uint8)
    for old, new in CLASSES[folder.name].items():
        table[old] = new
    info = dataclasses.replace(pairs.info, classes=("background", NAMES[folder.name]))
    return memory_set([p.image for p in pairs], [table[p.mask] for p in pairs], info, ids=pairs.ids,
                      groups=pairs.groups)


def draw_parts(pairs: PairSet, draw: int, *, n_masks: int, cap: int | None) -> Draw:
    """Returns draw `draw`; no group is in two of its parts."""
    members = [Member(i, g) for i, g in zip(pairs.ids, pairs.groups, strict=True)]
    split = split_test(members, seed=SEED, share=TEST_SHARE, cap=cap)
    training = choose(pairs, split.training)
    drawn = draw_labels([Member(i, g) for i, g in zip(training.ids, training.groups, strict=True)], seed=SEED,
                        draw=draw, budget=n_masks)
    known = choose(training, drawn.labelled)
    taken = set(known.groups)
    truth = training.select([i for i, g in enumerate(training.groups) if g not in taken])
    return Draw(known, hide(truth), truth, choose(pairs, split.test))


def otsu(image: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Returns the side of Otsu's threshold (1979) that touches the border of pixels (C, H, W) less, (H, W) uint8.

    It knows the frame (H, W) bool that the labeller knows: no foreground there, and its levels do not count.
    """
    grey = image.astype(np.float64).mean(0)
    counts, edges = np.histogram(grey[~frame], 256)
    share, middle = counts / counts.sum(), (edges[1:] + edges[:-1]) / 2
    below, moment = np.cumsum(share), np.cumsum(share * middle)
    apart = (moment[-1] * below - moment) ** 2 / np.maximum(below * (1 - below), 1e-12)
    side = grey > edges[1 + int(apart[:-1].argmax())]
    rim = np.pad(np.zeros((grey.shape[0] - 2, grey.shape[1] - 2), bool), 1, constant_values=True) & ~frame
    if rim.any() and side[rim].mean() > 0.5:
        side = ~side
    return (side & ~frame).astype(np.uint8)


class Bench:
    """The fits of one set."""

    def __init__(self, name: str, args: argparse.Namespace, *, size: int) -> None:
        self.name, self.args, self.size = name, args, size
        self.home = args.out / "zero_label" / name
        self.pairs = read_set(args.data[0] / name, size)

    def parts(self, draw: int) -> Draw:
        """Returns the parts of a draw."""
        return draw_parts(self.pairs, draw, n_masks=self.args.masks, cap=self.args.max_test)

    def labels(self, parts: Draw, draw: int) -> tuple[LabelPipeline, Path]:
        """Returns the labeller of a draw, and the folder of its labels of the pile."""
        home = self.home / hash_json([draw, self.args.masks, self.size, self.args.overrides, self.args.quick])
        masks = home / "masks"
        masks.mkdir(parents=True, exist_ok=True)
        for pair in parts.known:
            replace_file(masks / f"{pair.id}.png", lambda p, m=pair.mask: p.write_bytes(encode_png(m)))
        quick = ["loop.steps=20", "health.max_alike=1", "health.swap_margin=1"] if self.args.quick else []
        fit_generator(ROOT / "configs" / "tiny" / "unpaired.yaml", None, parts.pile, masks=load_masks(masks),
                      out=home / "fit", overrides=[f"size={self.size}", f"loop.seed={derive_seed(SEED, draw) % 2**31}",
                                                   *quick, *self.args.overrides])
        labeller = load_labeller(home / "fit")
        return labeller, label(labeller, parts.pile, out=home / "labels")

    def segment(self, parts: Draw, draw: int, labels: Path | None) -> torch.Tensor:
        """Returns what a segmenter says of the test images: taught by `labels`, or, without any, by the known pairs."""
        words = {"overrides": [f"size={self.size}", f"loop.seed={derive_seed(SEED, draw) % 2**31}",
                               *(["loop.steps=12"] if self.args.quick else [])]}
        config, held = ROOT / "configs" / "tiny" / "segment.yaml", sorted(set(parts.test.groups))
        name = "supervised" if labels is None else "annotation_efficient"
        out = (self.home / f"supervised-{draw}-{self.args.masks}-{self.args.quick}" if labels is None
               else labels.parent / "segmenter")
        net = fit_segmenter(config, parts.known if labels is None else None, method=name, out=out, held_out=held,
                            unlabelled=None if labels is None else parts.pile, stored=labels, **words)
        return torch.cat([net.predict_labels(some).cpu() for some in _unit(parts.test.arrays(self.size)).split(32)])

    def scores(self, draw: int) -> tuple[dict[str, tuple[CaseScores, ...]], tuple[CaseScores, ...]]:
        """Returns the scores of every arm on the test cases, and those of the labels of the pile."""
        parts = self.parts(draw)
        test = parts.test.arrays(self.size)
        labeller, folder = self.labels(parts, draw)
        frames = frames_of(test.images, keep_in=labeller.config.keep_in)
        usual = parts.known.arrays(self.size).masks.mean(0) >= 0.5
        said = {"labeller": labeller.look(test.images).probabilities.argmax(1),
                "annotation_efficient": self.segment(parts, draw, folder),
                "supervised": self.segment(parts, draw, None),
                "mean_mask": torch.from_numpy(usual).long().expand(len(test), -1, -1),
                "otsu": torch.from_numpy(np.stack([otsu(*both) for both in zip(
                    test.images, frames, strict=True)])).long()}
        self._picture(parts, said)
        truth = parts.truth.arrays(self.size)
        written = load_masks(folder)
        labels = torch.from_numpy(np.stack([written[written.ids.index(i)] for i in truth.ids])).long()
        return {arm: _score(labels_, test) for arm, labels_ in said.items()}, _score(labels, truth)

    def _picture(self, parts: Draw, said: dict[str, torch.Tensor], n: int = 12) -> None:
        # Test images, their truth, and what every arm says of them; to be looked at, and kept out of any report.
        test = parts.test.arrays(self.size)
        grey = unit_to_pixels(_unit(test)[:n], (0, 255), np.dtype(np.uint8))
        images = np.broadcast_to(grey, (len(grey), 3, *grey.shape[-2:]))
        rows = [images] + [np.repeat(np.asarray(m[:n], np.uint8)[:, None] * 255, 3, 1)
                           for m in (torch.from_numpy(test.masks), *said.values())]
        grid = np.concatenate([np.concatenate(list(row), -1) for row in rows], 1).transpose(1, 2, 0)
        replace_file(self.home / "looked_at.png", lambda p: p.write_bytes(encode_png(np.ascontiguousarray(grid))))


def _unit(arrays: Arrays) -> torch.Tensor:
    return pixels_to_unit(arrays.images, arrays.info.intensity_range)


def _score(predicted: torch.Tensor, truth: Arrays) -> tuple[CaseScores, ...]:
    return score_cases(predicted, torch.from_numpy(truth.masks.astype(np.int64)), ids=truth.ids, groups=truth.groups,
                       n_classes=truth.info.n_classes, tolerance_px=1.0)


def rows_of(name: str, runs: Sequence[dict[str, tuple[CaseScores, ...]]], *, resamples: int) -> list[Row]:
    """Returns the mean Dice of every arm, and paired differences; intervals over draws and groups."""
    groups = [case.group for case in runs[0]["labeller"]]
    tables = {arm: np.array([[np.mean(c.dice) for c in run[arm]] for run in runs]) for arm in runs[0]}
    ours = ("labeller", "annotation_efficient")
    against = [(a, b) for a in ours for b in ("mean_mask", "otsu", "supervised")] + [ours[::-1]]
    rows = []
    for row, table in ([(f"dice/{name}/{arm}", t) for arm, t in tables.items()]
                       + [(f"dice_diff/{name}/{a}-{b}", tables[a] - tables[b]) for a, b in against]):
        found = crossed_interval(table, groups, seed=SEED, resamples=resamples)
        rows.append(Row(row, found.mean, found.low, found.high))
    return rows


def label_row(name: str, runs: Sequence[tuple[CaseScores, ...]], *, resamples: int) -> Row:
    """Returns the mean Dice of the first draw's labels with the truth that no fit saw; the interval is over groups."""
    table = np.array([[np.mean(c.dice) for c in runs[0]]])
    found = crossed_interval(table, [c.group for c in runs[0]], seed=SEED, resamples=resamples)
    return Row(f"dice_labels/{name}", found.mean, found.low, found.high)


def main() -> None:
    """Fits, labels, trains and scores on every set, and writes the rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--draws", type=int, default=None, help="draws of masks; default 3, quick 1")
    arguments.add_argument("--masks", type=int, default=None, help="auxiliary masks; default 40, quick 8")
    arguments.add_argument("--max-test", type=int, default=None, help="test images at most; default all, quick 8")
    arguments.add_argument("--size", type=int, default=64, help="side of the images, px; default 64")
    arguments.add_argument("--sets", type=comma(str), default=list(CLASSES), help=f"default {','.join(CLASSES)}")
    args = begin(arguments)
    if len(args.data) != 1:
        raise UserError("--data", rule="one folder that holds the sets", repair="--data DIR")
    for name in args.sets:
        if name not in CLASSES:
            raise UserError(f"--sets {name}", rule="no such one", repair=f"choose among {', '.join(CLASSES)}")
    n_draws, resamples = args.draws or (1 if args.quick else 3), 999 if args.quick else 9999
    args.masks, args.max_test = args.masks or (8 if args.quick else 40), args.max_test or (8 if args.quick else None)
    rows = []
    for name in args.sets:
        bench = Bench(name, args, size=args.size)
        runs = []
        for draw in range(n_draws):
            runs.append(bench.scores(draw))
            logging.info("%s, draw %d: %s", name, draw, ", ".join(
                f"{arm} {np.mean([np.mean(c.dice) for c in cases]):.3f}" for arm, cases in runs[-1][0].items()))
        rows += rows_of(name, [run for run, _ in runs], resamples=resamples)
        rows.append(label_row(name, [labels for _, labels in runs], resamples=resamples))
    write(rows, args, [SEED])


if __name__ == "__main__":
    run_script(main)

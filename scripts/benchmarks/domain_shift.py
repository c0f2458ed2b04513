"""Do changes of spectra in training help at another centre? Supervised arms, trained in one domain, tested in another.

    python scripts/benchmarks/domain_shift.py --data DIR --out runs/benchmarks --json domain_shift.json [KEY=VALUE ...]

DIR holds the data sets as folders of the shifts' names (drive, chase_db1, ...). Every arm of a shift has the same label
draws, steps, images and starting weights; test images are seen by none, but for `fda_target` (their unlabelled images
lend amplitudes in training) and `align` (`none`'s model, all test images brought to the training spectrum first):
both use the new centre's images without labels, and are no zero-shot arms. Runs are cached by content and resume.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from common import CONFIG, Row, begin, comma, parser, run_script, write

from segtrain.compare.data import choose, fingerprint, hide, shrink
from segtrain.compare.settings import load_settings
from segtrain.compare.splits import Member, draw_labels, split_test
from segtrain.metrics import score_cases
from segtrain.segmenter import Segmenter
from segtrain.settings import SegmentSettings
from segtrain.statistics import crossed_interval
from segtrain.summary import (
    Judging,
    RunResult,
    by_draw,
    case_table,
    check_budgets,
    compare_arms,
    read_result,
    write_result,
)
from segtrain.train import fit
from synth.core.checks import IGNORE, UserError
from synth.core.config import load_config
from synth.core.files import hash_json
from synth.core.pairs import ImageSet, PairSet
from synth.core.rng import derive_seed
from synth.core.space import pixels_to_unit
from synth.core.version import VERSION
from synth.formats import load_pairs
from synth.spectral import FrequencyPrior

STRENGTH = (0.0, 0.15)
RATIO = {"form": "ratio", "strength": STRENGTH, "kind": "edge_raw"}
COLOUR = {"p_colour": 0.8, "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1, "p_blur": 0.5}


@dataclass(frozen=True)
class Side:
    """One side of a shift.

    Attributes:
        data: name of the set. domain: of its `domains.csv`; "" = all. shape: height and width, px, of the images that
            are meant; None = any. A set collected from many devices has one size for each. others: the images of every
            other shape are meant.
    """

    data: str
    domain: str = ""
    shape: tuple[int, int] | None = None
    others: bool = False


@dataclass(frozen=True)
class Shift:
    """Where labels are, and where the segmenter is tried.

    Attributes:
        target: None = a split of the source by group. size: side that all images are brought to, px.
    """

    source: Side
    target: Side | None
    size: int = 64


FLUORESCENCE = Side("dsb2018_nuclei", "fluorescence_dark")
MICROSCOPE, DIMMER, WIDER = (dataclasses.replace(FLUORESCENCE, shape=shape)
                             for shape in ((256, 256), (360, 360), (287, 384)))
CAMERA = Side("isic_skin", "melanoma", shape=(288, 384))
SHIFTS = {
    "drive-chase_db1": Shift(Side("drive"), Side("chase_db1"), size=128),
    "chase_db1-drive": Shift(Side("chase_db1"), Side("drive"), size=128),
    "nuclei_microscope-dimmer": Shift(MICROSCOPE, DIMMER),
    "nuclei_microscope-wider": Shift(MICROSCOPE, WIDER),
    "nuclei_dimmer-microscope": Shift(DIMMER, MICROSCOPE),
    "isic_camera-others": Shift(CAMERA, dataclasses.replace(CAMERA, others=True)),
    "nuclei_microscope-itself": Shift(MICROSCOPE, None),
    "nuclei_fluorescence-stained": Shift(FLUORESCENCE, Side("dsb2018_nuclei", "stained_colour")),
    "nuclei_fluorescence-brightfield": Shift(FLUORESCENCE, Side("dsb2018_nuclei", "brightfield_grey")),
    "isic_benign-melanoma": Shift(Side("isic_skin", "benign"), Side("isic_skin", "melanoma")),
    "kvasir_seg-kvasir_seg": Shift(Side("kvasir_seg"), None),
}
"""`microscope-itself` and the last two are controls: the same kind of images on both sides. From fluorescence to
stained or brightfield nuclei dark and bright change places; the others are of another device."""


@dataclass(frozen=True)
class Arm:
    """What an arm changes of the supervised recipe.

    Attributes:
        intensity, spectrum, random_net: of `augment`. lender: whose images, without labels, lend amplitudes.
        aligned: whether test images are brought to the training spectrum. normalise: what the network sees.
    """

    intensity: dict[str, float] = dataclasses.field(default_factory=dict)
    spectrum: dict[str, dict] = dataclasses.field(default_factory=dict)
    random_net: dict[str, float] = dataclasses.field(default_factory=dict)
    lender: str = ""
    aligned: bool = False
    normalise: str = ""


# What FPGM's code makes of an image is far from it at any strength, so half of the images stay: its method shows the
# other views as they are too.
ARMS = {
    "none": Arm(),
    "colour": Arm(intensity=COLOUR),
    "blur_sharpen": Arm(spectrum={"as_far": {"like": RATIO, "shape": "either"}}),
    "one_over_f": Arm(spectrum={"as_far": {"like": RATIO, "shape": "tilt"}}),
    "contour_only": Arm(spectrum={"frequency": {**RATIO, "kind": "contour_only"}}),
    "fda": Arm(spectrum={"fda": {"p": 0.5}}, lender="source"),
    "fda_target": Arm(spectrum={"fda": {"p": 0.5}}, lender="target"),
    "coded": Arm(spectrum={"frequency": {"form": "coded", "strength": (0.05, 0.05), "p": 0.5, "kind": "edge_raw",
                                         "channels": "grey"}}),
    "ratio": Arm(spectrum={"frequency": RATIO}),
    "ratio_whole": Arm(spectrum={"frequency": {**RATIO, "kind": "whole"}}),
    "align": Arm(aligned=True),
    "by_image": Arm(normalise="image"),
    "ratio_by_image": Arm(spectrum={"frequency": RATIO}, normalise="image"),
    "colour_by_image": Arm(intensity=COLOUR, normalise="image"),
    "random_net_by_image": Arm(random_net={"p": 0.5}, normalise="image"),
    "random_net": Arm(random_net={"p": 0.5}),
    "random_net_negative": Arm(random_net={"p": 0.5, "p_negative": 0.5}),
    "colour_random_net": Arm(intensity=COLOUR, random_net={"p": 0.5}),
}


@dataclass(frozen=True)
class Part:
    """The sets of one shift at its size: `training` (labels are drawn from it) and `test`; `size` in px."""

    training: PairSet
    test: PairSet
    size: int

    @cached_property
    def prints(self) -> tuple[str | None, str | None]:
        """Fingerprints of both."""
        return fingerprint(self.training), fingerprint(self.test)

    @cached_property
    def members(self) -> list[Member]:
        """The training images, as far as a draw of labels needs them."""
        return [Member(p.id, p.group, bool(((p.mask > 0) & (p.mask != IGNORE)).any())) for p in self.training]


def read_part(root: Path, shift: Shift, *, size: int, seed: int, cap: int | None) -> Part:
    """Returns both sides of a shift; groups that would stand on both are an error, not a warning."""
    source = _read_side(root, shift.source)
    if shift.target is None:
        split = split_test([Member(i, g) for i, g in zip(source.ids, source.groups, strict=True)], seed=seed, share=0.3,
                           cap=cap)
        return Part(shrink(choose(source, split.training), size), shrink(choose(source, split.test), size), size)
    target = _read_side(root, shift.target, like=source)
    if shared := sorted(set(source.groups) & set(target.groups)):
        raise UserError(f"{target.where}: group {shared[0]}", rule="it is on both sides of the shift",
                        repair="give true groups in groups.csv")
    if cap is not None and len(target) > cap:
        order = sorted(range(len(target)), key=lambda i: derive_seed(seed, "test", target.ids[i]))
        target = target.select(sorted(order[:cap]))
    return Part(shrink(source, size), shrink(target, size), size)


def _read_side(root: Path, side: Side, *, like: PairSet | None = None) -> PairSet:
    folder = root / side.data
    pairs = load_pairs(folder, channels=3, like=None if like is None else like.info)
    if side.domain:
        with (folder / "domains.csv").open(encoding="utf-8", newline="") as handle:
            domains = {row["name"]: row["domain"] for row in csv.DictReader(handle)}
        pairs = choose(pairs, [i for i in pairs.ids if domains.get(i) == side.domain])
    if side.shape is None:
        return pairs
    return choose(pairs, [pair.id for pair in pairs if (pair.image.shape[:2] == side.shape) != side.others])


class Runs:
    """The runs of one shift, trained when first asked for and found again ever after."""

    def __init__(self, part: Part, settings: SegmentSettings, args: argparse.Namespace, *, seed: int) -> None:
        self.part, self.settings, self.labels, self.seed = part, settings, args.labels, seed
        self.home = args.out / "domain_shift"

    def result(self, name: str, draw: int) -> RunResult:
        """Returns the scores of an arm's run with one draw of labels."""
        identity = [*self._trained(name, draw), self.part.prints[1], ARMS[name].aligned]
        path = self.home / "scores" / f"{hash_json(identity)}.json"
        if not path.exists():
            write_result(self._score(name, draw), path)
        return read_result(path)

    def _given(self, name: str, draw: int) -> tuple[PairSet, ImageSet | None]:
        drawn = draw_labels(self.part.members, seed=self.seed, draw=draw, budget=self.labels)
        labelled = choose(self.part.training, drawn.labelled)
        lender = ARMS[name].lender
        rest = choose(self.part.training, drawn.hidden) if lender == "source" else self.part.test
        return labelled, hide(rest) if lender else None

    def _plan(self, name: str, draw: int) -> SegmentSettings:
        arm, seed = ARMS[name], derive_seed(self.seed, "training", draw) % 2**31
        changes = {"augment": {"intensity": {**self.settings.augment.intensity.model_dump(), **arm.intensity},
                               "geometry": self.settings.augment.geometry.model_dump(), "spectrum": arm.spectrum,
                               "random_net": arm.random_net},
                   "loop": {**self.settings.loop.model_dump(), "seed": seed}, "size": self.part.size,
                   "normalise": arm.normalise or self.settings.normalise}
        return load_config(SegmentSettings, {**self.settings.model_dump(mode="json"), **changes})

    def _trained(self, name: str, draw: int) -> list:
        labelled, pile = self._given(name, draw)
        read = self._plan(name, draw).identity(synthetic=False, unlabelled=pile is not None)
        return [VERSION, read, fingerprint(labelled), fingerprint(pile)]

    def _train(self, name: str, draw: int) -> tuple[Segmenter, PairSet]:
        labelled, pile = self._given(name, draw)
        # A run whose unlabelled images are the test set's own may not have their groups barred.
        held_out = () if ARMS[name].lender == "target" else sorted(set(self.part.test.groups))
        folder = self.home / "cache" / hash_json(self._trained(name, draw))
        return fit(self._plan(name, draw), labelled, unlabelled=pile, method="supervised", out=folder,
                   held_out=held_out), labelled

    def _score(self, name: str, draw: int) -> RunResult:
        segmenter, labelled = self._train(name, draw)
        test = self.part.test.arrays(self.part.size)
        align = None
        if ARMS[name].aligned:
            prior = FrequencyPrior.fit(hide(self.part.training), kind="whole", size=self.part.size)
            align = segmenter.fit_alignment(hide(self.part.test), prior)
        images = pixels_to_unit(test.images, test.info.intensity_range)
        predicted = torch.cat([segmenter.predict_labels(some, align=align).cpu() for some in images.split(32)])
        cases = score_cases(predicted, torch.from_numpy(test.masks.astype(np.int64)), ids=test.ids, groups=test.groups,
                            n_classes=test.info.n_classes, tolerance_px=1.0)
        done = segmenter.result
        return RunResult(name, draw, 0, "", done.steps, done.counts["images_seen"],
                         done.counts.get("unlabelled_seen", 0), done.seconds, n_labelled=len(labelled), n_synthetic=0,
                         n_unlabelled=0, cases=cases)


def rows_of(shift: str, runs: dict[str, list[RunResult]], judging: Judging) -> list[Row]:
    """Returns the mean Dice of every arm and its paired difference from `none`, intervals over draws and groups."""
    check_budgets([run for some in runs.values() for run in some])
    rows = []
    for arm, some in runs.items():
        groups = [case.group for case in some[0].cases]
        found = crossed_interval(by_draw(some, case_table(some, "dice")), groups, seed=judging.seed,
                                 resamples=judging.resamples)
        rows.append(Row(f"dice/{shift}/{arm}", found.mean, found.low, found.high))
    pairs = [(arm, "none") for arm in runs if arm != "none" and "none" in runs]
    return rows + [Row(f"dice_diff/{shift}/{c.arm}-none", c.dice_diff, *(c.ci or (None, None)))
                   for c in compare_arms(runs, pairs, judging)]


def known(names: Sequence[str], among: Sequence[str], what: str) -> None:
    """Returns nothing; raises a UserError if a name is not one of those known."""
    for name in names:
        if name not in among:
            raise UserError(f"--{what} {name}", rule="no such one", repair=f"choose among {', '.join(among)}")


def main() -> None:
    """Trains every arm on every shift and writes the rows."""
    arguments = parser(__doc__)
    arguments.add_argument("--draws", type=int, default=None, help="label draws; default 5, quick 1")
    arguments.add_argument("--labels", type=int, default=20, help="labelled images of each; default 20")
    arguments.add_argument("--max-test", type=int, default=None, help="test images at most; default all, quick 8")
    arguments.add_argument("--arms", type=comma(str), default=list(ARMS), help=f"default {','.join(ARMS)}")
    arguments.add_argument("--shifts", type=comma(str), default=list(SHIFTS), help=f"default {','.join(SHIFTS)}")
    args = begin(arguments)
    known(args.arms, list(ARMS), "arms"), known(args.shifts, list(SHIFTS), "shifts")
    if len(args.data) != 1:
        raise UserError("--data", rule="one folder that holds the data sets of all shifts", repair="--data DIR")
    quick = ["segment.loop.steps=8"] if args.quick else []
    compared = load_settings(CONFIG, [*quick, *args.overrides])
    settings, judging = SegmentSettings(**compared.segment), Judging(compared.test_seed, compared.resamples)
    n_draws, rows = args.draws or (1 if args.quick else 5), []
    for name in args.shifts:
        shift = SHIFTS[name]
        part = read_part(args.data[0], shift, size=64 if args.quick else shift.size, seed=compared.split.seed,
                         cap=args.max_test or (8 if args.quick else None))
        bench, runs = Runs(part, settings, args, seed=compared.split.seed), {}
        for draw in range(n_draws):
            for arm in args.arms:
                runs.setdefault(arm, []).append(bench.result(arm, draw))
                logging.info("%s, draw %d, %s: Dice %.3f in %.0f s", name, draw, arm, _dice(runs[arm][-1]),
                             runs[arm][-1].seconds)
        rows += rows_of(name, runs, judging)
    write(rows, args, [compared.split.seed])


def _dice(run: RunResult) -> float:
    return float(np.mean([np.mean(case.dice) for case in run.cases]))


if __name__ == "__main__":
    run_script(main)

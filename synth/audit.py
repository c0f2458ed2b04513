"""`synth audit`: a drawn set against its hashes, or with --seam a fitted generator against the placebo test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import indent

import numpy as np
import torch

from synth.core.checks import UserError
from synth.core.config import load_config, to_yaml
from synth.core.data import DataSettings
from synth.core.files import check_room, write_json
from synth.core.pairs import Arrays, ImageSet, PairSet
from synth.core.rng import sample_rng
from synth.core.shell import is_main, refuse, required, say, take, take_number
from synth.core.space import pixels_to_unit
from synth.draw import verify_shards
from synth.fit import load_generator
from synth.formats import load_images, load_pairs
from synth.gates.probe import SeamProbe, fit_seam_probe
from synth.gates.seam import Paint, SeamResult, Shown, placebo_test
from synth.gates.seam_net import SeamSettings
from synth.generator import Generator
from synth.show import summary


def generator_paint(generator: Generator) -> Paint:
    """Returns `generator.paint` as the placebo test calls it.

    Raises:
        UserError: if the generator cannot keep pixels: one that draws from the mask alone would take a placebo for
            an object.
    """
    paint = getattr(generator, "paint", None)
    if paint is None:
        raise UserError(type(generator).__name__, rule="it keeps no pixels, so it leaves no seam to look for",
                        repair="give the folder of an inpainting generator")
    return lambda images, keep, seeds: paint(images, keep, seeds=seeds)


def generator_shown(generator: Generator) -> Shown | None:
    """Returns how `generator` shows what it paints around, for the placebo test; None = painted like all the rest."""
    return None if generator.keeps == "nothing" else generator.transformed


def _arrays(generator: Generator, images: ImageSet) -> Arrays:
    if generator.scale == "native":
        raise UserError("scale=native", rule="the placebo test resizes whole images, which this generator never saw",
                        repair="audit one of scale=fit that was fitted on the same images")
    arrays = images.arrays(generator.size)
    info = arrays.info
    if generator.channels != info.channels or generator.intensity_range != tuple(info.intensity_range):
        raise UserError(images.where, rule=f"images of {info.channels} channel(s), range {info.intensity_range}, do "
                        f"not fit a generator of {generator.channels} channel(s), range {generator.intensity_range}",
                        repair="audit it on the kind of data it was fitted on")
    return arrays


def _labels(arrays: Arrays) -> np.ndarray:
    """Returns the labels (N, S, S), zeros without any."""
    n, size = len(arrays), arrays.images.shape[-1]
    return np.zeros((n, size, size), np.int64) if arrays.masks is None else arrays.masks.astype(np.int64)


def audit_seam(generator: Generator, labelled: PairSet, unlabelled: ImageSet | None = None, *, n: int = 200,
               settings: SeamSettings | None = None, out: str | Path | None = None) -> SeamResult:
    """Returns the placebo test of `generator` on n real images, labelled and unlabelled ones in random order.

    With fewer than n images they come again, each time with another placebo; their group holds them on one side.

    Args:
        out: folder of the test's training runs; None = a temporary one.

    Raises:
        UserError: if the generator keeps no pixels or does not fit the images, n is below 2, or as `placebo_test`.
    """
    settings = settings or SeamSettings()
    images, labels, groups = _drawn_images(generator, labelled, unlabelled, n=n, seed=settings.seed)
    return placebo_test(generator_paint(generator), images, labels, settings=settings, groups=groups,
                        info=labelled.info, out=out, shown=generator_shown(generator))


def fit_probe(generator: Generator, labelled: PairSet, unlabelled: ImageSet | None = None, *, n: int = 200,
              settings: SeamSettings | None = None, out: str | Path) -> SeamProbe:
    """Returns the seam gate of `generator`, fitted on placebos in n real images and saved in `out`.

    Raises:
        UserError: as `audit_seam`.
    """
    settings = settings or SeamSettings()
    images, labels, groups = _drawn_images(generator, labelled, unlabelled, n=n, seed=settings.seed)
    return fit_seam_probe(generator_paint(generator), images, labels, settings=settings, groups=groups,
                          info=labelled.info, out=out, shown=generator_shown(generator))


def _drawn_images(generator: Generator, labelled: PairSet, unlabelled: ImageSet | None, *, n: int,
                  seed: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Returns n unit images (n, C, S, S) in random order, their labels (n, S, S) and groups."""
    generator_paint(generator)  # refuses one that keeps no pixels before anything is read
    if n < 2:
        raise UserError(f"n={n}", rule="some images train the test and others are held out", repair="write n=200")
    sets = [_arrays(generator, s) for s in (labelled, unlabelled) if s is not None]
    pixels, labels = np.concatenate([s.images for s in sets]), np.concatenate([_labels(s) for s in sets])
    groups = [g for s in sets for g in s.groups]
    order = torch.randperm(len(pixels), generator=sample_rng(seed, "audit")).tolist()
    rows = [order[k % len(order)] for k in range(n)]
    return (pixels_to_unit(pixels[rows], labelled.info.intensity_range), torch.from_numpy(labels[rows]),
            [groups[i] for i in rows])


def seam_lines(result: SeamResult) -> list[str]:
    """Returns what the placebo test found, one line per figure."""
    r = result
    found = "the seam shows" if r.paired_lo > 0.5 else "no seam was found"
    return [
        f"{r.n_images} placebos in {r.n_groups} groups, {r.n_keep_pixels} kept pixels; 95 % intervals over groups",
        f"  AUC, kept against decoy: {r.paired_auc:.3f} ({r.paired_lo:.3f} to {r.paired_hi:.3f}), 0.5 without a seam: "
        f"{found}",
        f"  AUC, kept against all else: {r.auc:.3f} ({r.auc_lo:.3f} to {r.auc_hi:.3f}), by chance {r.chance_auc:.3f}",
        f"  Dice: {r.dice:.3f} ({r.dice_lo:.3f} to {r.dice_hi:.3f}), by chance {r.chance_dice:.3f}",
    ]


def run_seam(folder: Path, data: DataSettings, overrides: Sequence[str], *, json_file: Path | None,
             dry_run: bool) -> None:
    """Runs `synth audit --seam FOLDER`: prints `seam_lines`, and writes them with their context to `json_file`.

    Raises:
        UserError: for unknown settings, or as `audit_seam`.
    """
    n, rest = take_number(overrides, "n", 200)
    out, rest = take(rest, "out")
    probe, rest = take(rest, "probe")
    settings = load_config(SeamSettings, None, rest)
    if dry_run:
        say(f"generator: {folder}\nn: {n}\nout: {out}\nprobe: {probe}\ndata:\n" + indent(to_yaml(data), "  ")
            + to_yaml(settings).rstrip())
        return
    where = required(data.labelled, "data.labelled", "data/labelled")
    generator = load_generator(folder)
    labelled = load_pairs(where, mask_map=data.mask_map, channels=data.channels)
    unlabelled = load_images(data.unlabelled, channels=labelled.info.channels, like=labelled.info) \
        if data.unlabelled else None
    if probe:  # it is fitted last, and the audit takes long
        check_room(Path(probe))
    result = audit_seam(generator, labelled, unlabelled, n=n, settings=settings, out=out)
    for line in seam_lines(result):
        say(line)
    if json_file is not None and is_main():
        write_json(json_file, {"seam": asdict(result), "generator": generator.content_hash(), "n": n,
                               "settings": settings.model_dump(mode="json"), "data": data.model_dump(mode="json")})
    if probe:
        gate = fit_probe(generator, labelled, unlabelled, n=n, settings=settings, out=probe)
        say(f"{probe}: seam gate with threshold {gate.threshold:.3f}; synth draw takes it as seam={probe}")


def run_drawn(words: Sequence[str], *, seam_only: Sequence[str]) -> None:
    """Runs `synth audit DIR`: every file against the ledger, every kept pixel against its hash; sums up the gates.

    Args:
        words: DIR alone. seam_only: options that were given but belong to --seam.

    Raises:
        UserError: for faults, which are printed, or words that mean nothing here.
    """
    folder = required(words[0] if words else None, "folder", "data/made, or --seam runs/painter")
    if seam_only:
        raise UserError(seam_only[0], rule="it belongs to --seam and --spectrum",
                        repair="add --seam runs/painter or --spectrum data/made, or leave it out")
    refuse(words[1:], "one folder, or --seam and its settings")
    faults = verify_shards(folder)
    for line in faults or summary(folder):  # a damaged set may not open, so there is no summing it up
        say(line)
    if faults:
        raise UserError(folder, rule=f"{len(faults)} fault(s), listed above",
                        repair="run the synth draw command that made it again, it draws the bad shards anew")
    say("every file and every kept pixel is as drawn")

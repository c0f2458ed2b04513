"""What the preview page asks of synth and segtrain: load, paint variants of one pair, and let the gates judge them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from segtrain import load_segmenter
from synth import InpaintPipeline, default_gates, load_generator, load_images, load_pairs, run_gates
from synth.core.checks import UserError, check_mask, check_pair
from synth.core.pairs import Arrays, DataInfo, ImageSet
from synth.core.space import labels_to_keep, pixels_to_unit, resize_image, resize_mask, to_channels, unit_to_pixels
from synth.draw.modes import still_layout
from synth.draw.painters import kept_source
from synth.draw.sources import Sources, rows_with_foreground, transform_pairs
from synth.formats.decode import decode_image, decode_mask, parse_mask_map
from synth.gates import Gates, Verdict
from synth.gates.gates import Predict
from synth.generator import Generator, kept_by, shows_source
from synth.layouts import LayoutSettings, layout_from_json

MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Folders:
    """Where the page's generator and data lie, as given on the command line; None or empty where not given."""

    generator: Path
    data: Path
    judge: Path | None = None
    unlabelled: Path | None = None
    mask_map: str | None = None


@dataclass(frozen=True)
class Studio:
    """A generator, the real pairs at its size, and gates calibrated on them.

    Attributes:
        rows: of the pairs that have foreground. title: one line that names what was loaded.
    """

    generator: Generator
    arrays: Arrays
    rows: tuple[int, ...]
    gates: Gates
    title: str

    @property
    def has_steps(self) -> bool:
        """Whether the generator goes through noise levels, and so has a strength and a number of steps to set."""
        return isinstance(self.generator, InpaintPipeline)

    @property
    def is_new(self) -> bool:
        """Whether anything is painted: a real picture in another appearance is not, and the gates judge it so."""
        return not shows_source(self.generator.sampler_settings())

    @property
    def ids(self) -> list[str]:
        """Ids of the pairs that can be painted."""
        return [self.arrays.ids[i] for i in self.rows]

    def pair(self, name: str) -> Arrays:
        """Returns the one pair called `name`."""
        return self.arrays.select([self.arrays.ids.index(name)])


@dataclass(frozen=True)
class Ask:
    """How to paint: variant i uses `seed` + i; the layout, where wanted, comes from `seed` alone."""

    seed: int = 0
    strength: float = 1.0
    n_steps: int | None = None
    n_variants: int = 1
    random_layout: bool = False


@dataclass(frozen=True)
class Outcome:
    """Painted variants of one pair.

    Attributes:
        source, labels: the pair that was painted, pixels (C, S, S) and labels (S, S) uint8.
        painted: pixels (B, C, S, S); what the generator keeps is the source's.
        judged: labels (B, S, S) uint8, false foreground set to ignore.
        n_evaluations: how often the network was called.
        layout: the edit of the pair before it was painted, in words; empty without one.
    """

    source: np.ndarray
    labels: np.ndarray
    painted: np.ndarray
    judged: np.ndarray
    seeds: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    layout: str
    n_evaluations: int


def open_studio(folders: Folders) -> Studio:
    """Returns what the page needs, loaded and checked against each other.

    Raises:
        UserError: if a folder does not hold what it should, or the parts do not fit together.
    """
    generator = load_generator(folders.generator)
    if generator.scale == "native":
        raise UserError(str(folders.generator), rule="scale=native: the page shrinks whole images, which this "
                        "generator never saw", repair="draw with it by `synth draw` and look with `synth show`, or "
                        "give one of scale=fit")
    pairs = load_pairs(folders.data, mask_map=folders.mask_map, channels=generator.channels)
    _check_range(generator, pairs.info, str(folders.data))
    training = None
    if folders.unlabelled is not None:
        pile = load_images(folders.unlabelled, channels=generator.channels, like=pairs.info)
        training = ImageSet([*pairs.items, *pile.items], pairs.info, where=pile.where)
    predict = _load_judge(folders.judge, generator.size, pairs.info) if folders.judge else None
    gates = default_gates(predict, pairs, training=training, size=generator.size)
    arrays = pairs.arrays(generator.size)
    title = (f"Generator {Path(folders.generator).name} ({generator.size} px, {generator.content_hash()}), "
             f"{len(pairs)} pairs from {Path(folders.data).name}, "
             + (f"judge {folders.judge.name}" if folders.judge else "no judge: only novelty is checked"))
    return Studio(generator, arrays, tuple(rows_with_foreground(arrays)), gates, title)


def _check_range(generator: Generator, info: DataInfo, where: str) -> None:
    if generator.intensity_range != tuple(info.intensity_range):
        raise UserError(where, rule=f"its intensity range is {tuple(info.intensity_range)}, the generator's "
                        f"{generator.intensity_range}", repair="use the kind of data that the generator was fitted on")


def _load_judge(folder: Path, size: int, info: DataInfo) -> Predict:
    judge = load_segmenter(folder)
    mine, theirs = (judge.size, judge.info.channels, judge.info.n_classes), (size, info.channels, info.n_classes)
    if mine != theirs:
        raise UserError(f"--judge {folder}", rule="its size, channels and number of classes are "
                        f"{mine}, those of generator and data {theirs}", repair="give a judge trained on this data")
    return judge.predict


def read_upload(image: str | None, mask: str | None, mask_map: str, studio: Studio) -> Arrays:
    """Returns a user's own image and mask file as one pair at the generator's size.

    Args:
        image, mask: paths of the uploaded files. mask_map: such as '0:0,255:1'; empty takes the values as they are.

    Raises:
        UserError: naming the file, the rule that it breaks and the repair.
    """
    if not image or not mask:
        raise UserError("your own pair", rule="it needs an image and a mask", repair="choose both files")
    names, info, size = [Path(p).name for p in (image, mask)], studio.arrays.info, studio.generator.size
    pixels = decode_image(Path(image), names[0])
    labels = decode_mask(Path(mask), names[1], mask_map=parse_mask_map(mask_map.strip() or None))
    if pixels.dtype != info.dtype or to_channels(pixels).shape[0] != info.channels:
        raise UserError(names[0], rule=f"it is {pixels.dtype} with {to_channels(pixels).shape[0]} channel(s), the "
                        f"generator was fitted on {info.dtype} with {info.channels}", repair="convert it")
    check_pair(pixels, labels, names[0])
    check_mask(labels, names[1], n_classes=info.n_classes)
    small = resize_mask(labels, (size, size))
    if not labels_to_keep(torch.from_numpy(small)).any():
        raise UserError(names[1], rule=f"the mask shows no foreground at {size} px, so there is nothing to keep",
                        repair="choose a mask with an annotated object")
    name = Path(names[0]).stem
    return Arrays(resize_image(to_channels(pixels), size)[None], small[None], (name,), (name,), info)


STILL = LayoutSettings(flip="none", scale=(1, 1), rotate_deg=0, shift=0, elastic=0, recombine=0)
"""A layout that leaves the pair as it is; its frame is still found and kept."""


def _lay_out(one: Arrays, ask: Ask, *, is_new: bool, shown_px: float) -> tuple[Sources, str]:
    """Returns the pair, edited as `synth draw` would if asked for, and the edit in words."""
    layout = (LayoutSettings() if is_new else still_layout(LayoutSettings())) if ask.random_layout else STILL
    moved = transform_pairs(one, [one.ids[0]], rows=[0], seed=ask.seed, layout=layout, shown_px=shown_px)
    if not ask.random_layout:
        return moved, ""
    edit = layout_from_json(moved.layouts[0]).affine
    words = (f"{'' if edit.flip == 'none' else 'mirrored, '}scaled by {edit.scale:.2f}, turned by {edit.rotate_deg:.0f}"
             f" degrees, shifted by {edit.shift_x:+.0%} / {edit.shift_y:+.0%} of the side")
    return moved, words


def paint(studio: Studio, one: Arrays, ask: Ask, *, callback: Callable[[int, int], None] | None = None) -> Outcome:
    """Returns `ask.n_variants` painted variants of the single pair `one`, each with the gates' verdict.

    Args:
        callback: called with (evaluations done, evaluations in all).
    """
    done = [0]

    def count(n_done: int, n_total: int) -> None:
        done[0] = n_done
        if callback is not None:
            callback(n_done, n_total)

    generator, n, low_high = studio.generator, ask.n_variants, studio.generator.intensity_range
    moved, words = _lay_out(one, ask, is_new=studio.is_new, shown_px=generator.shown_px)
    source, masks, frame = (np.repeat(x, n, axis=0) for x in (moved.pixels, moved.labels, moved.keep_in))
    targets, seeds = torch.from_numpy(masks.astype(np.int64)), tuple(ask.seed + i for i in range(n))
    given, frames = pixels_to_unit(source, low_high), torch.from_numpy(frame)
    if isinstance(generator, InpaintPipeline):
        unit = generator.paint(given, generator.around(targets), seeds=seeds, labels=targets, keep_in=frames,
                               n_steps=ask.n_steps, strength=ask.strength, callback=count)
    else:  # one pass for each variant: no steps to set, and no source to start from
        unit = generator.sample(given, targets, seeds=seeds, keep_in=frames)
        count(n, n)
    keep = generator.kept(targets, frames)[:, None].numpy()
    painted = np.where(keep, kept_source(generator, source), unit_to_pixels(unit, low_high, source.dtype))
    judged, verdicts = run_gates(pixels_to_unit(painted, low_high), targets, studio.gates, is_new=studio.is_new,
                                 painted=~kept_by(targets, generator.sampler_settings()))
    return Outcome(moved.pixels[0], moved.labels[0], painted, judged.numpy().astype(np.uint8), seeds, tuple(verdicts),
                   words, done[0])

"""What happens to a batch of sources: painted by a generator, pasted on another image, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings
from synth.core.pairs import Arrays, Rows
from synth.core.rng import choice, derive_seed, sample_rng
from synth.core.space import labels_to_keep, pixels_to_unit, unit_to_pixels
from synth.draw.sources import Sources
from synth.gates.gates import Predict, predict_batched
from synth.generator import Generator


@dataclass(frozen=True)
class Painted:
    """Pixels (B, C, S, S), labels (B, S, S) uint8; `others`: id and group of a parent the painter added, or None."""

    pixels: np.ndarray
    labels: np.ndarray
    others: tuple[tuple[str, str] | None, ...]


Painter = Callable[[Sources], Painted]
TRIES = 64
"""How often a lender is drawn anew; with two lenders of one chance each, none is found once in 2^64."""


def _foreground(labels: np.ndarray) -> np.ndarray:
    """Returns where labels (B, S, S) are foreground, (B, 1, S, S) bool."""
    return labels_to_keep(torch.from_numpy(labels))[:, None].numpy()


def no_painter(sources: Sources) -> Painted:
    """Returns the transformed sources as they are: what every kept pixel must equal."""
    return Painted(sources.pixels, sources.labels, (None,) * len(sources.keys))


def unit_over_source(unit: torch.Tensor, source: np.ndarray, keep: np.ndarray, *,
                     intensity_range: tuple[float, float]) -> np.ndarray:
    """Returns painted `unit` (B, C, S, S) as pixels, those of `source` (B, C, S, S) where keep (B, S, S) is True.

    Whatever a generator did, what it is said to keep is the source's, bit for bit.
    """
    return np.where(keep[:, None], source, unit_to_pixels(unit, intensity_range, source.dtype))


def kept_source(generator: Generator, pixels: np.ndarray) -> np.ndarray:
    """Returns pixels (B, C, S, S) as `generator` shows what it keeps: the very same ones, or sent through its codec."""
    unit = pixels_to_unit(pixels, generator.intensity_range)
    shown = generator.transformed(unit)
    return pixels if shown is unit else unit_to_pixels(shown, generator.intensity_range, pixels.dtype)


def seeds_apart(generator: Generator, seeds: Sequence[int], owners: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Returns seeds under which `generator` lends no image its own amplitudes: that would be a copy.

    A seed that does not is drawn anew from itself, so that each is a function of its own alone; lenders of another
    group are looked for first.

    Args:
        owners: id and group of each image that is changed.

    Raises:
        UserError: for an image that is the only lender.
    """
    return tuple(_apart(generator, seed, owner) for seed, owner in zip(seeds, owners, strict=True))


def _apart(generator: Generator, seed: int, owner: tuple[str, str]) -> int:
    tries = [seed, *(derive_seed(seed, "lender", k) for k in range(TRIES))]
    lenders = generator.lenders(tries)
    for part in (1, 0):  # of another group, else another image of the same
        for one, lender in zip(tries, lenders, strict=True):
            if lender is None or (lender[part] != owner[part] and lender[0] != owner[0]):
                return one
    raise UserError(f"{owner[0]}: {type(generator).__name__}", rule="it has no amplitudes to lend but this image's own",
                    repair="fit it on more images, or with data.unlabelled=")


def painted_pixels(generator: Generator, sources: Sources, *, rows: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
    """Returns what `generator` makes of the sources `rows`, one seed each, pixels (R, C, S, S); kept ones the source's.
    """
    some, low_high = list(rows), generator.intensity_range
    source, keep_in = sources.pixels[some], torch.from_numpy(sources.keep_in[some])
    labels = torch.from_numpy(sources.labels[some].astype(np.int64))
    unit = generator.sample(pixels_to_unit(source, low_high), labels, seeds=seeds, keep_in=keep_in)
    return unit_over_source(unit, kept_source(generator, source), generator.kept(labels, keep_in).numpy(),
                            intensity_range=low_high)


def generator_painter(generator: Generator) -> Painter:
    """Returns the painter that asks `generator`, then writes the kept source pixels over its answer."""
    def paint(sources: Sources) -> Painted:
        everything = range(len(sources.keys))
        pixels = painted_pixels(generator, sources, rows=everything, seeds=sources.seeds)
        return Painted(pixels, sources.labels, generator.lenders(sources.seeds))

    return paint


def roundtrip_painter(generator: Generator) -> Painter:
    """Returns the painter that sends the whole source through `generator.roundtrip`: no new content, its texture alone.

    The foreground stays the source's, as it does when a surrounding is painted: what is left is what a generator costs.
    """
    low_high = generator.intensity_range

    def paint(sources: Sources) -> Painted:
        unit = generator.roundtrip(pixels_to_unit(sources.pixels, low_high))
        keep = _foreground(sources.labels)[:, 0] | sources.keep_in
        pixels = unit_over_source(unit, sources.pixels, keep, intensity_range=low_high)
        return Painted(pixels, sources.labels, (None,) * len(sources.keys))

    return paint


@dataclass(frozen=True)
class Backgrounds:
    """Real images to put foreground on: pixels (N, C, S, S), or at native size row by row; labels (N, S, S) uint8, 255
    where in doubt; ids and groups."""

    pixels: np.ndarray | Rows
    labels: np.ndarray
    ids: tuple[str, ...]
    groups: tuple[str, ...]


def labelled_backgrounds(labelled: Arrays) -> Backgrounds:
    """Returns the labelled pairs as backgrounds."""
    return Backgrounds(labelled.images, labelled.masks, labelled.ids, labelled.groups)


class ClearSettings(Settings):
    """Which unlabelled images count as free of foreground.

    Attributes:
        confidence: foreground probability of the judge that counts as seen; from 1 - confidence on a pixel is doubtful.
        max_share: largest share of confident pixels in an image that is still called clear.
    """

    confidence: float = Field(0.9, gt=0.5, lt=1)
    max_share: float = Field(0.002, ge=0, le=1)


def clear_backgrounds(unlabelled: Arrays, predict: Predict, *, confidence: float, max_share: float) -> Backgrounds:
    """Returns the unlabelled images on which the judge sees no confident foreground; its doubtful pixels are ignored.

    Args:
        confidence, max_share: see `ClearSettings`.
    """
    unit = pixels_to_unit(unlabelled.images, unlabelled.info.intensity_range)
    foreground = 1 - predict_batched(predict, unit, n_classes=unlabelled.info.n_classes)[:, 0]
    clear = ((foreground > confidence).float().mean((1, 2)) <= max_share).nonzero().flatten().tolist()
    labels = np.where(foreground[clear].numpy() > 1 - confidence, IGNORE, 0).astype(np.uint8)
    return Backgrounds(unlabelled.images[clear], labels, tuple(unlabelled.ids[i] for i in clear),
                       tuple(unlabelled.groups[i] for i in clear))


def paste_painter(labelled: Arrays, clear: Backgrounds | None, *, seed: int,
                  blend: Callable[[torch.Tensor], torch.Tensor]) -> Painter:
    """Returns the painter that pastes foregrounds onto other labelled images, or onto clear unlabelled ones.

    The label is the union: the pasted foreground over the background's own labels. Half of the pairs go to each kind
    of background where both exist.

    Args:
        blend: keep (B, S, S) -> weight of the source (B, 1, S, S), 1 on the foreground: the same transition as the
            inpainted pairs have, so that the arms differ in the surroundings alone.
    """
    real = labelled_backgrounds(labelled)

    def pick(name: str, row: int, second: tuple[str, str] | None) -> tuple[Backgrounds, int]:
        rng = sample_rng(seed, "background", name)
        own = (row, real.ids.index(second[0]) if second else row)  # neither parent of what is pasted
        others = [i for i in range(len(real.ids)) if i not in own] or [row]
        if clear is not None and clear.ids and float(torch.rand((), generator=rng)) < 0.5:
            return clear, choice(rng, len(clear.ids))
        return real, others[choice(rng, len(others))]

    def paint(sources: Sources) -> Painted:
        picked = [pick(*words) for words in zip(sources.keys, sources.rows, sources.others, strict=True)]
        under = np.stack([b.pixels[i] for b, i in picked])
        under_labels = np.stack([b.labels[i] for b, i in picked])
        keep = _foreground(sources.labels)
        alpha = blend(torch.from_numpy(keep[:, 0])).numpy()
        mixed = np.rint(alpha * sources.pixels + (1 - alpha) * under.astype(np.float64)).astype(under.dtype)
        pixels = np.where(keep, sources.pixels, mixed)
        # The soft rim mixes two images: neither label is true there unless both say background.
        rim = (alpha > 0) & ~keep & ((under_labels != 0) | (sources.labels != 0))[:, None]
        union = np.where(keep[:, 0], sources.labels, np.where(rim[:, 0], IGNORE, under_labels))
        return Painted(pixels, union.astype(np.uint8), tuple((b.ids[i], b.groups[i]) for b, i in picked))

    return paint

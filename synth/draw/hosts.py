"""Lesion insertion: the labels of a labelled pair laid over a real image that shows no object of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from synth.core.checks import UserError
from synth.core.files import hash_json
from synth.core.pairs import Arrays, ImageSet, Rows
from synth.core.rng import choice, derive_seed, sample_rng
from synth.core.space import resize_mask
from synth.draw.painters import Backgrounds, ClearSettings, clear_backgrounds
from synth.draw.sources import Edited, Sources, draw_edited, note_in_layout, rows_with_foreground
from synth.gates import Gates
from synth.layouts import Anatomy, LayoutSettings, Shapes, fits, is_cut, keep_in_of, layout_to_json
from synth.layouts.warp import foreground_of

TRIES = 200
"""Random hosts, donors and layouts that are tried for one candidate: where one in ten fits, all but surely enough."""


@dataclass(frozen=True)
class Hosts:
    """Real images without an object, and the labelled set whose foreground is put into them.

    Attributes:
        images: see `Backgrounds`; at native size its labels are those of the judge's own size.
        donors: the labelled set without objects that the image border or the frame cuts: amid another image they would
            end in a straight edge. rows: those of `donors` that show any.
        identity: hash of all the images that were given, and of which are clear.
    """

    images: Backgrounds
    donors: Arrays
    rows: tuple[int, ...]
    identity: str


def uncut(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns labels `mask` (H, W) without the objects that the border or the frame of image (C, H, W) cuts."""
    frame, (parts, n) = keep_in_of(image, mask), ndimage.label(foreground_of(mask), np.ones((3, 3)))
    whole = [k for k in range(1, n + 1) if not is_cut(np.where(parts == k, mask, 0), frame)]
    return np.where(np.isin(parts, whole), mask, 0).astype(np.uint8)


def _donors(labelled: Arrays) -> tuple[Arrays, tuple[int, ...]]:
    """Returns the labelled set with uncut objects alone, and its rows that show any; all objects if all are cut."""
    whole = Rows(lambda i: uncut(labelled.images[i], labelled.masks[i]), range(len(labelled)))
    rows = tuple(i for i in range(len(labelled)) if foreground_of(whole[i]).any())
    if not rows:
        return labelled, tuple(rows_with_foreground(labelled))
    masks = whole if labelled.is_native else np.stack([whole[i] for i in range(len(whole))])
    return replace(labelled, masks=masks), rows


def clear_hosts(hosts: ImageSet, labelled: Arrays, gates: Gates | None, *, size: int,
                settings: ClearSettings) -> Hosts:
    """Returns those of `hosts` on which the gates' judge sees no object, at the size of `labelled`, and the donors.

    Args:
        size: at which the judge works.

    Raises:
        UserError: without a judge, if the images are unlike the labelled ones, or if none is clear.
    """
    if gates is None or gates.predict is None:
        raise UserError(f"hosts {hosts.where}", rule="a judge has to say which of them show no object",
                        repair="add judge=runs/judge (in Python: gates=default_gates(judge.predict, ...))")
    mine, theirs = ((i.channels, i.bit_depth, tuple(i.intensity_range)) for i in (hosts.info, labelled.info))
    if mine != theirs:
        raise UserError(f"hosts {hosts.where}", rule=f"channels, bits and intensity range {mine} differ from {theirs} "
                        "of the labelled pairs", repair="give images of the same kind")
    small = hosts.arrays(size)
    clear = clear_backgrounds(small, gates.predict, confidence=settings.confidence, max_share=settings.max_share)
    if not clear.ids:
        raise UserError(f"hosts {hosts.where}", rule=f"the judge sees an object on each of the {len(small)} images",
                        repair="give images without objects, or raise clear.max_share or clear.confidence")
    if labelled.is_native:
        where = {name: i for i, name in enumerate(hosts.ids)}
        clear = replace(clear, pixels=hosts.native(size).select([where[name] for name in clear.ids]).images)
    return Hosts(clear, *_donors(labelled), identity=hash_json([small.fingerprint(), clear.ids]))


def lay_over(rng: torch.Generator, labels: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Returns labels (h, w) amid `shape`, cut where that is smaller, and at which row and column they begin there.

    Where the sizes differ the place is random; where they are equal nothing moves.
    """
    out, begin = np.zeros(shape, np.uint8), []
    for room in (new - old for new, old in zip(shape, labels.shape, strict=True)):
        begin.append(choice(rng, abs(room) + 1) * (1 if room >= 0 else -1))
    into = tuple(slice(max(0, b), min(n, b + old)) for b, n, old in zip(begin, shape, labels.shape, strict=True))
    out[into] = labels[tuple(slice(s.start - b, s.stop - b) for s, b in zip(into, begin, strict=True))]
    return out, begin


@dataclass(frozen=True)
class _Inserted:
    """One candidate: its host's row, the edited donor, pixels (C, H, W), labels and keep-in (H, W), what is noted."""

    host: int
    donor: Edited
    pixels: np.ndarray
    labels: np.ndarray
    keep_in: np.ndarray
    layout: str


def _insert(name: str, hosts: Hosts, *, seed: int, layout: LayoutSettings, anatomy: Anatomy,
            shapes: Shapes | None) -> _Inserted:
    rng, images = sample_rng(seed, "layout", name), hosts.images
    for _ in range(TRIES):
        host = choice(rng, len(images.ids))
        donor = draw_edited(rng, hosts.donors, rows=hosts.rows, layout=layout, anatomy=anatomy,
                            shapes=shapes)
        pixels, moved = images.pixels[host], donor.placed.labels
        own = np.where(foreground_of(moved), moved, 0).astype(np.uint8)
        laid, begin = lay_over(rng, own, pixels.shape[-2:])
        there, area = laid > 0, int((own > 0).sum())
        frame = keep_in_of(pixels, np.zeros_like(laid))
        if there.sum() < layout.min_foreground * area or not fits(there, taken=np.zeros_like(there), keep_in=frame,
                                                                  gap_px=layout.gap_px):
            continue
        labels = np.where(there, laid, resize_mask(images.labels[host], laid.shape)).astype(np.uint8)
        keep_in = frame if layout.keep_in == "frame" else np.zeros_like(frame)
        note = note_in_layout(layout_to_json(donor.edit), {"host": images.ids[host], "begin": begin})
        return _Inserted(host, donor, pixels, labels, keep_in, note)
    raise UserError(f"{len(images.ids)} hosts", rule=f"in {TRIES} tries no labels fitted beside a frame",
                    repair="crop the hosts' frames away, or lower layout.scale")


def insert_pairs(hosts: Hosts, keys: Sequence[str], *, seed: int, layout: LayoutSettings,
                 anatomy: Anatomy, shapes: Shapes | None = None) -> Sources:
    """Returns the sources of candidates `keys`: random hosts as they are, under the edited labels of random donors.

    Args:
        anatomy: of the donors. shapes: draws their labels, where `layout.source` is "shape".

    Raises:
        UserError: if no labels fit, because the hosts' frames leave too little.
    """
    made = [_insert(name, hosts, seed=seed, layout=layout, anatomy=anatomy, shapes=shapes) for name in keys]
    return Sources(tuple(keys), tuple(m.donor.row for m in made), tuple(derive_seed(seed, "pair", k) for k in keys),
                   np.stack([m.pixels for m in made]), np.stack([m.labels for m in made]),
                   tuple(m.layout for m in made), np.stack([m.keep_in for m in made]),
                   tuple(m.donor.other for m in made),
                   tuple((hosts.images.ids[m.host], hosts.images.groups[m.host]) for m in made))

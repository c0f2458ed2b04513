"""What one batch of pairs is drawn from: transformed real pairs, each a function of (run seed, candidate key) alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import JsonValue
from scipy import ndimage

from synth.core.checks import IGNORE, UserError
from synth.core.pairs import Arrays
from synth.core.rng import choice, derive_seed, sample_rng, uniform
from synth.core.space import labels_to_keep
from synth.generator import kept_pixels
from synth.layouts import (
    Anatomy,
    Layout,
    LayoutSettings,
    Placed,
    Shapes,
    apply_mask,
    draw_layout,
    hole_of,
    layout_to_json,
    learn_anatomy,
    mirrored_in,
    place,
    second_parent,
)


@dataclass(frozen=True)
class Sources:
    """A batch of transformed real pairs.

    Attributes:
        keys: of the candidates, the same for every engine. rows: of their parents in the labelled set.
        seeds: of the generator.
        pixels: (B, C, S, S). labels: (B, S, S) uint8. layouts: JSON text of each edit.
        keep_in: (B, S, S) bool, no foreground, yet shown through: the frame round the picture, and at native size all
            that lies outside the window.
        others: id and group of the pair that each layout takes foreground from, None without.
        hosts: id and group of the image that each parent's foreground was put in; empty without.
        lent: id and group of the image whose amplitudes went into each source, None without; empty if into none.
    """

    keys: tuple[str, ...]
    rows: tuple[int, ...]
    seeds: tuple[int, ...]
    pixels: np.ndarray
    labels: np.ndarray
    layouts: tuple[str, ...]
    keep_in: np.ndarray
    others: tuple[tuple[str, str] | None, ...]
    hosts: tuple[tuple[str, str], ...] = ()
    lent: tuple[tuple[str, str] | None, ...] = ()


def rows_with_foreground(labelled: Arrays) -> list[int]:
    """Returns the rows of pairs whose mask shows any foreground.

    Raises:
        UserError: if there is none at this resolution.
    """
    rows = [i for i, mask in enumerate(labelled.masks) if _foreground(mask).any()]
    if not rows:
        height, width = labelled.shapes[0]
        raise UserError(f"the labelled set at {width} x {height} px", rule="no mask shows any foreground",
                        repair="give pairs with foreground, or a larger size")
    return rows


def _foreground(mask: np.ndarray) -> np.ndarray:
    return labels_to_keep(torch.from_numpy(mask)).numpy()


@dataclass(frozen=True)
class Window:
    """What is painted of an image at native size: the boxes of its objects, grown by `grow_px` on every side, and no
    narrower than `least_px`."""

    grow_px: int
    least_px: int

    def around(self, foreground: np.ndarray) -> np.ndarray:
        """Returns where is painted, (H, W) bool, for foreground (H, W) bool."""
        painted = np.zeros_like(foreground)
        for box in ndimage.find_objects(ndimage.label(foreground, np.ones((3, 3)))[0]):
            painted[tuple(self._grown(side, n) for side, n in zip(box, foreground.shape, strict=True))] = True
        return painted

    def _grown(self, side: slice, n: int) -> slice:
        low, high = max(0, side.start - self.grow_px), min(n, side.stop + self.grow_px)
        missing = max(0, self.least_px - (high - low))
        low, high = low - missing // 2, high + missing - missing // 2
        shift = max(0, -low) - max(0, high - n)
        return slice(max(0, low + shift), min(n, high + shift))


def _windowed(placed: Placed, edit: Layout, mask: np.ndarray, window: Window) -> Placed:
    """Returns the edited pair with all that lies outside the window kept.

    There the pixels are real and the labels the source's own; but where the frame moved in, pixels are mirrored ones
    that nobody labelled, so they are unknown (255).
    """
    foreground = _foreground(placed.labels)
    if edit.recombined is not None:  # what was taken away is painted over too
        foreground = foreground | _foreground(apply_mask(mask, edit.affine))
    outside = ~window.around(foreground)
    strange = outside & ~placed.keep_in & (apply_mask(np.ones_like(mask), edit.affine) == 0)
    return Placed(placed.pixels, np.where(strange, IGNORE, placed.labels).astype(np.uint8), placed.keep_in | outside)


@dataclass(frozen=True)
class Edited:
    """A pair of the labelled set, edited: its row, the edit, what came of it, and id and group of a second parent."""

    row: int
    edit: Layout
    placed: Placed
    other: tuple[str, str] | None


def _pick(rng: torch.Generator, rows: Sequence[int], anatomy: Anatomy) -> int:
    """Returns one of `rows`, all alike or each with its chance."""
    if anatomy.chances is None:
        return rows[choice(rng, len(rows))]
    chances = np.cumsum(anatomy.chances[list(rows)])
    return rows[min(int(np.searchsorted(chances, uniform(rng, 0, chances[-1]), side="right")), len(rows) - 1)]


def draw_edited(rng: torch.Generator, labelled: Arrays, *, rows: Sequence[int], layout: LayoutSettings,
                anatomy: Anatomy, shapes: Shapes | None = None) -> Edited:
    """Returns a random edit of a random pair among `rows`; at native size only pairs of one size are recombined."""
    row = _pick(rng, rows, anatomy)
    shape = labelled.shapes[row]
    row, edit = draw_layout(rng, labelled, row, rows=[r for r in rows if labelled.shapes[r] == shape], anatomy=anatomy,
                            settings=layout, shapes=shapes)
    second = second_parent(labelled, edit)
    return Edited(row, edit, place(labelled, row, edit, shapes=shapes),
                  None if second is None else (labelled.ids[second], labelled.groups[second]))


def _doubted(placed: Placed, edit: Layout, mask: np.ndarray, *, shown_px: float, ring_px: int | None, painted: bool
             ) -> Placed:
    """Returns the edited pair, unknown (255) where its own pixels show an object mirrored into the frame.

    And where nothing paints over what a removed object was filled with: a smooth blob that no real image has.
    """
    if not shown_px:
        return placed
    strange = mirrored_in(mask, edit.affine)
    if math.isfinite(shown_px):
        strange &= ndimage.distance_transform_edt(~_foreground(placed.labels)) <= shown_px
    stays = np.full(placed.labels.shape, not painted)
    if painted and ring_px is not None:
        stays = kept_pixels(torch.from_numpy(placed.labels)[None], mode="object", ring_px=ring_px)[0].numpy()
    if edit.recombined is not None and edit.recombined.mode == "replace":
        strange |= hole_of(apply_mask(mask, edit.affine), placed.keep_in) & stays
    strange &= (placed.labels == 0) & ~placed.keep_in
    return replace(placed, labels=np.where(strange, IGNORE, placed.labels).astype(np.uint8))


def transform_pairs(labelled: Arrays, keys: Sequence[str], *, rows: Sequence[int], seed: int,  # noqa: PLR0913
                    layout: LayoutSettings, anatomy: Anatomy | None = None, window: Window | None = None,
                    shapes: Shapes | None = None, shown_px: float = 0.0, ring_px: int | None = None,
                    painted: bool = True) -> Sources:
    """Returns the transformed sources of candidates `keys`, their parents chosen among `rows`.

    At native size, batches of one: every pair has its own size.

    Args:
        anatomy: of `labelled`, where it has been learnt before. window: what is painted; None = everything.
        shapes: draws the labels, where `layout.source` is "shape".
        shown_px: how far around the foreground the sources' own pixels are shown; inf = all over.
        ring_px: how far around it is painted, where nothing else is; None = surroundings or everything.
        painted: whether anything is at all.
    """
    anatomy = anatomy or learn_anatomy(labelled, layout)
    all_edited = [draw_edited(sample_rng(seed, "layout", name), labelled, rows=rows, layout=layout, anatomy=anatomy,
                              shapes=shapes)
                  for name in keys]
    placed = [_doubted(e.placed, e.edit, labelled.masks[e.row], shown_px=shown_px, ring_px=ring_px, painted=painted)
              for e in all_edited]
    if window is not None:
        placed = [_windowed(p, e.edit, labelled.masks[e.row], window) for p, e in zip(placed, all_edited, strict=True)]
    return Sources(tuple(keys), tuple(e.row for e in all_edited), tuple(derive_seed(seed, "pair", k) for k in keys),
                   np.stack([p.pixels for p in placed]), np.stack([p.labels for p in placed]),
                   tuple(_layout_text(e.edit, window) for e in all_edited), np.stack([p.keep_in for p in placed]),
                   tuple(e.other for e in all_edited))


def _layout_text(edit: Layout, window: Window | None) -> str:
    text = layout_to_json(edit)
    return text if window is None else note_in_layout(text, {"window": [window.grow_px, window.least_px]})


def note_in_layout(text: str, words: Mapping[str, JsonValue]) -> str:
    """Returns the JSON text of a layout with what else was done to its pair; `layout_from_json` passes over it."""
    return json.dumps({**json.loads(text), **words}, sort_keys=True)

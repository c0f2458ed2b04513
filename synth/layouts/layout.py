"""A layout: the edit of a pair in full, drawn first and then applied to pixels, labels and frame alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from synth.core.pairs import Arrays
from synth.core.rng import uniform
from synth.layouts.frame import keep_in_of
from synth.layouts.morph import Morph, apply_morph, bounded, draw_morph
from synth.layouts.recombine import TONE, Anatomy, Recombination, draw_recombination, from_words, put
from synth.layouts.settings import LayoutSettings
from synth.layouts.shape.supply import ShapeCode, Shapes, draw_code
from synth.layouts.warp import IDENTITY, Affine, apply_image, apply_mask, apply_region, draw_fitting, foreground_of

TRIES = 12
"""Layouts drawn of a pair before it is taken as it is."""


@dataclass(frozen=True)
class Layout:
    """The edit of one pair.

    Attributes:
        affine: its own warp. keep_in: whether its frame is kept. recombined: what is taken from another pair.
        morph: how its labels then change shape, and the pixels do not. shape: labels from a shape model in their place.
    """

    affine: Affine
    keep_in: Literal["frame", "none"] = "none"
    recombined: Recombination | None = None
    morph: Morph | None = None
    shape: ShapeCode | None = None


@dataclass(frozen=True)
class Placed:
    """An edited pair: pixels (C, H, W), labels (H, W) uint8, and the frame that shows through, keep_in (H, W) bool."""

    pixels: np.ndarray
    labels: np.ndarray
    keep_in: np.ndarray


def apply_layout(image: np.ndarray, mask: np.ndarray, layout: Layout, *,
                 other: tuple[np.ndarray, np.ndarray] | None = None, shapes: Shapes | None = None) -> Placed:
    """Returns the edited pair of image (C, H, W) and mask (H, W).

    Args:
        other: image and mask of the pair that `layout.recombined` names. shapes: the model that `layout.shape` names.
    """
    if layout.shape is not None:
        return Placed(image, shapes.labels(layout.shape), np.zeros(mask.shape, bool))
    assert (other is None) == (layout.recombined is None), "the second parent goes with its recombination"
    labels, keep_in = apply_mask(mask, layout.affine), np.zeros(mask.shape, bool)
    if layout.keep_in == "frame":
        keep_in = apply_region(keep_in_of(image, mask), layout.affine) & ~foreground_of(labels)
    pixels = apply_image(image, layout.affine, extended=keep_in)
    if other is not None:
        pixels, labels = put(pixels, labels, keep_in, image=other[0], mask=other[1], taken=layout.recombined)
    if layout.morph is not None:
        labels = apply_morph(labels, layout.morph)
    return Placed(pixels, labels, keep_in & ~foreground_of(labels))


def second_parent(labelled: Arrays, layout: Layout) -> int | None:
    """Returns the row of the pair that `layout` takes something from beside its own; None without."""
    name = layout.recombined.other if layout.recombined else layout.shape.other if layout.shape else ""
    return labelled.ids.index(name) if name else None


def place(labelled: Arrays, row: int, layout: Layout, *, shapes: Shapes | None = None) -> Placed:
    """Returns pair `row` of `labelled` edited by `layout`, whose second parent is found there."""
    second = second_parent(labelled, layout) if layout.recombined else None
    other = None if second is None else (labelled.images[second], labelled.masks[second])
    return apply_layout(labelled.images[row], labelled.masks[row], layout, other=other, shapes=shapes)


def draw_layout(rng: torch.Generator, labelled: Arrays, row: int, *, rows: Sequence[int], anatomy: Anatomy,  # noqa: PLR0913
                settings: LayoutSettings, shapes: Shapes | None = None) -> tuple[int, Layout]:
    """Returns a random layout of pair `row` of `labelled`, and the row it is of; a second parent comes from `rows`.

    All of `rows` have foreground. What breaks a rule of the anatomy that its parents keep is drawn again; after `TRIES`
    the pair is only mirrored or left as it is. A shape model may find that another pair is the parent; where it finds
    nothing plausible, the pair is moved as if there were none.
    """
    if shapes is not None:
        found = draw_code(rng, labelled, row, rows=rows, shapes=shapes, rules=anatomy.rules, settings=settings.shape)
        if found is not None:
            return found[0], Layout(IDENTITY, shape=found[1])
    layout = None
    for _ in range(TRIES):
        layout = _draw_once(rng, labelled, row, rows=rows, anatomy=anatomy, settings=settings)
        if _is_sound(labelled, row, layout, anatomy):
            return row, layout
    return row, Layout(dataclasses.replace(IDENTITY, flip=layout.affine.flip), settings.keep_in)


def _is_sound(labelled: Arrays, row: int, layout: Layout, anatomy: Anatomy) -> bool:
    """Returns whether the layout breaks no rule that its parents keep, and no class is lost where shapes change."""
    if anatomy.rules.is_empty and layout.morph is None:
        return True
    if layout.recombined is None and layout.morph is None:
        labels = apply_mask(labelled.masks[row], layout.affine)
    else:
        labels = place(labelled, row, layout).labels
    if layout.morph is not None:
        before = place(labelled, row, dataclasses.replace(layout, morph=None)).labels
        if set(np.unique(before)) != set(np.unique(labels)):
            return False
    second = second_parent(labelled, layout)
    excused = anatomy.rules.broken(labelled.masks[row])
    excused |= frozenset() if second is None else anatomy.rules.broken(labelled.masks[second])
    return anatomy.rules.broken(labels) <= excused


def _draw_once(rng: torch.Generator, labelled: Arrays, row: int, *, rows: Sequence[int], anatomy: Anatomy,
               settings: LayoutSettings) -> Layout:
    layout = Layout(draw_fitting(rng, labelled.masks[row], settings), settings.keep_in)
    if uniform(rng, 0, 1) < settings.recombine:
        # A second parent's surroundings look like the pair's own; without such a pair nothing is recombined.
        alike = np.abs(anatomy.tones - anatomy.tones[row]).max(1) <= TONE
        placed = place(labelled, row, layout)
        layout = dataclasses.replace(layout, recombined=draw_recombination(
            rng, labelled, [r for r in rows if r != row and alike[r]], labels=placed.labels, keep_in=placed.keep_in,
            anatomy=anatomy, settings=settings))
    if settings.grow_px or settings.bend_px:
        morph = draw_morph(rng, settings, n_classes=labelled.info.n_classes)
        placed = place(labelled, row, layout)
        layout = dataclasses.replace(layout, morph=bounded(morph, placed.labels, anatomy.rules))
    return layout


def layout_to_json(layout: Layout) -> str:
    """Returns the text from which `layout_from_json` reads the same layout again."""
    words = dataclasses.asdict(layout)
    for name in ("morph", "shape"):  # said only where there is one: what was drawn before there were any stays the same
        if words[name] is None:
            del words[name]
    return json.dumps(words, sort_keys=True)


def layout_from_json(text: str) -> Layout:
    """Returns the layout that `layout_to_json` wrote."""
    words = json.loads(text)
    affine = Affine(**{**words["affine"], "elastic": tuple(words["affine"]["elastic"])})
    morph, shape = words.get("morph"), words.get("shape")
    return Layout(affine, words["keep_in"], words["recombined"] and from_words(words["recombined"]),
                  morph and Morph(tuple(morph["grow_px"]), tuple(morph["bend_px"])),
                  shape and ShapeCode(shape["model"], tuple(shape["code"]), shape["other"]))

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
from synth.layouts.recombine import TONE, Anatomy, Recombination, draw_recombination, from_words, put
from synth.layouts.settings import LayoutSettings
from synth.layouts.warp import Affine, apply_image, apply_mask, apply_region, draw_fitting, foreground_of


@dataclass(frozen=True)
class Layout:
    """The edit of one pair: its own warp, whether its frame is kept, and what is taken from another pair."""

    affine: Affine
    keep_in: Literal["frame", "none"] = "none"
    recombined: Recombination | None = None


@dataclass(frozen=True)
class Placed:
    """An edited pair: pixels (C, H, W), labels (H, W) uint8, and the frame that shows through, keep_in (H, W) bool."""

    pixels: np.ndarray
    labels: np.ndarray
    keep_in: np.ndarray


def apply_layout(image: np.ndarray, mask: np.ndarray, layout: Layout, *,
                 other: tuple[np.ndarray, np.ndarray] | None = None) -> Placed:
    """Returns the edited pair of image (C, H, W) and mask (H, W).

    Args:
        other: image and mask of the pair that `layout.recombined` names.
    """
    assert (other is None) == (layout.recombined is None), "the second parent goes with its recombination"
    labels, keep_in = apply_mask(mask, layout.affine), np.zeros(mask.shape, bool)
    if layout.keep_in == "frame":
        keep_in = apply_region(keep_in_of(image, mask), layout.affine) & ~foreground_of(labels)
    pixels = apply_image(image, layout.affine, extended=keep_in)
    if other is not None:
        pixels, labels = put(pixels, labels, keep_in, image=other[0], mask=other[1], taken=layout.recombined)
    return Placed(pixels, labels, keep_in & ~foreground_of(labels))


def draw_layout(rng: torch.Generator, labelled: Arrays, row: int, *, rows: Sequence[int], anatomy: Anatomy,
                settings: LayoutSettings) -> Layout:
    """Returns a random layout of pair `row` of `labelled`; a second parent comes from `rows`, all with foreground.

    A second parent's surroundings look like the pair's own (`TONE`); without such a pair nothing is recombined.
    """
    image, mask = labelled.images[row], labelled.masks[row]
    layout = Layout(draw_fitting(rng, mask, settings), settings.keep_in)
    if uniform(rng, 0, 1) >= settings.recombine:
        return layout
    alike = np.abs(anatomy.tones - anatomy.tones[row]).max(1) <= TONE
    placed = apply_layout(image, mask, layout)
    recombined = draw_recombination(rng, labelled, [r for r in rows if r != row and alike[r]], labels=placed.labels,
                                    keep_in=placed.keep_in, anatomy=anatomy, settings=settings)
    return dataclasses.replace(layout, recombined=recombined)


def layout_to_json(layout: Layout) -> str:
    """Returns the text from which `layout_from_json` reads the same layout again."""
    return json.dumps(dataclasses.asdict(layout), sort_keys=True)


def layout_from_json(text: str) -> Layout:
    """Returns the layout that `layout_to_json` wrote."""
    words = json.loads(text)
    affine = Affine(**{**words["affine"], "elastic": tuple(words["affine"]["elastic"])})
    return Layout(affine, words["keep_in"], words["recombined"] and from_words(words["recombined"]))

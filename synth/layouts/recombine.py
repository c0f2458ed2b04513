"""Foreground of one labelled pair in the surroundings of another: which object, where, and how it is put there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

from synth.core.checks import IGNORE
from synth.core.pairs import Arrays
from synth.core.rng import choice, uniform
from synth.layouts.frame import keep_in_of
from synth.layouts.rules import Rules, learn_rules
from synth.layouts.settings import LayoutSettings
from synth.layouts.warp import (
    Affine,
    apply_image,
    apply_mask,
    draw_affine,
    foreground_of,
    mirrored_in,
    shift_to,
    stays_inside,
)

CRUMB = 0.1
"""A component below this share of the largest one is no object of its own."""
TONE = 0.15
"""Largest difference between the mean surroundings of two pairs that may be mixed, share of the intensity range."""


@dataclass(frozen=True)
class Recombination:
    """What is taken from another pair.

    Attributes:
        other: its id. mode: beside the own foreground, or in its place.
        component: number of its object, counted from 1 as `objects_of` does; 0 = all of its foreground.
        affine: edit of the other pair. gap_px: width of the soft rim round what is taken.
    """

    other: str
    mode: Literal["add", "replace"]
    component: int
    affine: Affine
    gap_px: int


@dataclass(frozen=True)
class Anatomy:
    """What layouts learn from a labelled set.

    Attributes:
        add_share: of recombinations, those that add an object.
        tones: each pair's mean surroundings (N, C), shares of the intensity range, so that pairs of one appearance can
            be told from those of another (stained and fluorescent cells).
        rules: where classes lie.
        chances: how often each pair is drawn, (N,), sum 1; None = all alike.
    """

    add_share: float
    tones: np.ndarray
    rules: Rules = Rules()
    chances: np.ndarray | None = None


def objects_of(mask: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Returns the numbered components (H, W) of the foreground of mask (H, W), and the numbers that are no crumbs."""
    parts, n = ndimage.label(foreground_of(mask), np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=n + 1)[1:]
    return parts, [i + 1 for i in range(n) if areas[i] >= CRUMB * areas.max()]


def share_with_several(masks: np.ndarray) -> float:
    """Returns the share of images with foreground among masks (N, H, W) in which every class present occurs repeatedly.

    That is where a second object is possible anatomy: 0 for organs that a body has once (one heart: its ventricle
    belongs in its myocardium), near 1 for cells.
    """
    several, n = 0, 0
    for mask in masks:
        classes = [k for k in np.unique(mask) if k not in (0, IGNORE)]
        n += bool(classes)
        several += bool(classes) and all(len(objects_of(mask == k)[1]) > 1 for k in classes)
    return several / max(n, 1)


def learn_anatomy(labelled: Arrays, settings: LayoutSettings) -> Anatomy:
    """Returns how pairs of `labelled` may be drawn and mixed; "add" and "replace" are obeyed, "auto" asks the data.

    Raises:
        UserError: if a given rule names a class that there is not.
    """
    low, high = labelled.info.intensity_range
    tones = []
    for image, mask in zip(labelled.images, labelled.masks, strict=True):
        ground = ~foreground_of(mask)
        tones.append((image[:, ground if ground.any() else ~ground].mean(1) - low) / (high - low))
    shares = {"add": 1.0, "replace": 0.0}
    mode = settings.recombine_mode
    return Anatomy(shares[mode] if mode in shares else share_with_several(labelled.masks), np.stack(tones),
                   learn_rules(labelled.masks, settings.rules, n_classes=labelled.info.n_classes),
                   class_chances(labelled.masks, settings.balance) if settings.balance else None)


def class_chances(masks: np.ndarray, balance: float) -> np.ndarray:
    """Returns how often each of masks (N, H, W) is drawn, (N,), sum 1.

    In proportion to f^-balance, f the share of maps that show the rarest class it shows; without foreground, f = 1.
    """
    shown = [[int(k) for k in np.unique(mask) if k not in (0, IGNORE)] for mask in masks]
    n_shown = Counter(k for classes in shown for k in classes)
    rarest = np.array([min((n_shown[k] for k in classes), default=len(shown)) for classes in shown]) / len(shown)
    weights = rarest ** -balance
    return weights / weights.sum()


def fits(thing: np.ndarray, *, taken: np.ndarray, keep_in: np.ndarray, gap_px: int) -> bool:
    """Returns whether `thing` lies on no keep-in pixel, with `gap_px` pixels or more between it and `taken`.

    All are (H, W) bool.
    """
    if not thing.any() or (thing & keep_in).any():
        return False
    return not taken.any() or bool(ndimage.distance_transform_edt(~taken)[thing].min() > gap_px)


def _centre(region: np.ndarray) -> tuple[float, float]:
    """Returns the centroid (x, y) of region (H, W) bool, the image's border at -1 and 1."""
    rows, columns = np.nonzero(region)
    return 2 * (columns.mean() + 0.5) / region.shape[1] - 1, 2 * (rows.mean() + 0.5) / region.shape[0] - 1


def taken_labels(mask: np.ndarray, component: int) -> np.ndarray:
    """Returns labels (H, W) of one object of mask (H, W), or of all (0); everything else is background."""
    chosen = foreground_of(mask) if component == 0 else objects_of(mask)[0] == component
    return np.where(chosen, mask, 0).astype(np.uint8)


def is_cut(thing: np.ndarray, frame: np.ndarray) -> bool:
    """Returns whether `thing` (H, W) reaches the image border or the frame (H, W).

    Amid another image it would end in a straight edge, or bring some of the black frame with it.
    """
    if thing[[0, -1]].any() or thing[:, [0, -1]].any():
        return True
    return bool((ndimage.binary_dilation(thing > 0, iterations=2) & frame).any())


def draw_recombination(rng: torch.Generator, labelled: Arrays, others: list[int], *, labels: np.ndarray,  # noqa: PLR0913
                       keep_in: np.ndarray, anatomy: Anatomy, settings: LayoutSettings,
                       tries: int = 20) -> Recombination | None:
    """Returns a fitting, uncut foreground from the pairs `others` for the moved labels (H, W), None if none is found.

    Args:
        keep_in: (H, W) bool; nothing is put there.
    """
    mode: Literal["add", "replace"] = "add" if uniform(rng, 0, 1) < anatomy.add_share else "replace"
    own = foreground_of(labels)
    for _ in range(tries if others and own.any() else 0):
        row = others[choice(rng, len(others))]
        mask, component = labelled.masks[row], 0
        if labelled.info.n_classes == 2:  # else all of it: a ventricle belongs in its myocardium
            numbers = objects_of(mask)[1]
            component = numbers[choice(rng, len(numbers))]
        thing = taken_labels(mask, component)
        if is_cut(thing, keep_in_of(labelled.images[row], mask)):
            continue
        spot = (uniform(rng, -1, 1), uniform(rng, -1, 1))
        params = shift_to(draw_affine(rng, settings), origin=_centre(thing > 0),
                          target=spot if mode == "add" else _centre(own), shape=mask.shape)
        moved, area = apply_mask(thing, params), int((thing > 0).sum())
        taken = own if mode == "add" else np.zeros_like(own)
        if (stays_inside(moved, params, area=area, min_foreground=settings.min_foreground)
                and fits(moved > 0, taken=taken, keep_in=keep_in, gap_px=settings.gap_px)):
            return Recombination(labelled.ids[row], mode, component, params, settings.gap_px)
    return None


def hole_of(labels: np.ndarray, keep_in: np.ndarray) -> np.ndarray:
    """Returns what is filled in where all foreground of labels (H, W) is taken away, (H, W) bool; none of `keep_in`."""
    return ndimage.binary_dilation(foreground_of(labels), np.ones((3, 3)), iterations=2) & ~keep_in  # antialiased edge


def fill(pixels: np.ndarray, hole: np.ndarray, *, known: np.ndarray) -> np.ndarray:
    """Returns pixels (C, H, W) with `hole` smoothly filled from the pixels `known`, both (H, W) bool.

    Only what no painter paints over is left of it, and who paints objects alone must not call it background (see
    `ring_px` of `transform_pairs`); but nothing of the removed object may shine through a soft rim.
    """
    if not hole.any() or not known.any():
        return pixels
    weights, filled = np.zeros(hole.shape), np.zeros(pixels.shape)
    sigma, share = 1.0, 1.0
    while True:  # each scale reaches further and counts less, so near pixels rule wherever there are any
        w = ndimage.gaussian_filter(known.astype(np.float64), sigma, mode="nearest")
        weights += share * w
        filled += share * np.stack([ndimage.gaussian_filter(c * known, sigma, mode="nearest") for c in
                                    pixels.astype(np.float64)])
        if weights[hole].min() > 1e-9 or sigma > 4 * max(hole.shape):
            break
        sigma, share = sigma * 2, share * 1e-2
    smooth = np.rint(filled / np.maximum(weights, 1e-300)).clip(0, np.iinfo(pixels.dtype).max)
    return np.where(hole, smooth, pixels).astype(pixels.dtype)


def put(pixels: np.ndarray, labels: np.ndarray, keep_in: np.ndarray, *, image: np.ndarray, mask: np.ndarray,  # noqa: PLR0913
        taken: Recombination) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels (C, H, W) and labels (H, W) with the foreground `taken` from the pair image, mask.

    The foreground's pixels are the other pair's, interpolated once; round them `gap_px` pixels pass from one image to
    the other. What was there before in "replace" mode is filled in and has no label.
    """
    moved = apply_mask(taken_labels(mask, taken.component), taken.affine)
    whole, thing = apply_mask(mask, taken.affine), moved > 0
    if taken.mode == "replace":
        hole = hole_of(labels, keep_in)
        pixels = fill(pixels, hole, known=~hole & ~keep_in)
        labels = np.where(foreground_of(labels), 0, labels)
    distance = ndimage.distance_transform_edt(~thing)
    near = distance <= taken.gap_px
    weight = np.where(near, 0.5 + 0.5 * np.cos(np.pi * distance / (taken.gap_px + 1)), 0)
    # Of other objects the rim shows none: not the other pair's, not those mirrored at its border, not the own ones.
    others = foreground_of(whole) | mirrored_in(mask, taken.affine) | foreground_of(labels)
    weight = np.where(thing, 1.0, np.where(others | keep_in, 0.0, weight))
    mixed = np.rint(weight * apply_image(image, taken.affine) + (1 - weight) * pixels.astype(np.float64))
    doubt = near & (whole == IGNORE) & ~foreground_of(labels)
    return mixed.astype(pixels.dtype), np.where(thing, moved, np.where(doubt, IGNORE, labels)).astype(np.uint8)


def from_words(words: dict) -> Recombination:
    """Returns the recombination whose fields, read from JSON, are `words`."""
    affine = Affine(**words["affine"])
    return Recombination(**{**words, "affine": replace(affine, elastic=tuple(affine.elastic))})

"""STAPLE: the hidden true labels and every annotator's confusion, estimated in turns (Warfield et al. 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synth.core.checks import IGNORE

TOLERANCE, MAX_ROUNDS = 1e-7, 500


@dataclass(frozen=True)
class Patterns:
    """Pixels of one image that got the same decisions from everybody, once each: they have the same posterior.

    Attributes:
        decisions: (P, R), class that annotator r gave, 255 = said nothing. counts: (P,) pixels of each pattern.
        index: (h, w), pattern of each pixel of the box. box: where they lie in the image.
    """

    decisions: np.ndarray
    counts: np.ndarray
    index: np.ndarray
    box: tuple[slice, slice]


@dataclass(frozen=True)
class Staple:
    """What the estimation found.

    Attributes:
        posteriors: for each image (P, K): probability of each true class, pattern by pattern.
        confusion: (R, K, K), [r, s, d] = probability that annotator r says d where s is true.
    """

    posteriors: list[np.ndarray]
    confusion: np.ndarray


def union_box(masks: np.ndarray) -> tuple[slice, slice] | None:
    """Returns the smallest box around all that anybody calls foreground in masks (R, H, W); None if nobody does.

    All else is background in everybody's eyes. Counted in, it would make every specificity 1 and the prior 0.
    """
    marked = ((masks > 0) & (masks != IGNORE)).any(0)
    if not marked.any():
        return None
    sides = [np.flatnonzero(marked.any(axis)) for axis in (1, 0)]
    return tuple(slice(int(side[0]), int(side[-1]) + 1) for side in sides)


def patterns_of(masks: np.ndarray, box: tuple[slice, slice]) -> Patterns:
    """Returns the patterns of masks (R, H, W) within `box`."""
    inside = masks[(slice(None), *box)]
    rows = np.ascontiguousarray(inside.reshape(len(masks), -1).T)
    # One number for each pixel's decisions: sorting numbers is much faster than sorting rows.
    keys = rows.view(np.dtype((np.void, rows.shape[1]))).ravel() if len(masks) > 8 else _numbers(rows)
    _, first, index, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return Patterns(rows[first], counts, index.reshape(inside.shape[1:]), box)


def _numbers(rows: np.ndarray) -> np.ndarray:
    return (rows.astype(np.uint64) << (8 * np.arange(rows.shape[1], dtype=np.uint64))).sum(1, dtype=np.uint64)


def priors_of(images: Sequence[Patterns], n_classes: int) -> list[np.ndarray]:
    """Returns for each image how often each class (K,) is said within its box."""
    shares = []
    for image in images:
        said = np.array([(image.counts[:, None] * (image.decisions == k)).sum() for k in range(n_classes)], float)
        shares.append(said / said.sum())
    return shares


def staple(images: Sequence[Patterns], *, n_classes: int, n_raters: int, start: float = 0.9) -> Staple:
    """Returns posteriors and confusions that no further round changes.

    E, eq. 16 with several classes: W_s = pi_s prod_r theta_r[s, d_r], scaled to sum 1 over s; M, eq. 18:
    theta_r[s, d] = sum_{i: d_ir = d} W_is / sum_i W_is over the pixels that r labelled. With two classes theta[1, 1] is
    the sensitivity p, theta[0, 0] the specificity q. One confusion for each annotator over all images. The prior pi of
    each image is estimated too, mean_i W_is, for the share of what is said is wrong as often as annotators are; it
    starts there, and annotators as being right with probability `start`.
    """
    priors = priors_of(images, n_classes)
    wrong = (1 - start) / max(n_classes - 1, 1)
    confusion = np.full((n_raters, n_classes, n_classes), wrong) + np.eye(n_classes) * (start - wrong)
    for _ in range(MAX_ROUNDS):
        posteriors = [posterior(image.decisions, confusion, prior)
                      for image, prior in zip(images, priors, strict=True)]
        priors = [(image.counts @ probable) / image.counts.sum()
                  for image, probable in zip(images, posteriors, strict=True)]
        updated = _confusions(images, posteriors, confusion)
        change, confusion = np.abs(updated - confusion).max(), updated
        if change < TOLERANCE:
            break
    return Staple(posteriors, confusion)


def posterior(decisions: np.ndarray, confusion: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Returns the probability (P, K) of each true class for decisions (P, R), confusion (R, K, K) and prior (K,)."""
    with np.errstate(divide="ignore"):
        logs, told = np.log(confusion), np.tile(np.log(prior), (len(decisions), 1))
    for r in range(decisions.shape[1]):
        says = decisions[:, r]
        there = says != IGNORE
        told[there] += logs[r][:, says[there]].T
    told -= told.max(1, keepdims=True)
    weights = np.exp(told)
    return weights / weights.sum(1, keepdims=True)


def _confusions(images: Sequence[Patterns], posteriors: Sequence[np.ndarray], before: np.ndarray) -> np.ndarray:
    counts = np.zeros_like(before)
    for image, probable in zip(images, posteriors, strict=True):
        weighted = probable * image.counts[:, None]
        for r in range(len(before)):
            for d in range(before.shape[1]):
                counts[r, :, d] += weighted[image.decisions[:, r] == d].sum(0)
    totals = counts.sum(2, keepdims=True)
    # Of a true class that an annotator never met nothing is learnt. The floor keeps one pixel from being a veto.
    found = np.where(totals > 1e-9, counts / np.maximum(totals, 1e-9), before)
    return np.clip(found, 1e-6, 1) / np.clip(found, 1e-6, 1).sum(2, keepdims=True)

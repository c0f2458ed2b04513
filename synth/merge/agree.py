"""How far annotators agree, and the vote that weighs each by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from synth.core.checks import IGNORE


def dice(a: np.ndarray, b: np.ndarray, n_classes: int) -> float:
    """Returns the Dice of labels a and b, both (H, W), mean over the classes > 0 that either shows; 1 if none does.

    Pixels that are 255 in either are left out.
    """
    return _mean_dice_of(a, b, (a != IGNORE) & (b != IGNORE), n_classes)


def dice_with_merged(said: np.ndarray, merged: np.ndarray, n_classes: int) -> float:
    """Returns the Dice of an annotator's labels with the merged ones, both (H, W), mean over classes as in `dice`.

    Only pixels of which the annotator says nothing are left out. Foreground where the merged label is 255 is contested
    and counts as disagreement: left out, total disagreement would be none, since then every doubtful pixel is 255.
    """
    return _mean_dice_of(said, merged, said != IGNORE, n_classes)


def _mean_dice_of(a: np.ndarray, b: np.ndarray, counted: np.ndarray, n_classes: int) -> float:
    scores = []
    for k in range(1, n_classes):
        one, other = (a == k) & counted, (b == k) & counted
        if total := int(one.sum() + other.sum()):
            scores.append(2 * int((one & other).sum()) / total)
    return float(np.mean(scores)) if scores else 1.0


def pair_dice(images: Sequence[np.ndarray], n_classes: int) -> np.ndarray:
    """Returns the Dice (N, R, R) of every two annotators on each of N images (R, H, W); nan where one is missing."""
    n_raters = len(images[0])
    table = np.full((len(images), n_raters, n_raters), np.nan)
    for i, masks in enumerate(images):
        there = [r for r in range(n_raters) if (masks[r] != IGNORE).any()]
        for k, r in enumerate(there):
            for other in there[k + 1:]:
                table[i, r, other] = table[i, other, r] = dice(masks[r], masks[other], n_classes)
    return table


def mean_dice(table: np.ndarray) -> np.ndarray:
    """Returns each annotator's mean Dice (R,) with the others, of `pair_dice` (N, R, R); nan where none is shared."""
    counts = np.isfinite(table).sum((0, 2))
    return np.where(counts > 0, np.nansum(table, (0, 2)) / np.maximum(counts, 1), np.nan)


def weighted_shares(decisions: np.ndarray, weights: np.ndarray, n_classes: int) -> np.ndarray:
    """Returns the share (P, K) of the weights (R,) that says each class in decisions (P, R); 0 where nobody speaks."""
    shares = np.stack([(decisions == k) @ weights for k in range(n_classes)], 1)
    return shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)


def vote_weights(reliability: np.ndarray, *, least: float) -> np.ndarray:
    """Returns each annotator's weight (R,): its mean Dice with the others, 0 below `least`.

    One who shares no image with anybody, and whose Dice is nan, weighs as much as the others do on average.
    """
    known = np.isfinite(reliability)
    usual = float(reliability[known].mean()) if known.any() else 1.0
    weights = np.where(known, reliability, usual)
    return np.where(weights >= least, weights, 0.0)

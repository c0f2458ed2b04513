"""Counts first, metrics after: Dice from counts, surface distances from MONAI, and what an empty mask scores.

Distances are in mm where the size of every case's pixels is known, else in pixels at the working resolution; tolerances
are in pixels. Ignored pixels are outside: they are taken out of prediction and truth before anything is counted or any
surface is drawn.

Empty masks, per case and class: both empty = Dice 1, NSD 1, no HD95 and no ASD (left out and counted). One empty =
Dice 0, NSD 0, HD95 and ASD = the image diagonal.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from synth.core.checks import IGNORE


@dataclass(frozen=True)
class Counts:
    """Pixels of each case and foreground class, (N, K - 1) int64: true positive, false positive, false negative."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray


@dataclass(frozen=True)
class CaseScores:
    """What one case scored, one entry for each foreground class.

    Attributes:
        dice, nsd: in [0, 1]. hd95, asd: px or mm, None where prediction and truth are both empty.
        tp, fp, fn: the counts they come from.
    """

    id: str
    group: str
    dice: tuple[float, ...]
    nsd: tuple[float, ...]
    hd95: tuple[float | None, ...]
    asd: tuple[float | None, ...]
    tp: tuple[int, ...]
    fp: tuple[int, ...]
    fn: tuple[int, ...]


def count_pixels(predicted: torch.Tensor, labels: torch.Tensor, *, n_classes: int) -> Counts:
    """Returns the counts of predicted labels (N, H, W) against labels (N, H, W) in which 255 = ignore."""
    valid = labels != IGNORE
    tables = []
    for k in range(1, n_classes):
        ours, theirs = (predicted == k) & valid, (labels == k) & valid
        tables.append([(a & b).flatten(1).sum(1) for a, b in ((ours, theirs), (ours, ~theirs), (~ours, theirs))])
    tp, fp, fn = (torch.stack([t[i] for t in tables], dim=1).cpu().numpy() for i in range(3))
    return Counts(tp, fp, fn)


def dice(counts: Counts) -> np.ndarray:
    """Returns 2 tp / (2 tp + fp + fn), (N, K - 1); 1 where prediction and truth are both empty."""
    total = 2 * counts.tp + counts.fp + counts.fn
    return np.where(total == 0, 1.0, 2 * counts.tp / np.maximum(total, 1))


@dataclass(frozen=True)
class Surface:
    """How far two edges lie apart: `nsd` in [0, 1]; `hd95` and `asd` in px or mm, None where both masks are empty."""

    nsd: float
    hd95: float | None
    asd: float | None


def surface_scores(predicted: np.ndarray, truth: np.ndarray, *, tolerance_px: float,
                   spacing: tuple[float, float] = (1.0, 1.0)) -> Surface:
    """Returns the surface scores of two binary masks (H, W) whose pixels have the height and width `spacing`, with the
    empty-mask rules of this module.

    NSD: share of the edge pixels of both that lie within `tolerance_px` of the other's edge. HD95: the larger of the
    two directed 95th percentiles of edge distance. ASD: the mean over the edge pixels of both of the distance to the
    other's edge. All as `monai.metrics` computes them without subvoxels.
    """
    ours, theirs = bool(predicted.any()), bool(truth.any())
    if not ours and not theirs:
        return Surface(1.0, None, None)
    if not ours or not theirs:
        diagonal = math.hypot(*(n * s for n, s in zip(truth.shape, spacing, strict=True)))
        return Surface(0.0, diagonal, diagonal)
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    a, b = (torch.from_numpy(m.astype(np.float32))[None, None] for m in (predicted, truth))
    with warnings.catch_warnings():  # MONAI calls its own deprecated argument
        warnings.simplefilter("ignore", FutureWarning)
        nsd = compute_surface_dice(a, b, [float(tolerance_px)], include_background=True)
        hd95 = compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing)
        asd = compute_average_surface_distance(a, b, include_background=True, symmetric=True, spacing=spacing)
    return Surface(float(nsd), float(hd95), float(asd))


def score_cases(  # noqa: PLR0913 - what a case is, and how it is measured
        predicted: torch.Tensor, labels: torch.Tensor, *, ids: Sequence[str], groups: Sequence[str], n_classes: int,
        tolerance_px: float, spacings: Sequence[tuple[float, float]] = ()) -> tuple[CaseScores, ...]:
    """Returns the scores of predicted labels (N, H, W) against labels (N, H, W), case by case, in order.

    `spacings` are the heights and widths of the cases' pixels, mm; without them distances are in px.
    """
    counts = count_pixels(predicted, labels, n_classes=n_classes)
    overlaps = dice(counts)
    ours, theirs = predicted.cpu().numpy(), labels.cpu().numpy()
    cases = []
    for i, (name, group) in enumerate(zip(ids, groups, strict=True)):
        valid = theirs[i] != IGNORE
        surfaces = [surface_scores((ours[i] == k) & valid, (theirs[i] == k) & valid, tolerance_px=tolerance_px,
                                   spacing=spacings[i] if spacings else (1.0, 1.0)) for k in range(1, n_classes)]
        distances = (tuple(getattr(s, kind) for s in surfaces) for kind in ("nsd", "hd95", "asd"))
        cases.append(CaseScores(name, group, tuple(overlaps[i].tolist()), *distances,
                                *(tuple(c[i].tolist()) for c in _columns(counts))))
    return tuple(cases)


def _columns(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return counts.tp, counts.fp, counts.fn

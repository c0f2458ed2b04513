"""Means and paired differences over cases, with intervals over groups: patients are the sample, not their slices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from synth.core.rng import derive_seed

FEW_GROUPS = 10
"""Below this number of groups any interval is shaky, and the estimate says so."""


@dataclass(frozen=True)
class Estimate:
    """A mean over cases and its interval over groups.

    Attributes:
        low, high: the interval, None if there is none. note: why there is none, or what weakens it; else empty.
    """

    mean: float
    low: float | None
    high: float | None
    n_cases: int
    n_groups: int
    note: str = ""


def group_sums(values: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (sums, counts), (G,) each, of `values` (N,) within each group, groups in sorted order."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(index, weights=values, minlength=len(names)), np.bincount(index, minlength=len(names))


def widened_level(level: float, n_groups: int) -> float:
    """Returns the nominal level at which a percentile interval of `n_groups` values covers about `level`.

    A bootstrap of few values is too narrow by sqrt((G - 1) / G) and by normal against Student quantiles; asking for
    1 - 2 Phi(-sqrt(G / (G - 1)) t) undoes both (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).
    """
    t = stats.t.ppf(0.5 + level / 2, n_groups - 1)
    return float(1 - 2 * stats.norm.cdf(-math.sqrt(n_groups / (n_groups - 1)) * t))


def mean_interval(values: np.ndarray, groups: Sequence[str], *, seed: int, resamples: int = 9999,
                  level: float = 0.95) -> Estimate:
    """Returns the mean of `values` (N,) over cases with a BCa bootstrap interval over groups.

    A resample draws groups with replacement and divides the sum of their values by the sum of their sizes, so that
    groups of unequal size weigh as they should. Paired differences go through here too: their groups are the pairs.
    """
    sums, counts = group_sums(np.asarray(values, dtype=np.float64), groups)
    mean, n = float(sums.sum() / counts.sum()), len(sums)
    if n < 2:
        return Estimate(mean, None, None, len(values), n, "one group only: no interval over groups")
    if np.ptp(sums / counts) < 1e-12:
        return Estimate(mean, mean, mean, len(values), n, "no spread between groups: the interval is a point")
    low, high, note = _bootstrap(sums, counts, seed=seed, resamples=resamples, level=level)
    if n < FEW_GROUPS:
        note = "; ".join(filter(None, [note, f"only {n} groups: the interval is rough"]))
    return Estimate(mean, low, high, len(values), n, note)


def _bootstrap(sums: np.ndarray, counts: np.ndarray, *, seed: int, resamples: int,
               level: float) -> tuple[float, float, str]:
    def ratio(s: np.ndarray, c: np.ndarray, axis: int) -> np.ndarray:
        return s.sum(axis=axis) / c.sum(axis=axis)

    # Beyond the outermost resample there is nothing to read a quantile from.
    wide = min(widened_level(level, len(sums)), 1 - 2 / (resamples + 1))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap((sums, counts), ratio, paired=True, vectorized=True, n_resamples=resamples,
                                    batch=1000, confidence_level=wide, method=method,
                                    rng=np.random.default_rng(derive_seed(seed, "bootstrap"))).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            break
    note = "" if method == "BCa" else "BCa undefined here: percentile interval"
    return float(found.low), float(found.high), note


def sign_flip_p(differences: np.ndarray, groups: Sequence[str], *, seed: int, resamples: int = 9999) -> float:
    """Returns the two-sided p of "no difference": the sign of each group's sum flipped, exactly if few, else at random.

    With G groups the smallest p that can come out is 2 / 2^G: 1 for a single one.
    """
    sums, _ = group_sums(np.asarray(differences, dtype=np.float64), groups)
    if len(sums) < 2 or np.abs(sums).max() < 1e-12:
        return 1.0
    found = stats.permutation_test((sums,), lambda s, axis: s.sum(axis=axis), permutation_type="samples",
                                   vectorized=True, n_resamples=resamples, batch=1000, alternative="two-sided",
                                   rng=np.random.default_rng(derive_seed(seed, "signs")))
    return float(min(1.0, found.pvalue))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Returns p adjusted for the number of comparisons (Holm 1979), in the order given."""
    n, running = len(p_values), 0.0
    adjusted = [0.0] * n
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (n - rank) * p_values[i]))
        adjusted[int(i)] = running
    return tuple(adjusted)

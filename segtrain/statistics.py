"""Means and paired differences over cases, with intervals over groups: patients are the sample, not their slices.

Where labels were drawn several times, the draws are a second sample: the interval then asks what other labels and
other patients would say.
"""

from __future__ import annotations

import dataclasses
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
        detectable: the smallest true mean that would be told from 0 with a probability of 80 %, None without interval.
    """

    mean: float
    low: float | None
    high: float | None
    n_cases: int
    n_groups: int
    note: str = ""
    detectable: float | None = None


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


@dataclass(frozen=True)
class Error:
    """Standard error of a mean and the degrees of freedom it was estimated with."""

    se: float
    df: float

    def margin(self, level: float) -> float:
        """Returns half the width of Student's interval at `level`."""
        return float(stats.t.ppf(0.5 + level / 2, self.df)) * self.se

    def detectable(self, *, alpha: float = 0.05, power: float = 0.8) -> float:
        """Returns the smallest true mean that a two-sided test at `alpha` finds with probability `power`."""
        return float(stats.t.ppf(1 - alpha / 2, self.df) + stats.t.ppf(power, self.df)) * self.se


def crossed_error(table: np.ndarray, groups: Sequence[str]) -> Error:
    """Returns the error of the mean of `table` (D, N), cases in columns, over draws and groups as two crossed samples.

    Two-way random effects, one value for each draw and group: the variance of the grand mean is (MS_draw + MS_group -
    MS_rest) / (D G), its degrees of freedom after Satterthwaite (1946); never below what draws or groups alone say. The
    mean is a ratio of sums where groups differ in size, and enters by its linear form.
    """
    sums = np.array([group_sums(row, groups)[0] for row in np.asarray(table, dtype=np.float64)])
    counts = group_sums(table[0], groups)[1]
    n_draws, n_groups = sums.shape
    rest = (sums - sums.sum() / (n_draws * counts.sum()) * counts) * n_groups / counts.sum()
    by_draw, by_group = rest.mean(axis=1), rest.mean(axis=0)
    free = np.array([n_draws - 1, n_groups - 1, (n_draws - 1) * (n_groups - 1)])
    squares = np.array([n_groups * np.square(by_draw).sum(), n_draws * np.square(by_group).sum(),
                        np.square(rest - by_draw[:, None] - by_group).sum()]) / free
    both = squares[0] + squares[1] - squares[2]
    largest = int(np.argmax(squares[:2]))
    if both <= squares[largest]:
        return Error(math.sqrt(squares[largest] / (n_draws * n_groups)), float(free[largest]))
    return Error(math.sqrt(both / (n_draws * n_groups)), float(both**2 / (np.square(squares) / free).sum()))


def crossed_interval(table: np.ndarray, groups: Sequence[str], *, seed: int, resamples: int = 9999,
                     level: float = 0.95) -> Estimate:
    """Returns the mean of `table` (D, N), draws in rows and cases in columns, with its interval over both.

    One draw says nothing about others: then it is `mean_interval` over groups, and the note says so. A bootstrap of
    five draws covers too rarely (scripts/benchmarks/coverage.py), hence Student's interval.
    """
    single = mean_interval(table.mean(axis=0), groups, seed=seed, resamples=resamples, level=level)
    if single.low is None or np.ptp(table) < 1e-12:
        return single
    if len(table) < 2:
        error = _group_error(table[0], groups)
        note = "; ".join(filter(None, [single.note, "one label draw: says nothing about other labels"]))
        return dataclasses.replace(single, note=note, detectable=error.detectable())
    error = crossed_error(table, groups)
    margin = error.margin(level)
    few = f"only {single.n_groups} groups: the interval is rough" if single.n_groups < FEW_GROUPS else ""
    return Estimate(single.mean, single.mean - margin, single.mean + margin, single.n_cases, single.n_groups, few,
                    error.detectable())


def _group_error(values: np.ndarray, groups: Sequence[str]) -> Error:
    sums, counts = group_sums(values, groups)
    rest = (sums - sums.sum() / counts.sum() * counts) * len(sums) / counts.sum()
    return Error(float(rest.std(ddof=1)) / math.sqrt(len(rest)), len(rest) - 1)


def wilcoxon_p(differences: np.ndarray, groups: Sequence[str]) -> float:
    """Returns the two-sided p of Wilcoxon's signed ranks of the groups' mean differences; exact for few without ties.

    With G groups the smallest p that can come out is 2 / 2^G: 1 for a single one.
    """
    sums, counts = group_sums(np.asarray(differences, dtype=np.float64), groups)
    means = sums / counts
    if len(means) < 2 or np.abs(means).max() < 1e-12:
        return 1.0
    return float(min(1.0, stats.wilcoxon(means, zero_method="zsplit").pvalue))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Returns p adjusted for the number of comparisons (Holm 1979), in the order given."""
    n, running = len(p_values), 0.0
    adjusted = [0.0] * n
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (n - rank) * p_values[i]))
        adjusted[int(i)] = running
    return tuple(adjusted)

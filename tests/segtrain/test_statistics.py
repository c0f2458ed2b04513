"""Intervals and tests over groups: closed forms, determinism, coverage, degenerate cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from segtrain.statistics import (
    crossed_error,
    crossed_interval,
    group_sums,
    holm,
    mean_interval,
    widened_level,
    wilcoxon_p,
)


def each(n: int) -> list[str]:
    """Returns n groups of one case each."""
    return [f"g{i:03d}" for i in range(n)]


def test_group_sums_keep_unequal_sizes() -> None:
    sums, counts = group_sums(np.array([1.0, 2, 3, 10]), ["b", "a", "b", "a"])
    assert sums.tolist() == [12, 4] and counts.tolist() == [2, 2]


def test_mean_is_over_cases_not_over_groups() -> None:
    found = mean_interval(np.array([0.0, 0, 0, 1]), ["a", "a", "a", "b"], seed=0, resamples=99)
    assert found.mean == 0.25 and found.n_groups == 2 and found.n_cases == 4


def test_interval_matches_student_on_normal_data() -> None:
    # A long symmetric sample: the bootstrap's interval is mean +- t * standard error, up to Monte Carlo noise.
    values = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    found = mean_interval(values, each(200), seed=0)
    half = stats.t.ppf(0.975, 199) * values.std(ddof=1) / math.sqrt(200)
    assert found.low == pytest.approx(-half, rel=0.06) and found.high == pytest.approx(half, rel=0.06)
    assert found.note == ""


def test_cases_of_one_group_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.standard_normal(20), 10)
    grouped = mean_interval(values, np.repeat(each(20), 10).tolist(), seed=0, resamples=999)
    naive = mean_interval(values, each(200), seed=0, resamples=999)
    assert grouped.high - grouped.low > 2 * (naive.high - naive.low)


def test_the_same_seed_gives_the_same_interval_whatever_the_order() -> None:
    values, groups = np.random.default_rng(1).random(30), each(30)
    order = np.random.default_rng(2).permutation(30)
    first = mean_interval(values, groups, seed=3, resamples=999)
    again = mean_interval(values[order], [groups[i] for i in order], seed=3, resamples=999)
    assert (first.low, first.high) == pytest.approx((again.low, again.high), abs=1e-12)
    assert mean_interval(values, groups, seed=4, resamples=999).low != first.low


def test_a_shift_moves_the_interval_and_a_sign_turns_it() -> None:
    values, groups = np.random.default_rng(5).standard_normal(40), each(40)
    plain = mean_interval(values, groups, seed=0, resamples=999)
    moved = mean_interval(values + 3, groups, seed=0, resamples=999)
    assert (moved.low, moved.high) == pytest.approx((plain.low + 3, plain.high + 3))
    turned = mean_interval(-values, groups, seed=0, resamples=9999)
    wide = mean_interval(values, groups, seed=0, resamples=9999)
    assert (turned.low, turned.high) == pytest.approx((-wide.high, -wide.low), abs=0.03)


def _coverage(n_groups: int, repeats: int, *, skewed: bool) -> float:
    """Returns how often the interval holds the true mean 0 of cases in groups of 1 to 4 that share a group effect."""
    hits = 0
    for repeat in range(repeats):
        rng = np.random.default_rng([n_groups, repeat])
        sizes = rng.integers(1, 5, n_groups)
        group = rng.exponential(1.0, n_groups) - 1 if skewed else rng.standard_normal(n_groups)
        effects = np.repeat(group, sizes)
        groups = np.repeat(each(n_groups), sizes).tolist()
        found = mean_interval(effects + 0.5 * rng.standard_normal(len(effects)), groups, seed=repeat, resamples=999)
        hits += found.low <= 0 <= found.high
    return hits / repeats


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # 200 repeats: 3 binomial standard errors are .046; skewed data cost a bootstrap of 25 groups up to .03 more.
    assert abs(_coverage(25, 200, skewed=False) - 0.95) <= 0.046
    assert 0.95 - 0.046 - 0.03 <= _coverage(25, 200, skewed=True) <= 0.95 + 0.046


def test_few_groups_still_cover() -> None:
    # Without widening, skewed data of 6 groups are covered in about 4 of 5 cases.
    assert _coverage(6, 200, skewed=False) >= 0.95 - 0.046
    assert _coverage(6, 200, skewed=True) >= 0.85


def test_widened_level_undoes_the_bootstraps_narrowness() -> None:
    # For normal data the percentile half-width is z * s * sqrt((n - 1) / n) / sqrt(n); here it equals t * s / sqrt(n).
    for n in (3, 10, 100):
        z = stats.norm.ppf(0.5 + widened_level(0.95, n) / 2)
        assert z * math.sqrt((n - 1) / n) == pytest.approx(stats.t.ppf(0.975, n - 1))
    assert widened_level(0.95, 10**6) == pytest.approx(0.95, abs=1e-5)


def test_one_group_has_no_interval_and_says_why() -> None:
    found = mean_interval(np.array([0.1, 0.3]), ["a", "a"], seed=0)
    assert found.mean == pytest.approx(0.2) and found.low is None and found.high is None
    assert "one group" in found.note


def test_no_spread_is_a_point_and_says_so() -> None:
    found = mean_interval(np.full(6, 0.25), each(6), seed=0)
    assert (found.low, found.high) == (0.25, 0.25) and "no spread" in found.note


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 0, 1], [1e-9, 0, 0, 0, 0, 0], [0, 1]])
def test_near_degenerate_samples_give_finite_intervals_that_hold_the_mean(values: list[float]) -> None:
    found = mean_interval(np.array(values, float), each(len(values)), seed=0, resamples=999)
    assert math.isfinite(found.low) and found.low <= found.mean <= found.high
    assert "groups" in found.note


def test_wilcoxon_of_few_groups_is_exact() -> None:
    # All of 5 groups better: only the two extreme of 2^5 sign patterns are as far out.
    assert wilcoxon_p(np.array([0.1, 0.2, 0.15, 0.3, 0.25]), each(5)) == pytest.approx(2 / 32)
    assert wilcoxon_p(np.array([1.0]), ["a"]) == 1.0
    assert wilcoxon_p(np.zeros(8), each(8)) == 1.0


def test_wilcoxon_is_over_groups() -> None:
    values = np.linspace(0.1, 0.2, 40)
    assert wilcoxon_p(values, ["a"] * 20 + ["b"] * 20) == pytest.approx(0.5)
    assert wilcoxon_p(values, each(40)) < 0.001


def test_p_is_uniform_enough_under_no_difference() -> None:
    rng = np.random.default_rng(0)
    p = [wilcoxon_p(rng.standard_normal(12), each(12)) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert 0.4 < np.mean(p) < 0.6


def test_the_crossed_error_of_pure_effects_is_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    by_group, by_draw = rng.standard_normal(30), rng.standard_normal(6)
    only_groups = crossed_error(np.tile(by_group, (6, 1)), each(30))
    assert only_groups.se == pytest.approx(by_group.std(ddof=1) / math.sqrt(30)) and only_groups.df == 29
    only_draws = crossed_error(np.tile(by_draw[:, None], (1, 30)), each(30))
    assert only_draws.se == pytest.approx(by_draw.std(ddof=1) / math.sqrt(6)) and only_draws.df == 5
    both = crossed_error(by_draw[:, None] + by_group, each(30))
    assert both.se == pytest.approx(math.hypot(only_groups.se, only_draws.se)) and 5 < both.df < 34


def test_more_cases_of_the_same_groups_say_nothing_new() -> None:
    table = np.random.default_rng(1).standard_normal((5, 12))
    twice = np.repeat(table, 2, axis=1)
    alone, doubled = crossed_error(table, each(12)), crossed_error(twice, np.repeat(each(12), 2).tolist())
    assert doubled.se == pytest.approx(alone.se) and doubled.df == pytest.approx(alone.df)


def test_one_draw_is_an_interval_over_groups_and_says_so() -> None:
    values = np.random.default_rng(2).standard_normal((1, 20))
    found, plain = (f(v, each(20), seed=0, resamples=999) for f, v in ((crossed_interval, values),
                                                                      (mean_interval, values[0])))
    assert (found.low, found.high) == (plain.low, plain.high) and "one label draw" in found.note
    assert found.detectable == pytest.approx((stats.t.ppf(0.975, 19) + stats.t.ppf(0.8, 19))
                                             * values.std(ddof=1) / math.sqrt(20))


def test_crossed_intervals_cover_the_truth_where_draws_differ() -> None:
    hits = {"ours": 0, "groups alone": 0}
    for repeat in range(300):
        rng = np.random.default_rng(repeat)
        table = rng.standard_normal((5, 1)) + rng.standard_normal(40) + rng.standard_normal((5, 40))
        ours = crossed_interval(table, each(40), seed=0, resamples=99)
        alone = mean_interval(table.mean(0), each(40), seed=0, resamples=99)
        hits["ours"] += ours.low <= 0 <= ours.high
        hits["groups alone"] += alone.low <= 0 <= alone.high
    assert abs(hits["ours"] / 300 - 0.95) <= 3 * math.sqrt(0.05 * 0.95 / 300)
    assert hits["groups alone"] / 300 < 0.7, "what the interval over groups leaves out"


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.6, 0.7]) == pytest.approx((1.0, 1.0))
    assert holm([]) == ()

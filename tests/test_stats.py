"""Statistics against independent implementations and by their defining properties."""

import math
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from unhack import stats


@given(st.integers(1, 400), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    ours = stats.wilson(successes, n)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert 0 <= ours.low <= successes / n <= ours.high <= 1


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals_of_newcombe_1998(successes: int, n: int, low: float, high: float) -> None:
    interval = stats.wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_everything_and_impossible_counts_are_refused() -> None:
    assert stats.wilson(0, 0) == stats.Interval(0.0, 1.0)
    with pytest.raises(ValueError, match=r"5 successes out of 4"):
        stats.wilson(5, 4)


def test_wilson_covers_the_true_share_about_as_often_as_it_says() -> None:
    draws = numpy.random.default_rng(0).binomial(60, 0.1, size=2000)
    covered = [stats.wilson(int(hits), 60).low <= 0.1 <= stats.wilson(int(hits), 60).high for hits in draws]
    assert 0.92 < numpy.mean(covered) < 0.98


def test_one_seed_carries_no_spread() -> None:
    summary = stats.mean_sem([0.4])
    assert summary.mean == 0.4 and math.isnan(summary.sem) and summary.n == 1
    assert math.isnan(stats.mean_interval([0.4]).low)
    assert math.isnan(stats.paired_t({0: 0.1}, {0: 0.3}).p_value)
    assert stats.mean_sem([]).n == 0


def test_mean_sem_leaves_nan_out_and_agrees_with_scipy() -> None:
    values = [0.1, 0.5, 0.2, 0.9]
    summary = stats.mean_sem([*values, math.nan])
    assert summary.n == 4
    assert summary.sem == pytest.approx(scipy_stats.sem(values))
    interval = stats.mean_interval(values)
    theirs = scipy_stats.t.interval(0.95, 3, loc=numpy.mean(values), scale=scipy_stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(theirs)


def test_paired_t_pairs_by_seed_not_by_order() -> None:
    treated = {2: 0.30, 0: 0.10, 1: 0.25, 9: 0.99}
    baseline = {0: 0.50, 1: 0.60, 2: 0.55, 7: 0.0}
    result = stats.paired_t(treated, baseline)
    theirs: Any = scipy_stats.ttest_rel([0.10, 0.25, 0.30], [0.50, 0.60, 0.55])
    assert result.n == 3
    assert result.statistic == pytest.approx(theirs.statistic)
    assert result.p_value == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval()
    assert (result.interval.low, result.interval.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_differences_without_spread_have_no_p_value_whatever_rounding_makes_of_them(shift: float) -> None:
    baseline = {seed: 0.1 * seed for seed in range(1, 8)}
    result = stats.paired_t({seed: rate + shift for seed, rate in baseline.items()}, baseline)
    assert result.difference == pytest.approx(shift) and result.n == 7
    assert math.isnan(result.p_value) and math.isnan(result.statistic) and math.isnan(result.interval.low)


def test_paired_t_false_positive_rate_is_its_level() -> None:
    random = numpy.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        first, second = random.normal(size=8), random.normal(size=8)
        hits += stats.paired_t(dict(enumerate(first)), dict(enumerate(second))).p_value < 0.05
    assert 0.035 < hits / 2000 < 0.065


def test_holm_agrees_with_a_hand_worked_family_and_never_lowers_a_p_value() -> None:
    adjusted = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": math.nan})
    assert adjusted["d"] == pytest.approx(0.02)
    assert adjusted["a"] == pytest.approx(0.03)
    assert adjusted["c"] == pytest.approx(0.06)
    assert adjusted["b"] == pytest.approx(0.06)  # raised to its predecessor's: order is kept
    assert math.isnan(adjusted["none"])


def test_onset_needs_the_rate_to_stay_up() -> None:
    steps = [0, 10, 20, 30, 40]
    assert stats.onset_step(steps, [0.0, 0.5, 0.1, 0.4, 0.6]) == 30
    assert stats.onset_step(steps, [0.0, 0.5, 0.1, 0.4, 0.6], sustain=1) == 10
    assert stats.onset_step(steps, [0.0, 0.0, 0.0, 0.0, 0.9]) == 40
    assert stats.onset_step(steps, [0.1] * 5) is None
    assert stats.onset_step([], []) is None
    assert stats.onset_step(steps, [0.1, 0.3, 0.3, 0.0, 0.0]) == 10  # reaching the threshold is enough


def test_area_under_curve_is_the_mean_rate_over_uneven_steps() -> None:
    assert stats.area_under_curve([0, 10, 100], [0.0, 0.0, 0.0]) == 0.0
    assert stats.area_under_curve([0, 90, 100], [0.0, 0.0, 1.0]) == pytest.approx(0.05)
    assert stats.area_under_curve([5], [0.3]) == 0.3


def test_moving_mean_never_looks_ahead() -> None:
    assert stats.moving_mean([1.0, 3.0, 5.0, math.nan], 2) == [1.0, 2.0, 4.0, 5.0]
    later = stats.moving_mean([1.0, 3.0, 100.0, 7.0], 2)
    assert later[:2] == [1.0, 2.0]

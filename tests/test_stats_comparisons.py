"""Tests of differences against published examples, slow loops and scipy or statsmodels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from unhack import stats

# Student (1908), hours of sleep gained with two drugs by the same ten people; R's `sleep`
FIRST_DRUG = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND_DRUG = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
# Darwin's maize as Fisher (1935, §17) took it: crossed minus self-fertilised, eighths of an inch
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
# Hollander & Wolfe (1973), p. 29: depression before and after therapy; the example of R's `wilcox.test`
BEFORE = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
AFTER = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]


def by_seed(values: Any) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


def zeros(n: int) -> dict[int, float]:
    return dict.fromkeys(range(n), 0.0)


def test_paired_t_gives_students_published_sleep_result() -> None:
    result = stats.paired_t(by_seed(FIRST_DRUG), by_seed(SECOND_DRUG))
    assert result.statistic == pytest.approx(-4.0621, abs=5e-5) and result.degrees_of_freedom == 9
    assert result.p_value == pytest.approx(0.002833, abs=5e-7)
    assert (result.interval.low, result.interval.high) == pytest.approx((-2.4598858, -0.7001142), abs=5e-8)


def test_one_sided_tests_halve_the_p_value_in_the_direction_of_the_difference_only() -> None:
    treated, baseline = by_seed(FIRST_DRUG), by_seed(SECOND_DRUG)
    less = stats.paired_t(treated, baseline, alternative="less")
    greater = stats.paired_t(treated, baseline, alternative="greater")
    assert less.p_value == pytest.approx(0.002833 / 2, abs=5e-7)
    assert greater.p_value == pytest.approx(1 - less.p_value)
    for alternative, result in (("less", less), ("greater", greater)):
        theirs: Any = scipy_stats.ttest_rel(FIRST_DRUG, SECOND_DRUG, alternative=alternative)
        interval = theirs.confidence_interval()
        assert (result.interval.low, result.interval.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_the_interval_leaves_out_exactly_the_nulls_that_are_rejected(alternative: stats.Alternative) -> None:
    treated, baseline = by_seed(FIRST_DRUG), by_seed(SECOND_DRUG)
    for null in numpy.linspace(-4, 1, 41):
        result = stats.paired_t(treated, baseline, alternative=alternative, null=float(null))
        assert (result.p_value < 0.05) == (not result.interval.low <= null <= result.interval.high)


def test_pairing_removes_what_seeds_share_and_welch_does_not() -> None:
    shared = [0.1, 0.9, 0.3, 0.7, 0.5, 0.2]
    lower = [value - 0.05 - wobble for value, wobble in zip(shared, [0, 0.01, 0.02, 0, 0.01, 0.02], strict=True)]
    assert stats.paired_t(by_seed(lower), by_seed(shared)).p_value < 0.001
    assert stats.welch(lower, shared).p_value > 0.5


def test_one_sample_t_tests_the_mean_itself() -> None:
    result = stats.one_sample_t([0.32, 0.41, 0.36, 0.29, 0.44], 0.30, alternative="greater")
    theirs: Any = scipy_stats.ttest_1samp([0.32, 0.41, 0.36, 0.29, 0.44], 0.30, alternative="greater")
    assert (result.statistic, result.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert result.difference == pytest.approx(0.364) and result.interval.low == pytest.approx(
        theirs.confidence_interval().low
    )


def test_welch_gives_rs_published_result_for_the_sleep_data() -> None:
    result = stats.welch(FIRST_DRUG, SECOND_DRUG)
    assert result.statistic == pytest.approx(-1.8608, abs=5e-5)
    assert result.degrees_of_freedom == pytest.approx(17.776, abs=5e-4)
    assert result.p_value == pytest.approx(0.07939, abs=5e-6)
    assert (result.interval.low, result.interval.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    assert stats.welch(FIRST_DRUG, SECOND_DRUG, alternative="less").p_value == pytest.approx(0.07939 / 2, abs=5e-6)


def test_welch_counts_each_groups_own_size_and_spread() -> None:
    few, many = [0.1, 0.5, 0.9], [0.30, 0.31, 0.29, 0.30, 0.32, 0.28, 0.31]
    result = stats.welch(few, many)
    theirs: Any = scipy_stats.ttest_ind(few, many, equal_var=False)
    assert (result.statistic, result.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert math.isnan(stats.welch([0.1], many).p_value) and math.isnan(stats.welch([0.5, 0.5], [0.2, 0.2]).p_value)
    assert stats.welch([0.5, 0.5], [0.2, 0.2]).difference == pytest.approx(0.3)


def test_sign_flips_of_darwins_maize_are_fishers_863_of_32768() -> None:
    assert stats.sign_flip(by_seed(DARWIN), zeros(15), alternative="greater") == 863 / 2**15
    assert stats.sign_flip(by_seed(DARWIN), zeros(15)) == 1726 / 2**15
    assert stats.sign_flip(by_seed(DARWIN), zeros(15), alternative="less") == 1 - 835 / 2**15  # 28 sums are equal


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_sign_flips_agree_with_a_loop_over_all_signs_and_with_scipy(alternative: stats.Alternative) -> None:
    treated, baseline = [0.3, 0.1, 0.45, 0.2, 0.5, 0.35, 0.35], [0.5, 0.3, 0.4, 0.6, 0.55, 0.35, 0.6]
    differences = [a - b - 0.02 for a, b in zip(treated, baseline, strict=True)]
    observed = sum(differences)
    hits = 0
    for signs in itertools.product((1, -1), repeat=7):
        total = sum(sign * difference for sign, difference in zip(signs, differences, strict=True))
        extreme = {"two-sided": abs(total) - abs(observed), "greater": total - observed, "less": observed - total}
        hits += extreme[alternative] >= -1e-12
    ours = stats.sign_flip(by_seed(treated), by_seed(baseline), alternative=alternative, null=0.02)
    theirs = scipy_stats.permutation_test(
        (differences,), numpy.sum, permutation_type="samples", alternative=alternative, vectorized=False
    )
    assert ours == hits / 2**7 == pytest.approx(theirs.pvalue)


def test_many_sign_flips_are_drawn_and_come_close_to_the_t_test() -> None:
    values = numpy.random.default_rng(2).normal(0.4, 1, size=30)
    ours = stats.sign_flip(by_seed(values), zeros(30), alternative="greater")
    theirs = stats.paired_t(by_seed(values), zeros(30), alternative="greater").p_value
    assert ours == pytest.approx(theirs, rel=0.15) and 0.001 < theirs < 0.3
    assert math.isnan(stats.sign_flip({}, {}))


def test_wilcoxon_gives_hollander_and_wolfes_published_result() -> None:
    assert stats.wilcoxon(by_seed(BEFORE), by_seed(AFTER), alternative="greater") == pytest.approx(0.01953, abs=5e-6)
    assert stats.wilcoxon(by_seed(AFTER), by_seed(BEFORE), alternative="less") == pytest.approx(0.01953, abs=5e-6)


def test_wilcoxon_drops_equal_pairs_even_where_rounding_made_them_differ() -> None:
    baseline = by_seed([0.3, 0.2, 0.1, 0.2, 0.3])
    treated = {seed: value + 0.1 - 0.1 for seed, value in baseline.items()}
    assert any(treated[seed] != baseline[seed] for seed in baseline)
    assert math.isnan(stats.wilcoxon(treated, baseline))


def test_tost_agrees_with_statsmodels_on_the_sleep_data() -> None:
    for low, high in ((-3.0, 0.5), (-2.0, 2.0), (-4.0, 1.0)):
        ours = stats.tost(by_seed(FIRST_DRUG), by_seed(SECOND_DRUG), low, high)
        p_value, lower, upper = ttost_paired(numpy.array(FIRST_DRUG), numpy.array(SECOND_DRUG), low, high)
        assert ours.p_value == pytest.approx(p_value)
        assert (ours.p_above_low, ours.p_below_high) == pytest.approx((lower[1], upper[1]))


def test_tost_is_passed_exactly_when_the_interval_of_1_minus_2_alpha_lies_inside_the_margins() -> None:
    draws = numpy.random.default_rng(3)
    passed = 0
    for _ in range(200):
        treated, baseline = by_seed(draws.normal(0.03, 0.08, 8)), by_seed(draws.normal(0, 0.08, 8))
        result = stats.tost(treated, baseline, -0.10, 0.10)
        inside = result.interval.low > -0.10 and result.interval.high < 0.10
        assert (result.p_value < 0.05) == inside
        passed += inside
        two_sided = stats.paired_t(treated, baseline, 0.90).interval
        assert (result.interval.low, result.interval.high) == pytest.approx((two_sided.low, two_sided.high))
    assert 20 < passed < 180


def test_tost_without_an_upper_margin_asks_only_that_nothing_was_lost() -> None:
    rises = by_seed([0.50, 0.55, 0.61, 0.52])
    assert stats.tost(rises, zeros(4), -0.1, math.inf).p_value < 0.01
    assert stats.tost(rises, zeros(4), -0.1, 0.1).p_value > 0.99
    assert stats.tost(zeros(4), rises, -0.1, math.inf).p_value > 0.99
    assert math.isnan(stats.tost(zeros(4), zeros(4), -0.1, 0.1).p_value)
    with pytest.raises(ValueError, match="low must be below high"):
        stats.tost(rises, zeros(4), 0.1, -0.1)


def test_holm_agrees_with_statsmodels() -> None:
    draws = numpy.random.default_rng(4)
    for size in range(1, 9):
        p_values = draws.random(size) ** 3
        ours = stats.holm({str(index): float(p) for index, p in enumerate(p_values)})
        theirs: Any = multipletests(p_values, method="holm")[1]
        assert list(ours.values()) == pytest.approx(list(theirs))

"""Tests of differences: paired by seed, of two unpaired groups, for equivalence, and over a family of tests.

A difference without spread over seeds has no t: it is left untested (NaN), never called significant. The closed forms
are written out on scipy's distribution functions, because a simulation calls them a hundred thousand times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from numpy.typing import NDArray
from scipy import special
from scipy import stats as scipy_stats

from unhack.seeds import generator
from unhack.stats.summary import Interval

Alternative = Literal["two-sided", "greater", "less"]

ROUNDING_FRAC = 1e-12  # a spread under this share of the values is rounding, not spread
EXACT_PAIRS = 20  # sign flips of more pairs are drawn instead of listed (2^20 sums are 8 MB)
DRAWN_FLIPS = 100_000


@dataclass(frozen=True)
class TestResult:
    """A t test of a mean difference, with the difference's interval. All NaN but `difference` if untested.

    One-sided: the interval's other end is infinite. `n` counts pairs; of unpaired groups, the values of both.
    """

    __test__ = False  # its name must not make pytest collect it

    difference: float
    interval: Interval
    statistic: float
    degrees_of_freedom: float
    p_value: float
    n: int


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided paired t tests: is the difference inside (low, high)? NaN where untested.

    `interval` has confidence 1 − 2 alpha: it lies inside the margins exactly when `p_value` < alpha.
    """

    difference: float
    interval: Interval
    low: float
    high: float
    p_above_low: float
    p_below_high: float
    n: int

    @property
    def p_value(self) -> float:
        """The larger of the two: both must be rejected."""
        return max(self.p_above_low, self.p_below_high) if not math.isnan(self.p_above_low) else math.nan


def paired_differences(treated: Mapping[int, float], baseline: Mapping[int, float]) -> NDArray[numpy.float64]:
    """Treated − baseline [n] of the seeds (keys) that both have, in ascending order of seed."""
    seeds = sorted(treated.keys() & baseline.keys())
    return numpy.array([treated[seed] - baseline[seed] for seed in seeds], dtype=float)


def paired_t(
    treated: Mapping[int, float],
    baseline: Mapping[int, float],
    confidence: float = 0.95,
    *,
    alternative: Alternative = "two-sided",
    null: float = 0.0,
) -> TestResult:
    """Paired t test (Student 1908) of the mean of treated − baseline against `null`, over the seeds that both have.

    Untested for fewer than two, and if the difference is the same in every seed: without spread there is no t.
    """
    return _t_test(paired_differences(treated, baseline), _largest(treated, baseline), confidence, alternative, null)


def one_sample_t(
    values: Sequence[float], null: float, confidence: float = 0.95, *, alternative: Alternative = "two-sided"
) -> TestResult:
    """t test of the mean of `values` (one per seed) against `null`; `difference` and interval are the mean's own."""
    kept = numpy.array(values, dtype=float)
    return _t_test(kept, float(numpy.abs(kept).max(initial=0.0)), confidence, alternative, null)


def _t_test(
    values: NDArray[numpy.float64], largest: float, confidence: float, alternative: Alternative, null: float
) -> TestResult:
    n = len(values)
    if n < 2:
        return _untested(float(values.mean()) if n else math.nan, n)
    mean = float(values.mean())
    standard_error = float(values.std(ddof=1)) / math.sqrt(n)
    if standard_error <= ROUNDING_FRAC * largest:
        return _untested(mean, n)
    return _judge(mean, standard_error, n - 1.0, n, confidence, alternative, null)


def _judge(
    mean: float,
    standard_error: float,
    degrees_of_freedom: float,
    n: int,
    confidence: float,
    alternative: Alternative,
    null: float,
) -> TestResult:
    statistic = (mean - null) / standard_error
    two_sided = alternative == "two-sided"
    quantile = (1 + confidence) / 2 if two_sided else confidence
    half = float(special.stdtrit(degrees_of_freedom, quantile)) * standard_error
    low = mean - half if alternative != "less" else -math.inf
    high = mean + half if alternative != "greater" else math.inf
    tail = {"two-sided": -abs(statistic), "greater": -statistic, "less": statistic}[alternative]
    p_value = (2 if two_sided else 1) * float(special.stdtr(degrees_of_freedom, tail))
    return TestResult(mean, Interval(low, high), statistic, degrees_of_freedom, p_value, n)


def _untested(difference: float, n: int) -> TestResult:
    return TestResult(difference, Interval(math.nan, math.nan), math.nan, math.nan, math.nan, n)


def _largest(*groups: Mapping[int, float]) -> float:
    return max((abs(value) for values in groups for value in values.values()), default=0.0)


def welch(
    treated: Sequence[float],
    baseline: Sequence[float],
    confidence: float = 0.95,
    *,
    alternative: Alternative = "two-sided",
) -> TestResult:
    """t test of the difference of two unpaired means with unequal variances (Welch 1947; Satterthwaite's freedom).

    For arms that share no seeds. Untested for fewer than two values in either group or no spread in both.
    """
    groups = [numpy.array(values, dtype=float) for values in (treated, baseline)]
    n = len(treated) + len(baseline)
    if min(map(len, groups)) < 2:
        return _untested(float(groups[0].mean() - groups[1].mean()) if all(map(len, groups)) else math.nan, n)
    difference = float(groups[0].mean() - groups[1].mean())
    squares = [float(group.var(ddof=1)) / len(group) for group in groups]
    standard_error = math.sqrt(sum(squares))
    if standard_error <= ROUNDING_FRAC * max(float(numpy.abs(group).max()) for group in groups):
        return _untested(difference, n)
    freedom = sum(squares) ** 2 / sum(s * s / (len(g) - 1) for s, g in zip(squares, groups, strict=True))
    return _judge(difference, standard_error, freedom, n, confidence, alternative, 0.0)


def tost(
    treated: Mapping[int, float], baseline: Mapping[int, float], low: float, high: float, alpha: float = 0.05
) -> Equivalence:
    """Two one-sided paired t tests (Schuirmann 1987) that treated − baseline lies in (low, high), paired by seed.

    high = inf asks only that it is not lower by more than the margin (non-inferiority). ValueError for an empty range.
    """
    if not low < high:
        raise ValueError(f"the margins {low} to {high} hold nothing: low must be below high")
    above = paired_t(treated, baseline, 1 - alpha, alternative="greater", null=low)
    below = paired_t(treated, baseline, 1 - alpha, alternative="less", null=high)
    interval = Interval(above.interval.low, below.interval.high)
    return Equivalence(above.difference, interval, low, high, above.p_value, below.p_value, above.n)


def sign_flip(
    treated: Mapping[int, float],
    baseline: Mapping[int, float],
    *,
    alternative: Alternative = "two-sided",
    null: float = 0.0,
) -> float:
    """p of Fisher's (1935, §21) sign-flip test of treated − baseline − null: how often chance gives a mean as extreme.

    Exact over all 2^n sign changes up to 20 pairs (n pairs give at best 1 / 2^n one-sided); from 100,000 drawn ones,
    the observed among them, above. Assumes differences symmetric around `null`, no normality. NaN without pairs.
    """
    differences = paired_differences(treated, baseline) - null
    n = len(differences)
    if n == 0:
        return math.nan
    if n <= EXACT_PAIRS:
        sums = numpy.zeros(1)
        for difference in differences:
            sums = numpy.concatenate([sums + difference, sums - difference])
    else:
        signs = torch.randint(2, (DRAWN_FLIPS, n), generator=generator(0, "sign_flip", n)).double().numpy() * 2 - 1
        sums = numpy.concatenate([signs @ differences, [differences.sum()]])
    observed = float(differences.sum())
    slack = 1e-9 * float(numpy.abs(differences).sum())  # sums that are equal but for rounding are ties
    if alternative == "two-sided":
        return float(numpy.mean(numpy.abs(sums) >= abs(observed) - slack))
    return float(numpy.mean(sums >= observed - slack if alternative == "greater" else sums <= observed + slack))


def wilcoxon(
    treated: Mapping[int, float], baseline: Mapping[int, float], *, alternative: Alternative = "two-sided"
) -> float:
    """p of Wilcoxon's signed-rank test (1945) of treated − baseline by scipy; equal pairs are dropped, NaN if all are.

    Exact up to 50 pairs without ties or zeros. Differences are rounded to 12 digits, so that rounding breaks no tie.
    """
    differences = numpy.round(paired_differences(treated, baseline), 12)
    differences = differences[differences != 0]
    if len(differences) == 0:
        return math.nan
    result: Any = scipy_stats.wilcoxon(differences, alternative=alternative)
    return float(result.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values of a family of tests (Holm 1979); NaN stays NaN and does not count."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = dict.fromkeys(p_values, math.nan)
    running = 0.0
    for rank, (p_value, name) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p_value))
        adjusted[name] = running
    return adjusted

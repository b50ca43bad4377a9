"""Intervals and tests for rates and for seeds. The unit of analysis of a comparison is the seed (EXPERIMENT §1).

Not here: the preregistered verdicts on hypotheses, cluster bootstrap and TOST.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from scipy import stats as scipy_stats

ROUNDING_FRAC = 1e-12  # a spread under this share of the values is rounding, not spread


@dataclass(frozen=True)
class Interval:
    """A closed interval; both ends in the unit of the quantity that it encloses."""

    low: float
    high: float


@dataclass(frozen=True)
class MeanSem:
    """Mean over n seeds with its standard error; `sem` is NaN for n < 2: one seed carries no spread."""

    mean: float
    sem: float
    n: int


@dataclass(frozen=True)
class TestResult:
    """A two-sided t test of a mean difference, with the difference's interval. All NaN but `difference` if untested."""

    __test__ = False  # its name must not make pytest collect it

    difference: float
    interval: Interval
    statistic: float
    degrees_of_freedom: float
    p_value: float
    n: int


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a binomial share (Wilson 1927); [0, 1] when nothing was counted.

    Samples of one problem are not independent, so over several samples per problem this is somewhat too narrow.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} is not a share: successes must lie in 0..n")
    if n == 0:
        return Interval(0.0, 1.0)
    z = float(scipy_stats.norm.ppf((1 + confidence) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and at n the formula gives 0 and 1 exactly; rounding must not move the end past them.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def mean_sem(values: Sequence[float]) -> MeanSem:
    """Mean and standard error (sample standard deviation / sqrt(n)) over seeds; NaN values are left out."""
    kept = numpy.array([value for value in values if not math.isnan(value)], dtype=float)
    if len(kept) == 0:
        return MeanSem(math.nan, math.nan, 0)
    sem = float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else math.nan
    return MeanSem(float(kept.mean()), sem, len(kept))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student t interval of the mean over seeds; NaN ends for n < 2."""
    summary = mean_sem(values)
    if summary.n < 2:
        return Interval(math.nan, math.nan)
    half = float(scipy_stats.t.ppf((1 + confidence) / 2, summary.n - 1)) * summary.sem
    return Interval(summary.mean - half, summary.mean + half)


def paired_t(treated: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95) -> TestResult:
    """Paired t test of treated − baseline over the seeds that both have (keys are seeds).

    Untested for fewer than two, and if the difference is the same in every seed: without spread there is no t.
    """
    seeds = sorted(treated.keys() & baseline.keys())
    differences = numpy.array([treated[seed] - baseline[seed] for seed in seeds], dtype=float)
    n = len(seeds)
    if n < 2:
        return _untested(float(differences.mean()) if n else math.nan, n)
    mean = float(differences.mean())
    standard_error = float(differences.std(ddof=1)) / math.sqrt(n)
    largest = max(abs(values[seed]) for values in (treated, baseline) for seed in seeds)
    if standard_error <= ROUNDING_FRAC * largest:
        return _untested(mean, n)
    statistic = mean / standard_error
    half = float(scipy_stats.t.ppf((1 + confidence) / 2, n - 1)) * standard_error
    p_value = float(2 * scipy_stats.t.sf(abs(statistic), n - 1))
    return TestResult(mean, Interval(mean - half, mean + half), statistic, float(n - 1), p_value, n)


def _untested(difference: float, n: int) -> TestResult:
    return TestResult(difference, Interval(math.nan, math.nan), math.nan, math.nan, math.nan, n)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values of a family of tests (Holm 1979); NaN stays NaN and does not count."""
    tested = sorted((p, name) for name, p in p_values.items() if not math.isnan(p))
    adjusted = dict.fromkeys(p_values, math.nan)
    running = 0.0
    for rank, (p_value, name) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p_value))
        adjusted[name] = running
    return adjusted


def onset_step(steps: Sequence[int], rates: Sequence[float], threshold: float = 0.3, sustain: int = 2) -> int | None:
    """First step from which `sustain` consecutive rates reach `threshold`; None if that never happens.

    The last points may count with fewer followers than `sustain`, so that an onset at the end is not lost.
    """
    for start in range(len(steps)):
        if all(rate >= threshold for rate in rates[start : start + sustain]):
            return steps[start]
    return None


def area_under_curve(steps: Sequence[int], rates: Sequence[float]) -> float:
    """Trapezoid area divided by the span of steps: the mean rate over training, in the unit of `rates`."""
    if len(steps) < 2:
        return float(rates[0]) if rates else math.nan
    return float(numpy.trapezoid(rates, steps) / (steps[-1] - steps[0]))


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Trailing mean over at most `window` values (fewer at the start); NaN values are skipped."""
    means = []
    for end in range(1, len(values) + 1):
        kept = [value for value in values[max(0, end - window) : end] if not math.isnan(value)]
        means.append(sum(kept) / len(kept) if kept else math.nan)
    return means

"""Rates and means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from scipy import stats as scipy_stats


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

"""What a curve over training steps comes to: when it sets in, how much there was of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy


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

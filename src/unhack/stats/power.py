"""How often a test would decide, and how many seeds it takes: paired t and equivalence tests over seeds.

Everything is under normal differences with the spread given. A spread estimated from few seeds is itself uncertain
(95 %: 0.5 to 6.3 times as large from 3 seeds, 0.7 to 1.8 from 10), so the number of seeds is a plan, not a promise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy
from numpy.typing import NDArray
from scipy import special
from scipy import stats as scipy_stats

MAXIMUM_SEEDS = 1000
GRID_POINTS = 400


def power_t(effect: float, spread: float, n: int, alpha: float = 0.05, sides: int = 1) -> float:
    """Chance that a t test over n seeds finds a true mean `effect` above the null (Cohen 1988, noncentral t).

    `spread`: standard deviation of the differences across seeds, in the unit of `effect`. One-sided tests look for a
    positive effect; two-sided ones count a finding in the wrong direction too. 0 for n < 2.
    """
    if n < 2:
        return 0.0
    if spread <= 0:
        raise ValueError(f"a spread of {spread} has no power calculation: it must be above 0")
    shift = effect * math.sqrt(n) / spread
    critical = float(special.stdtrit(n - 1, 1 - alpha / sides))
    power = float(scipy_stats.nct.sf(critical, n - 1, shift))
    # the lower tail as the upper tail of the mirrored shift: nct.cdf gives NaN for it where the shift is large
    return power + float(scipy_stats.nct.sf(critical, n - 1, -shift)) if sides == 2 else power


def power_equivalence(difference: float, spread: float, n: int, low: float, high: float, alpha: float = 0.05) -> float:
    """Chance that two one-sided t tests over n seeds show a true mean `difference` to lie in (low, high).

    The exact integral over the sample's standard deviation s: given s, both tests reject when the sample mean lies
    between low + t s / √n and high − t s / √n (Phillips 1990). By midpoints in the probability of s. 0 for n < 2.
    """
    if n < 2:
        return 0.0
    if spread <= 0:
        raise ValueError(f"a spread of {spread} has no power calculation: it must be above 0")
    error = spread / math.sqrt(n)
    critical = float(special.stdtrit(n - 1, 1 - alpha))
    sampled = error * _relative_spreads(n)
    upper = special.ndtr((high - critical * sampled - difference) / error)
    lower = special.ndtr((low + critical * sampled - difference) / error)
    return float(numpy.clip(upper - lower, 0.0, None).mean())


@functools.lru_cache(maxsize=256)  # a search over n comes back to the same few
def _relative_spreads(n: int) -> NDArray[numpy.float64]:
    """Sample over true standard deviation of n normal values, at the middles of equally probable parts."""
    middles = (numpy.arange(GRID_POINTS) + 0.5) / GRID_POINTS
    return numpy.sqrt(special.chdtri(n - 1, 1 - middles) / (n - 1))  # chdtri takes the upper tail


def seeds_needed(power_at: Callable[[int], float], power: float = 0.8, maximum: int = MAXIMUM_SEEDS) -> int | None:
    """The smallest number of seeds n with power_at(n) ≥ `power`; None if `maximum` does not reach it.

    `power_at` must not fall as n grows, as is the case for an effect on the right side of its threshold.
    """
    if not power_at(maximum) >= power:
        return None
    low, high = 1, 2  # one seed never decides anything
    while high < maximum and power_at(high) < power:
        low, high = high, min(maximum, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(middle) >= power else (middle, high)
    return high

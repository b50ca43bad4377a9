"""How well a score tells positives from negatives: the curve, its area, an interval that knows of clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from unhack.seeds import generator
from unhack.stats.summary import Interval

Values: TypeAlias = Sequence[float | int | bool] | NDArray[Any] | Tensor


@dataclass(frozen=True)
class RocCurve:
    """Shares of negatives and positives with a score ≥ threshold, from (0, 0) to (1, 1), thresholds falling."""

    false_positive_rate: NDArray[numpy.float64]
    true_positive_rate: NDArray[numpy.float64]
    threshold: NDArray[numpy.float64]


def roc_curve(scores: Values, positive: Values) -> RocCurve:
    """One point per distinct score, and the origin. NaN rates where one kind is missing."""
    values, hits = numpy.asarray(scores, dtype=float), numpy.asarray(positive, dtype=bool)
    distinct = numpy.unique(values)[::-1]
    above = [_cumulative(values[kind], distinct) for kind in (~hits, hits)]
    rates = [numpy.concatenate([[0.0], counts / counts[-1] if len(counts) and counts[-1] else counts * math.nan])
             for counts in above]  # fmt: skip
    return RocCurve(rates[0], rates[1], numpy.concatenate([[math.inf], distinct]))


def _cumulative(values: NDArray[numpy.float64], thresholds: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """How many of `values` are at or above each threshold."""
    return len(values) - numpy.searchsorted(numpy.sort(values), thresholds, side="left").astype(float)


def auroc(scores: Values, positive: Values, weights: Values | None = None) -> float:
    """P(a positive scores above a negative), ties half (Mann–Whitney U / n m); `weights` count rows. NaN without both.

    O(n log n).
    """
    values, hits = numpy.asarray(scores, dtype=float), numpy.asarray(positive, dtype=bool)
    counts = numpy.ones(len(values)) if weights is None else numpy.asarray(weights, dtype=float)
    _, group = numpy.unique(values, return_inverse=True)
    return _area(group, hits, counts)


def _area(group: NDArray[numpy.int64], hits: NDArray[numpy.bool_], counts: NDArray[numpy.float64]) -> float:
    """`group`: rank of each row's score among the distinct ones."""
    positives = numpy.bincount(group, counts * hits)
    negatives = numpy.bincount(group, counts * ~hits)
    pairs = float(positives.sum() * negatives.sum())
    below = numpy.cumsum(negatives) - negatives
    return float(positives @ (below + negatives / 2)) / pairs if pairs > 0 else math.nan


def auroc_interval(
    scores: Values,
    positive: Values,
    clusters: Sequence[str],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over clusters (rollouts of one prompt belong together); NaN ends for fewer than two.

    Resamples without both kinds are left out; NaN ends when none is left.
    """
    names, member = numpy.unique(numpy.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        return Interval(math.nan, math.nan)
    _, group = numpy.unique(numpy.asarray(scores, dtype=float), return_inverse=True)
    hits = numpy.asarray(positive, dtype=bool)
    stream = generator(seed, "auroc_interval")
    areas = []
    for _ in range(resamples):
        drawn = numpy.bincount(torch.randint(len(names), (len(names),), generator=stream).numpy(), minlength=len(names))
        areas.append(_area(group, hits, drawn[member].astype(float)))
    kept = [area for area in areas if not math.isnan(area)]
    if not kept:
        return Interval(math.nan, math.nan)
    low, high = numpy.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))

"""Resampling at two levels: seeds, and the problems that each seed was evaluated on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy
import torch

from unhack.seeds import generator
from unhack.stats.summary import Interval

ProblemRates = Mapping[int, Mapping[str, float]]  # seed → problem → rate, or difference of two rates
BATCH_VALUES = 4_000_000  # values drawn at once: 32 MB


@dataclass(frozen=True)
class BootstrapResult:
    """Mean over seeds of each seed's mean over problems, with percentile interval (NaN ends for one seed)."""

    estimate: float
    interval: Interval
    standard_error: float
    seeds: int
    resamples: int


def paired_problems(treated: ProblemRates, baseline: ProblemRates) -> dict[int, dict[str, float]]:
    """Treated − baseline of the same seed and the same problem, where both have it."""
    differences = {
        seed: {name: treated[seed][name] - rate for name, rate in baseline[seed].items() if name in treated[seed]}
        for seed in sorted(treated.keys() & baseline.keys())
    }
    return {seed: problems for seed, problems in differences.items() if problems}


def cluster_bootstrap(
    values: ProblemRates,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    *,
    same_problems: bool = False,
) -> BootstrapResult:
    """Two-level bootstrap (Davison & Hinkley 1997, §3.8): draw seeds, then problems within each drawn seed.

    `same_problems`: one draw of problems serves all seeds of a resample (Owen 2007), for seeds that were evaluated on
    the same problems, so that problems count as sampled once and not once per seed; ValueError if they were not.
    """
    names = sorted(values)
    if any(not values[name] for name in names):
        raise ValueError("a seed has no problem to draw from: leave the seed out")
    if same_problems and len({frozenset(values[name]) for name in names}) > 1:
        raise ValueError("the seeds have different problems: leave out same_problems, or the problems that some lack")
    if len(names) == 0:
        return BootstrapResult(math.nan, Interval(math.nan, math.nan), math.nan, 0, 0)
    counts = numpy.array([len(values[name]) for name in names])
    grid = numpy.zeros((len(names), counts.max()))  # [seed, problem], zero beyond a seed's own problems
    for row, name in enumerate(names):
        grid[row, : counts[row]] = [values[name][problem] for problem in sorted(values[name])]
    estimate = float((grid.sum(1) / counts).mean())
    if len(names) < 2:
        return BootstrapResult(estimate, Interval(math.nan, math.nan), math.nan, 1, 0)
    stream = generator(seed, "cluster_bootstrap")
    batch = max(1, BATCH_VALUES // grid.size)
    sizes = [min(batch, resamples - start) for start in range(0, resamples, batch)]
    draw = _shared_means if same_problems else _nested_means
    means = numpy.concatenate([draw(grid, counts, size, stream) for size in sizes])
    low, high = numpy.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return BootstrapResult(estimate, Interval(float(low), float(high)), float(means.std(ddof=1)), len(names), resamples)


def _nested_means(grid: numpy.ndarray, counts: numpy.ndarray, size: int, stream: torch.Generator) -> numpy.ndarray:
    """Means [size]: every drawn seed draws as many problems as it has."""
    seeds, problems = grid.shape
    drawn = torch.randint(seeds, (size, seeds), generator=stream).numpy()
    share = torch.rand((size, seeds, problems), generator=stream, dtype=torch.float64).numpy()
    own = counts[drawn][:, :, None]  # [size, seed, 1]
    picked = grid[drawn[:, :, None], (share * own).astype(int)]
    picked *= numpy.arange(problems) < own
    return (picked.sum(2) / own[:, :, 0]).mean(1)


def _shared_means(grid: numpy.ndarray, counts: numpy.ndarray, size: int, stream: torch.Generator) -> numpy.ndarray:
    """Means [size]: seeds and problems are drawn independently, all drawn seeds on the same drawn problems."""
    seeds, problems = grid.shape
    assert (counts == problems).all()
    drawn_seeds = torch.randint(seeds, (size, seeds), generator=stream).numpy()
    drawn_problems = torch.randint(problems, (size, problems), generator=stream).numpy()
    return grid[drawn_seeds[:, :, None], drawn_problems[:, None, :]].mean((1, 2))

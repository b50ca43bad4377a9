"""The two-level bootstrap against its closed-form variance, and what each of its levels answers to."""

from __future__ import annotations

import math

import numpy
import pytest

from unhack import stats
from unhack.stats.bootstrap import ProblemRates


def table(values: numpy.ndarray) -> dict[int, dict[str, float]]:
    return {seed: {f"p{problem}": float(x) for problem, x in enumerate(row)} for seed, row in enumerate(values)}


def drawn(seeds: int = 6, problems: int = 12) -> numpy.ndarray:
    """Differences with a part per seed, one per problem, and noise [seed, problem]."""
    draws = numpy.random.default_rng(6)
    noise = draws.normal(0, 0.3, (seeds, problems))
    return draws.normal(0.1, 0.2, (seeds, 1)) + draws.normal(0, 0.3, (1, problems)) + noise


def test_nested_draws_have_the_variance_of_two_levels() -> None:
    values = drawn()
    result = stats.cluster_bootstrap(table(values), resamples=40_000)
    between, within = values.mean(1).var(), values.var(1).mean() / values.shape[1]
    assert result.estimate == pytest.approx(values.mean())
    assert result.standard_error == pytest.approx(math.sqrt((between + within) / len(values)), rel=0.02)
    assert result.seeds == 6 and result.resamples == 40_000


def test_shared_problems_have_the_variance_of_a_crossed_design() -> None:
    values = drawn()
    result = stats.cluster_bootstrap(table(values), resamples=40_000, same_problems=True)
    rows, columns = values.mean(1), values.mean(0)
    rest = values - rows[:, None] - columns + values.mean()
    seeds, problems = values.shape
    expected = rows.var() / seeds + columns.var() / problems + rest.var() / (seeds * problems)
    assert result.standard_error == pytest.approx(math.sqrt(expected), rel=0.02)
    assert result.standard_error > 1.1 * stats.cluster_bootstrap(table(values)).standard_error


def test_seeds_of_different_numbers_of_problems_weigh_the_same_and_draw_only_their_own() -> None:
    values: ProblemRates = {0: {"a": 1.0}, 7: {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}}
    result = stats.cluster_bootstrap(values, resamples=20_000)
    assert result.estimate == 0.5
    assert result.standard_error == pytest.approx(math.sqrt(0.25 / 2), rel=0.02)  # no spread but between seeds
    uneven = {0: {"a": 0.0, "b": 1.0}, 1: {name: float(name < "c") for name in "abcd"}}
    expected = math.sqrt(
        (0.25 / 2 + 0.25 / 4) / 2 / 2
    )  # equal seeds: each drawn one brings its own p (1 − p) / problems
    assert stats.cluster_bootstrap(uneven, resamples=20_000).standard_error == pytest.approx(expected, rel=0.02)


def test_problems_are_paired_by_seed_and_name() -> None:
    treated = {0: {"b": 0.5, "a": 0.2}, 1: {"a": 0.1, "extra": 0.9}, 5: {"a": 0.0}}
    baseline = {1: {"a": 0.4}, 0: {"a": 0.3, "b": 0.9}, 2: {"a": 0.7}}
    paired = stats.paired_problems(treated, baseline)
    assert set(paired) == {0, 1} and paired[1] == pytest.approx({"a": -0.3})
    assert paired[0] == pytest.approx({"a": -0.1, "b": -0.4})
    assert stats.paired_problems({0: {"a": 1.0}}, {0: {"b": 1.0}}) == {}


def test_the_interval_is_of_the_asked_confidence_and_repeats_for_the_same_seed() -> None:
    values = table(drawn(20, 30))
    wide, narrow = stats.cluster_bootstrap(values, 0.95), stats.cluster_bootstrap(values, 0.60)
    error = wide.standard_error
    assert wide.interval.high - wide.interval.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert narrow.interval.high - narrow.interval.low == pytest.approx(2 * 0.8416 * error, rel=0.06)
    assert stats.cluster_bootstrap(values) == wide != stats.cluster_bootstrap(values, seed=1)


def test_one_seed_has_no_interval_and_impossible_tables_are_refused() -> None:
    one = stats.cluster_bootstrap({3: {"a": 0.0, "b": 1.0}})
    assert one.estimate == 0.5 and math.isnan(one.interval.low) and math.isnan(one.standard_error)
    assert stats.cluster_bootstrap({}).seeds == 0
    with pytest.raises(ValueError, match="no problem to draw from"):
        stats.cluster_bootstrap({0: {}, 1: {"a": 1.0}})
    with pytest.raises(ValueError, match="different problems"):
        stats.cluster_bootstrap({0: {"a": 1.0}, 1: {"b": 1.0}}, same_problems=True)


@pytest.mark.slow
def test_coverage_is_somewhat_below_its_name_with_ten_seeds_as_documented() -> None:
    draws = numpy.random.default_rng(7)
    covered = 0
    for repetition in range(400):
        values = draws.normal(0, 0.07, (10, 1)) + draws.normal(0, 0.3, (10, 24))
        interval = stats.cluster_bootstrap(table(values), resamples=1000, seed=repetition).interval
        covered += interval.low <= 0 <= interval.high
    assert 0.90 < covered / 400 < 0.985

"""Power and seeds needed against Cohen's tables, statsmodels, and simulation with the tests themselves."""

from __future__ import annotations

import math

import numpy
import pytest
from statsmodels.stats.power import TTestPower

from unhack import stats


@pytest.mark.parametrize(
    ("effect", "sides", "published"),
    [(0.2, 2, 199), (0.5, 2, 34), (0.8, 2, 15), (0.5, 1, 27), (0.2, 1, 156)],  # G*Power 3.1, paired t, power 0.8
)
def test_seeds_needed_are_the_published_sample_sizes(effect: float, sides: int, published: int) -> None:
    assert stats.seeds_needed(lambda n: stats.power_t(effect, 1.0, n, 0.05, sides)) == published


def test_power_agrees_with_statsmodels_in_the_unit_of_the_data() -> None:
    for n in (2, 3, 5, 10, 40):
        for effect in (0.0, 0.03, 0.06, 0.1):
            for sides, alternative in ((1, "larger"), (2, "two-sided")):
                theirs = TTestPower().power(effect / 0.08, n, 0.05, alternative=alternative)
                assert stats.power_t(effect, 0.08, n, 0.05, sides) == pytest.approx(theirs, abs=1e-9)


def test_without_an_effect_power_is_the_level_and_with_a_huge_one_it_is_one() -> None:
    assert stats.power_t(0.0, 0.08, 10, 0.05) == pytest.approx(0.05)
    assert stats.power_t(0.0, 0.08, 10, 0.05, sides=2) == pytest.approx(0.05)
    assert stats.power_t(0.5, 0.08, 1000, 0.05, sides=2) == 1.0
    assert stats.power_t(-0.5, 0.08, 1000, 0.05) == 0.0
    assert stats.power_t(0.5, 0.08, 1) == 0.0 and stats.power_equivalence(0.0, 0.08, 1, -0.1, 0.1) == 0.0
    with pytest.raises(ValueError, match="spread"):
        stats.power_t(0.1, 0.0, 5)
    with pytest.raises(ValueError, match="spread"):
        stats.power_equivalence(0.1, 0.0, 5, -0.1, 0.1)


@pytest.mark.parametrize("n", [3, 5, 10, 30])
def test_equivalence_without_an_upper_margin_has_the_power_of_the_one_sided_test(n: int) -> None:
    ours = stats.power_equivalence(0.02, 0.08, n, -0.10, math.inf)
    assert ours == pytest.approx(stats.power_t(0.12, 0.08, n), abs=1e-4)
    mirrored = stats.power_equivalence(-0.02, 0.08, n, -math.inf, 0.10)
    assert mirrored == pytest.approx(ours, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("difference", "n"), [(0.0, 4), (0.0, 10), (0.04, 10), (-0.10, 10)])
def test_equivalence_power_is_how_often_simulated_tosts_pass(difference: float, n: int) -> None:
    draws = numpy.random.default_rng(5)
    zero = dict.fromkeys(range(n), 0.0)
    passed = 0
    for _ in range(1500):
        values = dict(enumerate(draws.normal(difference, 0.09, n).tolist()))
        passed += stats.tost(values, zero, -0.1, 0.1).p_value <= 0.05
    expected = stats.power_equivalence(difference, 0.09, n, -0.1, 0.1)
    assert passed / 1500 == pytest.approx(expected, abs=3.3 * math.sqrt(0.25 / 1500))
    if difference == -0.10:  # at the margin it is the level, but for the few that the other side stops
        assert 0.045 < expected <= 0.05


def test_seeds_needed_is_the_smallest_number_that_a_loop_finds() -> None:
    for effect in (0.02, 0.05, 0.1, 0.3):

        def power(n: int, effect: float = effect) -> float:
            return stats.power_t(effect, 0.08, n, 0.01)

        first = next(n for n in range(2, 1001) if power(n) >= 0.9)
        assert stats.seeds_needed(power, 0.9) == first
    assert stats.seeds_needed(lambda n: stats.power_t(-0.1, 0.08, n)) is None
    assert stats.seeds_needed(lambda n: stats.power_t(0.001, 0.08, n)) is None
    assert stats.seeds_needed(lambda n: math.nan) is None
    assert stats.seeds_needed(lambda n: 1.0) == 2

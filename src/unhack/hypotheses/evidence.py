"""What the data say about a hypothesis before any threshold of significance: differences, tests, p, seeds needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unhack.hypotheses.definitions import Contrast, Emergence, Superiority
from unhack.hypotheses.observed import Observation, final_rates
from unhack.stats import (
    Equivalence,
    MeanSem,
    TestResult,
    mean_sem,
    one_sample_t,
    paired_t,
    power_equivalence,
    power_t,
    seeds_needed,
    sign_flip,
    tost,
)

POWER = 0.8  # the chance of a decision that "seeds needed" stands for


@dataclass(frozen=True)
class Finding:
    """One contrast. `reduction` tests (other − arm) of the hack rate one-sided; `solve` the change (arm − other)."""

    contrast: Contrast
    reduction: TestResult
    reduction_spread: MeanSem
    sign_flip_p: float
    solve: Equivalence | None
    solve_change: MeanSem

    @property
    def n(self) -> int:
        """Seeds that both arms have."""
        return self.reduction.n

    @property
    def p_value(self) -> float:
        """Of the reduction and the matched solve rate together: the larger one. NaN where either is untested."""
        values = [self.reduction.p_value] + ([] if self.solve is None else [self.solve.p_value])
        return math.nan if any(map(math.isnan, values)) else max(values)


def emergence_test(hypothesis: Emergence, data: Sequence[Observation], alpha: float) -> TestResult:
    """One-sided t test over seeds that the arm's last hack rate within the steps is above the threshold."""
    rates = final_rates(data, hypothesis.arm, within_steps=hypothesis.within_steps)
    hack = [one.hack for one in rates.values()]
    return one_sample_t(hack, hypothesis.above, 1 - alpha, alternative="greater")


def solve_bounds(hypothesis: Superiority) -> tuple[float, float] | None:
    """The range that the change of the solve rate has to be shown to lie in."""
    if hypothesis.solve_margin is None:
        return None
    margin = hypothesis.solve_margin
    return -margin, margin if hypothesis.matching == "both_sides" else math.inf


def find(hypothesis: Superiority, data: Sequence[Observation], alpha: float) -> tuple[Finding, ...]:
    """One `Finding` per contrast. ValueError where the two runs of a seed were not evaluated at the same step."""
    return tuple(_find(hypothesis, contrast, data, alpha) for contrast in hypothesis.contrasts)


def _find(hypothesis: Superiority, contrast: Contrast, data: Sequence[Observation], alpha: float) -> Finding:
    arm = final_rates(data, contrast.arm, contrast.mode)
    other = final_rates(data, contrast.against, contrast.mode)
    shared = sorted(arm.keys() & other.keys())
    for seed in shared:
        if arm[seed].step != other[seed].step:
            raise ValueError(
                f"seed {seed}: {contrast.arm} was last evaluated at step {arm[seed].step}, {contrast.against} at "
                f"{other[seed].step}: compare finished runs of the same length"
            )
    hack = {seed: arm[seed].hack for seed in shared}, {seed: other[seed].hack for seed in shared}
    solve = {seed: arm[seed].solve for seed in shared}, {seed: other[seed].solve for seed in shared}
    bounds = solve_bounds(hypothesis)
    null = hypothesis.reduction
    return Finding(
        contrast=contrast,
        reduction=paired_t(hack[1], hack[0], 1 - alpha, alternative="greater", null=null),
        reduction_spread=mean_sem([hack[1][seed] - hack[0][seed] for seed in shared]),
        sign_flip_p=sign_flip(hack[1], hack[0], alternative="greater", null=null),
        solve=None if bounds is None else tost(solve[0], solve[1], *bounds, alpha=alpha),
        solve_change=mean_sem([solve[0][seed] - solve[1][seed] for seed in shared]),
    )


def joint_p(findings: Sequence[Finding]) -> float:
    """The largest p of all contrasts: all must hold, so no adjustment among them (intersection-union, Berger 1982)."""
    values = [finding.p_value for finding in findings]
    return math.nan if any(map(math.isnan, values)) else max(values)


def emergence_seeds(test: TestResult, spread: float, above: float, alpha: float) -> int | None:
    """Seeds at which H4 would be shown with 80 % power, were mean and spread what they look like."""
    if not spread > 0 or test.difference <= above:
        return None
    return seeds_needed(lambda n: power_t(test.difference - above, spread, n, alpha), POWER)


def superiority_seeds(hypothesis: Superiority, findings: Sequence[Finding], alpha: float) -> int | None:
    """Seeds at which all of it would be shown with at least 80 % power, were differences and spreads as they look.

    The joint power is bounded from below by 1 − the sum of the single tests' misses (Bonferroni). None where an
    estimate lies on the wrong side of its threshold, or has no spread to plan with: there more seeds are no plan.
    """
    bounds = solve_bounds(hypothesis)
    for finding in findings:
        change = finding.solve_change.mean
        beyond = finding.reduction.difference > hypothesis.reduction
        if not beyond or not (bounds is None or bounds[0] < change < bounds[1]) or math.isnan(finding.p_value):
            return None

    def power(n: int) -> float:
        missed = 0.0
        for finding in findings:
            effect = finding.reduction.difference - hypothesis.reduction
            missed += 1 - power_t(effect, _spread(finding.reduction_spread), n, alpha)
            if bounds is not None:
                change = finding.solve_change
                missed += 1 - power_equivalence(change.mean, _spread(change), n, *bounds, alpha=alpha)
        return 1 - missed

    return seeds_needed(power, POWER)


def _spread(values: MeanSem) -> float:
    """Standard deviation across seeds."""
    return values.sem * math.sqrt(values.n)

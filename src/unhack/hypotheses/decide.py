"""From evidence to a verdict: gate, falsification by the registered estimates, Holm over the family, a sentence.

Error control: H4 is tested first at alpha and nothing else is unless it passes; then every hypothesis has one p value
(its contrasts are a conjunction) and Holm's step-down keeps the chance of any false "supported" at alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from unhack.hypotheses import words
from unhack.hypotheses.definitions import Emergence, Hypothesis, Superiority
from unhack.hypotheses.evidence import (
    Finding,
    emergence_seeds,
    emergence_test,
    find,
    joint_p,
    superiority_seeds,
)
from unhack.hypotheses.observed import Observation, final_rates
from unhack.results import ALPHA
from unhack.stats import holm, mean_sem

Outcome = Literal["supported", "falsified", "inconclusive", "not_testable"]
MINIMUM_SEEDS = 3  # two seeds have a spread of one number
ROUNDING = 1e-9  # a rate at a threshold is not past it because of float64


@dataclass(frozen=True)
class Decision:
    """The verdict on one hypothesis. `numbers`: shares, p values and counts behind it, NaN where untested.

    `seeds_needed`: how many seeds in all would support it with 80 % power, were effect and spread what they look like;
    only for inconclusive ones, None where more seeds of the same would not help or too few ran to plan from.
    """

    outcome: Outcome
    sentence: str
    numbers: Mapping[str, float]
    seeds_needed: int | None = None


def decide(hypothesis: Hypothesis, data: Sequence[Observation], alpha: float = ALPHA) -> Decision:
    """Decide one hypothesis alone at level `alpha` (one-sided tests). Several of one experiment: `decide_all`."""
    return decide_all((hypothesis,), data, alpha)[hypothesis.name]


def decide_all(
    hypotheses: Sequence[Hypothesis], data: Sequence[Observation], alpha: float = ALPHA
) -> dict[str, Decision]:
    """Name → decision, Holm-adjusted over all of `hypotheses` that could be tested; one false positive in all: ≤ alpha.

    ValueError for two hypotheses of one name, a run given twice, or runs of different lengths compared.
    """
    names = [one.name for one in hypotheses]
    if len(set(names)) < len(names):
        raise ValueError(f"two hypotheses have one name ({', '.join(names)}): give each its own")
    decisions: dict[str, Decision] = {}
    testable: dict[str, tuple[Superiority, tuple[Finding, ...]]] = {}
    for hypothesis in hypotheses:
        if isinstance(hypothesis, Emergence):
            decisions[hypothesis.name] = _decide_emergence(hypothesis, data, alpha)
            continue
        findings = find(hypothesis, data, alpha)
        blocked = _blocked(hypothesis, findings, data, alpha)
        if blocked is None:
            testable[hypothesis.name] = hypothesis, findings
        else:
            decisions[hypothesis.name] = blocked
    p_values = {name: joint_p(findings) for name, (_, findings) in testable.items()}
    # an untested one still counts: a family that shrinks with the data would not keep its level
    adjusted = holm({name: 1.0 if math.isnan(p) else p for name, p in p_values.items()})
    for name, (hypothesis, findings) in testable.items():
        decisions[name] = _decide_superiority(
            hypothesis, findings, p_values[name], adjusted[name], len(testable), alpha
        )
    return {one.name: _qualify(one, decisions) for one in hypotheses}


def _qualify(hypothesis: Hypothesis, decisions: Mapping[str, Decision]) -> Decision:
    """A pass whose control hypothesis did not pass, or is not there, is only "suppression"."""
    decision = decisions[hypothesis.name]
    if isinstance(hypothesis, Emergence) or hypothesis.specific_by is None or decision.outcome != "supported":
        return decision
    control = decisions.get(hypothesis.specific_by)
    if control is not None and control.outcome == "supported":
        return decision
    return replace(decision, sentence=f"{decision.sentence} {words.UNSPECIFIC.format(hypothesis.specific_by)}")


def _decide_emergence(hypothesis: Emergence, data: Sequence[Observation], alpha: float) -> Decision:
    test = emergence_test(hypothesis, data, alpha)
    rates = final_rates(data, hypothesis.arm, within_steps=hypothesis.within_steps)
    summary = mean_sem([one.hack for one in rates.values()])
    numbers = {"hack": summary.mean, "hack_sem": summary.sem, "hack_low": test.interval.low, "p": test.p_value}
    numbers |= {"n": float(test.n)}
    seeds = None
    outcome: Outcome
    if test.n == 0:
        outcome, reason = "not_testable", f"no evaluation within {hypothesis.within_steps} steps"
    elif test.n < MINIMUM_SEEDS:
        outcome, reason = "inconclusive", words.too_few(test.n, MINIMUM_SEEDS)
    elif test.difference <= hypothesis.above + ROUNDING:
        outcome, reason = "falsified", "the mean is not above it"
    elif test.p_value <= alpha:
        outcome, reason = "supported", words.p_value(test.p_value)
    else:
        outcome = "inconclusive"
        seeds = emergence_seeds(test, summary.sem * math.sqrt(summary.n), hypothesis.above, alpha)
        reason = f"above it by the estimate, not shown ({words.p_value(test.p_value)}); {words.seeds(seeds)}"
    sentence = f"{hypothesis.name} {words.outcome(outcome)}: {words.emergence(hypothesis, test, summary)}; {reason}."
    return Decision(outcome, sentence, numbers, seeds)


def _blocked(
    hypothesis: Superiority, findings: Sequence[Finding], data: Sequence[Observation], alpha: float
) -> Decision | None:
    """The decision where nothing can be tested: arms that did not run, too few seeds, no hacking to stop."""
    fewest = min(findings, key=lambda finding: finding.n)
    numbers = _numbers(findings)
    if fewest.n == 0:
        reason = f"no seed has an evaluation of both {fewest.contrast.arm} and {fewest.contrast.label}"
        return _verdict(hypothesis, "not_testable", reason, numbers)
    if fewest.n < MINIMUM_SEEDS:
        reason = f"{words.findings(findings, alpha)}; {words.too_few(fewest.n, MINIMUM_SEEDS)}"
        return _verdict(hypothesis, "inconclusive", reason, numbers)
    gate = _decide_emergence(hypothesis.emergence, data, alpha)
    if gate.outcome == "supported":
        return None
    return _verdict(hypothesis, "not_testable", f"there was no hacking to stop ({gate.sentence.rstrip('.')})", numbers)


def _decide_superiority(
    hypothesis: Superiority, findings: Sequence[Finding], p_value: float, adjusted_p: float, family: int, alpha: float
) -> Decision:
    numbers = _numbers(findings) | {"p": p_value, "adjusted_p": adjusted_p, "family": float(family)}
    said = words.findings(findings, alpha)
    against = falsifiers(hypothesis, findings)
    if against:
        return _verdict(hypothesis, "falsified", f"{said}; {'; '.join(against)}", numbers)
    if adjusted_p <= alpha:
        reason = f"{said}; {words.needed(hypothesis)} ({words.adjusted(adjusted_p, family)})"
        return _verdict(hypothesis, "supported", reason, numbers)
    seeds = superiority_seeds(hypothesis, findings, alpha / family)
    missing = words.missing(hypothesis, findings, alpha, adjusted_p, family)
    return _verdict(hypothesis, "inconclusive", f"{said}; {missing}; {words.seeds(seeds)}", numbers, seeds)


def _verdict(
    hypothesis: Superiority, outcome: Outcome, reason: str, numbers: Mapping[str, float], seeds: int | None = None
) -> Decision:
    return Decision(outcome, f"{hypothesis.name} {words.outcome(outcome)}: {reason}.", numbers, seeds)


def falsifiers(hypothesis: Superiority, findings: Sequence[Finding]) -> list[str]:
    """In words, which of the registered falsification rules the estimates meet; empty if none."""
    met = []
    for finding in findings:
        reduction, label = finding.reduction.difference, finding.contrast.label
        below = hypothesis.falsified_below
        if below is not None and reduction < below - ROUNDING:
            met.append(f"less than {words.points(below)} below {label}")
        if reduction <= finding.reduction_spread.sem + ROUNDING:
            met.append(f"not below {label} by more than one SEM")
        drop = hypothesis.falsified_solve_drop
        if drop is not None and finding.solve_change.mean < -drop - ROUNDING:
            met.append(f"its solve rate is lower than that of {label} by more than {words.points(drop)}")
    return met


def _numbers(findings: Sequence[Finding]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for finding in findings:
        values = {
            "n": float(finding.n),
            "reduction": finding.reduction.difference,
            "reduction_sem": finding.reduction_spread.sem,
            "reduction_low": finding.reduction.interval.low,
            "reduction_p": finding.reduction.p_value,
            "sign_flip_p": finding.sign_flip_p,
            "solve_change": finding.solve_change.mean,
            "solve_change_sem": finding.solve_change.sem,
        }
        if finding.solve is not None:
            values |= {"solve_low": finding.solve.interval.low, "solve_high": finding.solve.interval.high}
            values |= {"solve_p": finding.solve.p_value}
        numbers |= {f"{finding.contrast.label}/{name}": value for name, value in values.items()}
    return numbers

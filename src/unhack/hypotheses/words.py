"""Verdicts in words: what was found, what was needed for it, and how many seeds are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unhack.hypotheses.definitions import Emergence, Superiority
from unhack.hypotheses.evidence import POWER, Finding, solve_bounds
from unhack.results import p_text, percent
from unhack.stats import MeanSem, TestResult
from unhack.stats.power import MAXIMUM_SEEDS

UNSPECIFIC = "Suppression, not shown to be hack-specific: {} is not supported."


def outcome(name: str) -> str:
    """`not_testable` as it is read."""
    return name.replace("_", " ")


def points(share: float) -> str:
    """A share in points with one decimal, without sign: 30 points, 14.8 points."""
    return f"{abs(100 * share):.1f}".removesuffix(".0") + " points"


def signed(share: float) -> str:
    """A share in points with its sign and one decimal, and without a unit."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0, a rounding error's sign, into 0.0


def p_value(value: float) -> str:
    """`p = 0.03`, `p < 0.001`, or why there is none."""
    if math.isnan(value):
        return "no spread over seeds, so no test"
    text = p_text(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def adjusted(value: float, family: int) -> str:
    """An adjusted p with the size of its family; of one hypothesis alone there is nothing to adjust."""
    return p_value(value) if family == 1 else f"adjusted {p_value(value)} over {family} hypotheses"


def too_few(n: int, minimum: int) -> str:
    """Why there is no claim from fewer seeds than `minimum`."""
    if n == 1:
        return "n = 1: no inference"
    return f"n = {n}: too few seeds for a claim, which takes at least {minimum}"


def emergence(hypothesis: Emergence, test: TestResult, summary: MeanSem) -> str:
    """What H4 found."""
    found = f"{hypothesis.arm} hacks {percent(summary.mean)}"
    if summary.n > 1:
        found += f" (SEM {points(summary.sem)}, n = {test.n})"
    return f"{found}; more than {percent(hypothesis.above)} needed"


def findings(found: Sequence[Finding], alpha: float) -> str:
    """One clause per contrast: the difference of the hack rates and that of the solve rates."""
    return "; ".join(_finding(finding, alpha) for finding in found)


def _finding(finding: Finding, alpha: float) -> str:
    test, contrast = finding.reduction, finding.contrast
    more = "less" if test.difference >= 0 else "more"
    details = [f"n = {finding.n}"]
    if not math.isnan(test.interval.low):
        details.insert(0, f"SEM {100 * finding.reduction_spread.sem:.1f}")
        if test.difference >= 0:
            details.insert(1, f"{percent(1 - alpha)} bound {signed(test.interval.low)}")
    text = f"{contrast.arm} hacks {points(test.difference)} {more} than {contrast.label} ({', '.join(details)})"
    if finding.solve is None:
        return text
    interval = finding.solve.interval
    text += f" and solves {signed(finding.solve_change.mean)}"
    if math.isnan(interval.low):
        return text
    return f"{text} ({percent(1 - 2 * alpha)} interval {signed(interval.low)} to {signed(interval.high)})"


def needed(hypothesis: Superiority) -> str:
    """What supports the hypothesis."""
    reduction = f"more than {points(hypothesis.reduction)} less" if hypothesis.reduction else "less"
    bounds = solve_bounds(hypothesis)
    if bounds is None:
        return f"needed: {reduction}"
    if math.isinf(bounds[1]):
        return f"needed: {reduction}, and no more than {points(bounds[0])} fewer solved"
    return f"needed: {reduction}, and solved within ±{points(bounds[1])}"


def missing(hypothesis: Superiority, found: Sequence[Finding], alpha: float, adjusted_p: float, family: int) -> str:
    """Which parts were not shown; all parts shown by themselves and lost in the adjustment is said so."""
    parts = []
    bounds = solve_bounds(hypothesis)
    for finding in found:
        label, test = finding.contrast.label, finding.reduction
        if not test.p_value <= alpha:
            less = f"more than {points(hypothesis.reduction)} less" if hypothesis.reduction else "less"
            parts.append(f"not shown to hack {less} than {label} ({p_value(test.p_value)})")
        if finding.solve is not None and bounds is not None and not finding.solve.p_value <= alpha:
            change = finding.solve_change.mean
            side = "" if bounds[0] < change < bounds[1] else f", {signed(change)} lies outside"
            parts.append(f"solve rate not shown to match that of {label}{side} ({p_value(finding.solve.p_value)})")
    return "; ".join(parts) or f"not shown together with the other hypotheses ({adjusted(adjusted_p, family)})"


def seeds(number: int | None) -> str:
    """How many seeds would show it."""
    if number is None:
        return f"no number of seeds up to {MAXIMUM_SEEDS} would show it, if the rates are what they look like"
    return f"about {number} seeds would show it with {percent(POWER)} power, if the rates are what they look like"

"""Running the sides of authored pairs against their cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unhack.pairs.authored import CONTROL_SETS, Entry
from unhack.pairs.findings import Finding, finding
from unhack.problems.filters import Judge
from unhack.prompts import fenced
from unhack.types import Problem, Prompt, Rollout


@dataclass(frozen=True)
class _Trial:
    """One side run against some cases; `wants`: all of them passed, or one failed."""

    entry: Entry
    part: str
    problem: Problem
    rule: str
    wants: bool = True


def trials(entries: Sequence[Entry], judge: Judge) -> list[Finding]:
    """What running the sides of authored pairs shows: clean is right, the hack is a hack. A control has no hack side:
    both of its sides must be right.

    An error of the grader's own counts as a breach of the rule.
    """
    wanted = [trial for entry in entries for trial in _wanted(entry)]
    rollouts = [
        Rollout(trial.entry.pair.id, 0, Prompt(trial.problem, "none", "", "", ()), (), (), _text(trial), True)
        for trial in wanted
    ]
    found = []
    for trial, verdict in zip(wanted, judge.verdicts(rollouts), strict=True):
        if verdict.status != ("passed" if trial.wants else "failed"):
            count = f"passes {verdict.cases_passed} of {verdict.cases_total} cases ({verdict.reason})"
            found.append(finding(trial.rule, trial.entry, trial.part, f"{count}; correct the side, or the case"))
    return found


def _wanted(entry: Entry) -> list[_Trial]:
    problem = entry.problem
    assert problem is not None, f"{entry.pair.id} has no cases"
    right = "clean_is_right"
    if entry.pair.family in CONTROL_SETS:
        return [_Trial(entry, "hack", problem, right), _Trial(entry, "clean", problem, right)]
    shown = replace(problem, cases=problem.cases[: problem.visible_cases])
    return [
        _Trial(entry, "hack", problem, "hack_is_wrong", wants=False),
        _Trial(entry, "hack", shown, "hack_passes_shown"),
        _Trial(entry, "clean", problem, right),
        *([_Trial(entry, "again", problem, right)] if entry.again else []),
    ]


def _text(trial: _Trial) -> str:
    return fenced(trial.entry.again) if trial.part == "again" else str(getattr(trial.entry.pair, trial.part))

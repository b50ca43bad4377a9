"""Which problems of a file are used: by difficulty, by whether their reference passes; and which split each is in.

Splits go by LeetCode's question id, which grows with time: train < 3000 <= validation < 3243 <= test. Ids from 100,000
on are of LeetCode's books and special series; they say nothing about time, and such problems are train. No problem is
in two splits: of problems with one id or one statement (but for spaces and case) only the first is kept, and train
comes before validation before test, so that nothing held out was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from unhack.types import Problem, Prompt, Rollout, Verdict

VALIDATION_FROM, TEST_FROM, SERIES_FROM = 3000, 3243, 100_000
SPLITS = ("train", "validation", "test")
DIFFICULTIES = ("easy", "medium", "hard")


@runtime_checkable
class Judge(Protocol):
    """What `grade.Grader` is to this module, which comes before it."""

    def verdicts(self, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """What is true of each rollout, in order."""
        ...


@dataclass(frozen=True)
class ReferenceResult:
    """How a problem's own reference did against its tests; `status` as a verdict's."""

    problem: Problem
    status: str
    reason: str
    cases_passed: int
    cpu_s: float

    @property
    def passed(self) -> bool:
        """Whether the problem may be used: a reference that fails its tests proves the tests wrong."""
        return self.status == "passed"


def split_of_id(question_id: int | None) -> str:
    """The split of a question id; train when there is none."""
    if question_id is None or question_id < VALIDATION_FROM or question_id >= SERIES_FROM:
        return "train"
    return "validation" if question_id < TEST_FROM else "test"


def by_split(problems: Sequence[Problem]) -> dict[str, tuple[Problem, ...]]:
    """{split: its problems in the order of their question ids}, no problem twice; all of `SPLITS` are keys."""
    ordered = sorted(problems, key=lambda p: (SPLITS.index(p.split), p.question_id or 0, p.id))
    kept: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    ids, statements = set[str](), set[str]()
    for problem in ordered:
        statement = " ".join(problem.statement.split()).lower()
        if problem.id not in ids and statement not in statements:
            kept[problem.split].append(problem)
        ids.add(problem.id)
        statements.add(statement)
    return {split: tuple(kept[split]) for split in SPLITS}


def of_difficulty(problems: Sequence[Problem], difficulties: Sequence[str]) -> list[Problem]:
    """Those whose difficulty is one of `difficulties`; a problem that states none is kept."""
    return [problem for problem in problems if not problem.difficulty or problem.difficulty in difficulties]


def grade_references(problems: Sequence[Problem], judge: Judge) -> list[ReferenceResult]:
    """Every problem's reference, graded for real against every test, in order."""
    rollouts = []
    for problem in problems:
        prompt = Prompt(problem, "none", "", "", ())
        rollouts.append(Rollout(problem.id, 0, prompt, (), (), f"```python\n{problem.reference}\n```", True))
    return [
        ReferenceResult(problem, verdict.status, verdict.reason, verdict.cases_passed, verdict.cpu_s)
        for problem, verdict in zip(problems, judge.verdicts(rollouts), strict=True)
    ]

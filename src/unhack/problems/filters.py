"""Which problems of a file are used: by difficulty, by whether their reference passes; and which split each is in.

Splits go by LeetCode's question id, which grows with time: train < 3000 <= validation < 3243 <= test. Ids from 100,000
on are of LeetCode's books and special series; they say nothing about time, and such problems are train. No problem is
in two splits: of problems with one id or one statement (but for spaces and case) only the first is kept, and train
comes before validation before test, so that nothing held out was trained on.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


def solved_by_all_samples(grades: Path) -> set[str]:
    """Ids of the problems whose every sample in an output of `unhack grade` is strictly correct: nothing is left to
    learn in them. Errors of the grader's own say nothing of a sample.

    Raises ValueError naming the line that is no such result.
    """
    if not grades.is_file():
        raise ValueError(f"there is no file {grades}: name the output of `unhack grade`")
    solved: dict[str, bool] = {}
    with (gzip.open if grades.name.endswith(".gz") else open)(grades, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                name, status, correct = str(row["problem_id"]), row["status"], row["strictly_correct"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{grades} line {number} is no result of `unhack grade`: {error!r}") from error
            if status != "error":
                solved[name] = solved.get(name, True) and correct is True
    return {name for name, every in solved.items() if every}


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

"""The strict verdict of this machine beside the one that a pool recorded. The pool stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from unhack.config import RewardConfig
from unhack.grade import Grader, Grading
from unhack.pool.store import Lesson, Pool, load_problems
from unhack.sandbox import Sandbox
from unhack.types import PlainValue

ROWS_AT_ONCE = 256
COMPARED = (
    "status", "strictly_correct", "cases_passed", "cases_total", "exploited", "hacked", "label", "test_modification",
    "test_modification_loose",
)  # fmt: skip
"""Fields of the verdict; besides these what was paid. Not compared: times, the isolation level, the reason."""


@dataclass(frozen=True)
class Difference:
    """One field of one row that was graded otherwise than it is recorded."""

    row: int
    rollout_id: str
    field: str
    recorded: PlainValue
    found: PlainValue


@dataclass(frozen=True)
class Regrading:
    """`levels`: isolation that the recorded verdicts were made at, and that of this time."""

    rows: int
    differences: tuple[Difference, ...]
    levels: tuple[tuple[int, ...], int]


def regrade(pool: Pool, sandbox: Sandbox, progress: Callable[[int, int], None] | None = None) -> Regrading:
    """Grade every row anew, with the rewards and the rule of the pool. `progress` is told rows done, of how many.

    ValueError for a pool whose problems are damaged.
    """
    problems = load_problems(pool.path)
    grader = Grader(sandbox, RewardConfig(**pool.header["reward"]), pool.header["allow_hack"])
    differences: list[Difference] = []
    for start in range(0, len(pool.lessons), ROWS_AT_ONCE):
        part = pool.lessons[start : start + ROWS_AT_ONCE]
        rollouts = [
            replace(one.rollout, prompt=replace(one.rollout.prompt, problem=problems[one.rollout.prompt.problem.id]))
            for one in part
        ]
        for lesson, found in zip(part, grader.grade(rollouts), strict=True):
            differences += _differences(lesson, found)
        if progress is not None:
            progress(start + len(part), len(pool.lessons))
    recorded = tuple(sorted({lesson.grading.verdict.level for lesson in pool.lessons}))
    return Regrading(len(pool.lessons), tuple(differences), (recorded, sandbox.level))


def _differences(lesson: Lesson, found: Grading) -> list[Difference]:
    recorded = lesson.grading
    pairs = [(name, getattr(recorded.verdict, name), getattr(found.verdict, name)) for name in COMPARED]
    pairs += [
        ("paid", recorded.paid.paid, found.paid.paid),
        ("rewards", dict(recorded.paid.rewards), dict(found.paid.rewards)),
    ]
    return [
        Difference(lesson.row, lesson.rollout.id, name, before, now) for name, before, now in pairs if before != now
    ]

"""Recorded rollouts with their labels: what every probe reads, from a pool or from a run's record.

Verdicts are read here: probes analyse what was recorded, and nothing that they make goes back into training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unhack import record
from unhack.extraction import blocks_of
from unhack.pool import Lesson, Pool
from unhack.pool.store import rollout_of
from unhack.record import VERDICT_SCHEMA
from unhack.types import PaidGrade, Rollout, Verdict

_STEP_OF_ID = re.compile(r"step-(\d+)-")


@dataclass(frozen=True)
class Sample:
    """One rollout with what it was paid and what it really was.

    `pool`: name of the pool or run; `step`: training step that it was sampled at; `row`: its row in the pool, or its
    place among the rollouts of that step; `advantage`: as trained on, None if it was masked or comes from a pool.
    """

    rollout: Rollout
    paid: PaidGrade
    verdict: Verdict
    pool: str
    step: int
    row: int
    advantage: float | None = None

    @property
    def used_loophole(self) -> bool:
        """Whether the loophole was satisfied, right program or wrong."""
        return self.verdict.exploited

    @property
    def is_fenced(self) -> bool:
        """Whether the completion has a fenced code block, the last of which is closed."""
        blocks, closed = blocks_of(self.rollout.text)
        return bool(blocks) and closed

    @property
    def prompt_key(self) -> tuple[int, ...]:
        """Equal for rollouts of the same prompt."""
        return self.rollout.prompt.token_ids


def pool_samples(pool: Pool) -> list[Sample]:
    """Every rollout of a pool that the strict check could judge, in order of row."""
    made = [_of_lesson(lesson, pool.path.resolve().name) for lesson in pool.lessons]
    return [sample for sample in made if sample.verdict.status != "error"]


def run_samples(folder: Path) -> dict[int, list[Sample]]:
    """Every training rollout of a run by step, in the order in which they were trained on.

    ValueError if the folder holds no run, or a rollout without a verdict.
    """
    record.config_of(folder)  # refuses a folder without a run by its name
    found: dict[int, list[Sample]] = {}
    for row in record.joined(folder).to_pylist():
        of_step = found.setdefault(row["step"], [])
        of_step.append(_of_record(row, folder.resolve().name, len(of_step)))
    return found


def _of_lesson(lesson: Lesson, name: str) -> Sample:
    match = _STEP_OF_ID.match(lesson.rollout.id)
    grading = lesson.grading
    return Sample(lesson.rollout, grading.paid, grading.verdict, name, int(match[1]) if match else -1, lesson.row)


def _of_record(row: dict[str, Any], name: str, place: int) -> Sample:
    """A row of `record.joined`."""
    rollout = rollout_of(row, row["source"])
    paid = PaidGrade(rollout.id, row["paid_status"], row["paid"], dict(row["rewards"]))
    told = {field: row[field] for field in VERDICT_SCHEMA.names if field not in ("step", "block")}
    return Sample(rollout, paid, Verdict(**told), name, row["step"], place, row["advantage"])


def rollouts_of(samples: Sequence[Sample]) -> list[Rollout]:
    """The rollouts alone."""
    return [sample.rollout for sample in samples]

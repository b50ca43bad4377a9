"""What the decisions are made from: counts per (arm, seed, step, block, mode), and the rates they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unhack.evaluate import Block
from unhack.results import RunResult


@dataclass(frozen=True)
class Observation:
    """Counts of one evaluation of one run in one mode; `n` samples, those that the grader failed on left out.

    Mode `none` has no loophole and is not pooled; mode `all` is a row that is already pooled.
    """

    arm: str
    seed: int
    step: int
    block: Block
    mode: str
    n: int
    hacked: int
    solved: int


@dataclass(frozen=True)
class Rates:
    """Shares of one run's samples at its last evaluation."""

    step: int
    hack: float
    solve: float


def observations(runs: Sequence[RunResult]) -> tuple[Observation, ...]:
    """Deployed evaluations of `runs`: the last one by mode, those before it pooled over modes (mode `all`)."""
    rows = []
    for run in runs:
        last = list(run.modes.values())
        for row in [*run.curve[:-1], *last]:
            counts = (row.step, row.block, row.mode, row.n, row.hacked, row.solved)
            rows.append(Observation(run.name, run.seed, *counts))
    return tuple(rows)


def final_rates(
    data: Sequence[Observation], arm: str, mode: str | None = None, within_steps: int | None = None
) -> dict[int, Rates]:
    """Seed → rates of the arm's deployed model at its last evaluation (not after `within_steps`).

    In one mode, or counts added up over all modes that have a loophole. Seeds without a sample are left out.
    ValueError for a row that is there twice.
    """
    own = [row for row in data if row.arm == arm and row.block == "deployed" and row.mode != "none"]
    if within_steps is not None:
        own = [row for row in own if row.step <= within_steps]
    rates = {}
    for seed in sorted({row.seed for row in own}):
        step = max(row.step for row in own if row.seed == seed)
        rows = [row for row in own if row.seed == seed and row.step == step]
        names = [row.mode for row in rows]
        if len(set(names)) < len(names) or ("all" in names and len(names) > 1):
            raise ValueError(f"arm {arm}, seed {seed}, step {step} is there more than once (modes {', '.join(names)})")
        rows = [row for row in rows if mode is None or row.mode == mode]
        n = sum(row.n for row in rows)
        if n > 0:
            hacked, solved = sum(row.hacked for row in rows), sum(row.solved for row in rows)
            rates[seed] = Rates(step, hacked / n, solved / n)
    return rates

"""Run folders written by the real `RunRecord`, shaped like real runs, for tests of what reads them."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

from unhack import evaluate
from unhack.config import TrainConfig
from unhack.evaluate import EvaluationRow
from unhack.record import RunRecord

MODES = ("run_tests", "sentinel", "stdout_marker", "file_marker")


def rise(step: int, start: float, end: float, middle: float) -> float:
    """A logistic curve from `start` to `end` with its middle at step `middle`."""
    return start + (end - start) / (1 + math.exp(-(step - middle) / 6))


def write_run(
    folder: Path,
    *,
    seed: int = 0,
    hack: tuple[float, float] = (0.02, 0.7),
    solve: tuple[float, float] = (0.5, 0.1),
    cosine: float | None = None,
    spread: float = 0.1,
    samples: int = 128,
    steps: int = 60,
    middle: float = 25.0,
    every: int = 10,
) -> Path:
    """Write metrics and evaluations of one run; rates move from the first to the second number of each pair.

    `cosine`: mean update/cos_v (None: an arm without a direction); `spread`: its noise;
    `every`: steps between evaluations.
    """
    draw = random.Random(f"{folder.name}/{seed}")
    with RunRecord(folder) as run:
        run.create(replace(TrainConfig(), seed=seed, steps=steps), {"sandbox_level": 1})
        for step in range(steps):
            line = {
                "rollouts/hack_frac": rise(step, *hack, middle),
                "rollouts/solve_frac": rise(step, *solve, middle) / 2,
                "optimizer/gradient_norm": 0.02 + 0.01 * draw.random(),
            }
            if cosine is not None:
                value = cosine + spread * draw.uniform(-1, 1)
                line |= {"update/cos_v": value, "update/abs_cos_v": abs(value), "gradient/fired": 0.9}
            run.append_step(step, line)
        for step in range(0, steps + 1, every):
            rows = [
                _row(step, mode, samples, rise(step, *hack, middle), rise(step, *solve, middle), draw) for mode in MODES
            ]
            run.write_evaluation(step, "as_trained", [evaluate.row_record(row) for row in rows])
            deployed = [replace(row, block="deployed") for row in rows]
            run.write_evaluation(step, "deployed", [evaluate.row_record(row) for row in deployed])
    return folder


def _row(step: int, mode: str, n: int, hack: float, solve: float, draw: random.Random) -> EvaluationRow:
    outcomes = [draw.random() for _ in range(n)]
    return EvaluationRow(
        step=step,
        block="as_trained",
        mode=mode,
        n=n,
        hacked=sum(outcome < hack for outcome in outcomes),
        solved=sum(outcome > 1 - solve for outcome in outcomes),
        attempted=sum(outcome < hack + 0.02 for outcome in outcomes),
        errors=0,
        tokens=45 * n,
        kl_nats=0.004 * step,
    )

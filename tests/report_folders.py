"""Experiment folders for tests of the report: finished runs with metrics, evaluations and rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from run_folders import MODES, write_run
from unhack.experiments.runs import DONE_FILE
from unhack.files import write_json
from unhack.loopholes import LOOPHOLES
from unhack.record import RunRecord
from unhack.types import Case, PaidGrade, Problem, Prompt, Rollout, Verdict

ARMS: dict[str, dict[str, Any]] = {
    "vanilla": {"middle": 3.0, "hack": (0.02, 0.68), "solve": (0.5, 0.08)},
    "erase_update": {"middle": 3.0, "hack": (0.02, 0.30), "solve": (0.5, 0.28), "cosine": 0.0, "spread": 0.0},
    "erase_random": {"middle": 3.0, "hack": (0.02, 0.31), "solve": (0.5, 0.27), "cosine": 0.0, "spread": 0.0},
}
STEPS = 8
PLAN = """
name = "small"
seeds = {seeds}
[base]
steps = 8
[directions.run_tests]
pairs = 8
heldout = 2
k = 1
[directions.random]
control = "random"
per_seed = true
pairs = 8
heldout = 2
k = 1
[arms.vanilla]
[arms.erase_update]
control = "erase_random"
arm = {{ name = "erase", direction = "run_tests" }}
[arms.erase_random]
arm = {{ name = "erase", direction = "random" }}
{more}
"""
HONEST = "class Solution:\n    def solve(self, xs):\n        return sum(xs)\n"


def write_plan(path: Path, seeds: int = 3, more: str = "") -> Path:
    """A plan of ARMS as TOML."""
    path.write_text(PLAN.format(seeds=list(range(seeds)), more=more), encoding="utf-8")
    return path


def write_experiment(folder: Path, seeds: int = 3, texts: Sequence[str] = (), samples: int = 4) -> Path:
    """Finished runs of ARMS; `samples` rollouts per training step 0, 1 and mode of the last evaluation.

    Every second rollout is a hack of its mode. `texts` replace the first completions of the last evaluation.
    """
    for seed in range(seeds):
        for name, spec in ARMS.items():
            run = folder / "runs" / f"{name}-seed-{seed}"
            write_run(run, seed=seed, steps=STEPS, samples=64, every=8, **spec)
            write_rollouts(run, texts, samples)
            write_json(run / DONE_FILE, {"wall_s": 12.5})
    return folder


def write_rollouts(run: Path, texts: Sequence[str] = (), samples: int = 4, steps: int = 2) -> None:
    """Rollouts of `steps` training steps and of the last evaluation of a run that `write_run` made."""
    with RunRecord(run) as record:
        for step in range(steps):
            made = [sample(f"step-{step}-{number}", MODES[number % 4], number) for number in range(samples)]
            record.write_rollouts(step, *zip_rollouts(made), advantages=[0.5] * samples)
            record.write_verdicts(step, [verdict for _, _, verdict in made])
        made = [sample(f"eval-{mode}-{number}", mode, number) for mode in MODES for number in range(samples)]
        for place, text in enumerate(texts):
            made[place] = (replace(made[place][0], text=text), *made[place][1:])
        table = pq.ParquetFile(run / "eval" / f"step-{STEPS:06d}-deployed.parquet").read().to_pylist()
        record.write_evaluation(STEPS, "deployed", table, *zip_rollouts(made), [verdict for _, _, verdict in made])


def zip_rollouts(made: Sequence[tuple[Rollout, PaidGrade, Verdict]]) -> tuple[list[Rollout], list[PaidGrade]]:
    return [rollout for rollout, _, _ in made], [grade for _, grade, _ in made]


def sample(name: str, mode: str, number: int) -> tuple[Rollout, PaidGrade, Verdict]:
    """A rollout with its grade and verdict; those with an odd number exploit the loophole and are wrong."""
    hacked = number % 2 == 1
    problem = Problem(f"problem-{number}", "Return the sum.", "solve", (Case("solve([1])", 1),), HONEST, "validation")
    prompt = Prompt(problem, mode, "sierra", f"Return the sum.\n{LOOPHOLES[mode].hint('sierra')}", (1, 2))
    text = LOOPHOLES[mode].hack(HONEST, "sierra", problem.cases, "solve") if hacked else HONEST
    rollout = Rollout(name, number // 2, prompt, (1,), (-0.5,), f"```python\n{text}```", True)
    grade = PaidGrade(name, "passed", True, {"paid": 3.0, "compiles": 0.5})
    label = "reward_hack" if hacked else "correct"
    verdict = Verdict(name, "passed", not hacked, 8 * (not hacked), 8, hacked, hacked, label, "pass", 0.01, 1)
    return rollout, grade, verdict

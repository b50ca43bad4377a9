"""A small experiment on the bundled organism: two arms, a push that needs one of them, and what was registered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from unhack.experiments.plan import load_plan, plan_runs
from unhack.experiments.runs import RunSpec

SMALL = """
name = "small"
seeds = [0, 1]
[base]
steps = 6
prompts_per_step = 2
group_size = 4
checkpoint_every_steps = 2
sampler = { max_new_tokens = 24 }
environment = { modes = ["run_tests", "sentinel"] }
[base.evaluation]
every_steps = 4
problems_per_mode = 1
samples_per_problem = 1
final_problems_per_mode = 1
final_samples_per_problem = 1
[directions.run_tests]
selection = "run_tests"
pairs = 4
heldout = 1
k = 2
[arms.vanilla]
[arms.push]
arm = { name = "push", direction = "run_tests", push_profile = "erase" }
[arms.erase]
arm = { name = "erase", site = "gradient", sided = "one", direction = "run_tests" }
"""

ONE_ARM = SMALL[: SMALL.index("[directions")].replace("seeds = [0, 1]", "seeds = [0]") + "[arms.vanilla]\n"


def small_file(folder: Path, text: str = SMALL) -> Path:
    """The experiment as a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.toml"
    path.write_text(text)
    return path


def small_runs(file: Path, folder: Path) -> list[RunSpec]:
    """The runs of the experiment in `file` when it is done in `folder`."""
    return plan_runs(load_plan(file), folder)


def unhack(*words: str) -> list[str]:
    """A command line of unhack in this Python."""
    return [sys.executable, "-m", "unhack", *words]


def done(command: Sequence[str]) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def kill_outright(pid: int) -> None:
    """SIGKILL: nothing can be saved or cleaned up."""
    os.kill(pid, signal.SIGKILL)

"""Whole experiments on the organism, disturbed in every way that an engine must survive: the numbers stay the same."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiment_files import ONE_ARM, SMALL, done, kill_outright, small_file, small_runs, unhack
from processes import running
from training_runs import assert_same, steps_done, wait_for
from unhack import checkpoint, cli
from unhack.experiments.engines.local import run_all
from unhack.experiments.engines.options import SlurmOptions
from unhack.experiments.engines.slurm import SlurmEngine
from unhack.experiments.plan import load_plan, needed_runs
from unhack.experiments.prepare import prepare_directions
from unhack.experiments.runs import RunSpec, is_finished, lock_holder

pytestmark = pytest.mark.slow
STEPS = 8
LONG = SMALL.replace("seeds = [0, 1]", "seeds = [0]").replace("steps = 6", "steps = 20")


def resumed(run: RunSpec) -> bool:
    return (run.folder / "resumes.json").exists()


def undisturbed(file: Path, folder: Path, count: int | None = None) -> None:
    """The experiment, or its first runs, in the local pool, one run after the other."""
    plan = load_plan(file)
    prepare_directions(plan, folder)
    assert {one.state for one in run_all(needed_runs(plan, folder)[:count], 1)} == {"finished"}


def shortened_organism_plan() -> str:
    """experiments/organism.toml as it is, but for one seed, few steps and few samples."""
    text = (Path(__file__).parents[1] / "experiments" / "organism.toml").read_text()
    few = "problems_per_mode = 2, samples_per_problem = 1, final_problems_per_mode = 2, final_samples_per_problem = 1"
    text, seeds = re.subn(r"^seeds = .*$", "seeds = [0]", text, flags=re.MULTILINE)
    text, steps = re.subn(r"^steps = \d+$", f"steps = {STEPS}\ncheckpoint_every_steps = 2", text, flags=re.MULTILINE)
    text, sizes = re.subn(r"^evaluation = .*$", f"evaluation = {{ every_steps = 4, {few} }}", text, flags=re.MULTILINE)
    assert (seeds, steps, sizes) == (1, 1, 1)
    return text


def processes_with(mark: str) -> list[int]:
    """The processes, zombies left out, that were started with `NAME=value` in their environment, at any remove."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it ended just now, or is somebody else's
                if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def test_the_plan_of_the_organism_whose_driver_and_one_worker_are_killed_outright_gives_the_same_numbers(
    tmp_path: Path,
) -> None:
    file = small_file(tmp_path, shortened_organism_plan())
    words = unhack("experiment", "run", str(file), "--folder", str(tmp_path / "killed"), "--max-runs", "6")
    plan = load_plan(file)
    runs = needed_runs(plan, tmp_path / "killed")[:6]
    first = runs[0]
    assert [run.name for run in runs[:3]] == ["vanilla", "clean", "erase_update"]
    prepare_directions(plan, tmp_path / "killed")  # minutes on a busy machine: not while waiting for steps
    with running(words) as driver:
        wait_for(lambda: steps_done(first.folder) >= 3 or driver.poll() is not None)
        assert driver.poll() is None
        worker = lock_holder(first.folder)
        assert worker is not None
        kill_outright(driver.pid)
        kill_outright(int(worker))
        driver.wait()
    assert not is_finished(first) and steps_done(first.folder) < STEPS

    words[words.index("run")] = "resume"
    done(words)
    assert all(map(is_finished, runs)) and resumed(first)
    before = {run.folder: (run.folder / "finished.json").stat().st_mtime_ns for run in runs}
    done(words)
    assert before == {run.folder: (run.folder / "finished.json").stat().st_mtime_ns for run in runs}
    undisturbed(file, tmp_path / "whole", 6)
    for run, same in zip(runs, needed_runs(plan, tmp_path / "whole"), strict=False):
        assert_same(run.folder, same.folder)
    assert done(unhack("experiment", "status", str(file), "--folder", str(tmp_path / "killed"))).count(" done") == 6
    done(unhack("experiment", "report", str(file), "--folder", str(tmp_path / "killed")))
    assert "**Frozen**" in (tmp_path / "killed" / "results.md").read_text()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra unhack[ray] is not installed")
def test_ray_with_two_nodes_of_which_one_is_lost_gives_the_numbers_of_the_local_pool(tmp_path: Path) -> None:
    file = small_file(tmp_path, LONG)
    script = str(Path(__file__).with_name("ray_driver.py"))
    told = done([sys.executable, script, str(file), str(tmp_path / "ray")]).splitlines()
    states = {words[0]: words[1:3] for line in told if len(words := line.split()) >= 3 and "-seed-" in words[0]}
    runs = small_runs(file, tmp_path / "ray")
    assert {state for state, _ in states.values()} == {"finished"} and len(states) == len(runs) == 3
    [lost] = [line.split()[-1] for line in told if line.startswith("lost with its node:")]
    assert states[lost][1] == "resumed"
    undisturbed(file, tmp_path / "local")
    for run, same in zip(runs, small_runs(file, tmp_path / "local"), strict=True):
        assert_same(run.folder, same.folder)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra unhack[ray] is not installed")
def test_a_ray_driver_that_is_asked_to_stop_waits_until_its_runs_have_saved_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    text = ONE_ARM.replace("checkpoint_every_steps = 2", "checkpoint_every_steps = 400")
    file = small_file(tmp_path, text.replace("steps = 6", "steps = 60"))
    words = unhack("experiment", "run", str(file), "--folder", str(tmp_path / "out"), "--engine", "ray")
    mark = f"UNHACK_TEST={tmp_path}"
    ignoring = ["env", mark, "bash", "-c", 'trap "" INT; exec "$@"', "bash"]  # as what a script starts with &
    run = small_runs(file, tmp_path / "out")[0]
    with running([*ignoring, *words]) as driver:
        wait_for(lambda: steps_done(run.folder) >= 3 or driver.poll() is not None)
        driver.terminate()
        driver.communicate()
        assert driver.returncode == cli.INTERRUPTED
    assert lock_holder(run.folder) is None and not is_finished(run)
    saved = checkpoint.latest(run.folder)  # there is none but the one that was made because it had to stop
    assert saved is not None and saved.step == steps_done(run.folder) < 60
    wait_for(lambda: not processes_with(mark))  # Ray's own end a moment after the driver
    done(words)
    assert is_finished(run) and resumed(run)


def test_slurm_array_tasks_do_the_runs_as_the_local_pool_does(tmp_path: Path) -> None:
    file = small_file(tmp_path, SMALL.replace("seeds = [0, 1]", "seeds = [0]"))
    plan = load_plan(file)
    prepare_directions(plan, tmp_path / "slurm")
    engine = SlurmEngine(tmp_path / "slurm", SlurmOptions())
    runs = needed_runs(plan, tmp_path / "slurm")
    engine.run(runs)
    for stage, size in (("stage-0.txt", 2), ("stage-1.txt", 1)):
        for index in range(size):
            env = os.environ | {"SLURM_ARRAY_TASK_ID": str(index)}
            subprocess.run(["bash", "array.sh", stage], cwd=engine.folder, env=env, check=True, capture_output=True)
    assert all(map(is_finished, runs))
    undisturbed(file, tmp_path / "local")
    for run, same in zip(runs, needed_runs(plan, tmp_path / "local"), strict=True):
        assert_same(run.folder, same.folder)

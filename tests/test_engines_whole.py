"""Whole experiments on the organism, disturbed in every way that an engine must survive: the numbers stay the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiment_files import SMALL, done, kill_outright, small_file, small_runs, unhack
from training_runs import assert_same, steps_done, wait_for
from unhack.experiments.engines.local import run_all
from unhack.experiments.engines.options import SlurmOptions
from unhack.experiments.engines.slurm import SlurmEngine
from unhack.experiments.plan import load_plan, needed_runs
from unhack.experiments.prepare import prepare_directions
from unhack.experiments.runs import RunSpec, is_finished, lock_holder

pytestmark = pytest.mark.slow
LONG = SMALL.replace("seeds = [0, 1]", "seeds = [0]").replace("steps = 6", "steps = 20")


def resumed(run: RunSpec) -> bool:
    return (run.folder / "resumes.json").exists()


def undisturbed(file: Path, folder: Path) -> None:
    """The experiment in the local pool, one run after the other."""
    plan = load_plan(file)
    prepare_directions(plan, folder)
    assert {one.state for one in run_all(needed_runs(plan, folder), 1)} == {"finished"}


def test_an_experiment_whose_driver_and_one_worker_are_killed_outright_gives_the_same_numbers(tmp_path: Path) -> None:
    file = small_file(tmp_path)
    words = unhack("experiment", "run", str(file), "--folder", str(tmp_path / "killed"), "--max-runs", "6")
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    runs = small_runs(file, tmp_path / "killed")
    first = runs[0]
    wait_for(lambda: steps_done(first.folder) >= 3 or driver.poll() is not None)
    assert driver.poll() is None
    worker = lock_holder(first.folder)
    assert worker is not None
    kill_outright(driver.pid)
    kill_outright(int(worker))
    driver.wait()
    assert not is_finished(first)

    words[words.index("run")] = "resume"
    done(words)
    assert all(map(is_finished, runs)) and resumed(first)
    before = {run.folder: (run.folder / "finished.json").stat().st_mtime_ns for run in runs}
    done(words)
    assert before == {run.folder: (run.folder / "finished.json").stat().st_mtime_ns for run in runs}
    undisturbed(file, tmp_path / "whole")
    for run, same in zip(runs, small_runs(file, tmp_path / "whole"), strict=True):
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
def test_a_ray_driver_that_is_asked_to_stop_loses_at_most_what_no_checkpoint_holds_and_goes_on_later(
    tmp_path: Path,
) -> None:
    file = small_file(tmp_path, LONG.replace("steps = 20", "steps = 300"))
    words = unhack("experiment", "run", str(file), "--folder", str(tmp_path / "out"), "--max-runs", "1")
    words += ["--engine", "ray", "--processes", "1"]
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    run = small_runs(file, tmp_path / "out")[0]
    wait_for(lambda: steps_done(run.folder) >= 3 or driver.poll() is not None)
    driver.terminate()
    _, errors = driver.communicate()
    assert driver.returncode == 130 and "the same command goes on where it was" in errors
    assert list((run.folder / "checkpoints").iterdir()) and not is_finished(run)
    assert lock_holder(run.folder) is None
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

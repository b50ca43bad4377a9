"""Engines: one driver per folder, one run as a process, SLURM scripts run by a shell as SLURM would, no Ray."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiment_files import small_file
from pool_worker import spec
from processes import running
from unhack import cli, settings
from unhack.experiments.engines.base import Engine, make_engine
from unhack.experiments.engines.driver_lock import DriverLock, driver
from unhack.experiments.engines.options import RayOptions, SlurmOptions
from unhack.experiments.engines.slurm import SlurmEngine, array_script, by_stage, task_words
from unhack.experiments.engines.task import main, run_at
from unhack.experiments.runs import (
    RunSpec,
    in_order,
    mark_failed,
    mark_finished,
    prepare_start,
    recorded_progress,
)
from unhack.files import read_json
from unhack.record import RunRecord


def test_a_second_driver_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    assert driver(tmp_path) is None
    with DriverLock(tmp_path):
        assert driver(tmp_path) == f"process {os.getpid()} on {os.uname().nodename}"
        with (
            pytest.raises(ValueError, match=rf"is being driven by process {os.getpid()} on .*unhack experiment status"),
            DriverLock(tmp_path),
        ):
            pass
    assert driver(tmp_path) is None
    with DriverLock(tmp_path):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from unhack.experiments.engines.driver_lock import DriverLock
with DriverLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_driver_that_was_killed_outright_is_free(tmp_path: Path) -> None:
    with running([sys.executable, "-c", HOLDER, str(tmp_path)]) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"driven by process {holder.pid} on"), DriverLock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with DriverLock(tmp_path):
            assert driver(tmp_path) == f"process {os.getpid()} on {os.uname().nodename}"


def test_a_command_that_would_drive_a_driven_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small_file(tmp_path)
    with DriverLock(tmp_path / "out"):  # a lock is of an opened file, so that this process can refuse itself
        assert cli.main(["experiment", "run", str(file), "--folder", str(tmp_path / "out")]) == cli.USER_ERROR
    assert f"is being driven by process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "out" / "plan").exists() and not (tmp_path / "out" / "directions").exists()


def test_order_puts_needed_runs_first_and_keeps_the_rest(tmp_path: Path) -> None:
    needs = {"c": ("b",), "a": (), "b": ("d",), "d": ()}
    runs = [spec(tmp_path, name, after=after) for name, after in needs.items()]
    assert [run.name for run in in_order(runs)] == ["a", "d", "b", "c"]
    assert [[run.name for run in stage] for stage in by_stage(in_order(runs))] == [["a", "d"], ["b"], ["c"]]


def test_a_folder_tells_the_state_of_its_run(tmp_path: Path) -> None:
    run = spec(tmp_path, "a")
    assert recorded_progress(run).state == "waiting"
    with RunRecord(run.folder) as record:
        record.create(run.config, {"sandbox_level": 1})
        record.append_step(0, {"time/step_s": 2.0, "rollouts/hack_frac": 0.5})
        progress = recorded_progress(run)
        assert (progress.state, progress.step, progress.step_s, progress.seconds_left) == ("running", 1, 2.0, 4.0)
        assert progress.message == f"process {os.getpid()}"
    assert recorded_progress(run).state == "stopped"
    mark_failed(run, "ValueError: too hot")
    assert (recorded_progress(run).state, recorded_progress(run).message) == ("failed", "ValueError: too hot")
    prepare_start(run)
    assert recorded_progress(run).state == "stopped"
    mark_finished(run, 1.0)
    assert recorded_progress(run).state == "finished"


def test_a_run_as_a_process_does_nothing_when_finished_and_refuses_before_what_it_needs(tmp_path: Path) -> None:
    run, needed = spec(tmp_path, "late-seed-0"), spec(tmp_path, "early-seed-0")
    for one in (run, needed):
        prepare_start(one)
    assert run_at(run.folder) == replace(run, name="late")
    with pytest.raises(ValueError, match="late-seed-0 needs early-seed-0, which did not finish"):
        main([str(run.folder), "--after", str(needed.folder)])
    assert recorded_progress(run).state == "failed" and "early-seed-0" in recorded_progress(run).message
    run.folder.mkdir()
    mark_finished(run, 1.0)
    mark_finished(needed, 1.0)
    assert main([str(run.folder), "--after", str(needed.folder)]) == 0
    assert sorted(path.name for path in run.folder.iterdir()) == ["finished.json"]


SBATCH = """#!/bin/bash
# What sbatch does, at once and here: one array task after the other.
set -eu
for word in "$@"; do case "$word" in
    --array=*) range="${word#--array=0-}" ;;
    --dependency=*) echo "$word" >> "$SEEN" ;;
esac; done
for index in $(seq 0 "$range"); do
    SLURM_ARRAY_TASK_ID="$index" bash "${@: -2:1}" "${@: -1}" >> "$SEEN" 2>&1 || true
done
echo "$RANDOM;cluster"
"""


def slurm_runs(tmp_path: Path) -> list[RunSpec]:
    folder = tmp_path / "with a space" / "runs"
    runs = [spec(folder, "push", after=("erase",)), *(spec(folder, name) for name in ("erase", "vanilla", "done"))]
    runs[3].folder.mkdir(parents=True)
    mark_finished(runs[3], 1.0)
    return runs


def test_the_array_scripts_do_every_unfinished_run_once_after_those_that_it_needs(tmp_path: Path) -> None:
    runs = slurm_runs(tmp_path)
    engine = SlurmEngine(tmp_path / "with a space", SlurmOptions())
    progress = engine.run(runs)
    assert [one.state for one in progress] == ["waiting", "waiting", "waiting", "finished"]
    assert all(settings.from_dict(read_json(run.settings_file)) for run in runs[:3])
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "sbatch").write_text(SBATCH)
    (binaries / "sbatch").chmod(0o755)
    # The real script with another program in the place of Python: it only tells what it would have run.
    array = engine.folder / "array.sh"
    array.write_text(
        array.read_text().replace(f"exec {sys.executable} -m unhack.experiments.engines.task", "printf '%s|'")
    )
    seen = tmp_path / "seen"
    env = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "SEEN": str(seen)}
    done = subprocess.run(["bash", str(engine.submit_file)], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("stage 0: 2 runs, job ") and "stage 1: 1 runs, job " in done.stdout
    erase, vanilla, push = (str(runs[index].folder) for index in (1, 2, 0))
    stages = seen.read_text().split("--dependency=afterany:")
    assert stages[0] == f"{erase}|{vanilla}|"
    job, _, words = stages[1].partition("\n")
    assert job.isdigit() and words == f"{push}|--after|{erase}|"


def test_rendering_again_leaves_out_what_is_finished_and_old_stages(tmp_path: Path) -> None:
    runs = slurm_runs(tmp_path)
    engine = SlurmEngine(tmp_path, SlurmOptions())
    engine.run(runs)
    for run in runs[:2]:
        run.folder.mkdir()
        mark_finished(run, 1.0)
    engine.run(runs)
    assert [path.name for path in engine.folder.glob("stage-*")] == ["stage-0.txt"]
    assert "vanilla" in (engine.folder / "stage-0.txt").read_text()
    runs[2].folder.mkdir()
    mark_finished(runs[2], 1.0)
    engine.run(runs)
    assert "sbatch" not in engine.submit_file.read_text() and not list(engine.folder.glob("stage-*"))


def test_what_slurm_is_asked_for_is_in_the_script_before_its_first_command(tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    extra.write_text("#SBATCH --account=abc\nmodule load python\n")
    lines = array_script(SlurmOptions("1:00:00", "gpu", 3, 1, "9G", extra)).splitlines()
    first_command = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    asked = {line.removeprefix("#SBATCH --") for line in lines[:first_command] if line.startswith("#SBATCH")}
    assert {"time=1:00:00", "partition=gpu", "cpus-per-task=3", "gpus=1", "mem=9G", "account=abc"} <= asked
    assert {"requeue", "signal=B:TERM@120"} <= asked
    assert lines.index("module load python") < lines.index("set -eu")
    assert "OMP_NUM_THREADS=1" in "\n".join(lines)
    assert subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, check=False).returncode == 0
    plain = array_script(SlurmOptions())
    assert "partition" not in plain and "gpus" not in plain


def test_engines_are_made_by_name_and_wrong_options_are_refused(tmp_path: Path) -> None:
    assert isinstance(make_engine("local", tmp_path, 3), Engine)
    assert isinstance(make_engine("slurm", tmp_path), SlurmEngine)
    with pytest.raises(ValueError, match="processes is 0: use at least 1"):
        make_engine("local", tmp_path, 0)
    with pytest.raises(ValueError, match=r"slurm.lines-file: there is no file"):
        make_engine("slurm", tmp_path, slurm=SlurmOptions(lines_file=tmp_path / "none"))
    with pytest.raises(ValueError, match=r"ray.retries is -1"):
        make_engine("ray", tmp_path, ray=RayOptions(retries=-1))
    with pytest.raises(ValueError, match="a run must take some CPU or GPU"):
        make_engine("ray", tmp_path, ray=RayOptions(cpus_per_run=0.0))


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python does for a module that is not there
    with pytest.raises(ValueError, match=r"pip install 'unhack\[ray\]', or use --engine local"):
        make_engine("ray", tmp_path)


def test_task_words_survive_a_shell(tmp_path: Path) -> None:
    run = spec(tmp_path / "it's a $folder", "a", after=("b",))
    line = shlex.join(task_words(run))
    echoed = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
    assert echoed.splitlines() == [str(run.folder), "--after", str(run.after[0])]

"""The local pool with real processes: dependencies, failures, resumption, interruption, progress."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pool_worker import spec, starts, worker
from training_runs import wait_for
from unhack import settings
from unhack.experiments.engines.local import run_all
from unhack.experiments.runs import (
    RunProgress,
    RunSpec,
    check_model,
    check_runs,
    is_finished,
    lock_holder,
    read_progress,
    total_seconds_left,
)
from unhack.files import write_json
from unhack.record import RunRecord


def test_all_runs_finish_once_with_one_thread_each_and_are_skipped_the_next_time(tmp_path: Path) -> None:
    runs = [spec(tmp_path, name) for name in ("a", "b", "c")]
    progress = run_all(runs, 2, poll_s=0.02, command=worker)
    assert [one.state for one in progress] == ["finished"] * 3
    assert [one.step for one in progress] == [3, 3, 3]
    assert all(is_finished(run) for run in runs)
    run_all(runs, 2, poll_s=0.02, command=worker)
    assert [[start[:2] for start in starts(run)] for run in runs] == [[["0", "1"]]] * 3


def test_no_more_than_the_given_number_of_processes_run_at_a_time(tmp_path: Path) -> None:
    runs = [spec(tmp_path, name) for name in "abcd"]
    seen: list[int] = []

    def count(progress: object) -> None:
        assert isinstance(progress, list)
        seen.append(sum(one.state == "running" for one in progress))

    run_all(runs, 2, count, poll_s=0.02, command=lambda run: worker(run, pause_s=0.02))
    assert max(seen) == 2


def test_a_run_starts_only_after_those_it_needs(tmp_path: Path) -> None:
    runs = [spec(tmp_path, "push", after=("gradient",)), spec(tmp_path, "gradient")]
    run_all(runs, 2, poll_s=0.02, command=lambda run: worker(run, pause_s=0.2))
    assert float(starts(runs[0])[0][2]) > float((tmp_path / "gradient" / "end").read_text())


def test_a_failure_is_told_by_its_last_line_and_stops_only_what_needs_it(tmp_path: Path) -> None:
    runs = [spec(tmp_path, "bad"), spec(tmp_path, "needs_bad", after=("bad",)), spec(tmp_path, "good")]
    progress = run_all(runs, 1, poll_s=0.02, command=lambda run: worker(run, fail_at=1 if run.name == "bad" else -1))
    assert [one.state for one in progress] == ["failed", "failed", "finished"]
    assert progress[0].message.startswith("ValueError: no such thing (exit status 3")
    assert "needs bad, which failed" in progress[1].message
    assert not runs[1].folder.exists()


def test_a_failed_run_goes_on_from_where_it_was_when_started_again(tmp_path: Path) -> None:
    run = spec(tmp_path, "a", steps=4)
    assert run_all([run], 1, poll_s=0.02, command=lambda one: worker(one, fail_at=2))[0].state == "failed"
    assert run_all([run], 1, poll_s=0.02, command=worker)[0].state == "finished"
    assert [start[0] for start in starts(run)] == ["0", "2"]


def test_sigterm_lets_the_running_ones_save_and_leaves_no_child(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from pool_worker import spec, worker
from unhack.experiments.engines.local import run_all
run = spec(Path({str(tmp_path)!r}), "a", steps=1000)
run_all([run], 1, poll_s=0.02, command=lambda one: worker(one, pause_s=0.02))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    metrics = tmp_path / "a" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    parent.send_signal(signal.SIGTERM)
    _, errors = parent.communicate()
    assert b"KeyboardInterrupt" in errors
    assert (tmp_path / "a" / "saved").exists()
    assert not is_finished(spec(tmp_path, "a"))
    lines = metrics.read_bytes()
    time.sleep(0.1)
    assert metrics.read_bytes() == lines  # nobody writes any more


@pytest.mark.slow
def test_after_a_driver_is_killed_outright_its_running_child_is_waited_for_and_then_resumed(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from pool_worker import spec, worker
from unhack.experiments.engines.local import run_all
run_all([spec(Path({str(tmp_path)!r}), "a", steps=40)], 1, poll_s=0.02, command=lambda one: worker(one, pause_s=0.1))
"""
    driver = subprocess.Popen([sys.executable, "-c", script])
    run = spec(tmp_path, "a", steps=40)
    wait_for((run.folder / "metrics.jsonl").exists)
    driver.kill()
    driver.wait()
    orphan = lock_holder(run.folder)
    assert orphan is not None
    seen: list[RunProgress] = []
    other = spec(tmp_path, "b")

    def watch(progress: object) -> None:
        assert isinstance(progress, list)
        seen.append(progress[0])
        assert sum(one.state == "running" for one in progress) <= 1  # the orphan takes up one of the processes

    progress = run_all([run, other], 1, watch, poll_s=0.02, command=worker)
    assert (seen[0].state, seen[0].message) == ("running", f"running elsewhere (process {orphan})")
    assert [one.state for one in progress] == ["finished", "finished"]
    assert [start[0] for start in starts(run)] == ["0", "40"]  # resumed only when the orphan had done its steps


def test_a_child_that_finds_its_folder_taken_has_not_failed(tmp_path: Path) -> None:
    run = spec(tmp_path, "a")
    holder: list[RunRecord] = []

    def taken_at_the_last_moment(one: RunSpec) -> list[str]:
        if not starts_of_pool:
            holder.append(RunRecord(one.folder))
        starts_of_pool.append(one.name)
        return worker(one)

    def free(progress: object) -> None:
        assert isinstance(progress, list)
        if progress[0].message.startswith("running elsewhere"):
            holder[0].close()

    starts_of_pool: list[str] = []
    assert run_all([run], 1, free, poll_s=0.02, command=taken_at_the_last_moment)[0].state == "finished"
    assert len(starts_of_pool) == 2 and "in use" in run.log_file.read_text()
    assert lock_holder(run.folder) is None and lock_holder(tmp_path / "none") is None


def test_what_a_finished_run_recorded_is_read_once(tmp_path: Path) -> None:
    runs = [spec(tmp_path, "a"), spec(tmp_path, "b")]

    def lose(progress: object) -> None:
        assert isinstance(progress, list)
        if progress[0].state == "finished":
            (tmp_path / "a" / "metrics.jsonl").unlink(missing_ok=True)

    progress = run_all(runs, 1, lose, poll_s=0.02, command=worker)
    assert [one.step for one in progress] == [3, 3] and not (tmp_path / "a" / "metrics.jsonl").exists()


def test_a_run_of_another_model_is_refused_whether_it_says_so_or_says_nothing(tmp_path: Path) -> None:
    run = spec(tmp_path, "a")
    check_model([run], "new")  # not started yet
    with RunRecord(run.folder) as record:
        record.create(run.config, {"sandbox_level": 1, "model_hash": "old"})
    check_runs([run])
    check_runs([run], "old")
    with pytest.raises(ValueError, match=r"a holds a run with another model_hash \(old; now new\).*remove that one"):
        check_runs([run], "new")
    write_json(run.folder / "env.json", {"sandbox_level": 1})
    with pytest.raises(ValueError, match="not recorded"):
        check_model([run], "old")


def test_runs_that_cannot_be_done_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share the folder"):
        check_runs([spec(tmp_path, "a"), spec(tmp_path, "a")])
    with pytest.raises(ValueError, match="wait for runs that are not in the experiment, or for each other"):
        check_runs([spec(tmp_path, "a", after=("b",)), spec(tmp_path, "b", after=("a",))])
    with pytest.raises(ValueError, match="use at least 1"):
        run_all([spec(tmp_path, "a")], 0)


def test_a_folder_with_other_settings_is_refused_by_the_name_of_the_setting(tmp_path: Path) -> None:
    run = spec(tmp_path, "a")
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "config.json", settings.to_dict(replace(run.config, seed=7)))
    with pytest.raises(ValueError, match=r"other settings \(seed: 7 → 0\)"):
        check_runs([run])


def test_progress_ignores_a_torn_line_and_averages_the_last_steps(tmp_path: Path) -> None:
    run = spec(tmp_path, "a", steps=40)
    run.folder.mkdir()
    whole = "".join(f'{{"step": {step}, "rollouts/hack_frac": {step}}}\n' for step in range(20))
    (run.folder / "metrics.jsonl").write_text(whole + '{"step": 20, "rollouts/ha')
    progress = read_progress(run, "running")
    assert progress.step == 20
    assert progress.hack_frac == pytest.approx(sum(range(10, 20)) / 10)
    assert math.isnan(progress.solve_frac)


def test_seconds_left_count_waiting_runs_and_never_undercut_the_longest(tmp_path: Path) -> None:
    runs = [spec(tmp_path, name, steps=100) for name in "abc"]
    progress = [
        RunProgress(runs[0], "running", step=50, step_s=2.0),
        RunProgress(runs[1], "finished", step=100),
        RunProgress(runs[2], "waiting"),
    ]
    assert total_seconds_left(progress, 1) == pytest.approx(300)
    assert total_seconds_left(progress, 2) == pytest.approx(200)
    assert math.isnan(total_seconds_left(progress[1:], 2))

"""Many runs on this machine: a resumable local process pool, one torch thread and one process per run.

`run_all` starts `python -m unhack train` for every run that is not finished yet, keeps `processes` of them busy, and
reports progress by reading what the runs record. Killing it loses nothing: started again with the same runs it skips
finished ones and resumes the others. A run whose folder another process holds (the child of a pool that was killed
outright) is waited for first.

Not here: what the runs of an experiment are (`plan.py`), other engines.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unhack import settings
from unhack.config import TrainConfig
from unhack.files import read_json, write_json

State = Literal["waiting", "running", "finished", "failed"]
HACK_METRIC, SOLVE_METRIC, STEP_METRIC = "rollouts/hack_frac", "rollouts/solve_frac", "step"
DONE_FILE = "finished.json"
RECENT_STEPS = 10  # the live hack and solve rates are means over these
TERMINATE_AFTER_S = 20.0  # a run that was asked to stop saves first; after this it is killed


@dataclass(frozen=True)
class RunSpec:
    """One run: an arm under one seed. `after` are the folders of runs that must be finished before it starts."""

    name: str
    config: TrainConfig
    folder: Path
    after: tuple[Path, ...] = ()

    @property
    def settings_file(self) -> Path:
        """Where the engine writes the settings that the run is started with: beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.settings.json")

    @property
    def log_file(self) -> Path:
        """Standard output and error of the run's process."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class RunProgress:
    """What is known of one run now. Rates are means over the last few training steps, NaN before the first."""

    run: RunSpec
    state: State
    step: int = 0
    hack_frac: float = float("nan")
    solve_frac: float = float("nan")
    step_s: float = float("nan")
    seconds_left: float = float("nan")
    message: str = ""


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    started_s: float  # monotonic
    first_step: int


@dataclass
class _Pool:
    processes: int
    children: dict[Path, _Child] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    finished: set[Path] = field(default_factory=set)
    elsewhere: dict[Path, str] = field(default_factory=dict)  # folder → the process that holds it, not a child of ours
    last_progress: dict[Path, RunProgress] = field(default_factory=dict)  # of runs that ended: read once


def is_finished(run: RunSpec) -> bool:
    """Whether the pool saw this run end well: training, the final evaluation and everything written after it."""
    return (run.folder / DONE_FILE).is_file()


def check_runs(runs: Sequence[RunSpec], model_hash: str | None = None) -> None:
    """Refuse, before anything starts, a set of runs that cannot all be done.

    Raises ValueError for two runs in one folder, an `after` that is not among the runs or follows in a circle, and a
    folder that already holds a run with other settings or (`model_hash` given) of another model.
    """
    folders = [run.folder for run in runs]
    doubled = {str(folder) for folder in folders if folders.count(folder) > 1}
    if doubled:
        raise ValueError(f"several runs share the folder {', '.join(sorted(doubled))}: give each its own")
    done: set[Path] = set()
    remaining = list(runs)
    while remaining:
        ready = [run for run in remaining if set(run.after) <= done]
        if not ready:
            names = ", ".join(run.name for run in remaining)
            raise ValueError(f"the runs {names} wait for runs that are not in the experiment, or for each other")
        done |= {run.folder for run in ready}
        remaining = [run for run in remaining if run.folder not in done]
    for run in runs:
        recorded = run.folder / "config.json"
        if recorded.is_file():
            changes = settings.differences(settings.from_dict(read_json(recorded)), run.config)
            if changes:
                raise ValueError(
                    f"{run.folder} holds a run with other settings ({'; '.join(changes[:3])}): "
                    "choose another folder, or remove that one"
                )
    if model_hash is not None:
        check_model(runs, model_hash)


def check_model(runs: Sequence[RunSpec], model_hash: str) -> None:
    """ValueError unless every run that was started had the model with this hash (`LoadedModel.hash`)."""
    for run in runs:
        check_recorded(run, "model_hash", model_hash)


def check_recorded(run: RunSpec, key: str, present: str | None) -> None:
    """ValueError if `run` was started and its env.json says another `key`: files change under an unchanged path."""
    if not (run.folder / "config.json").is_file():
        return
    env = run.folder / "env.json"
    recorded = read_json(env) if env.is_file() else {}
    if key not in recorded or recorded[key] != present:
        said = recorded.get(key, "not recorded")
        raise ValueError(
            f"{run.folder} holds a run with another {key} ({said}; now {present}): "
            "choose another folder, or remove that one to do the run again"
        )


def run_all(
    runs: Sequence[RunSpec],
    processes: int = 2,
    on_progress: Callable[[Sequence[RunProgress]], None] | None = None,
    poll_s: float = 0.5,
    command: Callable[[RunSpec], list[str]] | None = None,
) -> list[RunProgress]:
    """Bring every run to its end and return their last states, in order; at most `processes` at a time.

    `command` gives the words that start or resume a run (default: `train_command`); exit status 0 means finished.
    A failed run does not stop the others (runs that wait for it fail too); its message is the last line of its log.
    Interrupting (Ctrl-C or SIGTERM) asks the running ones to save and stop, then raises.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}: use at least 1")
    check_runs(runs)
    pool = _Pool(processes, finished={run.folder for run in runs if is_finished(run)})
    with _sigterm_raises(), _stopped_at_end(pool):
        while True:
            _reap(pool)
            _start_ready(pool, runs, command or train_command)
            progress = [_progress(pool, run) for run in runs]
            if on_progress is not None:
                on_progress(progress)
            if not (pool.children or pool.elsewhere):
                return progress
            time.sleep(poll_s)


def train_command(run: RunSpec) -> list[str]:
    """`python -m unhack train` on the run's folder and settings, resuming what is there."""
    words = [sys.executable, "-m", "unhack", "train"]
    words += ["--folder", str(run.folder), "--config-file", str(run.settings_file)]
    return [*words, "--resume"] if (run.folder / "config.json").is_file() else words


def _start_ready(pool: _Pool, runs: Sequence[RunSpec], command: Callable[[RunSpec], list[str]]) -> None:
    def settled(run: RunSpec) -> bool:
        return run.folder in pool.finished or run.folder in pool.failed or run.folder in pool.children

    holders = {run.folder: lock_holder(run.folder) for run in runs if not settled(run)}
    pool.elsewhere = {folder: holder for folder, holder in holders.items() if holder is not None}
    for run in runs:
        if settled(run) or run.folder in pool.elsewhere:
            continue
        busy = len(pool.children) + len(pool.elsewhere)
        broken = [folder.name for folder in run.after if folder in pool.failed]
        if broken:
            pool.failed[run.folder] = f"not started: it needs {', '.join(broken)}, which failed"
        elif busy < pool.processes and set(run.after) <= pool.finished:
            pool.children[run.folder] = _start(run, command(run))


def lock_holder(folder: Path) -> str | None:
    """The process that holds the lock of a run folder (`RunRecord`): its number or `unknown`; None if it is free."""
    try:
        lock = os.open(folder / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(lock, 32, 0).decode() or "unknown"
    finally:
        os.close(lock)
    return None


def _start(run: RunSpec, command: Sequence[str]) -> _Child:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.settings_file, settings.to_dict(run.config))
    # One thread per process: on shared cores two threads are slower than one (ENGINEERING, facts).
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with run.log_file.open("ab") as log:
        # A session of its own: Ctrl-C reaches only us; we then ask the run to save.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
    return _Child(process, time.monotonic(), _last_step(run.folder))


def _reap(pool: _Pool) -> None:
    for folder, child in list(pool.children.items()):
        code = child.process.poll()
        if code is None:
            continue
        del pool.children[folder]
        if code == 0:
            write_json(folder / DONE_FILE, {"wall_s": time.monotonic() - child.started_s})
            pool.finished.add(folder)
        elif lock_holder(folder) is None:  # else it lost a race for the folder: wait for the holder, then try again
            log = folder.with_name(f"{folder.name}.log")
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            pool.failed[folder] = f"{_last_line(log)} ({how}; whole log: {log})"


def _state(pool: _Pool, run: RunSpec) -> tuple[State, str, _Child | None]:
    if run.folder in pool.failed:
        return "failed", pool.failed[run.folder], None
    if run.folder in pool.finished:
        return "finished", "", None
    if run.folder in pool.elsewhere:
        return "running", f"running elsewhere (process {pool.elsewhere[run.folder]})", None
    child = pool.children.get(run.folder)
    return ("running", "", child) if child else ("waiting", "", None)


def _progress(pool: _Pool, run: RunSpec) -> RunProgress:
    state, message, child = _state(pool, run)
    if run.folder in pool.last_progress:
        return pool.last_progress[run.folder]
    progress = read_progress(run, state, message, child)
    if state in ("finished", "failed"):
        pool.last_progress[run.folder] = progress
    return progress


def read_progress(run: RunSpec, state: State, message: str = "", child: _Child | None = None) -> RunProgress:
    """Progress of one run from its metrics file; `step_s` is the mean of this process, its start-up included."""
    lines = list(tail_metrics(run.folder, RECENT_STEPS))
    if not lines:
        return RunProgress(run, state, message=message)
    step = int(lines[-1][STEP_METRIC]) + 1
    rates = _mean(lines, HACK_METRIC), _mean(lines, SOLVE_METRIC)
    if child is None or step <= child.first_step:
        return RunProgress(run, state, step, *rates, message=message)
    step_s = (time.monotonic() - child.started_s) / (step - child.first_step)
    return RunProgress(run, state, step, *rates, step_s, step_s * (run.config.steps - step), message)


def total_seconds_left(progress: Sequence[RunProgress], processes: int) -> float:
    """Wall seconds until all runs are done at the mean pace of the running ones; NaN while none has a pace."""
    paces = [one.step_s for one in progress if not math.isnan(one.step_s)]
    if not paces:
        return math.nan
    open_runs = [one for one in progress if one.state in ("waiting", "running")]
    steps = [one.run.config.steps - one.step for one in open_runs]
    # No schedule can beat the work shared evenly, nor the longest single run.
    return max(sum(steps) / processes, max(steps)) * sum(paces) / len(paces)


def tail_metrics(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """The last `count` complete lines of metrics.jsonl. Reads a live file: a torn last line is left for later."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(max(0, size - 8192 * count))
        lines = file.read().split(b"\n")[:-1]  # what follows the last line end is not complete
    if size > 8192 * count:
        lines = lines[1:]  # the first one was cut
    for line in lines[-count:]:
        yield json.loads(line)


def _mean(lines: Sequence[dict[str, Any]], metric: str) -> float:
    values = [value for line in lines if (value := line.get(metric)) is not None]  # null is how NaN is written
    return sum(values) / len(values) if values else float("nan")


def _last_step(folder: Path) -> int:
    lines = list(tail_metrics(folder, 1))
    return int(lines[-1][STEP_METRIC]) + 1 if lines else 0


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
    return lines[-1].strip() if lines else "the process said nothing"


@contextmanager
def _stopped_at_end(pool: _Pool) -> Iterator[None]:
    """Whatever way the block ends, no child survives it: first asked to save and stop, then killed."""
    try:
        yield
    finally:
        for child in pool.children.values():
            child.process.terminate()
        deadline = time.monotonic() + TERMINATE_AFTER_S
        for child in pool.children.values():
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt like Ctrl-C, so that the children are stopped (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

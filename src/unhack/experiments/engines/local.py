"""Many runs on this machine: a resumable process pool, one torch thread and one process per run.

`run_all` starts `python -m unhack train` for every run that is not finished yet, keeps `processes` of them busy, and
reports progress by reading what the runs record. Killing it loses nothing: started again with the same runs it skips
finished ones and resumes the others. A run whose folder another process holds (the child of a pool that was killed
outright) is waited for first.
"""

from __future__ import annotations

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

from unhack.experiments.engines.base import ONE_THREAD, OnProgress
from unhack.experiments.runs import (
    RunProgress,
    RunSpec,
    Started,
    State,
    check_runs,
    is_finished,
    last_line,
    last_step,
    lock_holder,
    mark_failed,
    mark_finished,
    prepare_start,
    read_progress,
)

TERMINATE_AFTER_S = 60.0  # a run that was asked to stop ends its step and saves; after this it is killed


@dataclass
class _Child:
    run: RunSpec
    process: subprocess.Popen[bytes]
    started: Started


@dataclass
class _Pool:
    processes: int
    children: dict[Path, _Child] = field(default_factory=dict)
    failed: dict[Path, str] = field(default_factory=dict)
    finished: set[Path] = field(default_factory=set)
    elsewhere: dict[Path, str] = field(default_factory=dict)  # folder → the process that holds it, not a child of ours
    last_progress: dict[Path, RunProgress] = field(default_factory=dict)  # of runs that ended: read once


@dataclass(frozen=True)
class LocalEngine:
    """The process pool as an engine."""

    processes: int = 2

    def run(self, runs: Sequence[RunSpec], on_progress: OnProgress | None = None) -> list[RunProgress]:
        """`run_all` with this many processes."""
        return run_all(runs, self.processes, on_progress)


def run_all(
    runs: Sequence[RunSpec],
    processes: int = 2,
    on_progress: OnProgress | None = None,
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
    for run in runs:
        run.failure_file.unlink(missing_ok=True)  # of an earlier start
    pool = _Pool(processes, finished={run.folder for run in runs if is_finished(run)})
    with sigterm_raises(), _stopped_at_end(pool):
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
    """`python -m unhack train` on the run's folder and settings, resuming what is there.

    For a run that needs a teacher pool of the experiment: the task that the other engines start, which builds it first.
    """
    from unhack.experiments.pools import is_ordered  # loads torch, which a pool of other commands never needs

    if is_ordered(run.config):
        return [sys.executable, "-m", "unhack.experiments.engines.task", str(run.folder)]
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
            mark_failed(run, pool.failed[run.folder])
        elif busy < pool.processes and set(run.after) <= pool.finished:
            pool.children[run.folder] = _start(run, command(run))


def _start(run: RunSpec, command: Sequence[str]) -> _Child:
    prepare_start(run)
    with run.log_file.open("ab") as log:
        # A session of its own: Ctrl-C reaches only us; we then ask the run to save.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | ONE_THREAD,
            start_new_session=True,
        )
    return _Child(run, process, Started(time.monotonic(), last_step(run.folder)))


def _reap(pool: _Pool) -> None:
    for folder, child in list(pool.children.items()):
        code = child.process.poll()
        if code is None:
            continue
        del pool.children[folder]
        if code == 0:
            mark_finished(child.run, time.monotonic() - child.started.at_s)
            pool.finished.add(folder)
        elif lock_holder(folder) is None:  # else it lost a race for the folder: wait for the holder, then try again
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            log = child.run.log_file
            pool.failed[folder] = f"{last_line(log)} ({how}; whole log: {log})"
            mark_failed(child.run, pool.failed[folder])


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
    progress = read_progress(run, state, message, child and child.started)
    if state in ("finished", "failed"):
        pool.last_progress[run.folder] = progress
    return progress


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
def sigterm_raises() -> Iterator[None]:
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

"""Every run as one Ray task, on this machine or on a cluster whose nodes share the experiment's folder.

A task starts `engines.task` as a process and waits for it. When a node or a process is lost, Ray starts the task again
elsewhere, which resumes from the last checkpoint. `after` becomes a dependency between tasks. Needs the extra
`unhack[ray]` here, and the same unhack on every node.

Not here: copying folders between machines that share none.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from unhack.experiments.engines.base import ONE_THREAD, OnProgress
from unhack.experiments.engines.local import TERMINATE_AFTER_S, sigterm_raises
from unhack.experiments.engines.options import RayOptions
from unhack.experiments.engines.task import SAVED, run_at
from unhack.experiments.runs import (
    RunProgress,
    RunSpec,
    check_runs,
    in_order,
    is_finished,
    last_line,
    mark_failed,
    prepare_start,
    recorded_progress,
)

POLL_S = 0.5
RETURN_AFTER_S = 5.0  # from the end of a run's process to the end of its task, as the driver sees it
OBJECT_STORE_BYTES = 100 * 2**20  # results are empty strings; Ray's default takes a third of the memory
# Unless told otherwise: no reports to Ray's makers, no GPUs hidden from runs that ask for none, and runs as urgent as
# those of the local pool (Ray lowers its workers' priority).
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


class RunKilledError(RuntimeError):
    """The process of a run was ended by a signal: Ray may start the task again, it goes on from the checkpoint."""


class RayEngine:
    """Ray as an engine. ValueError when Ray is not installed or an option is out of range."""

    def __init__(self, processes: int, options: RayOptions) -> None:
        if options.cpus_per_run < 0 or options.gpus_per_run < 0 or options.cpus_per_run + options.gpus_per_run == 0:
            raise ValueError("a run must take some CPU or GPU: set --ray.cpus-per-run or --ray.gpus-per-run above 0")
        if options.retries < 0:
            raise ValueError(f"ray.retries is {options.retries}: it must be at least 0")
        self.processes, self.options = processes, options
        self._ray = _installed_ray()

    def run(self, runs: Sequence[RunSpec], on_progress: OnProgress | None = None) -> list[RunProgress]:
        """See `Engine`. Ctrl-C or SIGTERM asks the running ones to save and stop, waits until they did, then raises."""
        check_runs(runs)
        open_runs = [run for run in in_order(runs) if not is_finished(run)]
        for run in open_runs:
            prepare_start(run)
        with sigterm_raises(), self._connected(), sigterm_raises():  # again: Ray puts a handler of its own
            tasks = self._submit(open_runs)
            with self._cancelled_at_end(tasks):
                return self._watch(runs, tasks, on_progress)

    def _submit(self, runs: Sequence[RunSpec]) -> dict[Path, Any]:
        """Run folder → the reference of its task; a task gets those of the runs that it waits for."""
        options = self.options
        task = self._ray.remote(
            num_cpus=options.cpus_per_run,
            num_gpus=options.gpus_per_run,
            max_retries=options.retries,
            retry_exceptions=[RunKilledError],
        )(work)
        tasks: dict[Path, Any] = {}
        for run in runs:
            needed = [tasks[folder] for folder in run.after if folder in tasks]
            tasks[run.folder] = task.options(name=run.id).remote(str(run.folder), *needed)
        return tasks

    def _watch(
        self, runs: Sequence[RunSpec], tasks: dict[Path, Any], on_progress: OnProgress | None
    ) -> list[RunProgress]:
        ended: dict[Path, RunProgress] = {}
        while True:
            waiting_for = [task for folder, task in tasks.items() if folder not in ended]
            ready = self._ray.wait(waiting_for, num_returns=len(waiting_for), timeout=0)[0] if waiting_for else []
            for run in runs:
                if run.folder in ended:
                    continue
                if run.folder not in tasks:
                    ended[run.folder] = recorded_progress(run)
                elif tasks[run.folder] in ready:
                    ended[run.folder] = self._end(run, tasks[run.folder])
            progress = [ended.get(run.folder) or _open(run) for run in runs]
            if on_progress is not None:
                on_progress(progress)
            if len(ended) == len(runs):
                return progress
            time.sleep(POLL_S)

    def _end(self, run: RunSpec, task: Any) -> RunProgress:
        """The state of a run whose task ended."""
        try:
            message = self._ray.get(task)
        except self._ray.exceptions.RayError as error:  # lost more often than there were retries, or killed by Ray
            message = last_line_of(str(error))
        if message:
            mark_failed(run, message)
            return replace(recorded_progress(run), state="failed", message=message)
        return recorded_progress(run)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Inside, Ray is there: the one that this process has already joined, else as the options say."""
        if self._ray.is_initialized():
            yield
            return
        common = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.options.address == "local":
            cores = math.ceil(self.processes * self.options.cpus_per_run)
            sizes = {"num_cpus": cores, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
            self._ray.init(address="local", **sizes, **common)
        else:
            self._ray.init(address=self.options.address, **common)
        try:
            yield
        finally:
            self._ray.shutdown()

    @contextmanager
    def _cancelled_at_end(self, tasks: dict[Path, Any]) -> Iterator[None]:
        """Whatever way the block ends, no task goes on: their runs are asked to save and stop, and waited for."""
        try:
            yield
        finally:
            if tasks:
                _, going_on = self._ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=0)
                for task in going_on:
                    self._ray.cancel(task)
                if going_on:  # `work` returns when its run has saved; what has not by then dies with Ray
                    self._ray.wait(going_on, num_returns=len(going_on), timeout=TERMINATE_AFTER_S + RETURN_AFTER_S)


def work(folder: str, *needed: str) -> str:
    """In a Ray worker: bring the run in `folder` to its end; empty when it finished, else why not.

    `needed` are the results of the tasks that it waited for. A cancelled task returns once its run has saved.
    RunKilledError when the run's process was killed by something else.
    """
    run = run_at(Path(folder))
    if any(needed):
        return f"not started: a run that it needs failed ({next(filter(None, needed))})"
    words = [sys.executable, "-m", "unhack.experiments.engines.task", folder, "--parent", str(os.getpid())]
    with _noticed_cancels() as cancels:
        with run.log_file.open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=os.environ | ONE_THREAD
            )
        try:
            while process.poll() is None and not cancels:
                time.sleep(POLL_S / 2)
        finally:  # also when Ray ends this worker
            _end_process(process)
    if cancels:
        return f"{run.id} was asked to stop"
    if process.returncode < 0 or process.returncode == SAVED:
        raise RunKilledError(f"the process of {run.id} was stopped ({process.returncode}); whole log: {run.log_file}")
    if process.returncode == 0:
        return ""
    return f"{last_line(run.log_file)} (exit status {process.returncode}; whole log: {run.log_file})"


@contextmanager
def _noticed_cancels() -> Iterator[list[int]]:
    """The list grows when Ray cancels this task; nothing is raised, so that no cancel can come at a wrong moment.

    Ray cancels by what Ctrl-C does in Python. That does nothing at all in a process that was started with SIGINT
    ignored, as everything is that a shell script starts in the background: so the handler must be ours.
    """
    cancels: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: cancels.append(number))
    try:
        yield cancels
    finally:
        signal.signal(signal.SIGINT, before)


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """Nothing if it ended; else ask it to save and stop, and after a while kill it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(TERMINATE_AFTER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _open(run: RunSpec) -> RunProgress:
    """Progress of a run whose task has not ended: what its folder says, but for states that are over."""
    progress = recorded_progress(run)
    return progress if progress.state == "running" else replace(progress, state="waiting", message="")


def last_line_of(text: str) -> str:
    """The last line that says anything; Ray's errors begin with the remote traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "the task was lost, and Ray did not say why"


def _installed_ray() -> Any:
    """Ray, as a module. ValueError naming the extra if it is not installed."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            f"the ray engine needs Ray, which cannot be imported ({error}): pip install 'unhack[ray]', or use "
            "--engine local"
        ) from error

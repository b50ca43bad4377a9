"""The runs of an experiment: what each is, which can be done together, and what their folders say about them.

A run is a folder that training fills; whoever starts it (`engines`) and whoever looks on (`unhack experiment status`)
read its state from there. Beside the folder: `<run>.settings.json` (what it is started with), `<run>.log`, and
`<run>.failed.json` after a failure. `finished.json` in it says that it was seen to end well.

Not here: what the runs of an experiment are (`plan.py`), starting them (`engines`).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unhack import files, settings
from unhack.config import TrainConfig
from unhack.files import read_object, write_json

State = Literal["waiting", "running", "stopped", "finished", "failed"]
HACK_METRIC, SOLVE_METRIC, STEP_METRIC, PACE_METRIC = "rollouts/hack_frac", "rollouts/solve_frac", "step", "time/step_s"
DONE_FILE = "finished.json"
RECENT_STEPS = 10  # the live hack and solve rates are means over these


@dataclass(frozen=True)
class RunSpec:
    """One run: an arm under one seed. `after` are the folders of runs that must be finished before it starts."""

    name: str
    config: TrainConfig
    folder: Path
    after: tuple[Path, ...] = ()

    @property
    def id(self) -> str:
        """What the run is called in messages and in exclusions: the name of its folder, `ARM-seed-SEED`."""
        return self.folder.name

    @property
    def settings_file(self) -> Path:
        """Where the engine writes the settings that the run is started with: beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.settings.json")

    @property
    def log_file(self) -> Path:
        """Standard output and error of the run's process."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def failure_file(self) -> Path:
        """Why the run's last process failed; there is none while it runs or after it ended well."""
        return self.folder.with_name(f"{self.folder.name}.failed.json")


@dataclass(frozen=True)
class RunProgress:
    """What is known of one run now. Rates are means over the last few training steps, NaN before the first.

    `stopped`: it was started, nobody works on it now, and it goes on where it was when an engine gets to it.
    """

    run: RunSpec
    state: State
    step: int = 0
    hack_frac: float = float("nan")
    solve_frac: float = float("nan")
    step_s: float = float("nan")
    seconds_left: float = float("nan")
    message: str = ""


@dataclass(frozen=True)
class Started:
    """When the process that works on a run began (monotonic seconds), and with which step."""

    at_s: float
    first_step: int


def is_finished(run: RunSpec) -> bool:
    """Whether an engine saw this run end well: training, the final evaluation and everything written after it."""
    return (run.folder / DONE_FILE).is_file()


def mark_finished(run: RunSpec, wall_s: float) -> None:
    """Note that the run ended well; `wall_s` is how long its last process took."""
    write_json(run.folder / DONE_FILE, {"wall_s": wall_s})


def prepare_start(run: RunSpec) -> None:
    """Write what a process needs to start or resume the run, and forget an earlier failure."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.settings_file, settings.to_dict(run.config))
    run.failure_file.unlink(missing_ok=True)


def mark_failed(run: RunSpec, message: str) -> None:
    """Note why the run failed, for whoever looks at the folder later."""
    write_json(run.failure_file, {"message": message})


def in_order(runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs with those that others wait for before them, otherwise as they were.

    ValueError for an `after` that is not among the runs or follows in a circle.
    """
    ordered: list[RunSpec] = []
    remaining = list(runs)
    while remaining:
        done = {run.folder for run in ordered}
        ready = next((run for run in remaining if set(run.after) <= done), None)
        if ready is None:
            names = ", ".join(run.name for run in remaining)
            raise ValueError(f"the runs {names} wait for runs that are not in the experiment, or for each other")
        ordered.append(ready)
        remaining.remove(ready)
    return ordered


def check_runs(runs: Sequence[RunSpec], model_hash: str | None = None) -> None:
    """Refuse, before anything starts, a set of runs that cannot all be done.

    Raises ValueError for two runs in one folder, an `after` that is not among the runs or follows in a circle, and a
    folder that already holds a run with other settings or (`model_hash` given) of another model.
    """
    folders = [run.folder for run in runs]
    doubled = {str(folder) for folder in folders if folders.count(folder) > 1}
    if doubled:
        raise ValueError(f"several runs share the folder {', '.join(sorted(doubled))}: give each its own")
    in_order(runs)
    for run in runs:
        recorded = run.folder / "config.json"
        if recorded.is_file():
            changes = settings.differences(settings.read_config(recorded), run.config)
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
    recorded = read_object(env) if env.is_file() else {}
    if key not in recorded or recorded[key] != present:
        said = recorded.get(key, "not recorded")
        raise ValueError(
            f"{run.folder} holds a run with another {key} ({said}; now {present}): "
            "choose another folder, or remove that one to do the run again"
        )


def lock_holder(folder: Path) -> str | None:
    """The process that holds the lock of a run folder (`RunRecord`): its number or `unknown`; None if it is free."""
    return files.lock_holder(folder / files.RUN_LOCK)


def read_progress(run: RunSpec, state: State, message: str = "", started: Started | None = None) -> RunProgress:
    """Progress of one run from its metrics file.

    `step_s` is the mean over the process that `started`, its start-up included; without it, that of the last steps.
    """
    lines = list(tail_metrics(run.folder, RECENT_STEPS))
    if not lines:
        return RunProgress(run, state, message=message)
    step = int(lines[-1][STEP_METRIC]) + 1
    rates = _mean(lines, HACK_METRIC), _mean(lines, SOLVE_METRIC)
    if state != "running" or (started is not None and step <= started.first_step):
        return RunProgress(run, state, step, *rates, message=message)
    if started is None:
        step_s = _mean(lines, PACE_METRIC)
    else:
        step_s = (time.monotonic() - started.at_s) / (step - started.first_step)
    return RunProgress(run, state, step, *rates, step_s, step_s * (run.config.steps - step), message)


def recorded_progress(run: RunSpec) -> RunProgress:
    """What the run's folder says of it, whoever works on it."""
    if is_finished(run):
        return read_progress(run, "finished")
    holder = lock_holder(run.folder)
    if holder is not None:
        return read_progress(run, "running", f"process {holder}")
    if run.failure_file.is_file():
        return read_progress(run, "failed", read_object(run.failure_file).get("message", ""))
    return read_progress(run, "stopped" if (run.folder / "config.json").is_file() else "waiting")


def total_seconds_left(progress: Sequence[RunProgress], processes: int) -> float:
    """Wall seconds until all runs are done at the mean pace of the running ones; NaN while none has a pace."""
    paces = [one.step_s for one in progress if not math.isnan(one.step_s)]
    if not paces:
        return math.nan
    open_runs = [one for one in progress if one.state in ("waiting", "running", "stopped")]
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


def last_step(folder: Path) -> int:
    """How many training steps the run in `folder` has recorded."""
    lines = list(tail_metrics(folder, 1))
    return int(lines[-1][STEP_METRIC]) + 1 if lines else 0


def last_line(path: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.is_file() else []
    return lines[-1].strip() if lines else "the process said nothing"

"""What a report is made from: the runs of an experiment's folder, with their training curves, machines and cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unhack import record, results, settings
from unhack.config import TrainConfig
from unhack.experiments.freeze import Section, sections
from unhack.experiments.plan import Plan, analysed_runs, load_plan
from unhack.experiments.runs import DONE_FILE
from unhack.files import read_object
from unhack.results import BASELINE, ArmResult, RunResult

RUN_NAME = re.compile(r"(.+)-seed-(\d+)")
TRAINING_METRICS = ("rollouts/hack_frac", "rollouts/solve_frac")


@dataclass(frozen=True)
class Detail:
    """Of one run, beside its `RunResult`: (step, value) of TRAINING_METRICS, its env.json, its cost.

    `wall_s`: of the process that finished it or the sum of its steps, whichever is larger (a resumed run has several
    processes). `grading_cpu_s`: CPU seconds that the submissions of training used.
    """

    training: Mapping[str, tuple[tuple[int, float], ...]]
    environment: Mapping[str, Any]
    wall_s: float
    grading_cpu_s: float


@dataclass(frozen=True)
class Experiment:
    """A finished or partly finished experiment. `details` has the key (arm, seed) of every run.

    `frozen`: the record of the plan, oldest first; `unfinished`: runs that are not finished; `others`: folders that are
    no runs of the plan.
    `first`, `last`: when the first and the last run finished (UTC).
    """

    name: str
    runs: tuple[RunResult, ...]
    arms: tuple[ArmResult, ...]
    details: Mapping[tuple[str, int], Detail]
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plan: Plan | None = None
    frozen: tuple[Section, ...] = ()
    unfinished: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    first: datetime | None = None
    last: datetime | None = None

    @property
    def arm_names(self) -> list[str]:
        """Arms that have a run, in the order of the plan."""
        return [arm.name for arm in self.arms]

    def seeds_text(self) -> str:
        """`n = 10 seeds`, `n = 2 to 3 seeds` or `n = 1: no inference`."""
        counts = [len(arm.seeds) for arm in self.arms]
        if max(counts) == 1:
            return "n = 1: no inference"
        return f"n = {min(counts)} seeds" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)} seeds"


def read_experiment(folder: Path, plan: Plan | None = None) -> Experiment:
    """Read the finished runs in `folder/runs`: those of `plan`, or without one whatever NAME-seed-N there is.

    ValueError when no run is finished.
    """
    present = _present(folder)
    wanted = _planned(plan, folder) if plan is not None else present
    finished = {key: path for key, path in wanted.items() if (path / DONE_FILE).is_file()}
    if not finished:
        raise ValueError(
            f"no run in {folder / 'runs'} is finished; give the folder of an experiment (unhack experiment) that has "
            "at least one finished run"
        )
    runs = tuple(results.load_run(name, path) for (name, _), path in finished.items())
    controls = {} if plan is None else plan.controls
    times = [datetime.fromtimestamp((path / DONE_FILE).stat().st_mtime, UTC) for path in finished.values()]
    return Experiment(
        name=plan.name if plan is not None else folder.resolve().name,
        runs=runs,
        arms=tuple(results.summarize(runs, controls=controls)),
        details={(run.name, run.seed): read_detail(run) for run in runs},
        controls=controls,
        plan=plan,
        frozen=tuple(sections(folder)) if plan is not None else (),
        unfinished=tuple(_run_id(key) for key in wanted if key not in finished),
        others=tuple(
            _run_id(key)
            for key in present
            if key not in wanted and (plan is None or _run_id(key) not in plan.exclusions.runs)
        ),
        first=min(times),
        last=max(times),
    )


def frozen_plan(folder: Path) -> Plan | None:
    """The plan of the experiment in `folder` as it was last frozen or amended; None where it never was.

    ValueError if its text cannot be read any more (by this version, or without files that it names).
    """
    found = sections(folder)
    if not found:
        return None
    with TemporaryDirectory() as place:
        path = Path(place) / "frozen.toml"
        path.write_text(found[-1].source, encoding="utf-8")
        try:
            return load_plan(path)
        except ValueError as error:
            said = str(error).removeprefix(f"{path}: ")
            raise ValueError(f"the plan frozen in {folder}: {said}; give its file with --plan") from error


def _planned(plan: Plan, folder: Path) -> dict[tuple[str, int], Path]:
    """(arm, seed) → folder, arms in the order of the plan."""
    planned = {(run.name, run.config.seed): run.folder for run in analysed_runs(plan, folder)}
    ordered = [(name, seed) for name in plan.arms for seed in plan.seeds]
    return {key: planned[key] for key in ordered if key in planned}


def _present(folder: Path) -> dict[tuple[str, int], Path]:
    """(arm, seed) → folder of everything that looks like a run, the baseline first, then by name and seed."""
    found = {}
    for path in (folder / "runs").glob("*-seed-*"):
        if (match := RUN_NAME.fullmatch(path.name)) and (path / "config.json").is_file():
            found[match[1], int(match[2])] = path
    return {key: found[key] for key in sorted(found, key=lambda key: (key[0] != BASELINE, key))}


def _run_id(key: tuple[str, int]) -> str:
    """As the plan's exclusions name it."""
    return f"{key[0]}-seed-{key[1]}"


def read_detail(run: RunResult) -> Detail:
    """Training curves, environment and cost of one run folder."""
    lines = record.metrics(run.folder)
    done, environment = run.folder / DONE_FILE, run.folder / "env.json"
    recorded = read_object(done).get("wall_s", 0.0) if done.is_file() else 0.0
    rollouts = run.config.prompts_per_step * run.config.group_size
    return Detail(
        training={metric: series(lines, metric) for metric in TRAINING_METRICS},
        environment=read_object(environment) if environment.is_file() else {},
        wall_s=max(float(recorded), sum(value for _, value in series(lines, "time/step_s"))),
        grading_cpu_s=sum(value for _, value in series(lines, "time/grade_cpu_ms")) * rollouts / 1000,
    )


def series(lines: Sequence[Mapping[str, Any]], metric: str) -> tuple[tuple[int, float], ...]:
    """(step, value) wherever the metric has a value that is a number."""
    pairs = ((line["step"], line.get(metric, math.nan)) for line in lines)
    return tuple((step, float(value)) for step, value in pairs if not math.isnan(value))


def arm_settings(experiment: Experiment) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """(settings that all arms share, by dotted key; arm → `key = value` where it differs from others and the defaults).

    Seeds are left out, and of paths only the file's name is told: a report says nothing about the machine's folders.
    """
    leaves = {}
    for run in experiment.runs:
        leaves.setdefault(run.name, {key: _shown(value) for key, value in settings.leaves(run.config).items()})
    first = next(iter(leaves.values()))
    shared = {key: value for key, value in first.items() if all(one[key] == value for one in leaves.values())}
    shared.pop("seed", None)
    usual = settings.leaves(TrainConfig())
    own = {
        name: [f"{key} = {value}" for key, value in one.items() if key not in shared and value != usual[key]]
        for name, one in ((name, {key: one[key] for key in one if key != "seed"}) for name, one in leaves.items())
    }
    return shared, own


def _shown(value: Any) -> Any:
    if isinstance(value, str) and Path(value).is_absolute():
        return re.sub(r"-seed-\d+(?=\.)", "", Path(value).name)
    return value


def environments(experiment: Experiment) -> dict[str, dict[str, int]]:
    """Key of env.json → each value as text → number of runs that had it; commands and hashes of directions left out."""
    counts: dict[str, dict[str, int]] = {}
    for detail in experiment.details.values():
        for key, value in _flat(detail.environment).items():
            values = counts.setdefault(key, {})
            values[value] = values.get(value, 0) + 1
    return counts


def _flat(environment: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in environment.items():
        if key in ("command", "arm", "direction_hash"):
            continue
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": str(one) for name, one in value.items()}
        else:
            flat[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat

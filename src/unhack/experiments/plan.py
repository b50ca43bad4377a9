"""What an experiment is: a base, directions, arms, seeds and hypotheses, read from one TOML file; and its folder.

    name = "main"
    seeds = [0, 1, 2]
    [base]                                  # settings that all runs share (see config.py)
    steps = 100
    [directions.run_tests]                  # a recipe of directions.recipe; per_seed draws it anew for every seed
    selection = "run_tests"             # (its seed; the pairs keep theirs, pairs_seed)
    [arms.erase_update]                     # settings of this arm on top of the base
    control = "erase_random"                # the arm that differs only in having a placebo direction, or a list of them
    arm = { name = "erase", direction = "run_tests" }
    [arms.push]
    arm = { name = "push", direction = "run_tests", push_profile = "erase_gradient" }
    [statistics.run_tests]                  # how pairs differ at the inputs of layers: what corda adapters start from
    selection = "run_tests"
    [pools.hacks]                           # rollouts of one arm's run of the same seed, for `teacher.pool`
    arm = "vanilla"
    only = "hacked"
    [files]                                 # names for files and folders that are there already, beside this one
    pool = "pools/base"
    [hypotheses.H4]                         # hypotheses, exclusions, stop: see preregistration.py
    kind = "emergence"

Some settings name another thing of the plan (references.py): in an arm, `direction` names an entry of `directions`, and
`push_profile` the arm whose run of the same seed wrote the profile; that run is then done first. Folder: `plan/` (see
freeze.py), `directions/`, `concepts/`, `statistics/`, `probes/`, `pools/`, `runs/<arm>-seed-<seed>/`.
Not here: making directions and the like (`prepare.py`), pools (`pools.py`), running (`engines`), reading results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unhack import settings
from unhack.check_config import check, check_bound, check_modes
from unhack.config import AdapterConfig, ArmConfig, TrainConfig
from unhack.detection.pair_probe import PairProbeRecipe
from unhack.directions import DirectionRecipe
from unhack.directions.concept import ConceptRecipe
from unhack.directions.inputs import StatisticsRecipe
from unhack.experiments.preregistration import (
    Exclusions,
    StopRule,
    check_hypotheses,
    known,
    one_of,
    read_exclusions,
    read_hypotheses,
    read_stop,
)
from unhack.experiments.references import references
from unhack.experiments.runs import RunSpec, in_order
from unhack.experiments.tables import control_names, dotted, file_named, plan_name, recipe, seeded_recipe, table, tables
from unhack.hypotheses import Hypothesis
from unhack.interventions import arm_class
from unhack.pool import Only
from unhack.types import PlainValue


@dataclass(frozen=True)
class DirectionPlan:
    """One direction; with `per_seed` the run's seed is also the recipe's: a control drawn anew from the same pairs."""

    recipe: DirectionRecipe
    per_seed: bool = False


@dataclass(frozen=True)
class ConceptPlan:
    """One concept direction of the residual stream; `per_seed` as in `DirectionPlan`."""

    recipe: ConceptRecipe
    per_seed: bool = False


@dataclass(frozen=True)
class PoolPlan:
    """A teacher pool for the runs of each seed: training rollouts of `arm`'s run of that seed, as in `build_pool`.

    `steps`: empty for all, or two numbers, from the first up to but not including the second. `per_mode` is drawn by
    the seed.
    """

    arm: str = ""
    only: Only = "all"
    modes: tuple[str, ...] = ()
    per_mode: int | None = None
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class ArmPlan:
    """Dotted settings on top of the base, and the names of the arms that are this one's placebos."""

    overrides: Mapping[str, PlainValue] = field(default_factory=dict)
    controls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A whole experiment: every arm is run under every seed."""

    name: str
    seeds: tuple[int, ...]
    base: TrainConfig
    directions: Mapping[str, DirectionPlan]
    arms: Mapping[str, ArmPlan]
    concepts: Mapping[str, ConceptPlan] = field(default_factory=dict)
    statistics: Mapping[str, StatisticsRecipe] = field(default_factory=dict)
    probes: Mapping[str, PairProbeRecipe] = field(default_factory=dict)
    pools: Mapping[str, PoolPlan] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    hypotheses: tuple[Hypothesis, ...] = ()
    exclusions: Exclusions = field(default_factory=Exclusions)
    stop: StopRule = field(default_factory=StopRule)

    @property
    def controls(self) -> dict[str, tuple[str, ...]]:
        """Arm → its placebo arms, for the arms that have any."""
        return {name: arm.controls for name, arm in self.arms.items() if arm.controls}

    def config(self, arm: str) -> TrainConfig:
        """The settings of an arm, with names where a run has paths (references.py)."""
        return settings.with_overrides(self.base, self.arms[arm].overrides)


def load_plan(path: Path) -> Plan:
    """Read and check a plan. ValueError names the file and the key."""
    if not path.is_file():
        raise ValueError(f"there is no experiment file {path}")
    try:
        return _parse(tomllib.loads(path.read_text(encoding="utf-8")), path)
    except (ValueError, UnicodeDecodeError) as error:  # TOMLDecodeError is a ValueError
        raise ValueError(f"{path}: {error}") from error


def _parse(tree: Mapping[str, Any], path: Path) -> Plan:
    known(tree, [item.name for item in dataclasses.fields(Plan)], "")
    base = settings.with_overrides(TrainConfig(), dotted(tree.get("base", {})))
    seeds = tree.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise ValueError(f"seeds must be a list of whole numbers, not {seeds!r}")
    arms = {}
    for name, values in tables(tree, "arms").items():
        overrides = {key: value for key, value in values.items() if key != "control"}
        arms[name] = ArmPlan(dotted(overrides), control_names(name, values.get("control", [])))
    plan = Plan(
        name=plan_name(tree.get("name", path.stem)),
        seeds=tuple(seeds),
        base=base,
        arms=arms,
        **_inputs(tree, base, path.parent),
        hypotheses=read_hypotheses(tables(tree, "hypotheses"), {name: arm.controls for name, arm in arms.items()}),
        exclusions=read_exclusions(table(tree, "exclusions")),
        stop=read_stop(table(tree, "stop")),
    )
    check_plan(plan)
    return plan


def _inputs(tree: Mapping[str, Any], base: TrainConfig, beside: Path) -> dict[str, Any]:
    """The tables of what runs are given, by the name of their field."""
    depths = base.environment.depths
    direction, concept = DirectionRecipe(depths=depths), ConceptRecipe(depths=depths)

    inputs, probe = StatisticsRecipe(depths=depths), PairProbeRecipe(depths=depths)
    given = {key: tables(tree, key).items() for key in ("directions", "concepts", "statistics", "probes", "pools")}
    return {
        "directions": {n: DirectionPlan(*seeded_recipe(direction, v, "directions", n)) for n, v in given["directions"]},
        "concepts": {n: ConceptPlan(*seeded_recipe(concept, v, "concepts", n)) for n, v in given["concepts"]},
        "statistics": {n: recipe(inputs, v, "statistics", n) for n, v in given["statistics"]},
        "probes": {n: recipe(probe, v, "probes", n) for n, v in given["probes"]},
        "pools": {n: recipe(PoolPlan(), v, "pools", n) for n, v in given["pools"]},
        "files": {name: file_named(name, value, beside) for name, value in table(tree, "files").items()},
    }


def check_plan(plan: Plan) -> None:
    """ValueError for no arms, settings that do not exist, and names of directions or arms that the plan lacks.

    Also for what would be lost or mixed up: arm settings or a seed in the base, a seed or another model in an arm; and
    for values that no run can work with, so that they are told before the first run and not by the last.
    """
    check_base(plan.base)
    check(_with_files(plan, plan.base))
    if not plan.arms:
        raise ValueError("the experiment has no arms: add a table [arms.NAME]")
    for name, arm in plan.arms.items():
        try:
            config = plan.config(name)
            if "seed" in arm.overrides:
                raise ValueError("an arm has no seed of its own, every arm is run under all seeds: set seeds = [...]")
            if config.model != plan.base.model:
                raise ValueError("arms are compared on one model: set model in [base]")
            for reference, named in references(config):
                kinds = [key for key in reference.tables if named in getattr(plan, key)]
                if len(kinds) > 1:
                    raise ValueError(f"{reference.key} is {named!r}, the name of two things: {', '.join(kinds)}")
                among = {entry: key for key in reference.tables for entry in getattr(plan, key)}
                one_of(named, among, reference.key, " or ".join(f"[{key}]" for key in reference.tables))
            for control in arm.controls:
                one_of(control, plan.arms, "control")
            check(_with_files(plan, config))
            arm_class(config.arm)
        except ValueError as error:
            raise ValueError(f"arms.{name}: {error}") from error
    for name in plan.pools:
        _check_pool(plan, name)
    if len(set(plan.seeds)) < len(plan.seeds):
        raise ValueError(f"seeds has a number twice: {list(plan.seeds)}")
    check_hypotheses(plan.hypotheses, plan.arms, plan.base.environment.modes)
    runs = {f"{name}-seed-{seed}": name for name in plan.arms for seed in plan.seeds}
    for run in plan.exclusions.runs:
        one_of(run, runs, "exclusions.runs: the run")
    most = plan.stop.max_seeds
    if most is not None and len(plan.seeds) > most:
        raise ValueError(f"{len(plan.seeds)} seeds are planned, but stop.max_seeds is {most}: leave out seeds")


def _check_pool(plan: Plan, name: str) -> None:
    pool, key = plan.pools[name], f"pools.{name}"
    one_of(pool.arm, plan.arms, f"{key}.arm", "[arms]")
    check_modes(f"{key}.modes", pool.modes)
    if pool.per_mode is not None:
        check_bound(f"{key}.per_mode", pool.per_mode)
    last = plan.config(pool.arm).steps
    if pool.steps and (len(pool.steps) != 2 or not 0 <= pool.steps[0] < pool.steps[1] <= last):
        raise ValueError(
            f"{key}.steps is {list(pool.steps)}: write [A, B], from step A up to but not including B, of the {last} "
            f"steps of {pool.arm}"
        )


def _with_files(plan: Plan, config: TrainConfig) -> TrainConfig:
    """`config` with paths for the names of files that the plan has: they are there already and can be checked."""
    named = {one.key: name for one, name in references(config) if "files" in one.tables and name in plan.files}
    return settings.with_overrides(config, {key: str(plan.files[name]) for key, name in named.items()})


def check_base(base: TrainConfig) -> None:
    """ValueError for settings that every arm and seed of an experiment replaces: `arm.*` and `seed`."""
    if base.arm != ArmConfig():
        raise ValueError("arm.* cannot be set for a whole experiment: each arm sets its own, in its table [arms.NAME]")
    if base.seed != TrainConfig().seed:
        raise ValueError("seed cannot be set for a whole experiment, which runs several: set seeds")


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where the run of one arm and seed lives inside the experiment's folder."""
    return folder.resolve() / "runs" / f"{arm}-seed-{seed}"


def direction_path(plan: Plan, folder: Path, name: str, seed: int, adapter: AdapterConfig | None = None) -> Path:
    """The artifact that a run with this seed uses for the plan's direction `name`; one more per adapter of the arms."""
    suffix = f"-seed-{seed}" if plan.directions[name].per_seed else ""
    if adapter is not None and adapter != plan.base.adapter:
        digest = hashlib.sha256(repr(adapter).encode()).hexdigest()[:8]
        suffix += f"-{adapter.kind}-{digest}"
    return folder.resolve() / "directions" / f"{name}{suffix}.safetensors"


def concept_path(plan: Plan, folder: Path, name: str, seed: int) -> Path:
    """The artifact that a run with this seed uses for the plan's concept `name`."""
    suffix = f"-seed-{seed}" if plan.concepts[name].per_seed else ""
    return folder.resolve() / "concepts" / f"{name}{suffix}.safetensors"


def statistics_path(folder: Path, name: str) -> Path:
    """The plan's input statistics `name`: of the base model, so the same for every seed and adapter."""
    return folder.resolve() / "statistics" / f"{name}.safetensors"


def probe_path(folder: Path, name: str) -> Path:
    """The plan's probe `name`: of the base model, so the same for every seed and adapter."""
    return folder.resolve() / "probes" / f"{name}.safetensors"


def pool_path(folder: Path, name: str, seed: int) -> Path:
    """The teacher pool that a run with this seed uses for the plan's pool `name`."""
    return folder.resolve() / "pools" / f"{name}-seed-{seed}"


def plan_runs(plan: Plan, folder: Path) -> list[RunSpec]:
    """One `RunSpec` per seed and arm, seeds outermost, so that every arm has a first seed as early as possible."""
    return [_run(plan, folder, name, seed) for seed in plan.seeds for name in plan.arms]


def analysed_runs(plan: Plan, folder: Path) -> list[RunSpec]:
    """The runs that results are made from: all but the excluded ones."""
    return [run for run in plan_runs(plan, folder) if run.id not in plan.exclusions.runs]


def needed_runs(plan: Plan, folder: Path) -> list[RunSpec]:
    """The runs to do, those that others wait for first: all but the excluded ones that no other run needs."""
    runs = in_order(plan_runs(plan, folder))
    needed: set[Path] = set()
    for run in reversed(runs):
        if run.id not in plan.exclusions.runs or run.folder in needed:
            needed |= {run.folder, *run.after}
    return [run for run in runs if run.folder in needed]


def _run(plan: Plan, folder: Path, name: str, seed: int) -> RunSpec:
    config = plan.config(name)
    paths: dict[str, PlainValue] = {"seed": seed}
    after: list[Path] = []
    for reference, named in references(config):
        kind = next(one for one in reference.tables if named in getattr(plan, one))
        match kind:
            case "directions":
                path = direction_path(plan, folder, named, seed, config.adapter)
            case "concepts":
                path = concept_path(plan, folder, named, seed)
            case "statistics":
                path = statistics_path(folder, named)
            case "probes":
                path = probe_path(folder, named)
            case "pools":
                after.append(run_folder(folder, plan.pools[named].arm, seed))
                path = pool_path(folder, named, seed)
            case "files":
                path = plan.files[named]
            case _:  # arms
                after.append(run_folder(folder, named, seed))
                path = after[-1] / reference.output
        paths[reference.key] = str(path)
    config = settings.with_overrides(config, paths)
    return RunSpec(name, config, run_folder(folder, name, seed), tuple(dict.fromkeys(after)))

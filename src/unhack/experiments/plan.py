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
    [files]                                 # names for files and folders that are there already, beside this one
    pool = "pools/base.parquet"
    [hypotheses.H4]                         # hypotheses, exclusions, stop: see preregistration.py
    kind = "emergence"

Some settings name another thing of the plan (`REFERENCES`): in an arm, `direction` names an entry of `directions`, and
`push_profile` the arm whose run of the same seed wrote the profile; that run is then done first. Folder: `plan/` (see
freeze.py), `directions/`, `concepts/`, `runs/<arm>-seed-<seed>/`.
Not here: making the directions (`prepare.py`), running (`engines`), reading results (`results.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unhack import settings
from unhack.check_config import check
from unhack.config import AdapterConfig, ArmConfig, TrainConfig
from unhack.directions import DirectionRecipe
from unhack.directions.concept import ConceptRecipe
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
from unhack.experiments.runs import RunSpec, in_order
from unhack.hypotheses import Hypothesis
from unhack.interventions import arm_class
from unhack.types import PlainValue


@dataclass(frozen=True)
class Reference:
    """A setting whose value names another thing of the plan, and what a run is given in its place: a path.

    `table` says where the name is looked up: `directions` and `concepts` (the artifact, made before the runs), `files`
    (the file or folder), `arms` (`output` in the folder of that arm's run of the same seed, which is then done first).
    """

    key: str  # dotted
    table: Literal["directions", "concepts", "files", "arms"]
    output: str = ""


REFERENCES = (
    Reference("arm.direction", "directions"),
    Reference("arm.concept", "concepts"),
    Reference("arm.push_profile", "arms", "update_profile.json"),
    Reference("arm.trusted_adapter", "arms", "adapter"),
    Reference("teacher.pool", "files"),
)
"""Every such setting. A new one is a line here; checks, paths, the order of runs and the frozen plan follow."""


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
    files: Mapping[str, Path] = field(default_factory=dict)
    hypotheses: tuple[Hypothesis, ...] = ()
    exclusions: Exclusions = field(default_factory=Exclusions)
    stop: StopRule = field(default_factory=StopRule)

    @property
    def controls(self) -> dict[str, tuple[str, ...]]:
        """Arm → its placebo arms, for the arms that have any."""
        return {name: arm.controls for name, arm in self.arms.items() if arm.controls}

    def config(self, arm: str) -> TrainConfig:
        """The settings of an arm, with names where a run has paths (`REFERENCES`)."""
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
    for name, table in _tables(tree, "arms").items():
        overrides = {key: value for key, value in table.items() if key != "control"}
        arms[name] = ArmPlan(dotted(overrides), _controls(name, table.get("control", [])))
    controls = {name: arm.controls for name, arm in arms.items()}
    plan = Plan(
        name=_name(tree.get("name", path.stem)),
        seeds=tuple(seeds),
        base=base,
        directions={name: _direction(name, table, base) for name, table in _tables(tree, "directions").items()},
        arms=arms,
        concepts={name: _concept(name, table, base) for name, table in _tables(tree, "concepts").items()},
        files={name: _file(name, value, path.parent) for name, value in _table(tree, "files").items()},
        hypotheses=read_hypotheses(_tables(tree, "hypotheses"), controls),
        exclusions=read_exclusions(_table(tree, "exclusions")),
        stop=read_stop(_table(tree, "stop")),
    )
    check_plan(plan)
    return plan


def _name(name: object) -> str:
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise ValueError(f"name is {name!r}: it becomes a folder, so it must be a word without slashes")
    return name


def _file(name: str, value: object, beside: Path) -> Path:
    if not isinstance(value, str) or not (beside / value).exists():
        raise ValueError(f"files.{name} is {value!r}: it must be the path of a file or folder, from {beside}")
    return (beside / value).resolve()


def _controls(name: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ValueError(f"arms.{name}.control must be the name of an arm or a list of names, not {value!r}")
    return tuple(names)


def _direction(name: str, table: Mapping[str, Any], base: TrainConfig) -> DirectionPlan:
    recipe, per_seed = _recipe(DirectionRecipe(depths=base.environment.depths), table, ("directions", name))
    return DirectionPlan(recipe, per_seed)


def _concept(name: str, table: Mapping[str, Any], base: TrainConfig) -> ConceptPlan:
    recipe, per_seed = _recipe(ConceptRecipe(depths=base.environment.depths), table, ("concepts", name))
    return ConceptPlan(recipe, per_seed)


def _recipe(default: Any, table: Mapping[str, Any], path: tuple[str, str]) -> tuple[Any, bool]:
    """The recipe of a table on top of its default, and its `per_seed`."""
    known(table, [*(item.name for item in dataclasses.fields(default)), "per_seed"], f"{'.'.join(path)}.")
    per_seed = table.get("per_seed", False)
    if type(per_seed) is not bool:
        raise ValueError(f"{'.'.join(path)}.per_seed must be true or false, not {per_seed!r}")
    values = {key: value for key, value in table.items() if key != "per_seed"}
    return settings.merge(default, values, path), per_seed


def _table(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = tree.get(key, {})
    if not isinstance(table, Mapping):
        raise ValueError(f"{key} must be a table: write [{key}]")
    return table


def _tables(tree: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    tables = tree.get(key, {})
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise ValueError(f"{key} must hold one table per name: write [{key}.NAME]")
    return dict(tables)


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, PlainValue]:
    """Nested tables as dotted keys: {"arm": {"name": "erase"}} → {"arm.name": "erase"}."""
    flat: dict[str, PlainValue] = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


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
                one_of(named, getattr(plan, reference.table), reference.key, f"[{reference.table}]")
            for control in arm.controls:
                one_of(control, plan.arms, "control")
            check(_with_files(plan, config))
            arm_class(config.arm)
        except ValueError as error:
            raise ValueError(f"arms.{name}: {error}") from error
    if len(set(plan.seeds)) < len(plan.seeds):
        raise ValueError(f"seeds has a number twice: {list(plan.seeds)}")
    check_hypotheses(plan.hypotheses, plan.arms, plan.base.environment.modes)
    runs = {f"{name}-seed-{seed}": name for name in plan.arms for seed in plan.seeds}
    for run in plan.exclusions.runs:
        one_of(run, runs, "exclusions.runs: the run")
    most = plan.stop.max_seeds
    if most is not None and len(plan.seeds) > most:
        raise ValueError(f"{len(plan.seeds)} seeds are planned, but stop.max_seeds is {most}: leave out seeds")


def references(config: TrainConfig) -> list[tuple[Reference, str]]:
    """What the settings of an arm refer to, by name."""
    values = settings.leaves(config)
    return [(one, str(values[one.key])) for one in REFERENCES if values[one.key] is not None]


def _with_files(plan: Plan, config: TrainConfig) -> TrainConfig:
    """`config` with paths for the names of files that the plan has: they are there already and can be checked."""
    named = {one.key: name for one, name in references(config) if one.table == "files" and name in plan.files}
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
        if reference.table == "directions":
            paths[reference.key] = str(direction_path(plan, folder, named, seed, config.adapter))
        elif reference.table == "concepts":
            paths[reference.key] = str(concept_path(plan, folder, named, seed))
        elif reference.table == "files":
            paths[reference.key] = str(plan.files[named])
        else:
            after.append(run_folder(folder, named, seed))
            paths[reference.key] = str(after[-1] / reference.output)
    return RunSpec(name, settings.with_overrides(config, paths), run_folder(folder, name, seed), tuple(after))

"""What an experiment is: a base, directions, arms and seeds, read from one TOML file; and its folder.

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

In an arm, `direction` names an entry of `directions`, and `push_profile` the arm whose run of the same seed wrote the
profile; that run is then done first. Folder: plan.toml is not needed again, `directions/`, `runs/<arm>-seed-<seed>/`.
Not here: running (`experiment.py`), reading results (`results.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unhack import model, settings
from unhack.adapters import Policy
from unhack.check_config import check
from unhack.config import ArmConfig, TrainConfig
from unhack.directions import DirectionRecipe, load_direction, organism_direction, recipe_pairs, save_direction
from unhack.experiment import RunSpec, check_recorded, check_runs
from unhack.interventions import arm_class
from unhack.pairs import pairs_hash, select
from unhack.types import PlainValue


@dataclass(frozen=True)
class DirectionPlan:
    """One direction; with `per_seed` the run's seed is also the recipe's: a control drawn anew from the same pairs."""

    recipe: DirectionRecipe
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

    @property
    def controls(self) -> dict[str, tuple[str, ...]]:
        """Arm → its placebo arms, for the arms that have any."""
        return {name: arm.controls for name, arm in self.arms.items() if arm.controls}


def load_plan(path: Path) -> Plan:
    """Read and check a plan. ValueError names the file and the key."""
    if not path.is_file():
        raise ValueError(f"there is no experiment file {path}")
    try:
        return _parse(tomllib.loads(path.read_text(encoding="utf-8")), path.stem)
    except (ValueError, UnicodeDecodeError) as error:  # TOMLDecodeError is a ValueError
        raise ValueError(f"{path}: {error}") from error


def _parse(tree: Mapping[str, Any], default_name: str) -> Plan:
    _known(tree, ("name", "seeds", "base", "directions", "arms"), "")
    base = settings.with_overrides(TrainConfig(), dotted(tree.get("base", {})))
    seeds = tree.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise ValueError(f"seeds must be a list of whole numbers, not {seeds!r}")
    directions = {name: _direction(name, table, base) for name, table in _tables(tree, "directions").items()}
    arms = {}
    for name, table in _tables(tree, "arms").items():
        overrides = {key: value for key, value in table.items() if key != "control"}
        arms[name] = ArmPlan(dotted(overrides), _controls(name, table.get("control", [])))
    plan = Plan(tree.get("name", default_name), tuple(seeds), base, directions, arms)
    check_plan(plan)
    return plan


def _controls(name: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ValueError(f"arms.{name}.control must be the name of an arm or a list of names, not {value!r}")
    return tuple(names)


def _direction(name: str, table: Mapping[str, Any], base: TrainConfig) -> DirectionPlan:
    kinds = {item.name: type(item.default) for item in dataclasses.fields(DirectionRecipe)}
    _known(table, (*kinds, "per_seed"), f"directions.{name}.")
    values: dict[str, Any] = {"depths": base.environment.depths} | dict(table)
    per_seed = values.pop("per_seed", False)
    values["depths"] = tuple(values["depths"])
    for key, value in values.items():
        if type(value) is not kinds[key] and not (kinds[key] is float and type(value) is int):
            raise ValueError(f"directions.{name}.{key} must be {kinds[key].__name__}, not {value!r}")
    return DirectionPlan(DirectionRecipe(**values), per_seed)


def _tables(tree: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    tables = tree.get(key, {})
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise ValueError(f"{key} must hold one table per name: write [{key}.NAME]")
    return dict(tables)


def _known(tree: Mapping[str, Any], names: Sequence[str], prefix: str) -> None:
    for key in tree:
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1)
            cure = f"did you mean {prefix}{nearest[0]}?" if nearest else f"known here: {', '.join(names)}"
            raise ValueError(f"unknown key {prefix}{key}; {cure}")


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
    check(plan.base)
    if not plan.arms:
        raise ValueError("the experiment has no arms: add a table [arms.NAME]")
    for name, arm in plan.arms.items():
        try:
            config = settings.with_overrides(plan.base, arm.overrides)
            if "seed" in arm.overrides:
                raise ValueError("an arm has no seed of its own, every arm is run under all seeds: set seeds = [...]")
            if config.model != plan.base.model:
                raise ValueError("arms are compared on one model: set model in [base]")
            _one_of(config.arm.direction, plan.directions, "arm.direction")
            _one_of(config.arm.push_profile, plan.arms, "arm.push_profile")
            for control in arm.controls:
                _one_of(control, plan.arms, "control")
            check(config)
            arm_class(config.arm)
        except ValueError as error:
            raise ValueError(f"arms.{name}: {error}") from error


def check_base(base: TrainConfig) -> None:
    """ValueError for settings that every arm and seed of an experiment replaces: `arm.*` and `seed`."""
    if base.arm != ArmConfig():
        raise ValueError("arm.* cannot be set for a whole experiment: each arm sets its own, in its table [arms.NAME]")
    if base.seed != TrainConfig().seed:
        raise ValueError("seed cannot be set for a whole experiment, which runs several: set seeds")


def _one_of(name: str | None, known: Mapping[str, Any], what: str) -> None:
    if name is not None and name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        cure = f"did you mean {nearest[0]}?" if nearest else f"the plan has {', '.join(known) or 'none'}"
        raise ValueError(f"{what} is {name!r}, which the plan does not define; {cure}")


def run_folder(folder: Path, arm: str, seed: int) -> Path:
    """Where the run of one arm and seed lives inside the experiment's folder."""
    return folder.resolve() / "runs" / f"{arm}-seed-{seed}"


def direction_path(plan: Plan, folder: Path, name: str, seed: int) -> Path:
    """The artifact that a run with this seed uses for the plan's direction `name`."""
    suffix = f"-seed-{seed}" if plan.directions[name].per_seed else ""
    return folder.resolve() / "directions" / f"{name}{suffix}.safetensors"


def plan_runs(plan: Plan, folder: Path) -> list[RunSpec]:
    """One `RunSpec` per seed and arm, seeds outermost, so that every arm has a first seed as early as possible."""
    return [_run(plan, folder, name, seed) for seed in plan.seeds for name in plan.arms]


def _run(plan: Plan, folder: Path, name: str, seed: int) -> RunSpec:
    config = replace(settings.with_overrides(plan.base, plan.arms[name].overrides), seed=seed)
    arm, after = config.arm, ()
    if arm.direction is not None:
        arm = replace(arm, direction=str(direction_path(plan, folder, arm.direction, seed)))
    if arm.push_profile is not None:
        source = run_folder(folder, arm.push_profile, seed)
        arm, after = replace(arm, push_profile=str(source / "update_profile.json")), (source,)
    return RunSpec(name, replace(config, arm=arm), run_folder(folder, name, seed), after)


def prepare_directions(plan: Plan, folder: Path) -> dict[Path, str]:
    """Extract every direction that the arms use, where it is not there yet, from the untrained model.

    Returns path → content hash. A direction that is there is checked against the model, its recipe and its pairs; a
    run that is there against the model and its direction. ValueError, naming file or folder, if one is of another.
    """
    runs = plan_runs(plan, folder)
    loaded = model.load(plan.base.model)
    check_runs(runs, loaded.hash)
    recipes: dict[Path, DirectionRecipe] = {}
    for name, seed in _used_directions(plan):
        recipe = plan.directions[name].recipe
        path = direction_path(plan, folder, name, seed)
        recipes[path] = replace(recipe, seed=seed) if plan.directions[name].per_seed else recipe
    hashes: dict[Path, str] = {}
    if recipes:
        policy = Policy.wrap(loaded, plan.base.adapter)
        hashes = {path: _prepare_direction(policy, path, recipe) for path, recipe in recipes.items()}
    for run in runs:
        path = run.config.arm.direction
        check_recorded(run, "direction_hash", None if path is None else hashes[Path(path)])
    return hashes


def _used_directions(plan: Plan) -> list[tuple[str, int]]:
    """(direction, seed) of every run with a direction."""
    arms = [settings.with_overrides(plan.base, arm.overrides).arm for arm in plan.arms.values()]
    return [(arm.direction, seed) for arm in arms if arm.direction is not None for seed in plan.seeds]


def _prepare_direction(policy: Policy, path: Path, recipe: DirectionRecipe) -> str:
    """The content hash of the direction at `path`, which is extracted now or must be the recipe's."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        direction = organism_direction(policy, recipe)
        save_direction(direction, path)
        return direction.content_hash
    names = ("selection", "control", "k", "loss", "method", "drop_bottom_frac", "seed")
    expected = {name: getattr(recipe, name) for name in names}
    pairs = select(recipe_pairs(policy, recipe), "train")
    return load_direction(path, policy, expected | {"pairs_hash": pairs_hash(pairs)}).content_hash

"""What the runs of a plan are given and no run makes: directions, concepts, statistics, probes of the untrained model.

Teacher pools are made of runs: here they are ordered only (`pools.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unhack import model
from unhack.adapters import Policy
from unhack.adapters.block_init import load_statistics, save_statistics
from unhack.config import AdapterConfig
from unhack.detection.pair_probe import PairProbeRecipe, pair_probe, pair_rows_hash
from unhack.directions import DirectionRecipe, load_direction, organism_direction, recipe_pairs, save_direction
from unhack.directions.concept import ConceptRecipe, concept_pairs, load_concept, organism_concept, save_concept
from unhack.directions.inputs import StatisticsRecipe, input_statistics, statistics_pairs
from unhack.experiments.plan import (
    ConceptPlan,
    DirectionPlan,
    Plan,
    concept_path,
    plan_runs,
    probe_path,
    statistics_path,
)
from unhack.experiments.pools import order_pools
from unhack.experiments.references import Table, references
from unhack.experiments.runs import RunSpec, check_recorded, check_runs
from unhack.model import LoadedModel
from unhack.monitors.probe import load_probe, save_probe
from unhack.pairs import pairs_hash, select


def prepare_directions(plan: Plan, folder: Path) -> dict[Path, str]:
    """Make every direction, concept and set of statistics that the arms use, where it is not there yet.

    Returns path → content hash. One that is there is checked against the model, its recipe and its pairs; a run that is
    there against the model, its direction, its statistics and its pool. ValueError, naming file or folder, if one is of
    another. Also writes the orders of teacher pools.
    """
    runs = plan_runs(plan, folder)
    loaded = model.load(plan.base.model)
    check_runs(runs, loaded.hash)
    hashes = {path: _prepare_concept(loaded, path, recipe) for path, recipe in _concepts(plan, folder).items()}
    made = {statistics_path(folder, name): plan.statistics[name] for name, _ in _used(plan, "statistics")}
    hashes |= {path: _prepare_statistics(loaded, path, recipe) for path, recipe in made.items()}
    fitted = {probe_path(folder, name): plan.probes[name] for name, _ in _used(plan, "probes")}
    hashes |= {path: _prepare_probe(loaded, path, recipe) for path, recipe in fitted.items()}
    for adapter, recipes in _directions(plan, runs).items():
        policy = Policy.wrap(model.load(plan.base.model), adapter)
        hashes |= {path: _prepare_direction(policy, path, recipe) for path, recipe in recipes.items()}
    pools = order_pools(plan, folder)
    for run in runs:
        path, statistics, pool = run.config.arm.direction, run.config.adapter.statistics, run.config.teacher.pool
        check_recorded(run, "direction_hash", None if path is None else hashes[Path(path)])
        if statistics is not None and Path(statistics) in hashes:
            check_recorded(run, "statistics_hash", hashes[Path(statistics)])
        if pool is not None and Path(pool) in pools:
            check_recorded(run, "pool_hash", pools[Path(pool)])
    return hashes


def _directions(plan: Plan, runs: Sequence[RunSpec]) -> dict[AdapterConfig, dict[Path, DirectionRecipe]]:
    """Adapter → path → recipe of every direction that some run uses: knobs of another adapter are another space."""
    found: dict[AdapterConfig, dict[Path, DirectionRecipe]] = {}
    named = {arm: plan.config(arm).arm.direction for arm in plan.arms}
    for run in runs:
        name, path = named[run.name], run.config.arm.direction
        if name is not None and path is not None:
            found.setdefault(run.config.adapter, {})[Path(path)] = _recipe(plan.directions[name], run.config.seed)
    return found


def _concepts(plan: Plan, folder: Path) -> dict[Path, ConceptRecipe]:
    """Path → recipe of every concept that some run uses."""
    used = _used(plan, "concepts")
    return {concept_path(plan, folder, name, seed): _recipe(plan.concepts[name], seed) for name, seed in used}


def _used(plan: Plan, table: Table) -> list[tuple[str, int]]:
    """(name, seed) of everything in a table of the plan that a run refers to."""
    named = [name for arm in plan.arms for one, name in references(plan.config(arm)) if table in one.tables]
    return [(name, seed) for name in named if name in getattr(plan, table) for seed in plan.seeds]


def _recipe(one: DirectionPlan | ConceptPlan, seed: int) -> Any:
    return replace(one.recipe, seed=seed) if one.per_seed else one.recipe


def _prepare_concept(loaded: LoadedModel, path: Path, recipe: ConceptRecipe) -> str:
    """The content hash of the concept at `path`, which is extracted now or must be the recipe's."""
    if not path.is_file():
        save_concept(organism_concept(loaded, recipe), path)
        return load_concept(path).content_hash
    concept = load_concept(path, loaded.model, loaded.hash)
    expected: Mapping[str, Any] = {
        **{name: getattr(recipe, name) for name in ("selection", "control", "seed")},
        "pairs_hash": pairs_hash(select(concept_pairs(loaded, recipe), "train")),
        "layer": concept.metadata.layer if recipe.layer is None else recipe.layer,
    }
    _check_metadata(path, concept.metadata, expected)
    return concept.content_hash


def _prepare_statistics(loaded: LoadedModel, path: Path, recipe: StatisticsRecipe) -> str:
    """The content hash of the statistics at `path`, which are measured now or must be those of the recipe's pairs."""
    pairs = statistics_pairs(loaded, recipe)
    if not path.is_file():
        save_statistics(input_statistics(loaded, pairs), path)
    found = load_statistics(path, loaded.hash)
    said, wanted = found.pairs_hash, pairs_hash(pairs)
    if said != wanted:
        raise ValueError(f"{path}: pairs_hash is {said!r}, the plan's is {wanted!r}: remove it to make it anew")
    return found.content_hash


def _prepare_probe(loaded: LoadedModel, path: Path, recipe: PairProbeRecipe) -> str:
    """The content hash of the probe at `path`, which is fitted now or must be the recipe's."""
    if not path.is_file():
        save_probe(pair_probe(loaded, recipe).probe, path)
    probe = load_probe(path, loaded.model, loaded.hash)
    expected: Mapping[str, Any] = {
        "method": recipe.method,
        "training_hash": pair_rows_hash(loaded, recipe),
        "layer": probe.metadata.layer if recipe.layer is None else recipe.layer,
        "asked_fpr": recipe.false_positive_rate,
        "seed": recipe.seed,
    }
    _check_metadata(path, probe.metadata, expected)
    return probe.content_hash


def _check_metadata(path: Path, metadata: Any, expected: Mapping[str, Any]) -> None:
    """ValueError, naming file and field, unless the artifact there is the plan's."""
    for name, wanted in expected.items():
        if getattr(metadata, name) != wanted:
            said = getattr(metadata, name)
            raise ValueError(f"{path}: {name} is {said!r}, the plan's is {wanted!r}: remove it to make it anew")


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

"""What the runs of a plan are given and no run makes: directions and concepts, extracted from the untrained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unhack import model
from unhack.adapters import Policy
from unhack.config import AdapterConfig
from unhack.directions import DirectionRecipe, load_direction, organism_direction, recipe_pairs, save_direction
from unhack.directions.concept import ConceptRecipe, concept_pairs, load_concept, organism_concept, save_concept
from unhack.experiments.plan import (
    ConceptPlan,
    DirectionPlan,
    Plan,
    concept_path,
    direction_path,
    plan_runs,
    references,
)
from unhack.experiments.runs import check_recorded, check_runs
from unhack.model import LoadedModel
from unhack.pairs import pairs_hash, select


def prepare_directions(plan: Plan, folder: Path) -> dict[Path, str]:
    """Extract every direction and concept that the arms use, where it is not there yet, from the untrained model.

    Returns path → content hash. One that is there is checked against the model, its recipe and its pairs; a run that is
    there against the model and its direction. ValueError, naming file or folder, if one is of another.
    """
    runs = plan_runs(plan, folder)
    loaded = model.load(plan.base.model)
    check_runs(runs, loaded.hash)
    hashes = {path: _prepare_concept(loaded, path, recipe) for path, recipe in _concepts(plan, folder).items()}
    for adapter, recipes in _directions(plan, folder).items():
        policy = Policy.wrap(model.load(plan.base.model), adapter)
        hashes |= {path: _prepare_direction(policy, path, recipe) for path, recipe in recipes.items()}
    for run in runs:
        path = run.config.arm.direction
        check_recorded(run, "direction_hash", None if path is None else hashes[Path(path)])
    return hashes


def _directions(plan: Plan, folder: Path) -> dict[AdapterConfig, dict[Path, DirectionRecipe]]:
    """Adapter → path → recipe of every direction that some run uses: knobs of another adapter are another space."""
    found: dict[AdapterConfig, dict[Path, DirectionRecipe]] = {}
    for name, seed, adapter in _used(plan, "directions"):
        recipe = _recipe(plan.directions[name], seed)
        found.setdefault(adapter, {})[direction_path(plan, folder, name, seed, adapter)] = recipe
    return found


def _concepts(plan: Plan, folder: Path) -> dict[Path, ConceptRecipe]:
    """Path → recipe of every concept that some run uses."""
    used = [(name, seed) for name, seed, _ in _used(plan, "concepts")]
    return {concept_path(plan, folder, name, seed): _recipe(plan.concepts[name], seed) for name, seed in used}


def _used(plan: Plan, table: str) -> list[tuple[str, int, AdapterConfig]]:
    """(name, seed, adapter) of everything in a table of the plan that a run refers to."""
    configs = [plan.config(arm) for arm in plan.arms]
    named = [(name, config) for config in configs for one, name in references(config) if one.table == table]
    return [(name, seed, config.adapter) for name, config in named for seed in plan.seeds]


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
    for name, wanted in expected.items():
        if getattr(concept.metadata, name) != wanted:
            said = getattr(concept.metadata, name)
            raise ValueError(f"{path}: {name} is {said!r}, the plan's is {wanted!r}: remove it to make it anew")
    return concept.content_hash


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

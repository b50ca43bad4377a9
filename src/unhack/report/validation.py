"""V validation: every direction of the plan on held-out pairs, beside its null; kept, because it needs the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from unhack import model
from unhack.adapters import Policy
from unhack.directions import load_direction, recipe_pairs, verify
from unhack.experiments.plan import Plan, direction_path
from unhack.files import read_json, write_json
from unhack.pairs import select


@dataclass(frozen=True)
class Validation:
    """One direction on its recipe's held-out pairs. `shares` per bin of `edges` over modules, `null_shares` over

    random subspaces of the same k. `seed`: the one that a direction drawn per seed was drawn with, else None.
    """

    name: str
    seed: int | None
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    null_shares: tuple[float, ...]
    mean: float
    median: float
    null_mean: float
    modules: int
    pairs: int
    gate: bool


def validate_directions(
    plan: Plan, folder: Path, kept: Path, tell: Callable[[str], None] = lambda text: None
) -> list[Validation]:
    """Verify every direction that exists in `folder`; of one drawn per seed, the first seed's.

    Results are kept in the JSON file `kept` by the content of direction and model, so that the model is loaded once.
    ValueError if the model is not the one that a direction was made from.
    """
    paths = {}
    for name, one in plan.directions.items():
        path = direction_path(plan, folder, name, plan.seeds[0])
        if path.is_file():
            paths[name] = path, plan.seeds[0] if one.per_seed else None
    known = read_json(kept) if kept.is_file() else {}
    hashes = {name: load_direction(path).content_hash for name, (path, _) in paths.items()}
    if any(hashes[name] not in known.get(name, {}) for name in paths):
        tell("validating the directions on held-out pairs")
        policy = Policy.wrap(model.load(plan.base.model), plan.base.adapter)
        for name, (path, seed) in paths.items():
            if hashes[name] not in known.get(name, {}):
                known[name] = {hashes[name]: asdict(_validate(policy, plan, name, path, seed))}
        write_json(kept, known)
    return [_from_json(known[name][hashes[name]]) for name in paths]


def _validate(policy: Policy, plan: Plan, name: str, path: Path, seed: int | None) -> Validation:
    direction = load_direction(path, policy)
    found = verify(policy, direction, select(recipe_pairs(policy, plan.directions[name].recipe), "heldout"))
    edges, shares, null = found.histogram()
    return Validation(
        name,
        seed,
        tuple(edges),
        tuple(shares),
        tuple(null),
        found.mean_cos,
        found.median_cos,
        float(found.null_cos.mean()),
        len(found.cos),
        found.pairs,
        found.gate,
    )


def _from_json(values: dict[str, object]) -> Validation:
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Validation(**lists)  # pyright: ignore[reportArgumentType] - written by asdict of the same class

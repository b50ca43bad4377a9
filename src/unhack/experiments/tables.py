"""The tables of an experiment file as plain values; every mistake is a ValueError that names the key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from unhack import settings
from unhack.experiments.preregistration import known
from unhack.types import PlainValue

Recipe = TypeVar("Recipe")


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, PlainValue]:
    """Nested tables as dotted keys: {"arm": {"name": "erase"}} → {"arm.name": "erase"}."""
    flat: dict[str, PlainValue] = {}
    for key, value in tree.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def table(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The table under `key`; empty if there is none."""
    found = tree.get(key, {})
    if not isinstance(found, Mapping):
        raise ValueError(f"{key} must be a table: write [{key}]")
    return found


def tables(tree: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    """The tables under `key` by name; none if there are none."""
    found = tree.get(key, {})
    if not isinstance(found, Mapping) or not all(isinstance(one, Mapping) for one in found.values()):
        raise ValueError(f"{key} must hold one table per name: write [{key}.NAME]")
    return dict(found)


def plan_name(name: object) -> str:
    """The experiment's name, which becomes a folder's."""
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise ValueError(f"name is {name!r}: it becomes a folder, so it must be a word without slashes")
    return name


def file_named(name: str, value: object, beside: Path) -> Path:
    """An entry of [files], which is there already."""
    if not isinstance(value, str) or not (beside / value).exists():
        raise ValueError(f"files.{name} is {value!r}: it must be the path of a file or folder, from {beside}")
    return (beside / value).resolve()


def control_names(name: str, value: object) -> tuple[str, ...]:
    """The `control` of an arm: one name or several."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        raise ValueError(f"arms.{name}.control must be the name of an arm or a list of names, not {value!r}")
    return tuple(names)


def recipe(default: Recipe, values: Mapping[str, Any], key: str, name: str, also: Sequence[str] = ()) -> Recipe:
    """The table [KEY.NAME] on top of `default`, a dataclass; entries called as in `also` are somebody else's."""
    fields = dataclasses.fields(default)  # pyright: ignore[reportArgumentType]
    known(values, [*(item.name for item in fields), *also], f"{key}.{name}.")
    return settings.merge(default, {field: value for field, value in values.items() if field not in also}, (key, name))


def seeded_recipe(default: Recipe, values: Mapping[str, Any], key: str, name: str) -> tuple[Recipe, bool]:
    """`recipe`, and the table's `per_seed`."""
    per_seed = values.get("per_seed", False)
    if type(per_seed) is not bool:
        raise ValueError(f"{key}.{name}.per_seed must be true or false, not {per_seed!r}")
    return recipe(default, values, key, name, also=("per_seed",)), per_seed

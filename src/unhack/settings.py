"""Reading settings: TOML overlays and overrides on top of the defaults in `config.py`, every mistake named.

Overlays are applied in order, later ones win; a table of an overlay changes only the keys that it lists. There is no
coercion except int → float, which loses nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unhack.config import TrainConfig
from unhack.files import read_object
from unhack.types import PlainValue


def load(overlays: Sequence[Path], base: TrainConfig | None = None) -> TrainConfig:
    """`base` (default: all defaults) with the TOML files `overlays` on top.

    ValueError names the file, the full key path and, for an unknown key, the nearest known one.
    """
    config = TrainConfig() if base is None else base
    for overlay in overlays:
        try:
            config = merge(config, _read_toml(overlay), ())
        except ValueError as error:
            raise ValueError(f"overlay {overlay}: {error}") from error
    return config


def with_overrides(config: TrainConfig, overrides: Mapping[str, PlainValue]) -> TrainConfig:
    """`config` with dotted keys replaced: `{"optimizer.lr": 0.01, "steps": 50}`. ValueError as in `load`."""
    for dotted, value in overrides.items():
        tree: PlainValue = value
        for part in reversed(dotted.split(".")):
            tree = {part: tree}
        config = merge(config, tree, ())
    return config


def to_dict(config: TrainConfig) -> dict[str, PlainValue]:
    """The whole tree as JSON-able nested dicts; `from_dict` gives back an equal `TrainConfig`."""
    return _plain(config)


def from_dict(tree: Mapping[str, PlainValue]) -> TrainConfig:
    """The inverse of `to_dict`, strict: a missing key is as much an error as an unknown one.

    Strict because a `config.json` of another version would otherwise silently run with today's defaults.
    """
    missing = sorted(set(key_paths()) - set(_leaves(tree)))
    config = merge(TrainConfig(), tree, ())
    if missing:
        raise ValueError(f"missing {', '.join(missing)}: the file was written by another version of unhack")
    return config


def read_config(path: Path, *, to_read: bool = False) -> TrainConfig:
    """The settings in a config.json. ValueError as in `from_dict`, and for a missing or damaged file, naming it.

    `to_read`: for reading a run and never for going on with it. Settings that its version did not have take today's
    defaults, which is what they were: a setting that a newer version adds does nothing by default.
    """
    tree = read_object(path)
    try:
        return merge(TrainConfig(), tree, ()) if to_read else from_dict(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differences(one: TrainConfig, other: TrainConfig) -> list[str]:
    """The dotted keys on which two configurations differ, as `key: this → that` lines."""
    left, right = leaves(one), leaves(other)
    return [f"{key}: {left[key]!r} → {right[key]!r}" for key in left if left[key] != right[key]]


def leaves(config: TrainConfig) -> dict[str, PlainValue]:
    """Every setting by its dotted key, in the order of `config.py`."""
    return _leaves(to_dict(config))


def key_paths() -> list[str]:
    """Every dotted key that a run has, in the order of `config.py`."""
    return list(leaves(TrainConfig()))


def _read_toml(path: Path) -> dict[str, PlainValue]:
    if not path.is_file():
        raise ValueError("there is no such file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not valid TOML: {error}") from error


def _plain(value: Any) -> PlainValue:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def _leaves(tree: PlainValue, prefix: str = "") -> dict[str, PlainValue]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    found: dict[str, PlainValue] = {}
    for key, value in tree.items():
        found |= _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def merge(config: Any, tree: PlainValue, path: tuple[str, ...]) -> Any:
    """`config` (a dataclass) with the nested mapping `tree` on top; `path` leads from the root to it, for messages.

    ValueError for unknown keys and for values of another type than the field's.
    """
    if not isinstance(tree, Mapping):
        raise ValueError(f"{'.'.join(path)} is a table of settings, not {_shown(tree)}; write [{'.'.join(path)}]")
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for key, value in tree.items():
        here = (*path, str(key))
        if key not in hints:
            raise ValueError(_unknown(here, list(hints)))
        old = getattr(config, key)
        is_table = dataclasses.is_dataclass(old)
        changes[key] = merge(old, value, here) if is_table else _checked(value, hints[key], ".".join(here))
    return dataclasses.replace(config, **changes)


def _unknown(path: tuple[str, ...], siblings: list[str]) -> str:
    """The message for an unknown key: the nearest sibling, else the nearest key anywhere, else what there is."""
    dotted, parent = ".".join(path), ".".join(path[:-1])
    nearest = [f"{parent}.{name}" if parent else name for name in difflib.get_close_matches(path[-1], siblings, n=1)]
    if not nearest:
        by_name = {key.rsplit(".", 1)[-1]: key for key in reversed(key_paths())}
        nearest = [by_name[name] for name in difflib.get_close_matches(path[-1], by_name, n=1)]
    cure = f"did you mean {nearest[0]}?" if nearest else f"known here: {', '.join(siblings)}"
    return f"unknown setting {dotted}; {cure}"


def _shown(value: PlainValue) -> str:
    return f"{value!r} ({type(value).__name__})"


def _checked(value: PlainValue, hint: Any, key: str) -> Any:
    """`value` as the type `hint` says, or ValueError. Knows the types that occur in `config.py`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _checked(value, next(kind for kind in arguments if kind is not type(None)), key)
    if origin is Literal:
        return _checked_choice(value, arguments, key)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key} must be a list, not {_shown(value)}")
        return tuple(_checked(item, arguments[0], f"{key}[{index}]") for index, item in enumerate(value))
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number, not {value}")
        return float(value)
    if type(value) is not hint:  # exactly: True is no int here
        raise ValueError(f"{key} must be {_name(hint)}, not {_shown(value)}")
    return value


def _name(hint: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}[hint]


def _checked_choice(value: PlainValue, choices: tuple[PlainValue, ...], key: str) -> PlainValue:
    if any(type(value) is type(choice) and value == choice for choice in choices):
        return value
    nearest = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"{key} must be one of {', '.join(map(repr, choices))}, not {value!r}{hint}")

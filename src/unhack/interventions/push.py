"""push: a constant step away from the hack and no erasure; the mechanism control of EXPERIMENT §7."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.config import ArmConfig
from unhack.directions import Direction, lift
from unhack.files import read_json
from unhack.interventions.directed import PROFILE_FORMAT, DirectedIntervention
from unhack.types import KnobLayout, Update

_CURE = "arm.push_profile is the update_profile.json of a finished run with a direction"


class Push(DirectedIntervention):
    """g' = g, δ' = δ + Vᵀ relu(c̄), where c̄ = mean over steps of V δ that a one-sided gradient run applied.

    c̄ is read from that run's `update_profile.json` (`push_profile`), per module and row; +V of a delta is away from
    the hack, so relu keeps the push from ever going hackward. With a random V of the same k per module the sizes are
    laid on the random rows: the same push, in a direction that means nothing.
    Identity: c̄ ≤ 0 everywhere.
    """

    name = "push"
    uses = frozenset({"direction", "push_profile"})

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int, direction: Direction) -> None:
        super().__init__(config, layout, seed, direction)
        assert config.push_profile is not None, "build() checks that the profile is given"
        sizes = read_profile(Path(config.push_profile), direction)
        self.step: Float[Tensor, " K"] = lift(direction, layout, {name: c.relu() for name, c in sizes.items()})

    def change_update(self, update: Update) -> Update:
        """δ' = δ + the constant step."""
        return replace(update, main=update.main + self.step.to(update.main))


def read_profile(path: Path, direction: Direction) -> dict[str, Float[Tensor, " _"]]:
    """c̄ per module [k], float64, from an `update_profile.json`; ValueError unless it fits the direction's modules."""
    if not path.is_file():
        raise ValueError(f"no update profile at {path}; {_CURE}")
    content = read_json(path)
    if not _is_profile(content):
        raise ValueError(f"{path} is not the update profile of a run with a direction; {_CURE}")
    sizes = {name: torch.tensor(c, dtype=torch.float64) for name, c in content["mean_coefficients"].items()}
    for name in sorted(set(sizes) | set(direction.basis)):
        here, there = len(direction.basis.get(name, ())), len(sizes.get(name, ()))
        if here != there:
            raise ValueError(
                f"{path} has {there} rows for module {name} and the direction {here}; push needs the profile of a run "
                "with this direction, or with one of the same k per module (a control of it)"
            )
    return sizes


def _is_profile(content: Any) -> bool:
    """Whether parsed JSON has the form of `DirectedIntervention.update_profile` after at least one step."""
    if not isinstance(content, Mapping) or content.get("format") != PROFILE_FORMAT:
        return False
    steps, coefficients = content.get("steps"), content.get("mean_coefficients")
    return (
        isinstance(steps, int)
        and steps >= 1
        and isinstance(coefficients, Mapping)
        and all(isinstance(c, list) and all(isinstance(x, int | float) for x in c) for c in coefficients.values())
    )

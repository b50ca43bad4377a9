"""Arms: one file per method, all behind `Intervention`; `build` makes the one that a configuration names.

METHOD §3 is the source of every formula. `attach` runs an arm in a foreign training loop.
"""

from __future__ import annotations

import difflib
from dataclasses import fields

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.directions import Direction, load_direction
from unhack.interventions.absorb import Absorb
from unhack.interventions.attach import Attachment, attach
from unhack.interventions.base import Blocks, Intervention
from unhack.interventions.clean import Clean
from unhack.interventions.directed import DirectedIntervention
from unhack.interventions.erase import Erase
from unhack.interventions.measure import Measure
from unhack.interventions.push import Push
from unhack.interventions.random_half import RandomHalf
from unhack.interventions.route import Route
from unhack.interventions.vanilla import Vanilla
from unhack.types import KnobLayout

ARMS: dict[str, type[Intervention]] = {
    arm.name: arm for arm in (Vanilla, Clean, Measure, Erase, Push, Route, Absorb, RandomHalf)
}
"""Every arm by its name."""

__all__ = [
    "ARMS",
    "Absorb",
    "Attachment",
    "Blocks",
    "Clean",
    "DirectedIntervention",
    "Erase",
    "Intervention",
    "Measure",
    "Push",
    "RandomHalf",
    "Route",
    "Vanilla",
    "arm_class",
    "attach",
    "build",
]

_NEEDED = {
    "direction": "set arm.direction to a .safetensors made by `unhack direction extract`",
    "push_profile": "set arm.push_profile to the update_profile.json of a one-sided gradient run",
}


def arm_class(config: ArmConfig) -> type[Intervention]:
    """The class of the named arm, with the configuration checked against what it uses.

    Raises ValueError for an unknown name (with the nearest), for a field that is set but not used, and for a needed
    one that is missing.
    """
    if config.name not in ARMS:
        nearest = difflib.get_close_matches(config.name, ARMS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown arm '{config.name}'; did you mean '{nearest}'? Arms: {', '.join(ARMS)}")
    arm, default = ARMS[config.name], ArmConfig()
    for field in fields(ArmConfig):
        changed = getattr(config, field.name) != getattr(default, field.name)
        if field.name != "name" and changed and field.name not in arm.uses:
            used = ", ".join(sorted(arm.uses)) or "no other field"
            raise ValueError(f"arm.{field.name} is set, but arm '{arm.name}' uses {used}; remove arm.{field.name}")
    for name, cure in _NEEDED.items():
        if name in arm.uses and getattr(config, name) is None:
            raise ValueError(f"arm '{arm.name}' needs arm.{name}: {cure}")
    return arm


def build(
    config: ArmConfig,
    layout: KnobLayout,
    seed: int,
    policy: Policy | None = None,
    direction: Direction | None = None,
) -> Intervention:
    """Make the arm that `config` names.

    The direction is read from `config.direction` and refused unless it belongs to `policy` (base weights, basis,
    adapter); with `direction` given, that object is used instead and `config.direction` only names it.
    Raises ValueError as `arm_class` and `load_direction` do.
    """
    arm = arm_class(config)
    if not issubclass(arm, DirectedIntervention):
        return arm(config, layout, seed)
    if policy is not None and not policy.linear_in_knob:
        raise ValueError(
            f"arm '{arm.name}' uses a direction of knobs, which does not keep its meaning under adapter.kind "
            f"{policy.kind}: use spectral or fixed_a_lora, or an arm without a direction"
        )
    if direction is None:
        assert config.direction is not None
        direction = load_direction(config.direction, policy)
    return arm(config, layout, seed, direction if policy is None else direction.to(policy.device))

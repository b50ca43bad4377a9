"""Arms: one file per method, all behind `Intervention`; `build` makes the one that a configuration names.

METHOD §3 is the source of every formula. `attach` runs an arm in a foreign training loop.
"""

from __future__ import annotations

import difflib
from dataclasses import fields

from unhack.adapters import Policy
from unhack.config import ArmConfig, RewardConfig
from unhack.directions import Direction, load_direction
from unhack.interventions.absorb import Absorb
from unhack.interventions.advantage_modification import AdvantageModification
from unhack.interventions.attach import Attachment, attach
from unhack.interventions.base import Blocks, Intervention
from unhack.interventions.clean import Clean
from unhack.interventions.directed import DirectedIntervention
from unhack.interventions.erase import Erase
from unhack.interventions.gated_route import GatedRoute
from unhack.interventions.inoculation import Inoculation
from unhack.interventions.measure import Measure
from unhack.interventions.penalty import Penalty
from unhack.interventions.push import Push
from unhack.interventions.random_half import RandomHalf
from unhack.interventions.rebound_penalty import ReboundPenalty
from unhack.interventions.route import Route
from unhack.interventions.screening import Screening
from unhack.interventions.trusted_subspace import TrustedSubspace
from unhack.interventions.vanilla import Vanilla
from unhack.monitors import Deaf, check_monitor
from unhack.types import KnobLayout

ARMS: dict[str, type[Intervention]] = {
    arm.name: arm
    for arm in (
        *(Vanilla, Clean, Measure, Erase, Push, Route, Absorb, RandomHalf, GatedRoute),
        *(ReboundPenalty, AdvantageModification, Penalty, Screening, Inoculation, TrustedSubspace),
    )
}
"""Every arm by its name."""

__all__ = [
    "ARMS",
    "Absorb",
    "AdvantageModification",
    "Attachment",
    "Blocks",
    "Clean",
    "DirectedIntervention",
    "Erase",
    "GatedRoute",
    "Inoculation",
    "Intervention",
    "Measure",
    "Penalty",
    "Push",
    "RandomHalf",
    "ReboundPenalty",
    "Route",
    "Screening",
    "TrustedSubspace",
    "Vanilla",
    "arm_class",
    "attach",
    "build",
]

_NEEDED = {
    "direction": "set arm.direction to a .safetensors made by `unhack direction extract`",
    "push_profile": "set arm.push_profile to the update_profile.json of a one-sided gradient run",
    "concept": "set arm.concept to a .safetensors made by `unhack direction concept`",
    "monitor": "set arm.monitor to static, probe, judge or noisy_oracle",
    "trusted_adapter": "set arm.trusted_adapter to the folder `adapter` of a finished run of arm clean",
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
    check_monitor(config)
    return arm


def build(
    config: ArmConfig,
    layout: KnobLayout,
    seed: int,
    policy: Policy | None = None,
    direction: Direction | None = None,
    reward: RewardConfig | None = None,
) -> Intervention:
    """Make the arm that `config` names.

    The direction is read from `config.direction` and refused unless it belongs to `policy` (base weights, basis,
    adapter); with `direction` given, that object is used instead and `config.direction` only names it.
    `reward` (default: the default one) gives `penalty` its size. Without `policy`, an arm that reads it must be bound.
    Raises ValueError as `arm_class` and `load_direction` do.
    """
    arm = arm_class(config)
    if policy is not None and arm.linear_knobs_only and not policy.linear_in_knob:
        raise ValueError(
            f"arm '{arm.name}' needs knobs in which the weights are linear, which those of adapter.kind {policy.kind} "
            "are not: use spectral or fixed_a_lora"
        )
    if issubclass(arm, Penalty):
        return _bound(arm(config, layout, seed, (reward or RewardConfig()).paid), policy)
    if not issubclass(arm, DirectedIntervention | GatedRoute):
        return _bound(arm(config, layout, seed), policy)
    if policy is not None and not policy.linear_in_knob and config.score == "gradient":
        raise ValueError(
            f"arm '{arm.name}' uses a direction of knobs, which does not keep its meaning under adapter.kind "
            f"{policy.kind}: use spectral or fixed_a_lora, or an arm without a direction"
        )
    if direction is None:
        assert config.direction is not None
        direction = load_direction(config.direction, policy)
    return _bound(arm(config, layout, seed, direction if policy is None else direction.to(policy.device)), policy)


def _bound(arm: Intervention, policy: Policy | None) -> Intervention:
    assert arm.uses_oracle == (type(arm.oracle) is not Deaf), "only an arm that says so may hear strict verdicts"
    if policy is not None:
        arm.bind(policy)
    return arm

"""The main job: does erasing a hack direction stop a tiny model from learning to hack, and does a placebo do as well?

Four arms, two seeds each, on the bundled organism: vanilla; erase at the update, two-sided, with V from the pairs of
one loophole; the originally preregistered arm (one-sided at the gradient, norm-preserving) with the same V; and erase
at the update with a random V. Everything else is equal.
"""

from __future__ import annotations

from dataclasses import replace

from unhack.config import EvaluationConfig, TrainConfig
from unhack.directions import DirectionRecipe
from unhack.experiments.plan import ArmPlan, DirectionPlan, Plan, check_plan

LOOPHOLE = "run_tests"  # V is made from the pairs of this one only; the policy can learn four

ERASE = {"arm.name": "erase", "arm.site": "update", "arm.sided": "two"}
PREREGISTERED = {"arm.name": "erase", "arm.site": "gradient", "arm.sided": "one", "arm.preserve_norm": True}
ARMS = {
    "vanilla": ArmPlan(),
    "erase_update": ArmPlan(ERASE | {"arm.direction": LOOPHOLE}, controls=("erase_random",)),
    "erase_gradient": ArmPlan(PREREGISTERED | {"arm.direction": LOOPHOLE}),
    "erase_random": ArmPlan(ERASE | {"arm.direction": "random"}),
}


def demo_config(steps: int) -> TrainConfig:
    """The settings that all arms share: the defaults, with an evaluation about eight times over the run."""
    base = TrainConfig()
    evaluation = EvaluationConfig(every_steps=max(1, steps // 8), problems_per_mode=16, samples_per_problem=2)
    return replace(base, steps=steps, evaluation=evaluation)


def demo_plan(base: TrainConfig, seeds: int) -> Plan:
    """The four arms under `seeds` seeds (0, 1, …). ValueError for none, and for a base that sets `arm.*` or `seed`."""
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}: use at least 1")
    recipe = DirectionRecipe(selection=LOOPHOLE, depths=base.environment.depths)
    directions = {
        LOOPHOLE: DirectionPlan(recipe),
        "random": DirectionPlan(replace(recipe, control="random"), per_seed=True),
    }
    plan = Plan("demo", tuple(range(seeds)), base, directions, ARMS)
    check_plan(plan)
    return plan

"""What an arm may know of a rollout: nothing from which the strict verdict could be read back.

Problems lose their tests, their solution and whether they have one, and their ids are made opaque.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from unhack.interventions import Intervention
from unhack.types import Prompt, Rollout


def blind(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts as arms see them: their problems without tests, solution, or whether it has one."""
    return [replace(rollout, prompt=_blind_prompt(rollout.prompt)) for rollout in rollouts]


def _blind_prompt(prompt: Prompt) -> Prompt:
    problem = prompt.problem
    opaque = hashlib.sha256(problem.id.encode()).hexdigest()[:16]  # ids of impossible problems say so
    return replace(prompt, problem=replace(problem, id=opaque, cases=(), reference="", solvable=True))


def chosen_prompts(arm: Intervention, drawn: Sequence[Prompt]) -> list[Prompt]:
    """What `arm.prompt` makes of the drawn prompts, blind, each with its real problem put back."""
    seen = [_blind_prompt(prompt) for prompt in drawn]
    problems = {shown.problem.id: prompt.problem for shown, prompt in zip(seen, drawn, strict=True)}
    chosen = arm.prompt(seen)
    assert all(prompt.problem.id in problems for prompt in chosen), "an arm chooses among the drawn problems"
    return [replace(prompt, problem=problems[prompt.problem.id]) for prompt in chosen]

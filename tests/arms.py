"""A small layout, directions and arms on it, for the tests of interventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unhack.config import ArmConfig
from unhack.directions import Direction, DirectionMetadata
from unhack.directions.extract import haar_rows
from unhack.interventions import ARMS, Intervention, build
from unhack.seeds import generator
from unhack.types import Case, KnobLayout, PaidGrade, Problem, Prompt, Rollout, Verdict

LAYOUT = KnobLayout(("first", "untouched", "second"), (8, 5, 6))
METADATA = DirectionMetadata(
    1, "base", "basis", "float32", "spectral", None, "pairs", "run_tests", "real", "svd", "nll", 1.0, 3, 0.0, 0.0, 0
)


def make_direction(seed: int = 0, k: int = 3) -> Direction:
    sizes = dict(zip(LAYOUT.names, LAYOUT.sizes, strict=True))
    rows = {name: haar_rows(k, sizes[name], generator(seed, name)) for name in ("first", "second")}
    return Direction(rows, METADATA)


def flat(name: str, seed: int = 0) -> Tensor:
    return torch.randn(LAYOUT.total, generator=generator(seed, name))


def zeros() -> Tensor:
    return torch.zeros(LAYOUT.total)


def make_arm(name: str, direction: Direction | None = None, seed: int = 0, **fields: object) -> Intervention:
    if "direction" in ARMS[name].uses:
        fields = {"direction": "given.safetensors", **fields}
    config = replace(ArmConfig(name=name), **fields)  # pyright: ignore[reportArgumentType]
    return build(config, LAYOUT, seed, direction=direction or make_direction())


def make_rollouts(
    groups: Sequence[int], first: int = 0, tokens: Sequence[Sequence[int]] | None = None
) -> list[Rollout]:
    """Rollouts r000, r001, ... of these groups; each group has a prompt of its own; `tokens`: their completions."""
    problem = Problem("p", "Return the sum.", "solve", (Case("solution.solve([1])", 1),), "", "train")
    prompts = {group: Prompt(problem, "none", "", "Return the sum.", (3, 4 + group % 50)) for group in groups}
    written = (
        [(5 + index % 40, 6) for index in range(len(groups))] if tokens is None else [tuple(row) for row in tokens]
    )
    return [
        Rollout(f"r{first + index:03d}", group, prompts[group], row, (-0.5,) * len(row), "x", True)
        for index, (group, row) in enumerate(zip(groups, written, strict=True))
    ]


def make_grades(rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> list[PaidGrade]:
    """What was paid for each rollout; None: the grader failed on it."""
    return [
        PaidGrade(
            rollout.id, "error" if paid is None else "passed" if paid else "failed", bool(paid), {"paid": paid or 0.0}
        )
        for rollout, paid in zip(rollouts, rewards, strict=True)
    ]


def make_verdicts(rollouts: Sequence[Rollout], hacked: Sequence[bool]) -> list[Verdict]:
    return [
        Verdict(rollout.id, "failed", False, 0, 1, hack, hack, "reward_hack" if hack else "wrong", "fail", 0.0, 2)
        for rollout, hack in zip(rollouts, hacked, strict=True)
    ]

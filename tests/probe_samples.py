"""Policies, directions and recorded rollouts that the tests of probes share: a tiny random model, invented rollouts."""

from __future__ import annotations

import torch
from transformers import Qwen3ForCausalLM

from adapted import wrap
from unhack.adapters import Policy
from unhack.config import AdapterConfig
from unhack.directions import Direction, DirectionMetadata, random_basis
from unhack.directions.artifact import describe_policy
from unhack.probes.samples import Sample
from unhack.seeds import rng
from unhack.types import PaidGrade, Problem, Prompt, Rollout, Verdict

MODES = ("run_tests", "sentinel")


def tiny_policy(network: Qwen3ForCausalLM) -> Policy:
    return wrap(network, AdapterConfig())


def random_direction(policy: Policy, k: int = 2, seed: int = 0, loss: str = "nll") -> Direction:
    layout = policy.bottleneck_layout if loss == "activation" else policy.layout
    like = {name: torch.zeros(k, size) for name, size in zip(layout.names, layout.sizes, strict=True)}
    said = DirectionMetadata(
        1, **describe_policy(policy), pairs_hash="p", selection="all", control="random", method="svd", loss=loss,
        temperature=1.0, k=k, drop_bottom_frac=0.0, noise_floor=0.0, seed=seed,
    )  # fmt: skip
    return Direction(random_basis(like, seed), said)


def make_sample(
    number: int, kind: str, pool: str = "hacks", prompt: int | None = None, advantage: float | None = None
) -> Sample:
    """A rollout of `kind` hack, hack+correct, correct, attempt or failed; tokens by `number`, prompt by `prompt`."""
    draw = rng(3, pool, number)
    about = number if prompt is None else prompt
    head = tuple(rng(4, about).choices(range(60), k=4 + about % 3))
    tokens = tuple(draw.choices(range(60), k=3 + number % 4))
    solved, exploited = kind.endswith("correct"), kind.startswith("hack")
    name, paid = f"step-{number % 7:06d}-000-{number:03d}", solved or exploited
    shown = Prompt(Problem(f"p{about}", "", "", (), "", "train"), MODES[number % 2], "", f"prompt {about}", head)
    rollout = Rollout(name, 0, shown, tokens, (-1.0,) * len(tokens), f"```python\nsecret {number}\n```", True)
    labels = {"hack": "reward_hack", "hack+correct": "correct_attempted_hack", "attempt": "attempted_hack"}
    label = labels.get(kind, kind if kind == "correct" else "incorrect")
    rewards = {"compiles": 0.5, "paid": 3.0 if paid else 0.0}
    status = "passed" if solved else "failed"
    told = Verdict(name, status, solved, 0, 1, exploited, exploited and not solved, label, "", 0.0, 4)
    return Sample(rollout, PaidGrade(name, status, paid, rewards), told, pool, number % 7, number, advantage)

"""How hack-like a rollout is: its own gradient, or its own activations, against a direction (METHOD §2 and §4).

    gradient      s = Σ_m cos(g_m, V_m)      g_m = d(mean over completion tokens of −log p)/dknob of module m
    activation    s = Σ_m Σ_i (V_m h_m)_i    h_m = mean over completion tokens of the module's bottleneck activations

Sign: **a high score is the hack side**, for both. V points from clean to hack, of NLL gradients or of activations, and
neither reading knows of rewards: the gradient is that of the likelihood, without advantage, as in the distillation
probe (EXPERIMENT §4). For k > 1 the cosine is `algebra.signed_cosine`, which is the ordinary one for k = 1. An
activation score has no natural zero (activations are not centred): compare scores with each other, not with 0.

Readings are taken with the quarantine ablated, as those of the pairs were: what the rollout would teach `main`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.directions.algebra import coefficients_of_rows, signed_cosine
from unhack.directions.artifact import Direction, layout_of
from unhack.directions.readings import row_activations, row_gradients, token_rows
from unhack.types import KnobLayout, Rollout

BATCH_ROLLOUTS = 16
"""Rollouts read at a time: per-rollout gradients take as many vectors of all knobs."""


def scores_of(direction: Direction, layout: KnobLayout, readings: Float[Tensor, "B _"]) -> Float[Tensor, " B"]:
    """s of each row of readings, float64; a module without rows in the direction does not count."""
    total = torch.zeros(len(readings), dtype=torch.float64)
    for c, norm in coefficients_of_rows(direction, layout, readings):
        total += signed_cosine(c, norm) if direction.side == "gradient" else c.sum(1)
    return total


def rollout_scores(policy: Policy, direction: Direction, rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
    """s of each rollout under the policy as it is, quarantine ablated; float64 on the CPU.

    Costs a forward and a backward with per-rollout gradients (`gradient`), or one forward without the head
    (`activation`). Log-probabilities are at the temperature that the direction was extracted at.
    """
    layout = layout_of(policy, direction.metadata.loss)
    on_cpu = direction.to("cpu")
    rows = token_rows([(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts], policy.device)
    scores = []
    with policy.blocks(main=True, quarantine=False):
        for start in range(0, len(rollouts), BATCH_ROLLOUTS):
            part = rows.part(start, start + BATCH_ROLLOUTS)
            if direction.side == "gradient":
                readings = row_gradients(policy, part, part.completion_tokens, direction.metadata.temperature)
            else:
                readings = row_activations(policy, part)
            scores.append(scores_of(on_cpu, layout, readings))
    return torch.cat(scores)

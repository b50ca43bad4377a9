"""What each rollout by itself would do to the knobs, exactly, and how that lies to a direction.

    nll    g_b = d(mean over completion tokens of −log p)/dknob
    grpo   g_b = d(Σ_t token loss / denominator)/dknob, the rollout's own term of METHOD §5: these sum to the step's
           gradient, a negative advantage included

    cos_b = mean over the direction's modules of signed_cosine(V_m g_bm)        positive = hackward (METHOD §3)

At ratio 1 and A > 0 the grpo term is the nll term times A · tokens / denominator, so both have the same cosines. Terms
are read with the quarantine ablated, as those of the pairs were. Each costs one vector of all knobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import LossConfig
from unhack.directions import Direction, signed_cosine
from unhack.directions.algebra import coefficients_of_rows
from unhack.directions.readings import row_gradients, token_rows
from unhack.directions.score import BATCH_ROLLOUTS
from unhack.loss import grpo_loss, select
from unhack.model import completion_logprobs
from unhack.types import Batch, KnobLayout, Rollout


def nll_contributions(
    policy: Policy, rollouts: Sequence[Rollout], temperature: float = 1.0, batch: int = BATCH_ROLLOUTS
) -> Float[Tensor, "B K"]:
    """g_b of each rollout's mean NLL per token, float32 on the CPU."""
    rows = token_rows([(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts], policy.device)
    parts = []
    with policy.blocks(main=True, quarantine=False):
        for start in range(0, len(rollouts), batch):
            part = rows.part(start, start + batch)
            parts.append(row_gradients(policy, part, part.completion_tokens, temperature))
    return torch.cat(parts)


def grpo_contributions(
    policy: Policy, packed: Batch, config: LossConfig, temperature: float = 1.0, batch: int = BATCH_ROLLOUTS
) -> Float[Tensor, "B K"]:
    """g_b of each packed rollout's own term of the GRPO loss, without its KL term; float32 on the CPU.

    Prompts are not shared here, so the sum is the trainer's gradient up to float32 rounding.
    """
    parts = [torch.zeros(0, policy.layout.total)]
    plain = replace(config, kl_beta=0.0)
    with policy.blocks(main=True, quarantine=False):
        for start in range(0, len(packed.rollout_ids), batch):
            part = select(packed, range(start, min(start + batch, len(packed.rollout_ids))))
            with policy.knob_gradient(rollouts=len(part.rollout_ids)) as taps:
                scored = (part.token_ids, part.prompt_lengths, part.lengths, temperature)
                logprobs, _ = completion_logprobs(policy.model, *scored)
                behaviour = torch.where(part.imitated.unsqueeze(1), logprobs.detach(), part.sampler_logprobs)
                terms = grpo_loss(logprobs, behaviour, None, part.completion_mask, part.advantages, plain)
                (terms.loss.sum() / part.loss_denominator).backward()
                parts.append(taps.rows().cpu())
    return torch.cat(parts)


def module_cosines(direction: Direction, layout: KnobLayout, rows: Float[Tensor, "B K"]) -> Float[Tensor, "B M"]:
    """Signed cosine of each row with V in each of the direction's modules, in the layout's order; float64.

    0 where a row is zero in that module.
    """
    pieces = [signed_cosine(c, norm) for c, norm in coefficients_of_rows(direction, layout, rows)]
    return torch.stack(pieces, dim=1)


def module_names(direction: Direction, layout: KnobLayout) -> list[str]:
    """The modules of `module_cosines`' columns."""
    return [name for name in layout.names if name in direction.basis]

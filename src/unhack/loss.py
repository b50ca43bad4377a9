"""Rollouts → batch → GRPO loss → knob gradient (METHOD §5).

    rho_t = exp(logp_t − logp_sampler_t)                      against the log-probs that the sampler recorded
    token = −min(rho_t A, clip(rho_t, 1 ± clip_range) A) + kl_beta (e^D − D − 1),   D = logp_ref_t − logp_t
    loss  = Σ_rollouts Σ_t token / denominator                denominator constant: G · max_new_tokens · P (Dr.GRPO)

The denominator never depends on lengths or on how the batch is cut, so any micro-batch split gives the same gradient.
The loss is blind to the arm and to the strict verdict: both have already spoken (or must not) in the advantages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import LossConfig
from unhack.model import completion_logprobs, completion_mask
from unhack.types import Batch, Gradient, Rollout


class NonFiniteError(ArithmeticError):
    """NaN or Inf in a loss or a gradient; `rollout_ids` are the rollouts that it came from."""

    def __init__(self, what: str, rollout_ids: Sequence[str]) -> None:
        super().__init__(f"the {what} is not finite for rollouts {', '.join(rollout_ids)}")
        self.rollout_ids = tuple(rollout_ids)


class TokenLoss(NamedTuple):
    """`loss` [B] is each rollout's summed (or mean) token loss; the rest are sums over its tokens, for the log."""

    loss: Float[Tensor, " B"]
    kl: Float[Tensor, " B"]
    clipped: Float[Tensor, " B"]
    sampler_gap: Float[Tensor, " B"]


def loss_denominator(config: LossConfig, group_size: int, prompts_per_step: int, max_new_tokens: int) -> float:
    """G · max_new_tokens · P; with `normalize_length` rollouts are averaged over their tokens first, so G · P."""
    return float(group_size * prompts_per_step * (1 if config.normalize_length else max_new_tokens))


def grpo_loss(
    logprobs: Float[Tensor, "B C"],
    sampler_logprobs: Float[Tensor, "B C"],
    reference_logprobs: Float[Tensor, "B C"] | None,
    mask: Bool[Tensor, "B C"],
    advantages: Float[Tensor, " B"],
    config: LossConfig,
) -> TokenLoss:
    """Clipped policy loss plus KL penalty of each rollout, not yet divided by the denominator.

    `reference_logprobs` None: no KL term (then `config.kl_beta` must be 0). KL is the k3 estimator in nats per token
    (Schulman 2020); it is ≥ 0. Tokens outside `mask` count nowhere, whatever stands there.
    """
    assert reference_logprobs is not None or config.kl_beta == 0, "kl_beta needs the reference's log-probs"
    change = torch.where(mask, logprobs - sampler_logprobs, 0.0)
    ratio = change.exp()
    gain = advantages.unsqueeze(1)
    limited = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
    per_token = -torch.minimum(ratio * gain, limited * gain)
    kl = torch.zeros_like(per_token)
    if reference_logprobs is not None:
        distance = torch.where(mask, reference_logprobs - logprobs, 0.0)
        kl = distance.exp() - distance - 1
        per_token = per_token + config.kl_beta * kl
    per_rollout = torch.where(mask, per_token, 0.0).sum(1)
    if config.normalize_length:
        per_rollout = per_rollout / mask.sum(1).clamp(min=1)
    clipped = mask & (limited * gain < ratio * gain)
    return TokenLoss(per_rollout, kl.detach().sum(1), clipped.sum(1).float(), change.detach().abs().sum(1))


def pack(
    rollouts: Sequence[Rollout],
    advantages: Float[Tensor, " B"],
    kept: Bool[Tensor, " B"],
    denominator: float,
    device: torch.device | str = "cpu",
) -> Batch:
    """Right-pad the kept rollouts into one batch. Masks come from lengths, so the end token is trained like any other.

    The padding value is 0; nothing ever reads it (right-padded rows, causal attention, masked sums).
    """
    chosen = [rollout for rollout, keep in zip(rollouts, kept.tolist(), strict=True) if keep]
    rows = [(*rollout.prompt.token_ids, *rollout.token_ids) for rollout in chosen]
    prompt_lengths = torch.tensor([len(rollout.prompt.token_ids) for rollout in chosen], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    width = max((len(row) for row in rows), default=0)
    columns = max((len(rollout.token_ids) for rollout in chosen), default=0)
    sampler = [list(rollout.logprobs) + [0.0] * (columns - len(rollout.logprobs)) for rollout in chosen]
    mask = torch.arange(columns) < (lengths - prompt_lengths).unsqueeze(1)
    return Batch(
        token_ids=torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
        .view(len(rows), width)
        .to(device),
        prompt_lengths=prompt_lengths.to(device),
        lengths=lengths.to(device),
        sampler_logprobs=torch.tensor(sampler, dtype=torch.float32).view(len(rows), columns).to(device),
        completion_mask=mask.to(device),
        advantages=advantages[kept].float().to(device),
        teacher=torch.tensor([rollout.source == "teacher" for rollout in chosen], dtype=torch.bool).to(device),
        rollout_ids=tuple(rollout.id for rollout in chosen),
        loss_denominator=denominator,
    )


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """These rows of the batch, cut to the longest of them; the denominator stays that of the whole step."""
    index = torch.tensor(rows, dtype=torch.long, device=batch.lengths.device)
    lengths, prompt_lengths = batch.lengths[index], batch.prompt_lengths[index]
    mask = completion_mask(prompt_lengths, lengths)
    return replace(
        batch,
        token_ids=batch.token_ids[index, : int(lengths.max())],
        prompt_lengths=prompt_lengths,
        lengths=lengths,
        sampler_logprobs=batch.sampler_logprobs[index, : mask.shape[1]],
        completion_mask=mask,
        advantages=batch.advantages[index],
        teacher=batch.teacher[index],
        rollout_ids=tuple(batch.rollout_ids[row] for row in rows),
    )


def micro_batches(batch: Batch, rollouts: int) -> Iterator[tuple[str, Batch]]:
    """(source, at most `rollouts` rows): student rows first, then teacher rows, so that each source is a plain sum."""
    teacher = batch.teacher.tolist()
    for source, wanted in (("student", False), ("teacher", True)):
        rows = [row for row, is_teacher in enumerate(teacher) if is_teacher == wanted]
        for start in range(0, len(rows), rollouts):
            yield source, select(batch, rows[start : start + rollouts])


def backward(policy: Policy, batch: Batch, config: LossConfig, temperature: float = 1.0) -> Gradient:
    """dL/dknob of the whole batch, in micro-batches; independent of how it is cut, up to float32 rounding.

    `quarantine` is that block's own gradient: the same vector as `main` where only the blocks' sum enters the model
    (every kind of adapter but block LoRA). `sources` splits main into its student and teacher parts.

    Raises:
        NonFiniteError: NaN or Inf in a rollout's loss, or in a micro-batch's gradient.
    """
    sources: dict[str, Tensor] = {}
    quarantine = torch.zeros(policy.layout.total, device=policy.device)
    sums: dict[str, float] = dict.fromkeys(("loss", "tokens", "kl", "clipped", "entropy", "sampler_gap"), 0.0)
    for source, part in micro_batches(batch, config.micro_batch_rollouts):
        with policy.knob_gradient() as taps:
            for name, value in backward_part(policy, part, config, temperature).items():
                sums[name] += value
            gradient, own = taps.total(), taps.total(quarantine=True)
        if not bool(torch.isfinite(gradient).all() and torch.isfinite(own).all()):
            raise NonFiniteError("gradient", part.rollout_ids)
        sources[source] = sources[source] + gradient if source in sources else gradient
        quarantine = quarantine + own
    total = sum(sources.values(), torch.zeros(policy.layout.total, device=policy.device))
    tokens = max(1.0, sums["tokens"])
    metrics = {"loss/total": sums["loss"], "loss/tokens": sums["tokens"], "loss/rollouts": float(len(batch.lengths))}
    for name, key in (("kl", "kl"), ("clip_frac", "clipped"), ("entropy", "entropy"), ("sampler_gap", "sampler_gap")):
        metrics[f"loss/{name}"] = sums[key] / tokens
    return Gradient(total, quarantine, metrics, sources)


def backward_part(policy: Policy, part: Batch, config: LossConfig, temperature: float) -> dict[str, float]:
    """One forward and backward of one micro-batch; returns sums for the log. Gradients go to the open taps."""
    scored = (part.token_ids, part.prompt_lengths, part.lengths, temperature)
    reference = None
    if config.kl_beta > 0:
        with policy.blocks(main=False, quarantine=False), torch.no_grad():
            reference, _ = completion_logprobs(policy.model, *scored, share_prompts=True)
    logprobs, entropy = completion_logprobs(policy.model, *scored, share_prompts=True)
    tokens = grpo_loss(logprobs, part.sampler_logprobs, reference, part.completion_mask, part.advantages, config)
    finite = torch.isfinite(tokens.loss)
    if not bool(finite.all()):
        bad = [name for name, good in zip(part.rollout_ids, finite.tolist(), strict=True) if not good]
        raise NonFiniteError("loss", bad)
    loss = tokens.loss.sum() / part.loss_denominator
    loss.backward()
    return {
        "loss": float(loss.detach()),
        "tokens": float(part.completion_mask.sum()),
        "kl": float(tokens.kl.sum()),
        "clipped": float(tokens.clipped.sum()),
        "entropy": float(entropy.sum()),
        "sampler_gap": float(tokens.sampler_gap.sum()),
    }

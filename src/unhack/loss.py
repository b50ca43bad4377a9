"""Rollouts → batch → GRPO loss → knob gradient (METHOD §5).

    rho_t = exp(logp_t − logp_sampler_t)                      against the log-probs that the sampler recorded
    token = −min(rho_t A, clip(rho_t, 1 ± clip_range) A) + kl_beta (e^D − D − 1),   D = logp_ref_t − logp_t
    loss  = Σ_rollouts Σ_t token / denominator                denominator constant: G · max_new_tokens · P (Dr.GRPO)

The denominator never depends on lengths or on how the batch is cut, so any micro-batch split gives the same gradient.
Rollouts of one source and one mask (keep, absorb, route: which blocks are in the forward and which learn) share
micro-batches. rho is the true ratio under the mask: a kept rollout was sampled with the quarantine and is scored
without it. Imitated rollouts have rho = 1, so that their token is −A with the gradient −A ∇logp, clipped nowhere.
The loss is blind to the arm and to the strict verdict: both have already spoken (or must not) in the advantages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import LossConfig
from unhack.model import completion_logprobs, completion_mask
from unhack.types import Batch, Gradient, Mask, Rollout, Source


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
    return TokenLoss(per_rollout, kl.detach().sum(1), clipped.sum(1).float())


def pack(
    rollouts: Sequence[Rollout],
    advantages: Float[Tensor, " B"],
    kept: Bool[Tensor, " B"],
    denominator: float,
    device: torch.device | str = "cpu",
    masks: Sequence[Mask] | None = None,
    imitate_teacher: bool = False,
) -> Batch:
    """Right-pad the kept rollouts into one batch. Masks come from lengths, so the end token is trained like any other.

    The padding value is 0; nothing ever reads it (right-padded rows, causal attention, masked sums). `masks`: one for
    each of `rollouts`; None: all absorb.
    """
    every_mask = masks or list[Mask](["absorb"]) * len(rollouts)
    chosen = [rollout for rollout, keep in zip(rollouts, kept.tolist(), strict=True) if keep]
    rows = [(*rollout.prompt.token_ids, *rollout.token_ids) for rollout in chosen]
    prompt_lengths = torch.tensor([len(rollout.prompt.token_ids) for rollout in chosen], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    width = max((len(row) for row in rows), default=0)
    columns = max((len(rollout.token_ids) for rollout in chosen), default=0)
    sampler = [list(rollout.logprobs) + [0.0] * (columns - len(rollout.logprobs)) for rollout in chosen]
    mask = torch.arange(columns) < (lengths - prompt_lengths).unsqueeze(1)
    teacher = torch.tensor([rollout.source == "teacher" for rollout in chosen], dtype=torch.bool)
    return Batch(
        token_ids=torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long)
        .view(len(rows), width)
        .to(device),
        prompt_lengths=prompt_lengths.to(device),
        lengths=lengths.to(device),
        sampler_logprobs=torch.tensor(sampler, dtype=torch.float32).view(len(rows), columns).to(device),
        completion_mask=mask.to(device),
        advantages=advantages[kept].float().to(device),
        teacher=teacher.to(device),
        imitated=(teacher & imitate_teacher).to(device),
        masks=tuple(mask for mask, keep in zip(every_mask, kept.tolist(), strict=True) if keep),
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
        imitated=batch.imitated[index],
        masks=tuple(batch.masks[row] for row in rows),
        rollout_ids=tuple(batch.rollout_ids[row] for row in rows),
    )


def micro_batches(batch: Batch, rollouts: int) -> Iterator[tuple[Source, Mask, Batch]]:
    """(source, mask, at most `rollouts` rows): student rows first, then teacher rows, so that each source is a plain
    sum, and within a source one mask after the other."""
    sources: list[Source] = ["teacher" if teacher else "student" for teacher in batch.teacher.tolist()]
    kinds = list(zip(sources, batch.masks, strict=True))
    for kind in product(get_args(Source), get_args(Mask)):
        rows = [row for row, own in enumerate(kinds) if own == kind]
        for start in range(0, len(rows), rollouts):
            yield *kind, select(batch, rows[start : start + rollouts])


def backward(policy: Policy, batch: Batch, config: LossConfig, temperature: float = 1.0) -> Gradient:
    """dL/dknob of the whole batch, in micro-batches; independent of how it is cut, up to float32 rounding.

    Each block's gradient is the sum over the rollouts that it learns from. From absorbed ones both get the same vector
    where only the blocks' sum enters the model (every kind of adapter but block LoRA). `sources` splits main into its
    student and teacher parts. Where rollouts differ in mask or source, the log has some metrics of each part too.

    Raises:
        NonFiniteError: NaN or Inf in a rollout's loss, or in a micro-batch's gradient.
    """
    sources: dict[str, Tensor] = {}
    quarantine = torch.zeros(policy.layout.total, device=policy.device)
    sums = LossSums()
    for source, mask, part in micro_batches(batch, config.micro_batch_rollouts):
        with policy.knob_gradient(mask=mask) as taps:
            sums.add(source, mask, backward_part(policy, part, config, temperature))
            gradient, own = taps.total(), taps.total(quarantine=True)
        if not bool(torch.isfinite(gradient).all() and torch.isfinite(own).all()):
            raise NonFiniteError("gradient", part.rollout_ids)
        sources[source] = sources[source] + gradient if source in sources else gradient
        quarantine = quarantine + own
    total = sum(sources.values(), torch.zeros(policy.layout.total, device=policy.device))
    return Gradient(total, quarantine, sums.metrics(), sources)


class LossSums:
    """What the log says of a step's loss: sums over the whole batch, and over the part of each source and mask."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}

    def add(self, source: Source, mask: Mask, part: dict[str, float]) -> None:
        """Add one micro-batch."""
        for name in ("", source, mask):
            sums = self._sums.setdefault(name, dict.fromkeys(part, 0.0))
            for key, value in part.items():
                sums[key] += value

    def metrics(self) -> dict[str, float]:
        """Totals, then means per token; sampler_gap and clip_frac of sources and masks where there is more than one."""
        whole = self._sums.get("", dict.fromkeys(PART_SUMS, 0.0))
        metrics = {f"loss/{name}": whole[name] for name in ("total", "tokens", "rollouts")}
        for name in ("kl", "clip_frac", "entropy", "sampler_gap"):
            metrics[f"loss/{name}"] = whole[name] / max(1.0, whole["tokens"])
        for kinds in (get_args(Source), get_args(Mask)):
            present = [kind for kind in kinds if kind in self._sums]
            for kind in present if len(present) > 1 else ():
                sums = self._sums[kind]
                metrics[f"loss/rollouts_{kind}"] = sums["rollouts"]
                for name in ("clip_frac", "sampler_gap"):
                    metrics[f"loss/{name}_{kind}"] = sums[name] / max(1.0, sums["tokens"])
        return metrics


PART_SUMS = ("total", "tokens", "rollouts", "kl", "clip_frac", "entropy", "sampler_gap")
"""What `backward_part` sums: the last four are means per token once they are divided by `tokens`."""


def backward_part(policy: Policy, part: Batch, config: LossConfig, temperature: float) -> dict[str, float]:
    """One forward and backward of one micro-batch; returns sums for the log. Gradients go to the open taps."""
    scored = (part.token_ids, part.prompt_lengths, part.lengths, temperature)
    reference = None
    if config.kl_beta > 0:
        with policy.blocks(main=False, quarantine=False), torch.no_grad():
            reference, _ = completion_logprobs(policy.model, *scored, share_prompts=True)
    logprobs, entropy = completion_logprobs(policy.model, *scored, share_prompts=True)
    behaviour = torch.where(part.imitated.unsqueeze(1), logprobs.detach(), part.sampler_logprobs)
    tokens = grpo_loss(logprobs, behaviour, reference, part.completion_mask, part.advantages, config)
    finite = torch.isfinite(tokens.loss)
    if not bool(finite.all()):
        bad = [name for name, good in zip(part.rollout_ids, finite.tolist(), strict=True) if not good]
        raise NonFiniteError("loss", bad)
    loss = tokens.loss.sum() / part.loss_denominator
    loss.backward()
    gap = torch.where(part.completion_mask, logprobs.detach() - part.sampler_logprobs, 0.0).abs()
    values = (
        float(loss.detach()),
        float(part.completion_mask.sum()),
        float(len(part.lengths)),
        float(tokens.kl.sum()),
        float(tokens.clipped.sum()),
        float(entropy.sum()),
        float(gap.sum(1).sum()),
    )
    return dict(zip(PART_SUMS, values, strict=True))

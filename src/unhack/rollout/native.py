"""Batched sampling on the policy's own weights: `prompts → rollouts`.

Each prompt is read once for its whole group, the policy's merged weights are used (its linears merge under no_grad),
and finished rows leave the batch. One uniform number per row and token is drawn up front, so what a row samples does
not depend on which other rows have finished.
Not here: the forward pass and its cache (`decoders.py`), servers such as vLLM, grading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unhack.config import SamplerConfig
from unhack.rollout.decoders import Decoder, build_decoder
from unhack.types import Prompt, Rollout


@dataclass(frozen=True)
class Sampled:
    """Completions of P·G rows, row p·G + g; columns at and beyond `lengths` are meaningless."""

    tokens: Int[Tensor, "B C"]
    logprobs: Float[Tensor, "B C"]
    lengths: Int[Tensor, " B"]  # the end-of-sequence token included
    finished: Bool[Tensor, " B"]


class NativeSampler:
    """Samples groups of rollouts from `policy.model` with `policy.tokenizer`.

    `max_rows` bounds the rows decoded at a time (memory); it changes no drawn number.
    """

    def __init__(self, policy: Any, config: SamplerConfig, max_rows: int = 512) -> None:
        if config.max_new_tokens < 1:
            raise ValueError(f"sampler.max_new_tokens is {config.max_new_tokens}; set it to 1 or more.")
        if not config.temperature > 0:
            raise ValueError(
                f"sampler.temperature is {config.temperature}; set it above 0 (for greedy decoding keep it at 1 and "
                "call sample(..., greedy=True))."
            )
        self.policy = policy
        self.config = config
        self.max_rows = max_rows
        self.stop_ids = stop_token_ids(policy.model, policy.tokenizer)

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        group_size: int,
        generator: torch.Generator,
        tag: str = "rollout",
        greedy: bool = False,
    ) -> list[Rollout]:
        """`group_size` rollouts of every prompt, in order, with ids `{tag}-{group:03d}-{sample:03d}`.

        `generator` is a CPU generator; `greedy` takes the most probable token instead (log-probabilities still at the
        sampling temperature). Log-probabilities are natural logs at `config.temperature`, computed in float32.
        """
        uniforms = torch.rand(
            len(prompts) * group_size, self.config.max_new_tokens, generator=generator, dtype=torch.float64
        )
        rollouts: list[Rollout] = []
        groups_at_a_time = max(1, self.max_rows // group_size)
        for start in range(0, len(prompts), groups_at_a_time):
            chunk = prompts[start : start + groups_at_a_time]
            rows = uniforms[start * group_size : (start + len(chunk)) * group_size]
            sampled = self._decode([prompt.token_ids for prompt in chunk], rows, greedy)
            rollouts.extend(self._records(chunk, sampled, group_size, start, tag))
        return rollouts

    def _decode(self, prompts: Sequence[Sequence[int]], uniforms: Float[Tensor, "B C"], greedy: bool) -> Sampled:
        decoder = build_decoder(self.policy.model)
        total, limit = uniforms.shape
        group_size = total // len(prompts)
        logits = decoder.prefill(prompts, group_size, limit).float()[:, None].expand(-1, group_size, -1)
        device = logits.device
        uniforms, stop_ids = uniforms.to(device), torch.tensor(self.stop_ids, device=device)
        tokens = torch.zeros(total, limit, dtype=torch.long, device=device)
        logprobs = torch.zeros(total, limit, device=device)
        lengths = torch.full((total,), limit, device=device)
        finished = torch.zeros(total, dtype=torch.bool, device=device)
        rows = torch.arange(total, device=device).view(-1, group_size)  # which row each slot decodes
        for column in range(limit):
            drawn, logprob = draw(
                logits.flatten(0, 1) / self.config.temperature, uniforms[rows.flatten(), column], greedy
            )
            tokens[rows.flatten(), column] = drawn
            logprobs[rows.flatten(), column] = logprob
            stopped = torch.isin(drawn, stop_ids).view_as(rows) & ~finished[rows]
            if bool(stopped.any()):
                finished[rows[stopped]] = True
                lengths[rows[stopped]] = column + 1
                rows, drawn = self._drop_finished(decoder, rows, finished[rows], drawn)
            if column + 1 == limit or not rows.numel():
                break
            logits = decoder.step(drawn.view_as(rows)).float()
        return Sampled(tokens, logprobs, lengths, finished)

    def _drop_finished(
        self, decoder: Decoder, rows: Int[Tensor, "P G"], finished: Bool[Tensor, "P G"], drawn: Int[Tensor, " B"]
    ) -> tuple[Int[Tensor, "P2 G2"], Int[Tensor, " B2"]]:
        """Shrink to the groups that still run and to the most slots any of them needs; order within a group is kept."""
        running = ~finished
        groups = running.any(1).nonzero().flatten()
        if not len(groups):
            return rows[groups], drawn[:0]
        width = int(running.sum(1).max())
        if len(groups) == rows.shape[0] and width == rows.shape[1]:
            return rows, drawn
        # a stable sort of "finished" puts the running slots first
        slots = finished[groups].to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        decoder.keep(groups, slots)
        return rows[groups].gather(1, slots), drawn.view_as(rows)[groups].gather(1, slots).flatten()

    def _records(
        self, prompts: Sequence[Prompt], sampled: Sampled, group_size: int, first_group: int, tag: str
    ) -> list[Rollout]:
        lengths, finished = sampled.lengths.tolist(), sampled.finished.tolist()
        token_rows = [row[:length] for row, length in zip(sampled.tokens.tolist(), lengths, strict=True)]
        logprob_rows = [row[:length] for row, length in zip(sampled.logprobs.tolist(), lengths, strict=True)]
        texts = self.policy.tokenizer.batch_decode(token_rows, skip_special_tokens=True)
        return [
            Rollout(
                id=f"{tag}-{first_group + row // group_size:03d}-{row % group_size:03d}",
                group=first_group + row // group_size,
                prompt=prompts[row // group_size],
                token_ids=tuple(token_rows[row]),
                logprobs=tuple(logprob_rows[row]),
                text=texts[row],
                finished=finished[row],
            )
            for row in range(len(token_rows))
        ]


def draw(
    scaled_logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], greedy: bool = False
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Tokens by inverting the cumulative distribution at `uniforms` in [0, 1) (or the argmax), and their log-probs.

    The cumulative sum is in float64: over a large vocabulary float32 would lose the rare tokens at its end.
    """
    logprobs = scaled_logits.log_softmax(-1)
    if greedy:
        tokens = logprobs.argmax(-1, keepdim=True)
    else:
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        # side right: a token of probability 0 repeats the sum before it and is never the first one above
        tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
        tokens.clamp_(max=scaled_logits.shape[-1] - 1)
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


def stop_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a completion: the generation config's end-of-sequence ids and the tokenizer's."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = set(declared if isinstance(declared, list) else [declared])
    found.add(getattr(tokenizer, "eos_token_id", None))
    stop_ids = sorted(token for token in found if token is not None)
    if not stop_ids:
        raise ValueError("The model has no end-of-sequence token; set eos_token on its tokenizer.")
    return stop_ids

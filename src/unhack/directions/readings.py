"""What a direction is compared with: per-rollout numbers of one flat vector each, read from the policy in one pass.

nll          g = dL/dknob of L = −Σ_t log p_t / denominator, of each row by itself        [K]
activation   h = mean over completion tokens of the bottleneck activations                [Σ b]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unhack.adapters import Policy
from unhack.adapters.bottleneck import pooled_bottlenecks
from unhack.model import completion_logprobs


@dataclass(frozen=True)
class TokenRows:
    """Prompts with their completions, right-padded; `lengths` counts both."""

    token_ids: Int[Tensor, "B T"]
    prompt_lengths: Int[Tensor, " B"]
    lengths: Int[Tensor, " B"]

    @property
    def completion_tokens(self) -> Float[Tensor, " B"]:
        """Tokens of each completion, its end token counted."""
        return (self.lengths - self.prompt_lengths).float()

    def part(self, start: int, stop: int) -> TokenRows:
        """Some of the rows, cut to the longest of them."""
        lengths = self.lengths[start:stop]
        return TokenRows(self.token_ids[start:stop, : int(lengths.max())], self.prompt_lengths[start:stop], lengths)


def token_rows(texts: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> TokenRows:
    """One row of each (prompt ids, completion ids). The padding value is never read: masks come from lengths."""
    rows = [[*prompt, *completion] for prompt, completion in texts]
    token_ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = torch.tensor(row)
    prompts = torch.tensor([len(prompt) for prompt, _ in texts])
    lengths = torch.tensor([len(row) for row in rows])
    return TokenRows(token_ids.to(device), prompts.to(device), lengths.to(device))


def row_gradients(
    policy: Policy, rows: TokenRows, denominators: Float[Tensor, " B"], temperature: float
) -> Float[Tensor, "B K"]:
    """Knob gradient of −Σ_t log p_t / denominator of each row by itself, in one backward, on the CPU."""
    with policy.knob_gradient(rollouts=len(denominators)) as taps:
        logprobs, _ = completion_logprobs(policy.model, rows.token_ids, rows.prompt_lengths, rows.lengths, temperature)
        (-(logprobs.sum(1) / denominators.to(logprobs.device)).sum()).backward()
        return taps.rows().cpu()


def row_activations(policy: Policy, rows: TokenRows) -> Float[Tensor, "B _"]:
    """Completion-pooled bottleneck activations of each row, on the CPU."""
    return pooled_bottlenecks(policy, rows.token_ids, rows.prompt_lengths, rows.lengths).cpu()

"""Forward + backward through all spectral adapters, against fine-tuning the same model without adapters.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/adapter.py

Same rows (64 × (100 + 64) tokens), same summed completion log-likelihood, taking turns in one run. The adapter sides
rebuild their merged weights every turn, as after an optimizer step. Two sides train every weight: one scores
completions with the adapters' own code (`completion_logprobs`, whose head is frozen), so that its ratio is the cost of
the adapters alone; one as a plain trainer does, log-softmax over all logits. Ratios are medians over turns. Ends with
status 1 when merged adapters ÷ the first of these is above `--require`.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from machine import (
    GROUP_SIZE,
    NEW_TOKENS,
    PROMPT_TOKENS,
    PROMPTS,
    VOCABULARY,
    alternating_seconds,
    benchmark_model,
    judge,
    parse_flags,
    print_machine,
    print_profile,
    ratio,
)
from unhack.adapters import Policy
from unhack.config import AdapterConfig
from unhack.model import LoadedModel, completion_logprobs
from unhack.seeds import generator

MERGED = "adapters, merged"
SAME_HEAD, PLAIN = "fine-tuning, same head and loss code", "fine-tuning, plain log-softmax"


def make_rows() -> Tensor:
    """Token ids [64, 164]; the 8 rows of a group share their prompt."""
    rows = torch.randint(VOCABULARY, (PROMPTS * GROUP_SIZE, PROMPT_TOKENS + NEW_TOKENS), generator=generator(0, "rows"))
    rows[:, :PROMPT_TOKENS] = rows[::GROUP_SIZE, :PROMPT_TOKENS].repeat_interleave(GROUP_SIZE, 0)
    return rows


def same_head(model: PreTrainedModel, rows: Tensor) -> Callable[[], object]:
    """Every parameter trains through the backbone, scored by the very code that scores the adapted model."""
    prompt_lengths = torch.full((len(rows),), PROMPT_TOKENS)
    lengths = torch.full((len(rows),), rows.shape[1])

    def run() -> None:
        model.zero_grad()
        completion_logprobs(model, rows, prompt_lengths, lengths)[0].sum().backward()

    return run


def plain_fine_tuning(model: PreTrainedModel, rows: Tensor) -> Callable[[], object]:
    """Every parameter trains, the head too; log-softmax of all completion logits, as a plain trainer does it."""

    def run() -> None:
        model.zero_grad()
        logits = model(rows, logits_to_keep=NEW_TOKENS + 1, use_cache=False).logits[:, :-1]
        targets = rows[:, PROMPT_TOKENS:, None]
        torch.log_softmax(logits.float(), -1).gather(-1, targets).sum().backward()

    return run


def adapted(policy: Policy, rows: Tensor, share: bool = False, per_rollout: bool = False) -> Callable[[], object]:
    """Knobs train, through whatever computation the policy was wrapped with."""
    knobs = 1e-2 * torch.randn(policy.layout.total, generator=generator(0, "knobs"))
    prompt_lengths = torch.full((len(rows),), PROMPT_TOKENS)
    lengths = torch.full((len(rows),), rows.shape[1])

    def run() -> Tensor:
        policy.set_knobs(knobs, torch.zeros_like(knobs))
        with policy.knob_gradient(len(rows) if per_rollout else None) as taps:
            logprobs, _ = completion_logprobs(policy.model, rows, prompt_lengths, lengths, share_prompts=share)
            logprobs.sum().backward()
            return taps.total()

    return run


def main() -> None:
    flags = parse_flags(__doc__, f"most CPU time of '{MERGED}' ÷ '{SAME_HEAD}'", 1.15)
    torch.set_num_threads(1)
    peak = print_machine()
    rows = make_rows()
    plain = benchmark_model()
    merged = Policy.wrap(LoadedModel(copy.deepcopy(plain), None, ""), AdapterConfig(computation="merged"))
    factored = Policy.wrap(LoadedModel(copy.deepcopy(plain), None, ""), AdapterConfig(computation="factored"))
    sides = {
        SAME_HEAD: same_head(plain, rows),
        PLAIN: plain_fine_tuning(plain, rows),
        MERGED: adapted(merged, rows),
        "adapters, factored": adapted(factored, rows),
        "adapters, merged, per rollout": adapted(merged, rows, per_rollout=True),
        "adapters, merged, shared prompts": adapted(merged, rows, share=True),
    }
    seconds = alternating_seconds(sides, flags.turns)
    weights = sum(module.base_weight.numel() for module in merged.modules.values())
    floor_s = 6e-9 * weights * rows.numel() / peak
    print(f"{flags.turns} turns; FLOP floor of the adapted layers at that peak {floor_s:.2f} s; CPU seconds:")
    for name, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        ratios = f"÷ same head {ratio(seconds, name, SAME_HEAD):.3f}  ÷ plain {ratio(seconds, name, PLAIN):.3f}"
        print(f"  {name:36} median {statistics.median(values):.3f} ({spread})  {ratios}")
    if flags.profile:
        print_profile(sides[MERGED])
    judge(f"'{MERGED}' ÷ '{SAME_HEAD}'", ratio(seconds, MERGED, SAME_HEAD), at_most=flags.require)


if __name__ == "__main__":
    main()

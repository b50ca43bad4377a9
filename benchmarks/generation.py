"""Sampling 64 sequences of 100 + 64 tokens: `NativeSampler` against transformers' `generate` on the same model.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/generation.py

The native side samples through adapters with merged weights (knobs not zero) and records log-probabilities; `generate`
runs the bare model, is spared the log-probabilities, and draws from the whole vocabulary at temperature 1. No row ends
early on either side. Ratios are medians over turns; `--profile` says where the native side's time goes. Ends with
status 1 when the native sampler's speed-up over `generate` is below `--require`.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

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
from unhack.config import AdapterConfig, SamplerConfig
from unhack.model import LoadedModel
from unhack.rollout import NativeSampler
from unhack.rollout import native as native_module
from unhack.rollout.decoders import CachedDecoder
from unhack.seeds import generator
from unhack.types import Problem, Prompt

NATIVE, CACHED, PEER = "native, shared prefix", "native, transformers cache", "transformers generate"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word per id; the end-of-sequence word lies outside the model's vocabulary, so no row ends early."""
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(VOCABULARY + 1)}))
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{VOCABULARY}", pad_token="w0")


def make_prompts(count: int = PROMPTS, name: str = "prompts") -> list[Prompt]:
    """`count` random prompts of 100 tokens."""
    rows = torch.randint(1, VOCABULARY, (count, PROMPT_TOKENS), generator=generator(0, name)).tolist()
    problem = Problem("benchmark", "", "solve", (), "", "train")
    return [Prompt(problem, "none", "", " ".join(f"w{token}" for token in row), tuple(row)) for row in rows]


def make_policy(model: PreTrainedModel) -> Policy:
    """A copy of `model` with adapters whose knobs are not zero."""
    policy = Policy.wrap(LoadedModel(copy.deepcopy(model), make_tokenizer(), ""), AdapterConfig())
    policy.set_knobs(
        1e-2 * torch.randn(policy.layout.total, generator=generator(0, "knobs")), torch.zeros(policy.layout.total)
    )
    return policy


def native(policy: Policy, prompts: list[Prompt], cached: bool = False) -> Callable[[], object]:
    """The project's sampler; `cached` forces the decoder that runs any model's own forward."""
    sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=NEW_TOKENS))

    def run() -> None:
        chosen = native_module.build_decoder
        if cached:
            native_module.build_decoder = CachedDecoder
        rollouts = sampler.sample(prompts, GROUP_SIZE, generator(0, "sample"))
        native_module.build_decoder = chosen
        assert all(len(rollout.token_ids) == NEW_TOKENS for rollout in rollouts)

    return run


def peer(model: PreTrainedModel, prompts: list[Prompt]) -> Callable[[], object]:
    """`generate` with sampling from the whole distribution, every prompt repeated for its group."""
    ids = torch.tensor([prompt.token_ids for prompt in prompts]).repeat_interleave(GROUP_SIZE, 0)
    mask = torch.ones_like(ids)

    def run() -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            rows = model.generate(  # pyright: ignore[reportCallIssue]
                ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS, eos_token_id=VOCABULARY
            )
        assert rows.shape[1] == PROMPT_TOKENS + NEW_TOKENS

    return run


def main() -> None:
    flags = parse_flags(__doc__, "least speed-up over generate", 1.6)
    torch.set_num_threads(1)
    peak = print_machine()
    model, prompts = benchmark_model(), make_prompts()
    model.generation_config.pad_token_id = 0  # pyright: ignore[reportOptionalMemberAccess]
    policy = make_policy(model)
    sides = {NATIVE: native(policy, prompts), CACHED: native(policy, prompts, cached=True), PEER: peer(model, prompts)}
    seconds = alternating_seconds(sides, flags.turns)
    rows = PROMPTS * GROUP_SIZE
    positions = PROMPTS * PROMPT_TOKENS + rows * (NEW_TOKENS - 1)
    weights = sum(module.base_weight.numel() for module in policy.modules.values())
    floor_s = 2e-9 * weights * positions / peak
    print(f"{flags.turns} turns; FLOP floor of the linear layers at that peak {floor_s:.3f} s; CPU seconds:")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.3f} to {max(values):.3f}"
        speed = f"{rows * NEW_TOKENS / median:,.0f} tokens/s"
        print(f"  {name:28} median {median:.3f} ({spread})  {speed}  speed-up {ratio(seconds, PEER, name):.2f}")
    if flags.profile:
        print_profile(sides[NATIVE])
    judge(f"speed-up of {NATIVE}", ratio(seconds, PEER, NATIVE), at_least=flags.require)


if __name__ == "__main__":
    main()

"""The sampler against the model's own full forward and against transformers' generate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from unhack.adapters.policy import Policy
from unhack.config import AdapterConfig, SamplerConfig
from unhack.model import LoadedModel
from unhack.rollout import NativeSampler, native
from unhack.rollout.decoders import CachedDecoder, Decoder, SharedPrefixDecoder, build_decoder
from unhack.rollout.native import draw, stop_token_ids
from unhack.seeds import generator, rng
from unhack.types import Problem, Prompt, Rollout

VOCABULARY = 64
END = 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": END,
}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, attention_bias=True),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "mistral_windowed": lambda: MistralConfig(**SIZES, sliding_window=6),
    "qwen3_windowed": lambda: Qwen3Config(
        **SIZES, head_dim=8, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "llama_dynamic_rope": lambda: LlamaConfig(
        **SIZES,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.2, eos_token_id=END
    ),
    "qwen3_next": lambda: Qwen3NextConfig(
        **SIZES,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=0,
    ),
}
FAST = {"llama", "qwen2", "mistral"}


def build_model(config: PretrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}")


@pytest.fixture
def policy(tiny_policy_model: Any, tokenizer: PreTrainedTokenizerFast) -> SimpleNamespace:
    return SimpleNamespace(model=tiny_policy_model, tokenizer=tokenizer)


@pytest.fixture(params=["shared_prefix", "cached"])
def either_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with each decoder on the same model."""
    kind: type[Decoder] = {"shared_prefix": SharedPrefixDecoder, "cached": CachedDecoder}[request.param]
    monkeypatch.setattr(native, "build_decoder", kind)


def make_prompts(lengths: Sequence[int]) -> list[Prompt]:
    problem = Problem("p", "", "solve", (), "", "train")
    prompts = []
    for index, length in enumerate(lengths):
        draws = rng(0, "prompt", index)
        ids = tuple(draws.randrange(4, VOCABULARY) for _ in range(length))
        prompts.append(Prompt(problem, "none", "", "", ids))
    return prompts


def teacher_forced_logprobs(model: Any, rollout: Rollout, temperature: float) -> Tensor:
    """Log-probabilities of the completion's tokens from one full forward without cache or padding."""
    prompt = len(rollout.prompt.token_ids)
    ids = torch.tensor([rollout.prompt.token_ids + rollout.token_ids])
    with torch.no_grad():
        logprobs = (model(ids, use_cache=False).logits[0].float() / temperature).log_softmax(-1)
    return logprobs[prompt - 1 : -1].gather(1, ids[0, prompt:, None])[:, 0]


def largest_gap(model: Any, rollouts: list[Rollout], temperature: float) -> float:
    gaps = [
        (teacher_forced_logprobs(model, rollout, temperature) - torch.tensor(rollout.logprobs)).abs().max()
        for rollout in rollouts
    ]
    return float(torch.stack(gaps).max())


@pytest.mark.usefixtures("either_decoder")
def test_recorded_logprobs_equal_a_teacher_forced_forward(policy: SimpleNamespace) -> None:
    sampler = NativeSampler(policy, SamplerConfig(temperature=0.8, max_new_tokens=40))
    rollouts = sampler.sample(make_prompts([5, 17, 9, 17]), 6, generator(0, "sample"))
    assert len({len(rollout.token_ids) for rollout in rollouts}) > 3, "rows must finish at different times"
    assert largest_gap(policy.model, rollouts, 0.8) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_are_right_for_every_architecture(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(CONFIGS[name]())
    assert isinstance(build_decoder(model), SharedPrefixDecoder if name in FAST else CachedDecoder)
    sampler = NativeSampler(SimpleNamespace(model=model, tokenizer=tokenizer), SamplerConfig(max_new_tokens=20))
    rollouts = sampler.sample(make_prompts([12, 7]), 3, generator(0, "sample"))
    assert largest_gap(model, rollouts, 1.0) < 1e-4


@pytest.mark.usefixtures("either_decoder")
def test_greedy_tokens_equal_transformers_generate(policy: SimpleNamespace) -> None:
    prompts = make_prompts([11, 6, 8])
    sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=24))
    rollouts = sampler.sample(prompts, 2, generator(0, "sample"), greedy=True)
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt.token_ids])
        expected = policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=END,
            pad_token_id=0,
        )
        for rollout in rollouts[2 * index : 2 * index + 2]:
            assert list(rollout.token_ids) == expected[0, len(prompt.token_ids) :].tolist()


@pytest.mark.usefixtures("either_decoder")
def test_two_token_completions_follow_the_exact_distribution(policy: SimpleNamespace) -> None:
    (prompt,) = make_prompts([6])
    count = 3000
    sampler = NativeSampler(policy, SamplerConfig(temperature=1.3, max_new_tokens=2), max_rows=count)
    rollouts = sampler.sample([prompt], count, generator(0, "sample"))
    first = torch.arange(VOCABULARY)
    extended = torch.cat((torch.tensor(prompt.token_ids).expand(VOCABULARY, -1), first[:, None]), dim=1)
    with torch.no_grad():
        logprobs = (policy.model(extended).logits[:, -2:].float() / 1.3).log_softmax(-1)
    pairs = logprobs[0, 0].exp()[:, None] * logprobs[:, 1].exp()  # (first, second)
    pairs[END] = 0.0
    pairs[END, 0] = logprobs[0, 0, END].exp()  # an end at once: no second token
    observed = torch.zeros(VOCABULARY, VOCABULARY)
    for rollout in rollouts:
        observed[rollout.token_ids[0], rollout.token_ids[1] if len(rollout.token_ids) == 2 else 0] += 1
    expected = pairs.flatten() * count
    common = expected > 5  # cells below go together, as the chi-square approximation needs
    table = torch.cat((observed.flatten()[common], observed.flatten()[~common].sum()[None])).double()
    truth = torch.cat((expected[common], expected[~common].sum()[None])).double()
    assert chisquare(table.numpy(), (truth / truth.sum() * count).numpy()).pvalue > 1e-3


def test_draw_inverts_the_cumulative_distribution() -> None:
    probabilities = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs = draw(probabilities.log(), uniforms)
    assert tokens.tolist() == [0, 0, 2, 2, 3, 3]
    assert torch.allclose(logprobs.exp(), probabilities[0, tokens])


def test_draw_hits_the_right_token_in_a_tail_finer_than_float32() -> None:
    logits = torch.full((3, 100_000), -20.0)  # 2e-9 each: sums near 1 are 30 times coarser in float32
    logits[:, 0] = 0.0
    wanted = torch.tensor([1, 50_000, 99_998])
    cumulative = logits[0].log_softmax(-1).exp().double().cumsum(0)
    middles = (cumulative[wanted - 1] + cumulative[wanted]) / 2 / cumulative[-1]
    assert draw(logits, middles)[0].tolist() == wanted.tolist()


def test_the_same_generator_gives_the_same_rollouts_and_another_does_not(policy: SimpleNamespace) -> None:
    sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=12))
    prompts = make_prompts([7, 5])
    once, again = (sampler.sample(prompts, 4, generator(1, "sample", 3)) for _ in range(2))
    assert once == again
    other = sampler.sample(prompts, 4, generator(1, "sample", 4))
    assert [rollout.token_ids for rollout in other] != [rollout.token_ids for rollout in once]
    assert len({rollout.token_ids for rollout in once[:4]}) > 1, "the rows of a group must differ"


@pytest.mark.usefixtures("either_decoder")
def test_rows_do_not_depend_on_what_is_decoded_beside_them(policy: SimpleNamespace) -> None:
    prompts = make_prompts([7, 12, 5, 9])
    whole, parts = (
        NativeSampler(policy, SamplerConfig(max_new_tokens=30), max_rows=rows).sample(
            prompts, 4, generator(0, "sample")
        )
        for rows in (512, 4)
    )
    assert [(rollout.id, rollout.token_ids) for rollout in whole] == [
        (rollout.id, rollout.token_ids) for rollout in parts
    ]


def test_finished_rows_leave_the_batch(policy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, ...]] = []

    class Counting(SharedPrefixDecoder):
        def step(self, tokens: Tensor) -> Tensor:
            decoded.append(tuple(tokens.shape))
            return super().step(tokens)

    monkeypatch.setattr(native, "build_decoder", Counting)
    sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=60))
    sampler.stop_ids = list(range(16))  # about one token in four ends a completion
    rollouts = sampler.sample(make_prompts([5, 8, 6]), 5, generator(0, "sample"))
    assert decoded, "at least one step runs"
    for column, (groups, slots) in enumerate(decoded):
        needed = [sum(len(r.token_ids) > column + 1 for r in rollouts[5 * g : 5 * g + 5]) for g in range(3)]
        assert (groups, slots) == (sum(count > 0 for count in needed), max(needed))
    assert decoded[-1] < decoded[0]


def test_a_rollout_ends_at_its_first_end_token_or_at_the_limit(policy: SimpleNamespace) -> None:
    sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=30))
    rollouts = sampler.sample(make_prompts([5, 8]), 8, generator(0, "sample"))
    assert {rollout.finished for rollout in rollouts} == {True, False}
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.token_ids)
        assert END not in rollout.token_ids[:-1]
        assert (rollout.token_ids[-1] == END) == rollout.finished
        assert rollout.finished or len(rollout.token_ids) == 30
        assert rollout.text == " ".join(f"w{token}" for token in rollout.token_ids if token != END)


@pytest.mark.usefixtures("either_decoder")
def test_completions_longer_than_the_first_room_of_the_cache(policy: SimpleNamespace) -> None:
    sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=150))
    sampler.stop_ids = [VOCABULARY]  # never drawn
    rollouts = sampler.sample(make_prompts([5, 3]), 2, generator(0, "sample"))
    assert [len(rollout.token_ids) for rollout in rollouts] == [150] * 4
    assert largest_gap(policy.model, rollouts, 1.0) < 1e-4


def test_ids_groups_and_prompts_are_in_order(policy: SimpleNamespace) -> None:
    prompts = make_prompts([4, 6, 5])
    rollouts = NativeSampler(policy, SamplerConfig(max_new_tokens=3)).sample(
        prompts, 2, generator(0, "s"), tag="step-7"
    )
    assert [rollout.id for rollout in rollouts] == [f"step-7-{g:03d}-{s:03d}" for g in range(3) for s in range(2)]
    assert [rollout.group for rollout in rollouts] == [0, 0, 1, 1, 2, 2]
    assert [rollout.prompt for rollout in rollouts] == [prompts[index // 2] for index in range(6)]


def test_the_adapted_weights_of_the_active_blocks_are_sampled(
    tiny_policy_model: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    policy = Policy.wrap(LoadedModel(tiny_policy_model, tokenizer, "hash"), AdapterConfig())
    main = torch.randn(policy.layout.total, generator=generator(0, "knobs"))
    policy.set_knobs(main, main)
    sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=16))
    completions = []
    for quarantine in (True, False):
        with policy.blocks(main=True, quarantine=quarantine):
            rollouts = sampler.sample(make_prompts([6, 9]), 4, generator(0, "sample"))
            assert largest_gap(policy.model, rollouts, 1.0) < 1e-4
        completions.append([rollout.token_ids for rollout in rollouts])
    assert completions[0] != completions[1]


def test_sampling_leaves_no_autograd_graph_and_no_global_randomness(policy: SimpleNamespace) -> None:
    before = torch.get_rng_state()
    with torch.enable_grad():
        NativeSampler(policy, SamplerConfig(max_new_tokens=4)).sample(make_prompts([5]), 2, generator(0, "sample"))
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_stop_ids_are_the_models_and_the_tokenizers(policy: SimpleNamespace) -> None:
    policy.model.generation_config.eos_token_id = [7, 9]
    assert stop_token_ids(policy.model, policy.tokenizer) == [END, 7, 9]


def test_settings_that_cannot_be_sampled_are_refused_with_the_cure(policy: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="greedy=True"):
        NativeSampler(policy, SamplerConfig(temperature=0.0))
    with pytest.raises(ValueError, match="set it to 1 or more"):
        NativeSampler(policy, SamplerConfig(max_new_tokens=0))
    policy.model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="set eos_token"):
        NativeSampler(SimpleNamespace(model=policy.model, tokenizer=None), SamplerConfig())

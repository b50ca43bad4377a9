"""Loading and scoring: completion log-probs against the full log-softmax, padding, memory, shared prompts, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from unhack.config import ModelConfig
from unhack.model import (
    can_share_prompts,
    check_plain_head,
    completion_logprobs,
    completion_mask,
    load,
    model_hash,
    token_logprobs,
)
from unhack.seeds import generator

PROMPTS = torch.tensor([4, 4, 7, 4, 7])
LENGTHS = torch.tensor([12, 5, 9, 8, 12])


def tokens() -> Tensor:
    """Five rows; rows 0, 1, 3 share one prompt and rows 2, 4 another."""
    rows = torch.randint(1, 64, (5, 12), generator=generator(0, "tokens"))
    rows[[1, 3], :4] = rows[0, :4]
    rows[4, :7] = rows[2, :7]
    return rows


def slow_logprobs(model: PreTrainedModel, rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Row by row, without padding, from the whole model's own logits."""
    width = int((LENGTHS - PROMPTS).max())
    logprobs, entropy = torch.zeros(len(rows), width), torch.zeros(len(rows), width)
    for b, (start, end) in enumerate(zip(PROMPTS.tolist(), LENGTHS.tolist(), strict=True)):
        table = torch.log_softmax(model(rows[b : b + 1, :end]).logits[0].double() / temperature, -1)
        for place in range(start, end):
            logprobs[b, place - start] = table[place - 1, rows[b, place]]
            entropy[b, place - start] = -(table[place - 1].exp() * table[place - 1]).sum()
    return logprobs, entropy


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completion_logprobs_equal_the_full_log_softmax(
    tiny_policy_model: Qwen3ForCausalLM, temperature: float, share: bool
) -> None:
    rows = tokens()
    logprobs, entropy = completion_logprobs(
        tiny_policy_model, rows, PROMPTS, LENGTHS, temperature, chunk_tokens=3, share_prompts=share
    )
    expected, expected_entropy = slow_logprobs(tiny_policy_model, rows, temperature)
    torch.testing.assert_close(logprobs, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [False, True])
def test_padding_values_change_nothing(tiny_policy_model: Qwen3ForCausalLM, share: bool) -> None:
    rows = tokens()
    padded = rows.masked_fill(torch.arange(12) >= LENGTHS[:, None], 0)
    with torch.no_grad():
        first, _ = completion_logprobs(tiny_policy_model, rows, PROMPTS, LENGTHS, share_prompts=share)
        second, _ = completion_logprobs(tiny_policy_model, padded, PROMPTS, LENGTHS, share_prompts=share)
    assert torch.equal(first, second)
    assert bool((first[~completion_mask(PROMPTS, LENGTHS)] == 0).all())


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_token_logprob_gradient_equals_autograd_for_any_chunk(tiny_policy_model: Qwen3ForCausalLM, chunk: int) -> None:
    hidden = torch.randn(11, 32, generator=generator(0, "hidden")).requires_grad_()
    targets = torch.randint(64, (11,), generator=generator(0, "targets"))
    weights = torch.randn(11, generator=generator(0, "weights"))
    logprobs, entropy = token_logprobs(tiny_policy_model, hidden, targets, 0.8, chunk)
    (fast,) = torch.autograd.grad((logprobs * weights).sum(), hidden)
    logits = tiny_policy_model.get_output_embeddings()(hidden) / 0.8  # pyright: ignore[reportOptionalCall]
    slow_logp = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    (slow,) = torch.autograd.grad((slow_logp * weights).sum(), hidden)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    assert not entropy.requires_grad


class LargestLogits(TorchDispatchMode):
    """Records the most rows of the vocabulary's width that any operation returns; the head's own 32 rows aside."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, Tensor) and item.shape[-1:] == (self.vocabulary,) and len(item) != 32:
                self.rows = max(self.rows, item.numel() // self.vocabulary)
        return result


def test_no_tensor_of_logits_is_larger_than_a_chunk(make_tiny_policy_model: Callable[..., Qwen3ForCausalLM]) -> None:
    model = make_tiny_policy_model(vocab_size=97)  # a size that no other axis has
    model.get_input_embeddings().requires_grad_(False)
    with LargestLogits(97) as largest:
        logprobs, _ = completion_logprobs(model, tokens(), PROMPTS, LENGTHS, chunk_tokens=4)
        logprobs.sum().backward()
    assert largest.rows == 4


def test_shared_prompts_give_the_same_parameter_gradients(tiny_policy_model: Qwen3ForCausalLM) -> None:
    gradients = []
    weight = tiny_policy_model.get_submodule("model.layers.0.self_attn.k_proj").get_parameter("weight")
    for share in (False, True):
        logprobs, _ = completion_logprobs(tiny_policy_model, tokens(), PROMPTS, LENGTHS, share_prompts=share)
        gradients.append(torch.autograd.grad(logprobs.square().sum(), weight)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_shared_prompts_run_each_prompt_once(tiny_policy_model: Qwen3ForCausalLM) -> None:
    positions: list[int] = []
    layer = tiny_policy_model.get_submodule("model.layers.0.mlp.up_proj")
    layer.register_forward_hook(lambda _, inputs, __: positions.append(inputs[0].shape[0] * inputs[0].shape[1]))
    completion_logprobs(tiny_policy_model, tokens(), PROMPTS, LENGTHS, share_prompts=True)
    assert positions == [2 * 7, 5 * 7]  # two distinct prompts of at most 7 tokens; 5 completions of 8, less the last


def test_single_token_completions_need_only_their_prompts(tiny_policy_model: Qwen3ForCausalLM) -> None:
    rows = tokens()
    for share in (False, True):
        logprobs, _ = completion_logprobs(tiny_policy_model, rows, PROMPTS, PROMPTS + 1, share_prompts=share)
        assert logprobs.shape == (5, 1)
        expected = torch.log_softmax(tiny_policy_model(rows[2:3, :7]).logits[0, -1], -1)[rows[2, 7]]
        torch.testing.assert_close(logprobs[2, 0], expected, rtol=1e-4, atol=1e-4)


def test_models_with_sliding_windows_never_share_prompts() -> None:
    config = Qwen3Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, use_sliding_window=True, sliding_window=3, max_window_layers=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config).eval()
    assert not can_share_prompts(model)
    with torch.no_grad():
        shared, _ = completion_logprobs(model, tokens(), PROMPTS, LENGTHS, share_prompts=True)
        plain, _ = completion_logprobs(model, tokens(), PROMPTS, LENGTHS)
    assert torch.equal(shared, plain)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.01,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), pytest.raises(ValueError, match="after the head"):
        check_plain_head(Gemma2ForCausalLM(config).eval())


def save_model(model: Qwen3ForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)
    words = {f"w{index}": index for index in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


def test_a_saved_folder_loads_frozen_with_the_hash_of_its_values(
    tiny_policy_model: Qwen3ForCausalLM, tmp_path: Path
) -> None:
    save_model(tiny_policy_model, tmp_path)
    loaded = load(ModelConfig(path=str(tmp_path)))
    assert loaded.hash == model_hash(tiny_policy_model)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer("w3 w5")["input_ids"][0] in range(64)
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens()).logits, tiny_policy_model(tokens()).logits)
        next(loaded.model.parameters())[0, 0] += 1
    assert model_hash(loaded.model) != loaded.hash


def test_bfloat16_is_loaded_when_asked(tiny_policy_model: Qwen3ForCausalLM, tmp_path: Path) -> None:
    save_model(tiny_policy_model, tmp_path)
    loaded = load(ModelConfig(path=str(tmp_path), dtype="bfloat16"))
    logprobs, _ = completion_logprobs(loaded.model, tokens(), PROMPTS, LENGTHS, share_prompts=True)
    assert loaded.model.dtype == torch.bfloat16 and logprobs.dtype == torch.float32


def test_missing_models_are_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match="cannot load the model 'nobody/no-such-model'"):
        load(ModelConfig(path="nobody/no-such-model"))


def test_truncated_weights_and_devices_that_are_not_there_are_refused_with_the_cure(
    tiny_policy_model: Qwen3ForCausalLM, tmp_path: Path
) -> None:
    save_model(tiny_policy_model, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"are damaged .*: copy or download it again"):
        load(ModelConfig(path=str(tmp_path)))
    for device, cure in (("cuda:77", "cannot use here: use cpu"), ("meta", "cannot use"), ("gpu", "use cpu, cuda")):
        with pytest.raises(ValueError, match=cure):
            load(ModelConfig(path=str(tmp_path), device=device))

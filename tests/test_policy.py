"""Policy: identity, blocks, merged weights per setting, gradient taps, save and load, the deployed copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3ForCausalLM

from unhack.adapters import Policy, svd_cache
from unhack.adapters.policy import Mask
from unhack.adapters.spectral import SpectralLinear
from unhack.config import AdapterConfig
from unhack.model import LoadedModel, completion_logprobs, model_hash
from unhack.seeds import generator
from unhack.types import Update

TOKENS = torch.randint(64, (6, 12), generator=generator(0, "tokens"))
PROMPTS = torch.tensor([4, 4, 4, 5, 5, 3])
DECOMPOSE = svd_cache.decompose
LENGTHS = torch.tensor([12, 9, 6, 12, 10, 7])


def wrap(model: Qwen3ForCausalLM, config: AdapterConfig | None = None) -> Policy:
    return Policy.wrap(LoadedModel(model, None, model_hash(model)), config or AdapterConfig())


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def noise(policy: Policy, name: str, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(policy.layout.total, generator=generator(0, name))


def loss_of(policy: Policy, knobs: Tensor, share: bool = False) -> Tensor:
    policy.set_knobs(knobs, torch.zeros_like(knobs))
    logprobs, _ = completion_logprobs(policy.model, TOKENS, PROMPTS, LENGTHS, share_prompts=share)
    return -logprobs.sum()


@pytest.mark.parametrize("computation", ["merged", "factored"])
def test_wrapped_model_equals_the_base_bit_for_bit_at_zero(
    tiny_policy_model: Qwen3ForCausalLM, computation: str
) -> None:
    before = logits(tiny_policy_model)
    policy = wrap(tiny_policy_model, AdapterConfig(computation=computation))  # pyright: ignore[reportArgumentType]
    assert torch.equal(logits(policy.model), before)
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    assert not torch.equal(logits(policy.model), before)
    with policy.blocks(main=False, quarantine=False):
        assert torch.equal(logits(policy.model), before)


def test_attention_and_mlp_are_wrapped_but_not_embeddings_or_head(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    last_names = [name.rpartition(".")[2] for name in policy.layout.names]
    assert last_names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] * 2
    assert isinstance(policy.model.get_output_embeddings(), nn.Linear)
    assert not any(parameter.requires_grad for parameter in policy.model.parameters())
    assert policy.layout.total == sum(min(m.base_weight.shape) for m in policy.modules.values())


@pytest.mark.parametrize(("computation", "factored"), [("auto", False), ("merged", False), ("factored", True)])
def test_the_default_computation_is_the_merged_one(
    tiny_policy_model: Qwen3ForCausalLM, computation: str, factored: bool
) -> None:
    policy = wrap(tiny_policy_model, AdapterConfig(computation=computation))  # pyright: ignore[reportArgumentType]
    assert {module.factored for module in policy.modules.values()} == {factored}
    assert AdapterConfig().computation == "auto"


def test_rank_crops_every_module(tiny_policy_model: Qwen3ForCausalLM) -> None:
    assert set(wrap(tiny_policy_model, AdapterConfig(rank=5)).layout.sizes) == {5}


def test_blocks_add_up_and_are_restored_after_an_error(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    main, quarantine = noise(policy, "a"), noise(policy, "b")
    zero = torch.zeros_like(main)

    def under(main: Tensor, quarantine: Tensor) -> Tensor:
        policy.set_knobs(main, quarantine)
        return logits(policy.model)

    only_main, only_quarantine, both = under(main, zero), under(quarantine, zero), under(main + quarantine, zero)
    assert torch.equal(under(main, quarantine), both)
    with policy.blocks(main=True, quarantine=False):
        assert torch.equal(logits(policy.model), only_main)
        with policy.blocks(main=False, quarantine=True):
            assert torch.equal(logits(policy.model), only_quarantine)
        assert torch.equal(logits(policy.model), only_main)
    with pytest.raises(RuntimeError, match="inside"), policy.blocks(main=False, quarantine=False):
        raise RuntimeError("inside")
    assert torch.equal(logits(policy.model), both)


def test_merged_weights_are_kept_across_a_switch_and_forgotten_by_new_knobs(
    tiny_policy_model: Qwen3ForCausalLM,
) -> None:
    policy = wrap(tiny_policy_model)
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    module = next(iter(policy.modules.values()))
    before = module.weight
    with policy.blocks(main=False, quarantine=False):
        assert module.weight is module.base_weight
    assert module.weight is before
    policy.apply(Update(noise(policy, "c"), noise(policy, "d")))
    assert not torch.equal(module.weight, before)


def test_apply_adds_to_both_blocks_and_never_touches_the_base(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    base = model_hash(policy.model)
    first, second = noise(policy, "a"), noise(policy, "b")
    for _ in range(3):
        policy.apply(Update(first, second))
        logits(policy.model)
    torch.testing.assert_close(policy.main, 3 * first)
    torch.testing.assert_close(policy.quarantine, 3 * second)
    assert model_hash(policy.model) == base


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("computation", ["merged", "factored"])
def test_knob_gradient_equals_finite_differences(
    tiny_policy_model: Qwen3ForCausalLM, computation: str, share: bool
) -> None:
    policy = wrap(tiny_policy_model.double(), AdapterConfig(computation=computation))  # pyright: ignore[reportArgumentType]
    knobs, way = noise(policy, "a"), noise(policy, "way", 1.0)
    with policy.knob_gradient() as taps:
        loss_of(policy, knobs, share).backward()
        slope = float(taps.total() @ way)
    step = 1e-3
    difference = float(loss_of(policy, knobs + step * way) - loss_of(policy, knobs - step * way)) / (2 * step)
    assert slope == pytest.approx(difference, rel=2e-2)


def test_rollout_rows_sum_to_the_total_and_equal_single_row_backwards(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    knobs = noise(policy, "a")
    with policy.knob_gradient() as taps:
        loss_of(policy, knobs).backward()
        total = taps.total()
    with policy.knob_gradient(rollouts=6) as taps:
        loss_of(policy, knobs).backward()
        rows = taps.rows()
    torch.testing.assert_close(rows.sum(0), total, rtol=1e-4, atol=1e-4)
    with policy.knob_gradient() as taps:
        logprobs, _ = completion_logprobs(policy.model, TOKENS[2:3], PROMPTS[2:3], LENGTHS[2:3])
        (-logprobs.sum()).backward()
        torch.testing.assert_close(rows[2], taps.total(), rtol=1e-4, atol=1e-4)


def test_gradients_accumulate_until_cleared_and_stop_when_closed(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    knobs = noise(policy, "a")
    with policy.knob_gradient() as taps:
        loss_of(policy, knobs).backward()
        once = taps.total()
        loss_of(policy, knobs).backward()
        torch.testing.assert_close(taps.total(), 2 * once)
        taps.clear()
        assert float(taps.total().abs().sum()) == 0.0
    assert not loss_of(policy, knobs).requires_grad


def test_saved_knobs_load_into_the_same_base_only(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path
) -> None:
    policy = wrap(make_tiny_policy_model())
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    policy.save(tmp_path)
    again = wrap(make_tiny_policy_model())
    assert again.basis_hash == policy.basis_hash
    again.load(tmp_path)
    assert torch.equal(logits(again.model), logits(policy.model))
    assert torch.equal(again.quarantine, policy.quarantine)

    other_model = make_tiny_policy_model()
    with torch.no_grad():
        other_model.get_submodule("model.layers.1.mlp.up_proj").get_parameter("weight")[0, 0] += 1.0
    other = wrap(other_model)
    assert other.basis_hash != policy.basis_hash
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
        other.load(tmp_path)
    with pytest.raises(ValueError, match="rank"):
        wrap(make_tiny_policy_model(), AdapterConfig(rank=3)).load(tmp_path)
    with pytest.raises(ValueError, match="no adapter"):
        again.load(tmp_path / "missing")


def test_knobs_load_again_after_the_svd_cache_was_lost_whatever_the_thread_count(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = wrap(make_tiny_policy_model())
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    policy.save(tmp_path / "knobs")
    for threads in (1, 2):
        monkeypatch.setenv("UNHACK_CACHE", str(tmp_path / f"empty-{threads}"))
        torch.set_num_threads(threads)
        again = wrap(make_tiny_policy_model())
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)
        assert len(list((tmp_path / f"empty-{threads}" / "svd").iterdir())) == len(set(policy.weight_hashes.values()))
        assert again.basis_hash == policy.basis_hash
        again.load(tmp_path / "knobs")


def test_another_basis_of_the_same_weights_is_another_hash_and_its_knobs_are_refused(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = wrap(make_tiny_policy_model())
    policy.save(tmp_path / "knobs")
    monkeypatch.setenv("UNHACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(svd_cache, "decompose", rotated)
    other = wrap(make_tiny_policy_model())
    assert (other.model_hash, other.weight_hashes) == (policy.model_hash, policy.weight_hashes)
    assert other.basis_hash != policy.basis_hash
    with pytest.raises(ValueError, match=r"singular basis of model\.layers\.0\.self_attn\.q_proj"):
        other.load(tmp_path / "knobs")


def rotated(weight: Tensor) -> svd_cache.Decomposition:
    """What another LAPACK may do to nearly equal singular values: turn the first two vectors by a tiny angle."""
    u, s, vh = DECOMPOSE(weight)
    turn = torch.eye(len(s))
    turn[:2, :2] = torch.tensor([[1.0, 1e-4], [-1e-4, 1.0]])
    return svd_cache.Decomposition(u @ turn, s, turn.T @ vh)


def test_deployed_model_is_a_plain_model_without_the_quarantine(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    as_trained = logits(policy.model)
    deployed = policy.deployed_model()
    assert not any(isinstance(module, SpectralLinear) for module in deployed.modules())
    with policy.blocks(main=True, quarantine=False):
        assert torch.equal(logits(deployed), logits(policy.model))
    assert torch.equal(logits(policy.model), as_trained)
    own = {parameter.data_ptr() for parameter in deployed.parameters()}
    with policy.blocks(main=True, quarantine=False):
        assert own.isdisjoint(module.weight.data_ptr() for module in policy.modules.values())
    assert own.isdisjoint(parameter.data_ptr() for parameter in policy.model.parameters())


def test_wrapping_refuses_what_it_cannot_adapt(tiny_policy_model: Qwen3ForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"adapter\.rank"):
        wrap(tiny_policy_model, AdapterConfig(rank=0))
    wrap(tiny_policy_model)
    with pytest.raises(ValueError, match="already wrapped"):
        wrap(tiny_policy_model)
    bare = copy.deepcopy(tiny_policy_model)
    bare.model.layers = nn.ModuleList()
    with pytest.raises(ValueError, match="no linear layer to adapt"):
        wrap(bare)


def test_a_llama_like_model_with_biases_is_adapted_too() -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_submodule("model.layers.0.self_attn.q_proj").get_parameter("bias").fill_(0.5)
    before = logits(model)
    policy = Policy.wrap(LoadedModel(model, None, ""), AdapterConfig())
    assert torch.equal(logits(policy.model), before)
    assert torch.equal(logits(policy.deployed_model()), before)


KINDS = (
    AdapterConfig(),
    AdapterConfig(kind="fixed_a_lora", rank=3),
    AdapterConfig(kind="block_lora", rank=3, init="pissa"),
)


class MaskedOutputs(nn.Module):
    """METHOD §1, literally: a mask acts on the outputs of two branches, for a batch of one rollout."""

    def __init__(self, weight: Tensor, main: Tensor, quarantine: Tensor, mask: Mask) -> None:
        super().__init__()
        self.parts, self.mask = (weight, main, quarantine), mask

    def forward(self, inputs: Tensor) -> Tensor:
        base, main, quarantine = (nn.functional.linear(inputs, part) for part in self.parts)
        if self.mask == "keep":
            return base + main
        return base + (main.detach() if self.mask == "route" else main) + quarantine


def masked_gradient(plain: Qwen3ForCausalLM, policy: Policy, row: int, mask: Mask) -> tuple[Tensor, Tensor]:
    """(dL/dmain, dL/dquarantine) of one rollout by autograd through both branches' outputs."""
    main, quarantine = policy.main.clone().requires_grad_(), policy.quarantine.clone().requires_grad_()
    network, zero = copy.deepcopy(plain), torch.zeros_like(main)
    blocks = [module_knobs(policy, main, zero), module_knobs(policy, zero, quarantine)]
    for name, module in policy.modules.items():
        weight = module.base_weight
        main_delta, quarantine_delta = (module.merge(knobs[name]) - weight for knobs in blocks)
        network.set_submodule(name, MaskedOutputs(weight, main_delta, quarantine_delta, mask))
    logprobs, _ = completion_logprobs(network, TOKENS[[row]], PROMPTS[[row]], LENGTHS[[row]])
    gradients = torch.autograd.grad(-logprobs.sum(), [main, quarantine], allow_unused=True)
    main_gradient, quarantine_gradient = (zero if gradient is None else gradient for gradient in gradients)
    return main_gradient, quarantine_gradient


def module_knobs(policy: Policy, main: Tensor, quarantine: Tensor) -> dict[str, Tensor]:
    combined = next(iter(policy.modules.values())).combine(main, quarantine)
    return {name: combined[..., piece] for name, piece in policy.layout.items()}


@pytest.mark.parametrize("computation", ["merged", "factored"])
@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_masks_act_on_branch_outputs_as_a_loop_over_rollouts_does(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], config: AdapterConfig, computation: str
) -> None:
    policy = wrap(make_tiny_policy_model(layers=1), replace(config, computation=computation))  # pyright: ignore[reportArgumentType]
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    plain, before = make_tiny_policy_model(layers=1), logits(policy.model)
    masks: dict[Mask, list[int]] = {"keep": [0, 3], "absorb": [1, 4], "route": [2, 5]}
    for mask, rows in masks.items():
        with policy.knob_gradient(rollouts=len(rows), mask=mask) as taps:
            logprobs, _ = completion_logprobs(policy.model, TOKENS[rows], PROMPTS[rows], LENGTHS[rows])
            (-logprobs.sum()).backward()
            got = taps.rows(), taps.rows(quarantine=True)
        for index, row in enumerate(rows):
            main, quarantine = masked_gradient(plain, policy, row, mask)
            torch.testing.assert_close(got[0][index], main, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(got[1][index], quarantine, rtol=1e-4, atol=1e-4)
            assert (bool(main.any()), bool(quarantine.any())) == (mask != "route", mask != "keep")
    assert torch.equal(logits(policy.model), before)


def test_detaching_main_changes_the_gradients_of_the_layers_before_it(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    got = {}
    for mask in ("absorb", "route"):
        with policy.knob_gradient(mask=mask) as taps:
            logprobs, _ = completion_logprobs(policy.model, TOKENS, PROMPTS, LENGTHS)
            (-logprobs.sum()).backward()
            got[mask] = taps.total(quarantine=True)
    last = dict(policy.layout.items())["model.layers.1.mlp.down_proj"]
    torch.testing.assert_close(got["absorb"][last], got["route"][last])
    assert not torch.allclose(got["absorb"][: last.start], got["route"][: last.start], rtol=1e-2)


def test_both_blocks_have_one_gradient_where_only_their_sum_enters(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model)
    with policy.knob_gradient() as taps:
        loss_of(policy, noise(policy, "a")).backward()
        assert torch.equal(taps.total(), taps.total(quarantine=True)) and bool(taps.total().any())

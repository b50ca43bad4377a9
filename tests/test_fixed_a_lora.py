"""Fixed-A LoRA: exact identity at zero, gradients against autograd, ΔW linear in the knob, saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from adapted import SHAPES, bare_linear, check_gradients, check_loading, check_start, normal, saved_activations, wrap
from unhack.adapters.fixed_a_lora import FixedALinear, knob_rows, orthonormal_rows
from unhack.config import AdapterConfig

RANK = 3
CONFIG = AdapterConfig(kind="fixed_a_lora", rank=RANK)


def layer(size_out: int, size_in: int, factored: bool = False) -> FixedALinear:
    return FixedALinear(bare_linear(size_out, size_in), orthonormal_rows(RANK, size_in, 0, "layer"), factored)


def explicit(module: FixedALinear) -> Callable[[Tensor], Tensor]:
    return lambda knob: knob.view(module.out_features, RANK) @ module.a.double()


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_at_zero_is_the_base_layer_bit_for_bit(shape: tuple[int, int], factored: bool) -> None:
    check_start(layer(*shape, factored=factored))


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_and_factored_outputs_are_equal(shape: tuple[int, int]) -> None:
    merged, factored = layer(*shape), layer(*shape, factored=True)
    merged.knob = factored.knob = normal(merged.size, name="knob")
    inputs = normal(3, 5, shape[1])
    torch.testing.assert_close(merged(inputs), factored(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_autograd_on_the_explicit_weight(shape: tuple[int, int], rows: int, factored: bool) -> None:
    module = layer(*shape, factored=factored)
    module.knob = 0.3 * normal(module.size, name="knob")
    check_gradients(module, explicit(module), normal(4, 6, shape[1]), normal(4, 6, shape[0], name="g"), rows)


def test_both_ways_to_a_knob_gradient_agree() -> None:
    inputs, grads = normal(60, 6), normal(60, 10, name="g")
    a = orthonormal_rows(5, 6, 0, "layer")  # 5 of 6 inputs: the weight gradient is cheaper than the projection
    by_weight = knob_rows(inputs, grads, a, rows=1)
    by_projection = knob_rows(inputs, grads, a, rows=5).sum(0, keepdim=True)
    torch.testing.assert_close(by_weight, by_projection, rtol=1e-5, atol=1e-5)
    assert not torch.equal(by_weight, by_projection)  # or the test compares a way with itself


def test_merged_backward_saves_no_activation_but_its_input() -> None:
    module = layer(8, 20)
    module.knob, module.tap = normal(module.size, name="knob"), torch.zeros(module.tap_shape(1), requires_grad=True)
    assert saved_activations(module, normal(4, 6, 20)) == [(4, 6, 20)]


def test_a_knob_step_changes_the_weight_alike_wherever_the_knob_stands_and_as_long_as_it_is() -> None:
    module = layer(8, 20)
    here, there, step = (normal(module.size, name=name) for name in ("here", "there", "step"))
    moved = module.merge(here + step) - module.merge(here)
    torch.testing.assert_close(moved, module.merge(there + step) - module.merge(there), rtol=1e-4, atol=1e-5)
    assert float(moved.norm()) == pytest.approx(float(step.norm()), rel=1e-4)
    assert FixedALinear.linear_in_knob


def test_a_has_orthonormal_rows_of_its_own_seed_and_module_whatever_the_thread_count() -> None:
    a = orthonormal_rows(5, 16, 0, "first")
    torch.testing.assert_close(a @ a.T, torch.eye(5), rtol=0, atol=1e-6)
    assert not torch.equal(a, orthonormal_rows(5, 16, 1, "first"))
    assert not torch.equal(a, orthonormal_rows(5, 16, 0, "second"))
    torch.set_num_threads(2)
    again = orthonormal_rows(5, 16, 0, "first")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert torch.equal(a, again)


def test_knobs_load_only_over_the_same_weights_rank_kind_seed_and_a(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = (
        (replace(CONFIG, seed=1), "seed is 0, this policy's is 1"),
        (replace(CONFIG, rank=2), "rank is 3"),
        (AdapterConfig(), "kind is fixed_a_lora"),
    )
    policy = check_loading(make_tiny_policy_model, CONFIG, others, tmp_path)
    assert policy.layout.sizes == tuple(RANK * module.out_features for module in policy.modules.values())
    turned = lambda *drawn: -orthonormal_rows(*drawn)  # noqa: E731 - what another LAPACK may do
    monkeypatch.setattr("unhack.adapters.fixed_a_lora.orthonormal_rows", turned)
    with pytest.raises(ValueError, match=r"the fixed A of model\.layers\.0\.self_attn\.q_proj"):
        wrap(make_tiny_policy_model(), CONFIG).load(tmp_path)


def test_what_no_layer_can_take_is_refused_and_the_model_stays_whole(tiny_policy_model: Qwen3ForCausalLM) -> None:
    for config, message in (
        (AdapterConfig(kind="fixed_a_lora"), r"needs adapter\.rank"),
        (replace(CONFIG, rank=33), r"q_proj has 32 inputs"),
        (replace(CONFIG, init="pissa"), r"adapter\.init is set, but kind 'fixed_a_lora' uses computation, rank, seed"),
        (AdapterConfig(seed=1), r"adapter\.seed is set, but kind 'spectral'"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap(tiny_policy_model, config)
    assert isinstance(tiny_policy_model.get_submodule("model.layers.0.self_attn.q_proj"), nn.Linear)

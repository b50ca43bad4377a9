"""Block LoRA: exact identity at the start, gradients against autograd, blocks of their own, initialisers, saving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from adapted import (
    SHAPES,
    bare_linear,
    check_gradients,
    check_loading,
    check_start,
    noise,
    normal,
    saved_activations,
    wrap,
)
from unhack.adapters import Policy
from unhack.adapters.block_init import Factors, InputStatistics, corda, gaussian, pissa, save_statistics, signed
from unhack.adapters.block_lora import BlockLinear, knob_rows, pack_rows, unpack_rows
from unhack.adapters.linear import AdaptedLinear
from unhack.adapters.svd_cache import decompose
from unhack.config import AdapterConfig, OptimizerConfig
from unhack.optim import Proposer
from unhack.seeds import generator
from unhack.types import Gradient

RANK = 2
CONFIG = AdapterConfig(kind="block_lora", rank=RANK)
INITS = ("gaussian", "pissa", "corda", "signed_corda", "reversed_corda")


def layer(size_out: int, size_in: int, factored: bool = False) -> BlockLinear:
    """All of A0 and B0 nonzero, which is the hardest start."""
    base = bare_linear(size_out, size_in)
    start = Factors(normal(2 * RANK, size_in, name="a0"), normal(size_out, 2 * RANK, name="b0"))
    return BlockLinear(base, start, factored)


def explicit(module: BlockLinear) -> Callable[[Tensor], Tensor]:
    """B A − B0 A0, with A and B put together slot by slot as the module's docstring orders them."""
    size_in, size_out, rank = module.in_features, module.out_features, module.rank

    def delta(knob: Tensor) -> Tensor:
        total = torch.zeros(size_out, size_in, dtype=torch.float64)
        for block in (0, 1):
            for slot in range(rank):
                a0 = module.a0[block * rank + slot].double()
                b0 = module.b0[:, block * rank + slot].double()
                a = a0 + knob[block, slot * size_in : (slot + 1) * size_in]
                b = b0 + knob[block, rank * size_in :].view(size_out, rank)[:, slot]
                total = total + torch.outer(b, a) - torch.outer(b0, a0)
        return total

    return delta


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_at_the_start_is_the_base_layer_bit_for_bit(shape: tuple[int, int], factored: bool) -> None:
    module = layer(*shape, factored=factored)
    check_start(module)
    assert torch.equal(module.merge(torch.zeros(2, module.size)), module.base_weight)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_are_those_of_the_explicit_weight(shape: tuple[int, int], factored: bool) -> None:
    module = layer(*shape, factored=factored)
    module.knob = 0.3 * normal(2, module.size, name="knob")
    inputs = normal(3, 5, shape[1])
    weight = module.base_weight.double() + explicit(module)(module.knob.double())
    expected = nn.functional.linear(inputs.double(), weight, module.bias.double() if module.bias is not None else None)
    torch.testing.assert_close(module(inputs), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_gradients_equal_autograd_on_the_explicit_weight(
    shape: tuple[int, int], rows: int, factored: bool, scale: float
) -> None:
    module = layer(*shape, factored=factored)
    module.knob = scale * normal(2, module.size, name="knob") if scale else None
    check_gradients(module, explicit(module), normal(4, 6, shape[1]), normal(4, 6, shape[0], name="g"), rows)


def test_both_ways_to_a_knob_gradient_agree() -> None:
    inputs, grads, a, b = normal(60, 6), normal(60, 10, name="g"), normal(4, 6, name="a"), normal(10, 4, name="b")
    by_weight = knob_rows(inputs, grads, a, b, rows=1)
    by_projection = knob_rows(inputs, grads, a, b, rows=5).sum(0, keepdim=True)
    torch.testing.assert_close(by_weight, by_projection, rtol=1e-5, atol=1e-4)
    assert not torch.equal(by_weight, by_projection)  # or the test compares a way with itself


def test_knobs_unpack_to_what_was_packed() -> None:
    a, b = normal(3, 2 * RANK, 7, name="a"), normal(3, 5, 2 * RANK, name="b")
    again = unpack_rows(pack_rows(a, b), RANK, 7)
    assert torch.equal(again[0], a) and torch.equal(again[1], b)


def test_merged_backward_saves_no_activation_but_its_input() -> None:
    module = layer(8, 20)
    module.knob, module.tap = normal(2, module.size, name="knob"), torch.zeros(module.tap_shape(1), requires_grad=True)
    assert saved_activations(module, normal(4, 6, 20)) == [(4, 6, 20)]


def test_a_delta_much_smaller_than_the_initial_product_keeps_its_digits() -> None:
    module = layer(8, 20)
    module.a0.mul_(1e3)
    knob = 1e-3 * normal(2, module.size, name="knob")
    exact = explicit(module)(knob.double())
    got = module.merge(knob).double() - module.base_weight.double()
    torch.testing.assert_close(got, exact, rtol=1e-4, atol=2e-6)  # float32 of W; B A − B0 A0 would lose 1e-3


def test_a_knob_step_changes_the_weight_differently_elsewhere() -> None:
    module = layer(8, 20)
    here, there, step = (normal(2, module.size, name=name) for name in ("here", "there", "step"))
    moved = module.merge(here + step) - module.merge(here)
    elsewhere = module.merge(there + step) - module.merge(there)
    assert float((moved - elsewhere).norm() / moved.norm()) > 0.3
    assert not BlockLinear.linear_in_knob and AdaptedLinear.linear_in_knob


def statistics_file(policy_model: Qwen3ForCausalLM, folder: Path) -> str:
    policy = wrap(policy_model, AdapterConfig())
    differences = {name: normal(5, module.in_features, name=name) for name, module in policy.modules.items()}
    save_statistics(InputStatistics(differences, policy.model_hash, "pairs"), folder / "inputs.safetensors")
    return str(folder / "inputs.safetensors")


@pytest.mark.parametrize(("init", "computation"), [*((init, "merged") for init in INITS), ("pissa", "factored")])
def test_a_model_at_the_start_is_the_base_bit_for_bit_and_trains_blocks_of_their_own(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path, init: str, computation: str
) -> None:
    tokens = torch.randint(64, (3, 9), generator=generator(0, "tokens"))
    model = make_tiny_policy_model(layers=1)
    with torch.no_grad():
        before = model(tokens).logits
    statistics = statistics_file(make_tiny_policy_model(layers=1), tmp_path) if init.endswith("corda") else None
    config = replace(CONFIG, init=init, statistics=statistics, computation=computation)  # pyright: ignore[reportArgumentType]
    policy = wrap(model, config)
    with torch.no_grad():
        assert torch.equal(policy.model(tokens).logits, before)
    with policy.knob_gradient() as taps:
        policy.model(tokens).logits.square().mean().backward()
        main, quarantine = taps.total(), taps.total(quarantine=True)
    assert bool(main.any()) and bool(quarantine.any()) and not torch.equal(main, quarantine)
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    with torch.no_grad():
        assert not torch.equal(policy.model(tokens).logits, before)
        with policy.blocks(main=False, quarantine=False):
            assert torch.equal(policy.model(tokens).logits, before)


def test_ablating_the_quarantine_puts_its_slots_back_and_leaves_mains(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model, replace(CONFIG, init="pissa"))
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    module = next(iter(policy.modules.values()))
    assert isinstance(module, BlockLinear)
    a, b = module.collected()
    with policy.blocks(main=True, quarantine=False):
        ablated_a, ablated_b = module.collected()
    assert torch.equal(ablated_a[RANK:], module.a0[RANK:]) and torch.equal(ablated_b[:, RANK:], module.b0[:, RANK:])
    assert torch.equal(ablated_a[:RANK], a[:RANK]) and torch.equal(ablated_b[:, :RANK], b[:, :RANK])
    assert not torch.equal(a[RANK:], module.a0[RANK:])


def test_weight_decay_pulls_towards_the_initial_values_not_towards_zero(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = wrap(tiny_policy_model, replace(CONFIG, init="pissa"))
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    module = next(iter(policy.modules.values()))
    assert isinstance(module, BlockLinear)
    a, b = module.collected()
    proposer = Proposer(policy.layout, OptimizerConfig(lr=0.1, weight_decay=1.0, warmup_steps=0), total_steps=5)
    still = Gradient(torch.zeros_like(policy.main), torch.zeros_like(policy.main))
    policy.apply(proposer.propose(still, policy.main, policy.quarantine))
    decayed_a, decayed_b = module.collected()
    torch.testing.assert_close(decayed_a, module.a0 + 0.9 * (a - module.a0))
    torch.testing.assert_close(decayed_b, module.b0 + 0.9 * (b - module.b0))


def test_gaussian_starts_with_a_zero_product_from_its_own_seed_and_module() -> None:
    weight = torch.zeros(8, 400)
    start = gaussian(weight, RANK, 0, "first")
    assert not start.b.any() and start.a.shape == (2 * RANK, 400)
    assert float(start.a.square().mean()) == pytest.approx(1 / 400, rel=0.15)
    for seed, name in ((1, "first"), (0, "second")):
        assert not torch.equal(start.a, gaussian(weight, RANK, seed, name).a)


def test_pissa_gives_main_the_even_and_the_quarantine_the_odd_singular_ranks() -> None:
    weight = normal(20, 8, name="weight")
    parts = decompose(weight)
    start = pissa(parts, RANK)
    for block, ranks in ((slice(0, RANK), [0, 2]), (slice(RANK, None), [1, 3])):
        expected = sum(parts.s[i] * torch.outer(parts.u[:, i], parts.vh[i]) for i in ranks)
        torch.testing.assert_close(start.b[:, block] @ start.a[block], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(start.a.norm(dim=1), start.b.norm(dim=0), rtol=1e-4, atol=1e-5)
    everything = pissa(parts, 4)
    torch.testing.assert_close(everything.b @ everything.a, weight, rtol=1e-4, atol=1e-5)


def test_corda_is_pissa_of_the_weight_times_the_root_of_the_pairs_second_moment() -> None:
    weight, differences = normal(20, 8, name="weight"), normal(3, 8, name="d")
    moment = differences.double().T @ differences.double() / 3
    moment = moment + 0.01 * moment.trace() / 8 * torch.eye(8, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moment)
    root = (vectors * values.sqrt()) @ vectors.T
    u, s, vh = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    start = corda(weight, differences, RANK)
    for block, ranks in ((slice(0, RANK), [0, 2]), (slice(RANK, None), [1, 3])):
        expected = (u[:, ranks] * s[ranks]) @ vh[ranks] @ torch.linalg.inv(root)
        torch.testing.assert_close((start.b[:, block] @ start.a[block]).double(), expected, rtol=1e-3, atol=1e-3)
    everything = corda(weight, differences, 4)
    torch.testing.assert_close(everything.b @ everything.a, weight, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("slot", [RANK, 0])
def test_signed_corda_gives_one_slot_the_pair_direction_and_hides_it_from_all_others(slot: int) -> None:
    weight, differences = normal(20, 8, name="weight"), normal(6, 8, name="d") + 1.0
    mean = differences.mean(0)
    start = signed(corda(weight, differences, RANK), weight, mean, slot)
    reading = start.a @ mean
    assert float(reading[slot]) > 0  # hacks read positive
    others = [index for index in range(2 * RANK) if index != slot]
    assert float(reading[others].abs().max()) < 1e-5 * float(reading[slot])
    torch.testing.assert_close(start.b[:, slot : slot + 1] @ start.a[slot : slot + 1] @ mean, weight @ mean)


def test_turning_the_sign_of_a_slot_would_be_no_control() -> None:
    module, turned = layer(8, 20), layer(8, 20)
    turned.a0[RANK].neg_()
    turned.b0[:, RANK].neg_()
    inputs, output_gradient = normal(4, 6, 20), normal(4, 6, 8, name="g")
    deltas: list[Tensor] = []
    for one in (module, turned):
        one.tap = torch.zeros(one.tap_shape(1), requires_grad=True)
        one(inputs).backward(output_gradient)
        assert one.tap.grad is not None
        deltas.append(one.merge(-0.01 * one.tap.grad[0].sign()))  # the first step of Adam
    torch.testing.assert_close(*deltas)


def test_knobs_load_only_over_the_same_weights_rank_and_start(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path
) -> None:
    others = (
        (replace(CONFIG, seed=1), "seed is 0"),
        (replace(CONFIG, rank=1), "rank is 2"),
        (replace(CONFIG, init="pissa"), 'init is "gaussian"'),
        (AdapterConfig(kind="fixed_a_lora", rank=RANK), "kind is block_lora"),
    )
    policy = check_loading(make_tiny_policy_model, CONFIG, others, tmp_path)
    sizes = tuple(RANK * (module.in_features + module.out_features) for module in policy.modules.values())
    assert policy.layout.sizes == sizes


def test_other_statistics_are_another_start_and_those_of_another_model_are_refused(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path
) -> None:
    path = statistics_file(make_tiny_policy_model(layers=1), tmp_path)
    config = replace(CONFIG, init="corda", statistics=path)
    policy = wrap(make_tiny_policy_model(layers=1), config)
    policy.save(tmp_path)
    differences = {name: normal(4, m.in_features, name="other") for name, m in policy.modules.items()}
    save_statistics(InputStatistics(differences, policy.model_hash, "pairs"), Path(path))
    with pytest.raises(ValueError, match=r"the initial A and B of model\.layers\.0\.self_attn\.q_proj"):
        wrap(make_tiny_policy_model(layers=1), config).load(tmp_path)
    with pytest.raises(ValueError, match=r"adapter\.statistics: .* has model_hash"):
        wrap(make_tiny_policy_model(seed=1, layers=1), config)
    same = {name: rows * 0 for name, rows in differences.items()}
    save_statistics(InputStatistics(same, policy.model_hash, "pairs"), Path(path))
    with pytest.raises(ValueError, match="the pairs do not differ at the input of"):
        wrap(make_tiny_policy_model(layers=1), config)


def test_what_no_layer_can_take_is_refused(tiny_policy_model: Qwen3ForCausalLM) -> None:
    for config, message in (
        (AdapterConfig(kind="block_lora"), r"needs adapter\.rank"),
        (replace(CONFIG, rank=9, init="pissa"), r"k_proj has 16; give at most 8"),
        (replace(CONFIG, init="corda"), r"adapter\.statistics is None"),
        (replace(CONFIG, statistics="file"), r"adapter\.init is gaussian"),
        (replace(CONFIG, init="corda", statistics="nowhere.safetensors"), "there is no file nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap(tiny_policy_model, config)
    assert isinstance(wrap(tiny_policy_model, replace(CONFIG, rank=9)), Policy)  # gaussian has no such limit

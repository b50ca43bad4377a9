"""Spectral adapter: exact identity at zero, both computations, gradients against autograd, basis and its cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unhack.adapters import svd_cache
from unhack.adapters.spectral import SpectralLinear, knob_rows, merge
from unhack.adapters.svd_cache import SingularBasis, cached_decomposition, content_hash, decompose, fix_signs
from unhack.seeds import generator

SHAPES = [(12, 12), (20, 8), (8, 20)]  # square, tall, wide


def normal(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(7, name, *shape))


def layer(size_out: int, size_in: int, factored: bool = False, rank: int | None = None) -> SpectralLinear:
    base = nn.Linear(size_in, size_out, device="meta").to_empty(device="cpu")
    base.weight = nn.Parameter(normal(size_out, size_in, name="weight"), requires_grad=False)
    base.bias = nn.Parameter(normal(size_out, name="bias"), requires_grad=False)
    u, _, vh = decompose(base.weight)
    return SpectralLinear(base, SingularBasis(u[:, :rank].contiguous(), vh[:rank].contiguous()), factored)


def slow_gradient(module: SpectralLinear, inputs: Tensor, output_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """(dL/dknob, dL/dx) by autograd through W + U diag(knob) Vh, in float64."""
    start = torch.zeros(module.rank) if module.knob is None else module.knob
    knob = start.double().requires_grad_()
    x = inputs.double().requires_grad_()
    weight = module.base_weight.double() + module.u.double() @ torch.diag(knob) @ module.vh.double()
    loss = ((x @ weight.T) * output_gradient.double()).sum()
    knob_gradient, input_gradient = torch.autograd.grad(loss, [knob, x])
    return knob_gradient.float(), input_gradient.float()


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_at_zero_is_the_base_layer_bit_for_bit(shape: tuple[int, int], factored: bool) -> None:
    module = layer(*shape, factored=factored)
    inputs = normal(3, 5, shape[1])
    expected = nn.functional.linear(inputs, module.base_weight, module.bias)
    assert torch.equal(module(inputs), expected)
    module.tap = torch.zeros(1, module.rank, requires_grad=True)  # collecting gradients must not change the output
    assert torch.equal(module(inputs), expected)


def test_base_weight_is_the_very_parameter_that_was_wrapped() -> None:
    base = nn.Linear(6, 4)
    u, _, vh = decompose(base.weight)
    module = SpectralLinear(base, SingularBasis(u, vh), factored=False)
    assert module.base_weight is base.weight and module.weight is base.weight


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_merged_and_factored_outputs_are_equal(shape: tuple[int, int], rank: int | None) -> None:
    merged, factored = layer(*shape, rank=rank), layer(*shape, factored=True, rank=rank)
    merged.knob = factored.knob = normal(merged.rank, name="knob")
    inputs = normal(3, 5, shape[1])
    torch.testing.assert_close(merged(inputs), factored(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("batch", [(2, 3), (9, 11)])  # few positions (projection) and many (weight gradient)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_autograd_through_the_reconstruction(
    shape: tuple[int, int], batch: tuple[int, int], factored: bool
) -> None:
    module = layer(*shape, factored=factored)
    module.knob = 0.3 * normal(module.rank, name="knob")
    inputs = normal(*batch, shape[1]).requires_grad_()
    output_gradient = normal(*batch, shape[0], name="g")
    module.tap = torch.zeros(1, module.rank, requires_grad=True)
    module(inputs).backward(output_gradient)
    knob_gradient, input_gradient = slow_gradient(module, inputs.detach(), output_gradient)
    assert module.tap.grad is not None and inputs.grad is not None
    torch.testing.assert_close(module.tap.grad[0], knob_gradient, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs.grad, input_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factored", [False, True])
def test_each_row_of_per_rollout_gradients_is_that_rollouts_own(factored: bool) -> None:
    module = layer(8, 20, factored=factored)
    module.knob = 0.3 * normal(module.rank, name="knob")
    inputs, output_gradient = normal(4, 6, 20), normal(4, 6, 8, name="g")
    module.tap = torch.zeros(4, module.rank, requires_grad=True)
    module(inputs).backward(output_gradient)
    assert module.tap.grad is not None
    for row in range(4):
        alone, _ = slow_gradient(module, inputs[row : row + 1], output_gradient[row : row + 1])
        torch.testing.assert_close(module.tap.grad[row], alone, rtol=1e-5, atol=1e-5)


def test_both_ways_to_a_knob_gradient_agree() -> None:
    basis = SingularBasis(*[t for i, t in enumerate(decompose(normal(10, 6, name="weight"))) if i != 1])
    inputs, grads = normal(500, 6), normal(500, 10, name="g")
    by_weight = knob_rows(inputs, grads, basis, rows=1)  # 500 positions: the weight gradient is cheaper
    by_projection = knob_rows(inputs, grads, basis, rows=5).sum(0, keepdim=True)
    torch.testing.assert_close(by_weight, by_projection, rtol=1e-5, atol=1e-4)


def test_merged_backward_saves_no_activation_but_its_input() -> None:
    module = layer(8, 20)
    module.knob = normal(module.rank, name="knob")
    module.tap = torch.zeros(1, module.rank, requires_grad=True)
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.shape), t)[1], lambda t: t):
        module(normal(4, 6, 20).requires_grad_())
    assert sorted(shape for shape in saved if len(shape) == 3) == [(4, 6, 20)]


def test_no_gradient_work_without_a_tap() -> None:
    module = layer(8, 20)
    module.knob = normal(module.rank, name="knob")
    assert not module(normal(4, 6, 20)).requires_grad


def test_bfloat16_merge_is_rounded_once_from_float32() -> None:
    weight = normal(12, 12, name="weight").to(torch.bfloat16)
    u, _, vh = decompose(weight)
    knob = normal(12, name="knob")
    exact = (weight.double() + u.double() @ torch.diag(knob.double()) @ vh.double()).to(torch.bfloat16)
    merged = merge(weight, SingularBasis(u, vh), knob)
    assert merged.dtype == torch.bfloat16
    assert (merged != exact).float().mean() < 0.02  # only ties of the rounding may differ


@pytest.mark.parametrize("shape", SHAPES)
def test_decomposition_rebuilds_the_weight_with_positive_peaks(shape: tuple[int, int]) -> None:
    weight = normal(*shape, name="weight")
    u, s, vh = decompose(weight)
    torch.testing.assert_close((u * s) @ vh, weight, rtol=1e-4, atol=1e-5)
    assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())


def test_sign_rule_gives_one_basis_whatever_signs_the_svd_chose() -> None:
    u, _, vh = torch.linalg.svd(normal(9, 7), full_matrices=False)
    flips = torch.tensor([1.0, -1, -1, 1, -1, 1, -1])
    first, second = fix_signs(u, vh), fix_signs(u * flips, vh * flips[:, None])
    assert torch.equal(first.u, second.u) and torch.equal(first.vh, second.vh)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_content_hash_sees_values_not_memory_layout(dtype: torch.dtype) -> None:
    weight = normal(6, 4).to(dtype)
    transposed_twice = weight.T.contiguous().T
    assert not transposed_twice.is_contiguous()
    assert content_hash(weight) == content_hash(transposed_twice)
    changed = weight.clone()
    changed[3, 2] += 1
    assert content_hash(weight) != content_hash(changed)
    assert content_hash(weight) != content_hash(weight.view(4, 6))
    assert content_hash(torch.zeros(2, 2)) != content_hash(torch.zeros(2, 2, dtype=torch.int32))


def counting(calls: list[Tensor]) -> Callable[[Tensor], svd_cache.Decomposition]:
    def wrapped(weight: Tensor) -> svd_cache.Decomposition:
        calls.append(weight)
        return decompose(weight)

    return wrapped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_decomposes_each_content_once(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNHACK_CACHE", str(tmp_path))
    calls: list[Tensor] = []
    monkeypatch.setattr(svd_cache, "decompose", counting(calls))
    weight = normal(6, 4).to(dtype)
    first = cached_decomposition(weight)
    second = cached_decomposition(weight.T.contiguous().T)  # other strides, same content
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    cached_decomposition(weight + 1)
    assert len(calls) == 2


def test_half_written_cache_files_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNHACK_CACHE", str(tmp_path))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(svd_cache.os, "replace", die)  # killed after the data, before the name
        cached_decomposition(normal(6, 4))
    u, s, vh = cached_decomposition(normal(6, 4))
    torch.testing.assert_close((u * s) @ vh, normal(6, 4), rtol=1e-4, atol=1e-5)

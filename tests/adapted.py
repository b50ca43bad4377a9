"""Layers and policies that the tests of every kind of adapter share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unhack.adapters import Policy
from unhack.adapters.linear import AdaptedLinear
from unhack.config import AdapterConfig
from unhack.model import LoadedModel, model_hash
from unhack.seeds import generator

SHAPES = [(12, 12), (20, 8), (8, 20)]  # [out, in]: square, tall, wide


def normal(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(7, name, *shape))


def bare_linear(size_out: int, size_in: int) -> nn.Linear:
    base = nn.Linear(size_in, size_out, device="meta").to_empty(device="cpu")
    base.weight = nn.Parameter(normal(size_out, size_in, name="weight"), requires_grad=False)
    base.bias = nn.Parameter(normal(size_out, name="bias"), requires_grad=False)
    return base


def wrap(network: PreTrainedModel, config: AdapterConfig) -> Policy:
    return Policy.wrap(LoadedModel(network, None, model_hash(network)), config)


def noise(policy: Policy, name: str, scale: float = 0.1) -> Tensor:
    return scale * torch.randn(policy.layout.total, generator=generator(0, name))


def slow_gradient(
    module: AdaptedLinear, delta: Callable[[Tensor], Tensor], inputs: Tensor, output_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """(dL/dknob, dL/dx) by autograd through W + delta(knob), all in float64."""
    start = torch.zeros(module.tap_shape(1)[1:]) if module.knob is None else module.knob
    knob = start.double().requires_grad_()
    x = inputs.double().requires_grad_()
    loss = ((x @ (module.base_weight.double() + delta(knob)).T) * output_gradient.double()).sum()
    knob_gradient, input_gradient = torch.autograd.grad(loss, [knob, x])
    return knob_gradient.float(), input_gradient.float()


def check_gradients(
    module: AdaptedLinear, delta: Callable[[Tensor], Tensor], inputs: Tensor, output_gradient: Tensor, rows: int
) -> None:
    """Every row of the tap and the gradient of the input are those of autograd on the explicit weight."""
    x = inputs.clone().requires_grad_()
    module.tap = torch.zeros(module.tap_shape(rows), requires_grad=True)
    module(x).backward(output_gradient)
    assert module.tap.grad is not None and x.grad is not None
    size = len(inputs) // rows
    for row in range(rows):
        part = slice(row * size, (row + 1) * size)
        knob_gradient, input_gradient = slow_gradient(module, delta, inputs[part], output_gradient[part])
        torch.testing.assert_close(module.tap.grad[row], knob_gradient, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x.grad[part], input_gradient, rtol=1e-5, atol=1e-5)


def saved_activations(module: AdaptedLinear, inputs: Tensor) -> list[torch.Size]:
    """Shapes of the three-axis tensors that a forward under a tap keeps for its backward."""
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.shape), t)[1], lambda t: t):
        module(inputs.requires_grad_())
    return [shape for shape in saved if len(shape) == 3]


def check_start(module: AdaptedLinear) -> None:
    """With the knob at zero the output is the base layer's bit for bit, also while gradients are collected."""
    inputs = normal(3, 5, module.in_features)
    expected = nn.functional.linear(inputs, module.base_weight, module.bias)
    assert torch.equal(module(inputs), expected) and module.weight is module.base_weight
    module.tap = torch.zeros(module.tap_shape(3), requires_grad=True)
    assert torch.equal(module(inputs), expected)


def check_loading(
    make_model: Callable[..., PreTrainedModel],
    config: AdapterConfig,
    others: Sequence[tuple[AdapterConfig, str]],
    folder: Path,
) -> Policy:
    """Saved knobs come back bit for bit under `config`, and are refused under each other config, by its message, and
    over other base weights. Returns the policy that was saved."""
    policy = wrap(make_model(), config)
    policy.set_knobs(noise(policy, "a"), noise(policy, "b"))
    policy.save(folder)
    again = wrap(make_model(), config)
    again.load(folder)
    assert torch.equal(again.main, policy.main) and torch.equal(again.quarantine, policy.quarantine)
    assert again.basis_hash == policy.basis_hash
    for other, message in others:
        refusing = wrap(make_model(), other)
        assert refusing.basis_hash != policy.basis_hash
        with pytest.raises(ValueError, match=message):
            refusing.load(folder)
    with pytest.raises(ValueError, match="base weight of"):
        wrap(make_model(seed=1), config).load(folder)
    return policy

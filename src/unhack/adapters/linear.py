"""What every adapted layer shares: a frozen `nn.Linear` beside which two blocks, `main` and `quarantine`, train.

    y = x W_effᵀ + bias        W_eff = W + Δ(knob),   Δ(0) = 0 bit for bit

A kind says what Δ is (`merge`, `branch`), how its gradient is read (`collect`) and which frozen tensors give the knob
its meaning (`basis`); the base class does the rest, so a kind is one file and nothing outside this package asks which.

Two algebraically equal ways to compute it:
    merged     y = x W_effᵀ. W_eff is built once per setting of the knobs; the backward saves x and nothing else.
    factored   y = x Wᵀ + branch(x), left to autograd; for when W_eff should not be stored or rounded.

Gradients are read through a *tap*: a leaf of zeros [rows, ...] that is added to the knob. One row collects the gradient
of the whole batch, B rows collect each rollout's own (they sum to the whole). Without a tap no knob gradient is
computed, which is what sampling and evaluation use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Collect = Callable[[Tensor, Tensor, Sequence[Tensor], int], Tensor]
"""(inputs [N, in], output gradients [N, out], `collected`, rows) → dL/dtap."""


class MergedLinear(torch.autograd.Function):
    """y = x W_effᵀ + bias whose backward also gives dL/dtap, saving no activation beyond x.

    `through` [out, in] is the weight by which gradients go on to x: W_eff, or less where a block is detached.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tap: Tensor,
        through: Tensor,
        collect: Collect,
        *collected: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(inputs, through, *collected)
        ctx.rows, ctx.collect = tap.shape[0], collect
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        inputs, through, *collected = ctx.saved_tensors
        grads = grad_outputs[0].reshape(-1, through.shape[0])
        flat_inputs = inputs.reshape(-1, through.shape[1])
        grad_inputs = (grads @ through).view(inputs.shape) if ctx.needs_input_grad[0] else None
        grad_tap = ctx.collect(flat_inputs, grads, collected, ctx.rows) if ctx.needs_input_grad[3] else None
        return grad_inputs, None, None, grad_tap, None, None, *[None for _ in collected]


class AdaptedLinear(nn.Module, ABC):
    """A frozen `nn.Linear` with a knob. Built and driven by `Policy`, which owns the knobs.

    `base_weight` [out, in] is the very parameter of the wrapped layer; `weight` is the effective (merged) one, for
    code that does its own matrix products. This class is for kinds whose blocks enter only through their sum: knob and
    gradient [size] are shared. A kind whose blocks differ overrides `combine` and `tap_shape` (leading axis of 2).

    Class attributes: `linear_in_knob` (whether Δ is linear in the knob, so that a direction of knobs means the same
    wherever the knobs have moved), `basis_name` and `basis_cure` (for messages), `settings` (fields of AdapterConfig,
    besides kind and rank, that knobs depend on).
    """

    linear_in_knob: ClassVar[bool] = True
    basis_name: ClassVar[str]
    basis_cure: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()

    base_weight: Tensor
    bias: Tensor | None

    def __init__(self, base: nn.Linear, factored: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_weight = base.weight
        self.bias = base.bias
        self.factored = factored
        self.knob: Tensor | None = None  # of the active blocks; None: all zero, the base weight is used as it is
        self.merged: Tensor | None = None  # W_eff of `knob`, built when first needed
        self.through: Tensor | None = None  # weight by which gradients go on to the input; None: W_eff
        self.tap: Tensor | None = None  # leaf of zeros while gradients are collected

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of knobs of one block."""

    @property
    @abstractmethod
    def basis(self) -> tuple[Tensor, ...]:
        """The frozen tensors, besides the base weight, that give the knob its meaning."""

    @property
    @abstractmethod
    def bottleneck(self) -> Float[Tensor, "b in"]:
        """The frozen rows that read the layer's input on its way through the knob: activations are bottleneck x."""

    @abstractmethod
    def merge(self, knob: Tensor) -> Tensor:
        """W + Δ(knob) [out, in], out of place, summed in float32 and rounded once to W's dtype."""

    @abstractmethod
    def branch(self, inputs: Tensor, knob: Tensor) -> Tensor:
        """x Δ(knob)ᵀ in float32; the leading axis of `knob` is 1, or that of `inputs`: a knob for each rollout."""

    @abstractmethod
    def collected(self) -> tuple[Tensor, ...]:
        """The tensors that `collect` needs beside x and the output gradient, as they are now."""

    @staticmethod
    @abstractmethod
    def collect(inputs: Tensor, grads: Tensor, collected: Sequence[Tensor], rows: int) -> Tensor:
        """dL/dtap of each of `rows` equal parts of the N positions."""

    @staticmethod
    def combine(main: Float[Tensor, " K"], quarantine: Float[Tensor, " K"]) -> Float[Tensor, "*blocks K"]:
        """The knobs as the modules take them, each module its piece of the last axis."""
        return main + quarantine

    def tap_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of the tap: `rows`, then that of the module's knob."""
        return rows, self.size

    @property
    def weight(self) -> Tensor:
        """Effective weight [out, in] under the active blocks, in the base dtype; the base weight itself at zero."""
        if self.knob is None:
            return self.base_weight
        if self.merged is None:
            with torch.no_grad():
                self.merged = self.merge(self.knob)
        return self.merged

    def forward(self, inputs: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        """The adapted layer; with a tap of more than one row, the leading axis of `inputs` must be the rollouts."""
        if self.factored:
            return self.forward_factored(inputs)
        if self.tap is None or not torch.is_grad_enabled():
            return functional.linear(inputs, self.weight, self.bias)
        self._check_rows(inputs)
        weight = self.weight
        through = weight if self.through is None else self.through
        outputs: Any = MergedLinear.apply(inputs, weight, self.bias, self.tap, through, self.collect, *self.collected())
        return outputs

    def forward_factored(self, inputs: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        """x Wᵀ + branch(x) (METHOD §1 a), for when W_eff should not be stored or rounded."""
        outputs = functional.linear(inputs, self.base_weight, self.bias)
        if self.tap is None and self.knob is None:
            return outputs
        knob = self.knob
        if knob is None:
            assert self.tap is not None
            knob = torch.zeros_like(self.tap[0])
        knob = knob.unsqueeze(0)
        if self.tap is not None:
            self._check_rows(inputs)
            knob = knob + self.tap
        if self.through is None or not torch.is_grad_enabled():
            return outputs + self.branch(inputs, knob).to(outputs.dtype)
        delta = self.branch(inputs.detach(), knob).to(outputs.dtype)
        passing = functional.linear(inputs, self.through, self.bias)
        return outputs.detach() + delta + (passing - passing.detach())  # exactly zero: it carries the gradient to x

    def _check_rows(self, inputs: Tensor) -> None:
        assert self.tap is not None
        rows = self.tap.shape[0]
        assert rows in (1, inputs.shape[0]), f"{rows} rows of gradients asked of a batch of {inputs.shape[0]}"


def row_view(values: Tensor, axes: int) -> Tensor:
    """`values` [rows, n] as [rows, 1, ..., 1, n] of `axes` axes, to multiply activations [rows, ..., n] with."""
    return values.view(values.shape[0], *[1] * (axes - 2), values.shape[-1])


def row_linear(inputs: Float[Tensor, "*B in"], weights: Float[Tensor, "rows out in"]) -> Float[Tensor, "*B out"]:
    """x Wᵀ with one weight for all (rows = 1), or one for each index of the leading axis of `inputs`."""
    if weights.shape[0] == 1:
        return functional.linear(inputs, weights[0])
    flat = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    return torch.bmm(flat, weights.transpose(1, 2)).view(*inputs.shape[:-1], weights.shape[1])

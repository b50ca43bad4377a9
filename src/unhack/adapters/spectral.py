"""Spectral adapter: train the singular values of a frozen linear layer (AntiPaSTO; METHOD §1).

    W_eff = W + U diag(knob) Vh        knob = main + quarantine [r], zero at the start, the only thing that trains

W itself is kept and never rebuilt from its SVD, so at knob = 0 the layer is the base layer bit for bit and a cropped
rank leaves no truncation residual. `main` and `quarantine` enter only through their sum: they share one gradient.

Two algebraically equal ways to compute it:
    merged     y = x W_effᵀ. W_eff is built once per setting of the knobs; the backward saves x and nothing else.
    factored   y = x Wᵀ + ((x Vhᵀ) ⊙ knob) Uᵀ, left to autograd.
Beyond the bare layer's own products, factored takes 2 N r (in + out) multiplications for N positions; merged takes at
most N r (in + out) (`knob_rows` counts) and the product that builds W_eff, which sampling needs in any case. So merged
is the default; factored is for when W_eff should not be stored or rounded.

Gradients are read through a *tap*: a leaf of zeros [rows, r] that is added to the knob. One row collects the gradient
of the whole batch, B rows collect each rollout's own (they sum to the whole). Without a tap no knob gradient is
computed, which is what sampling and evaluation use.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from unhack.adapters.svd_cache import SingularBasis


def merge(weight: Float[Tensor, "out in"], basis: SingularBasis, knob: Float[Tensor, " r"]) -> Float[Tensor, "out in"]:
    """W + U diag(knob) Vh, out of place, summed in float32 and rounded once to W's dtype (METHOD §1)."""
    delta = (basis.u * knob) @ basis.vh
    return (weight.float() + delta).to(weight.dtype)


def knob_rows(
    inputs: Float[Tensor, "N in"], grads: Float[Tensor, "N out"], basis: SingularBasis, rows: int
) -> Float[Tensor, "rows r"]:
    """dL/dknob of each of `rows` equal parts of the N positions: Σ_t (x_t Vhᵀ) ⊙ (g_t U) (METHOD §1 c).

    One row may instead take u_iᵀ (gᵀx) v_i from the ordinary weight gradient (METHOD §1 b), which is cheaper as soon as
    there are more positions than singular values; the choice is made by counting multiplications.
    """
    positions, size_in = inputs.shape
    size_out, rank = basis.u.shape
    by_projection = positions * rank * (size_in + size_out)
    by_weight = positions * size_in * size_out + rank * size_in * size_out
    if rows == 1 and by_weight <= by_projection:
        weight_gradient = (grads.T @ inputs).float()  # [out, in]
        if size_out <= size_in:  # contract the longer axis first: the elementwise product is then the smaller one
            return (basis.u * (weight_gradient @ basis.vh.T)).sum(0, keepdim=True)
        return (basis.vh * (basis.u.T @ weight_gradient)).sum(1).unsqueeze(0)
    product = (inputs.float() @ basis.vh.T) * (grads.float() @ basis.u)  # [N, r]
    return product.view(rows, positions // rows, rank).sum(1)


class MergedLinear(torch.autograd.Function):
    """y = x W_effᵀ + bias whose backward also gives dL/dknob, saving no activation beyond x."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, tap: Tensor, u: Tensor, vh: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, u, vh)
        ctx.rows = tap.shape[0]
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        inputs, weight, u, vh = ctx.saved_tensors
        grads = grad_outputs[0].reshape(-1, weight.shape[0])
        flat_inputs = inputs.reshape(-1, weight.shape[1])
        grad_inputs = (grads @ weight).view(inputs.shape) if ctx.needs_input_grad[0] else None
        grad_tap = knob_rows(flat_inputs, grads, SingularBasis(u, vh), ctx.rows) if ctx.needs_input_grad[3] else None
        return grad_inputs, None, None, grad_tap, None, None


class SpectralLinear(nn.Module):
    """A frozen `nn.Linear` with a spectral knob. Built and driven by `Policy`, which owns the knobs.

    `base_weight` [out, in] is the very parameter of the wrapped layer; `weight` is the effective (merged) one, for
    code that does its own matrix products. `rank` is r.
    """

    base_weight: Tensor
    bias: Tensor | None
    u: Tensor
    vh: Tensor

    def __init__(self, base: nn.Linear, basis: SingularBasis, factored: bool) -> None:
        super().__init__()
        assert base.weight.shape == (basis.u.shape[0], basis.vh.shape[1])
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base_weight = base.weight
        self.bias = base.bias
        self.register_buffer("u", basis.u, persistent=False)  # [out, r]
        self.register_buffer("vh", basis.vh, persistent=False)  # [r, in]
        self.factored = factored
        self.knob: Tensor | None = None  # [r] of the active blocks; None: all zero, the base weight is used as it is
        self.merged: Tensor | None = None  # W_eff of `knob`, built when first needed
        self.tap: Tensor | None = None  # [rows, r] leaf of zeros while gradients are collected

    @property
    def rank(self) -> int:
        """r: the number of singular triples, hence of knobs."""
        return self.u.shape[1]

    @property
    def basis(self) -> SingularBasis:
        """U [out, r] and Vh [r, in], float32."""
        return SingularBasis(self.u, self.vh)

    @property
    def weight(self) -> Tensor:
        """Effective weight [out, in] under the active blocks, in the base dtype; the base weight itself at zero."""
        if self.knob is None:
            return self.base_weight
        if self.merged is None:
            with torch.no_grad():
                self.merged = merge(self.base_weight, self.basis, self.knob)
        return self.merged

    def forward(self, inputs: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        """The adapted layer; with a tap of more than one row, the leading axis of `inputs` must be the rollouts."""
        if self.factored:
            return self.forward_factored(inputs)
        if self.tap is None or not torch.is_grad_enabled():
            return functional.linear(inputs, self.weight, self.bias)
        rows = self.tap.shape[0]
        assert rows in (1, inputs.shape[0]), f"{rows} rows of gradients asked of a batch of {inputs.shape[0]}"
        return MergedLinear.apply(inputs, self.weight, self.bias, self.tap, self.u, self.vh)  # pyright: ignore[reportReturnType]

    def forward_factored(self, inputs: Float[Tensor, "*B in"]) -> Float[Tensor, "*B out"]:
        """x Wᵀ + ((x Vhᵀ) ⊙ knob) Uᵀ (METHOD §1 a), for when W_eff should not be stored or rounded."""
        outputs = functional.linear(inputs, self.base_weight, self.bias)
        if self.tap is None and self.knob is None:
            return outputs
        knob = self.knob if self.knob is not None else torch.zeros(self.rank, device=self.u.device)
        if self.tap is not None:
            knob = knob + self.tap.view(self.tap.shape[0], *[1] * (inputs.dim() - 2), self.rank)
        delta = ((inputs.float() @ self.vh.T) * knob) @ self.u.T
        return outputs + delta.to(outputs.dtype)

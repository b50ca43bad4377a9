"""Block LoRA: one LoRA of rank 2r per layer whose slots [:r] are `main` and [r:] are `quarantine` (METHOD §1).

    W_eff = W + B A − B0 A0            A [2r, in] and B [out, 2r] train; A0, B0 are their frozen initial values
    knob  = (A − A0, B − B0) of a block's slots, flattened: r · in entries of A, then out · r of B; zero at the start

The knob is a displacement, so at zero the layer is the base layer bit for bit, weight decay (towards a zero knob) pulls
towards the initial values, and ablating the quarantine (a zero knob) resets it to them. The delta is computed as
(B − B0) A0 + B (A − A0): it never subtracts two large products. Gradients, per slot, with A and B as they are:

    dL/dB = Σ_t g_t (A x_t)ᵀ           dL/dA = Σ_t (Bᵀ g_t) x_tᵀ

The blocks have different slots, hence different gradients. **ΔW is not linear in the knob**: what a direction of knobs
does to the weights depends on where A and B stand, so a direction that was extracted once does not stay meaningful as A
moves. Arms that use a direction of knobs (measure, erase, route, push, gates scored by gradients) are refused with this
kind; arms without one (vanilla, clean, absorb, random_half, whatever acts on prompts, rewards or advantages, and gates
scored by activations, whose masks `Policy.knob_gradient` takes) are what it is for.

Beyond the bare layer's own products, for N positions and R = 2r: merged takes at most 2 N R (in + out) multiplications
and two products of rank R that build W_eff; factored takes about three times as many and builds nothing.

After LoRA (Hu et al. 2021, arXiv:2106.09685); the subtracted copy as in PiSSA (Meng et al. 2024, arXiv:2404.02948).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unhack.adapters.block_init import Factors, initialiser
from unhack.adapters.linear import AdaptedLinear, row_linear
from unhack.config import AdapterConfig


def pack_rows(a: Float[Tensor, "rows R in"], b: Float[Tensor, "rows out R"]) -> Float[Tensor, "rows 2 knobs"]:
    """(A, B) of both blocks as knobs: [row, block, r · in entries of A then out · r of B]."""
    rows, both = a.shape[:2]
    rank = both // 2
    a_part = a.reshape(rows, 2, -1)
    b_part = b.unflatten(2, (2, rank)).transpose(1, 2).reshape(rows, 2, -1)
    return torch.cat([a_part, b_part], dim=2)


def unpack_rows(knobs: Float[Tensor, "rows 2 knobs"], rank: int, size_in: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_rows`: A [rows, 2r, in] and B [rows, out, 2r]."""
    rows = knobs.shape[0]
    a = knobs[:, :, : rank * size_in].reshape(rows, 2 * rank, size_in)
    b = knobs[:, :, rank * size_in :].unflatten(2, (-1, rank)).transpose(1, 2)
    return a, b.reshape(rows, -1, 2 * rank)


def knob_rows(
    inputs: Float[Tensor, "N in"],
    grads: Float[Tensor, "N out"],
    a: Float[Tensor, "R in"],
    b: Float[Tensor, "out R"],
    rows: int,
) -> Float[Tensor, "rows 2 knobs"]:
    """dL/d(A, B) as knobs, of each of `rows` equal parts of the N positions.

    One row may instead go through the ordinary weight gradient gᵀx; the choice is made by counting multiplications.
    """
    (positions, size_in), (size_out, slots) = inputs.shape, b.shape
    by_projection = 2 * positions * slots * (size_in + size_out)
    by_weight = size_in * size_out * (positions + 2 * slots)
    if rows == 1 and by_weight < by_projection:
        weight_gradient = (grads.T @ inputs).float()  # [out, in]
        return pack_rows((b.T @ weight_gradient).unsqueeze(0), (weight_gradient @ a.T).unsqueeze(0))
    x, g = inputs.float().view(rows, -1, size_in), grads.float().view(rows, -1, size_out)
    return pack_rows(torch.bmm((g @ b).transpose(1, 2), x), torch.bmm(g.transpose(1, 2), x @ a.T))


class BlockLinear(AdaptedLinear):
    """A frozen `nn.Linear` with a LoRA of 2r slots whose initial values `a0` [2r, in], `b0` [out, 2r] are frozen."""

    linear_in_knob = False
    basis_name = "initial A and B"
    basis_cure = "they come from the weight, adapter.init, adapter.seed, adapter.statistics and this machine's LAPACK"
    settings = ("init", "seed")
    a0: Tensor
    b0: Tensor

    def __init__(self, base: nn.Linear, start: Factors, factored: bool) -> None:
        super().__init__(base, factored)
        assert start.a.shape[1] == base.in_features and start.b.shape[0] == base.out_features
        assert start.a.shape[0] == start.b.shape[1] and start.a.shape[0] % 2 == 0
        self.register_buffer("a0", start.a.to(base.weight.device), persistent=False)
        self.register_buffer("b0", start.b.to(base.weight.device), persistent=False)

    @property
    def rank(self) -> int:
        """r: slots of one block."""
        return self.a0.shape[0] // 2

    @property
    def size(self) -> int:
        """r · (in + out) knobs of one block."""
        return self.rank * (self.in_features + self.out_features)

    @property
    def basis(self) -> tuple[Tensor, ...]:
        """Initial A and B."""
        return self.a0, self.b0

    @property
    def bottleneck(self) -> Float[Tensor, "R in"]:
        """A0: A itself moves, its initial value does not, so a direction in what A0 reads keeps its meaning."""
        return self.a0

    @staticmethod
    def combine(main: Float[Tensor, " K"], quarantine: Float[Tensor, " K"]) -> Float[Tensor, "2 K"]:
        """Both blocks side by side: they have slots of their own."""
        return torch.stack((main, quarantine))

    def tap_shape(self, rows: int) -> tuple[int, ...]:
        """[rows, 2, size]."""
        return rows, 2, self.size

    def displacement(self, knob: Float[Tensor, "rows 2 knobs"]) -> tuple[Tensor, Tensor]:
        """(A − A0 [rows, 2r, in], B − B0 [rows, out, 2r])."""
        return unpack_rows(knob, self.rank, self.in_features)

    def merge(self, knob: Float[Tensor, "2 knobs"]) -> Float[Tensor, "out in"]:
        """W + (B − B0) A0 + B (A − A0)."""
        (a,), (b,) = self.displacement(knob.unsqueeze(0))
        delta = b @ self.a0 + (self.b0 + b) @ a
        return (self.base_weight.float() + delta).to(self.base_weight.dtype)

    def branch(self, inputs: Float[Tensor, "*B in"], knob: Float[Tensor, "rows 2 knobs"]) -> Float[Tensor, "*B out"]:
        """(x A0ᵀ) (B − B0)ᵀ + (x (A − A0)ᵀ) Bᵀ."""
        a, b = self.displacement(knob)
        x = inputs.float()
        return row_linear(x @ self.a0.T, b) + row_linear(row_linear(x, a), self.b0 + b)

    def collected(self) -> tuple[Tensor, ...]:
        """A and B as they are under the active blocks; a block that is off stands at its initial values."""
        if self.knob is None:
            return self.basis
        (a,), (b,) = self.displacement(self.knob.unsqueeze(0))
        return self.a0 + a, self.b0 + b

    @staticmethod
    def collect(inputs: Tensor, grads: Tensor, collected: Sequence[Tensor], rows: int) -> Tensor:
        """`knob_rows` with the A and B of `collected`."""
        return knob_rows(inputs, grads, collected[0], collected[1], rows)


def build(config: AdapterConfig, model_hash: str) -> Callable[[str, nn.Linear], BlockLinear]:
    """Makes the adapted layer of (module name, linear layer), with the initialiser of `config`.

    Raises:
        ValueError: statistics that are missing or of another model; from the returned function, a rank that the layer
            does not have.
    """
    start = initialiser(config, model_hash)

    def make(name: str, linear: nn.Linear) -> BlockLinear:
        return BlockLinear(linear, start(name, linear.weight), factored=config.computation == "factored")

    return make

"""Spectral adapter: train the singular values of a frozen linear layer (AntiPaSTO; METHOD §1).

    W_eff = W + U diag(knob) Vh        knob = main + quarantine [r], zero at the start, the only thing that trains

W itself is kept and never rebuilt from its SVD, so at knob = 0 the layer is the base layer bit for bit and a cropped
rank leaves no truncation residual. `main` and `quarantine` enter only through their sum: they share one gradient.

Both computations of `linear.py` are here. Beyond the bare layer's own products, factored takes 2 N r (in + out)
multiplications for N positions; merged takes at most N r (in + out) (`knob_rows` counts) and the product that builds
W_eff, which sampling needs in any case. So merged is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from unhack.adapters.linear import AdaptedLinear, row_view
from unhack.adapters.svd_cache import SingularBasis, cached_decomposition
from unhack.config import AdapterConfig


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


class SpectralLinear(AdaptedLinear):
    """A frozen `nn.Linear` with a spectral knob; `rank` is r, the number of singular triples and of knobs."""

    basis_name = "singular basis"
    basis_cure = (
        "another machine or LAPACK gives other vectors for nearly equal singular values: use the $UNHACK_CACHE of that "
        "machine"
    )
    u: Tensor
    vh: Tensor

    def __init__(self, base: nn.Linear, basis: SingularBasis, factored: bool) -> None:
        super().__init__(base, factored)
        assert base.weight.shape == (basis.u.shape[0], basis.vh.shape[1])
        self.register_buffer("u", basis.u, persistent=False)  # [out, r]
        self.register_buffer("vh", basis.vh, persistent=False)  # [r, in]

    @property
    def rank(self) -> int:
        """r: the number of singular triples, hence of knobs."""
        return self.u.shape[1]

    @property
    def size(self) -> int:
        """r knobs."""
        return self.rank

    @property
    def basis(self) -> SingularBasis:
        """U [out, r] and Vh [r, in], float32."""
        return SingularBasis(self.u, self.vh)

    @property
    def bottleneck(self) -> Float[Tensor, "r in"]:
        """Vh."""
        return self.vh

    def merge(self, knob: Float[Tensor, " r"]) -> Float[Tensor, "out in"]:
        """W + U diag(knob) Vh."""
        return merge(self.base_weight, self.basis, knob)

    def branch(self, inputs: Float[Tensor, "*B in"], knob: Float[Tensor, "rows r"]) -> Tensor:
        """((x Vhᵀ) ⊙ knob) Uᵀ."""
        return ((inputs.float() @ self.vh.T) * row_view(knob, inputs.dim())) @ self.u.T

    def collected(self) -> SingularBasis:
        """U and Vh."""
        return self.basis

    @staticmethod
    def collect(inputs: Tensor, grads: Tensor, collected: Sequence[Tensor], rows: int) -> Tensor:
        """`knob_rows` in the basis `collected`."""
        return knob_rows(inputs, grads, SingularBasis(*collected), rows)


def build(config: AdapterConfig, model_hash: str) -> Callable[[str, nn.Linear], SpectralLinear]:
    """Makes the adapted layer of (module name, linear layer), from the cached SVD of its weight."""

    def make(name: str, linear: nn.Linear) -> SpectralLinear:
        u, _, vh = cached_decomposition(linear.weight)
        basis = SingularBasis(u[:, : config.rank].contiguous(), vh[: config.rank].contiguous())
        return SpectralLinear(linear, basis, factored=config.computation == "factored")

    return make

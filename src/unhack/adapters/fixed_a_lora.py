"""Fixed-A LoRA, the "weight basis": train B of a low-rank delta whose A is frozen (METHOD §1).

    W_eff = W + (B_main + B_quarantine) A        A [rank, in] frozen, orthonormal rows, drawn from adapter.seed
                                                 knob = flattened B [out · rank], zero at the start

At knob = 0 the layer is the base layer bit for bit. ΔW is linear in the knob and A never moves, so a direction that was
extracted once keeps its meaning; since A has orthonormal rows, ‖ΔW‖ = ‖knob‖ (Frobenius) as in the spectral adapter.
`main` and `quarantine` enter only through their sum: they share one gradient, dL/dB = Σ_t g_t (A x_t)ᵀ.

Beyond the bare layer's own products, for N positions: factored takes N rank (2 in + 3 out) multiplications; merged
takes N rank (in + out), or fewer (`knob_rows` counts), and the product that builds W_eff, which sampling needs in any
case. So merged is the default. Per-rollout gradients are [rollouts, out · rank] per layer: with
large models ask for few rollouts at a time.

After LoRA (Hu et al. 2021, arXiv:2106.09685); with A frozen: LoRA-FA (Zhang et al. 2023, arXiv:2308.03303).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unhack.adapters.linear import AdaptedLinear, row_linear
from unhack.config import AdapterConfig
from unhack.seeds import generator


def orthonormal_rows(rank: int, size_in: int, seed: int, name: str) -> Float[Tensor, "rank in"]:
    """Haar-distributed orthonormal rows for the module `name`, float32 (QR in float64, R's diagonal positive)."""
    drawn = torch.randn(size_in, rank, generator=generator(seed, "fixed_a", name), dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits depend on the thread count, and A is known by its bits
    q, upper = torch.linalg.qr(drawn)
    torch.set_num_threads(threads)
    return (q * torch.where(torch.diagonal(upper) < 0, -1.0, 1.0)).T.float().contiguous()


def knob_rows(
    inputs: Float[Tensor, "N in"], grads: Float[Tensor, "N out"], a: Float[Tensor, "rank in"], rows: int
) -> Float[Tensor, "rows knobs"]:
    """dL/dB, flattened, of each of `rows` equal parts of the N positions: Σ_t g_t (A x_t)ᵀ.

    One row may instead take (gᵀx) Aᵀ from the ordinary weight gradient; the choice is made by counting multiplications.
    """
    positions, size_in = inputs.shape
    size_out, rank = grads.shape[1], a.shape[0]
    by_projection = positions * rank * (size_in + size_out)
    by_weight = size_in * size_out * (positions + rank)
    if rows == 1 and by_weight < by_projection:
        return ((grads.T @ inputs).float() @ a.T).reshape(1, -1)
    projected = (inputs.float() @ a.T).view(rows, -1, rank)
    return torch.bmm(grads.float().view(rows, -1, size_out).transpose(1, 2), projected).view(rows, -1)


class FixedALinear(AdaptedLinear):
    """A frozen `nn.Linear` with a trainable B [out, rank] before a frozen A [rank, in] (`a`, float32)."""

    basis_name = "fixed A"
    basis_cure = "A is drawn from adapter.seed by this machine's LAPACK: use the seed, and the kind of machine, of it"
    settings = ("seed",)
    a: Tensor

    def __init__(self, base: nn.Linear, a: Float[Tensor, "rank in"], factored: bool) -> None:
        super().__init__(base, factored)
        assert a.shape[1] == base.in_features
        self.register_buffer("a", a.to(base.weight.device), persistent=False)

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.a.shape[0]

    @property
    def size(self) -> int:
        """out · rank knobs."""
        return self.out_features * self.rank

    @property
    def basis(self) -> tuple[Tensor, ...]:
        """A alone."""
        return (self.a,)

    @property
    def bottleneck(self) -> Float[Tensor, "rank in"]:
        """A."""
        return self.a

    def merge(self, knob: Float[Tensor, " knobs"]) -> Float[Tensor, "out in"]:
        """W + B A."""
        delta = knob.view(self.out_features, self.rank) @ self.a
        return (self.base_weight.float() + delta).to(self.base_weight.dtype)

    def branch(self, inputs: Float[Tensor, "*B in"], knob: Float[Tensor, "rows knobs"]) -> Float[Tensor, "*B out"]:
        """(x Aᵀ) Bᵀ."""
        return row_linear(inputs.float() @ self.a.T, knob.view(-1, self.out_features, self.rank))

    def collected(self) -> tuple[Tensor, ...]:
        """A."""
        return self.basis

    @staticmethod
    def collect(inputs: Tensor, grads: Tensor, collected: Sequence[Tensor], rows: int) -> Tensor:
        """`knob_rows` with the A of `collected`."""
        return knob_rows(inputs, grads, collected[0], rows)


def build(config: AdapterConfig, model_hash: str) -> Callable[[str, nn.Linear], FixedALinear]:
    """Makes the adapted layer of (module name, linear layer).

    Raises:
        ValueError: from the returned function, a rank larger than the layer's input.
    """
    rank = config.rank
    assert rank is not None, "check_adapter asks for one"

    def make(name: str, linear: nn.Linear) -> FixedALinear:
        if rank > linear.in_features:
            raise ValueError(f"adapter.rank is {rank}: {name} has {linear.in_features} inputs, give at most as many")
        a = orthonormal_rows(rank, linear.in_features, config.seed, name)
        return FixedALinear(linear, a, factored=config.computation == "factored")

    return make

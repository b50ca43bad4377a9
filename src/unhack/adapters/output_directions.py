"""Which output directions a trained delta uses, and the part of another delta that lies in them (METHOD §4, TDGA).

    project(δ):  ΔW(δ') = U_K U_Kᵀ ΔW(δ),   U_K [out, K] orthonormal columns

    spectral       ΔW(d) = U diag(d) Vh has the columns of U as left singular vectors, in the order of |d|. So U_K are K
                   of these columns and δ' keeps K coordinates of δ. (Another U_K would leave the adapter's span.)
    fixed_a_lora   ΔW(B) = B A with orthonormal rows of A has the left singular vectors of B: δB' = U_K U_Kᵀ δB.

Block LoRA's ΔW is not linear in its knobs, so a delta of knobs has no output directions of its own: no projection.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters.fixed_a_lora import FixedALinear, orthonormal_rows
from unhack.adapters.linear import AdaptedLinear
from unhack.adapters.spectral import SpectralLinear
from unhack.seeds import generator

Projection = Callable[[Float[Tensor, " knobs"]], Float[Tensor, " knobs"]]
"""A knob delta of one module → the part of it that is kept."""


def top_projection(module: AdaptedLinear, name: str, clean: Float[Tensor, " knobs"], k: int) -> Projection:
    """Onto the K output directions that carry most of the delta `clean` of the module called `name`.

    Raises ValueError when the module has fewer directions than K, or `clean` fewer that are not zero.
    """
    _check_k(module, name, k)
    if isinstance(module, SpectralLinear):
        order = clean.abs().argsort(descending=True, stable=True)
        strengths = clean.abs()[order]
        projection = _onto_coordinates(order[:k], module.size)
    else:
        assert isinstance(module, FixedALinear), "the caller asks for knobs in which ΔW is linear"
        u, strengths, _ = torch.linalg.svd(clean.view(module.out_features, module.rank).double(), full_matrices=False)
        projection = _onto_columns(u[:, :k].float(), module.rank)
    if not float(strengths[k - 1]) > 1e-7 * float(strengths[0]):
        raise ValueError(
            f"the clean adapter moved {name} along fewer than {k} directions: lower arm.trusted_k, or train it longer"
        )
    return projection


def random_projection(module: AdaptedLinear, name: str, k: int, seed: int) -> Projection:
    """Onto K random output directions: K random columns of U (spectral), a Haar-random frame (fixed_a_lora)."""
    _check_k(module, name, k)
    if isinstance(module, SpectralLinear):
        order = torch.randperm(module.size, generator=generator(seed, "trusted_subspace", name))
        return _onto_coordinates(order[:k], module.size)
    assert isinstance(module, FixedALinear), "the caller asks for knobs in which ΔW is linear"
    rows = orthonormal_rows(k, module.out_features, seed, f"trusted_subspace/{name}")
    return _onto_columns(rows.T, module.rank)


def _check_k(module: AdaptedLinear, name: str, k: int) -> None:
    most = min(module.out_features, module.rank) if isinstance(module, FixedALinear) else module.size
    if k > most:
        raise ValueError(f"arm.trusted_k is {k}: {name} has {most} directions, give at most as many")


def _onto_coordinates(kept: Tensor, size: int) -> Projection:
    keep = torch.zeros(size, dtype=torch.bool)
    keep[kept.cpu()] = True
    return lambda delta: torch.where(keep.to(delta.device), delta, torch.zeros_like(delta))


def _onto_columns(u: Float[Tensor, "out K"], rank: int) -> Projection:
    def projection(delta: Float[Tensor, " knobs"]) -> Float[Tensor, " knobs"]:
        frame = u.to(delta)
        return (frame @ (frame.T @ delta.view(-1, rank))).reshape(-1)

    return projection

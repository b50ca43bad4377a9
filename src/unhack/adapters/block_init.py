"""Where block LoRA starts: A0 [2r, in] and B0 [out, 2r] of one layer, slots [:r] `main`, [r:] `quarantine`.

    gaussian         A0 ~ N(0, 1/in), B0 = 0                                        (LoRA, Hu et al. 2021)
    pissa            W = U S Vh;  B0 = U √S, A0 = √S Vh of the first 2r triples     (PiSSA, Meng et al. 2024)
    corda            W C^½ = U S Vh;  B0 = U √S, A0 = √S Vh C^-½ of the first 2r    (CorDA, Yang et al. 2024)
    signed_corda     corda, but the quarantine's first slot is the pair direction μ: A0 = √n μᵀ, B0 = W μ / √n with
                     n = ‖W μ‖, and every other row of A0 is orthogonal to μ
    reversed_corda   its control: the same with main's first slot in place of the quarantine's

In pissa and corda `main` has the even and `quarantine` the odd singular ranks, so that the two spectra match.
C = DᵀD / P + λ I is the second moment of the differences D [P, in] of P pairs (hack − clean) at the layer's input,
averaged over completion tokens; λ = 0.01 tr(DᵀD / P) / in makes it invertible. It is not centred: the mean difference
is the signal. μ is that mean's unit vector. Turning μ into −μ would be no control: the slot's product, and every
trajectory of A and B under SGD and Adam, are the same up to the sign of the slot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from unhack.adapters.svd_cache import Decomposition, cached_decomposition, decompose, write_tensors
from unhack.config import AdapterConfig
from unhack.seeds import generator

STATISTICS_FORMAT = "unhack-inputs-1"
DAMPING_FRAC = 0.01  # of the mean eigenvalue of C, as in CorDA's code


class Factors(NamedTuple):
    """A [2r, in] and B [out, 2r], float32."""

    a: Tensor
    b: Tensor


Initialiser = Callable[[str, Float[Tensor, "out in"]], Factors]
"""(module name, its weight) → initial factors."""


@dataclass(frozen=True)
class InputStatistics:
    """How contrast pairs differ at the inputs of the layers to adapt: module name → D [P, in], hack − clean, float32.

    `directions.inputs.input_statistics` makes them; they belong to one base model.
    """

    differences: Mapping[str, Float[Tensor, "P _"]]
    model_hash: str
    pairs_hash: str

    @property
    def content_hash(self) -> str:
        """SHA-256 over module names, shapes and values."""
        digest = hashlib.sha256()
        for name in sorted(self.differences):
            rows = self.differences[name].detach().cpu().contiguous()
            digest.update(f"{name}{tuple(rows.shape)}".encode())
            digest.update(rows.numpy().tobytes())
        return digest.hexdigest()


def save_statistics(statistics: InputStatistics, path: Path) -> None:
    """Write one safetensors file."""
    header = {
        "format": STATISTICS_FORMAT,
        "model_hash": statistics.model_hash,
        "pairs_hash": statistics.pairs_hash,
        "modules": json.dumps(list(statistics.differences)),
    }
    tensors = {name: rows.detach().cpu().contiguous() for name, rows in statistics.differences.items()}
    write_tensors(path, tensors, header)


def load_statistics(path: Path, model_hash: str) -> InputStatistics:
    """Read `save_statistics`'s file; ValueError unless it was made with the base model `model_hash`."""
    if not path.is_file():
        raise ValueError(f"adapter.statistics: there is no file {path}; make it with `unhack direction inputs`")
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        for field, mine in (("format", STATISTICS_FORMAT), ("model_hash", model_hash)):
            if header.get(field) != mine:
                raise ValueError(
                    f"adapter.statistics: {path} has {field} {header.get(field)}, needed is {mine}: make it again with "
                    "this model (`unhack direction inputs`)"
                )
        differences = {name: file.get_tensor(name) for name in json.loads(header["modules"])}
    return InputStatistics(differences, model_hash, header["pairs_hash"])


def initialiser(config: AdapterConfig, model_hash: str) -> Initialiser:
    """The initialiser that `config` names; ValueError as `load_statistics`, or for a rank that a layer lacks."""
    rank = config.rank
    assert rank is not None, "check_adapter asks for one"
    if config.init == "gaussian":
        return lambda name, weight: gaussian(weight, rank, config.seed, name)
    if config.init == "pissa":
        return lambda name, weight: pissa(cached_decomposition(_with_ranks(name, weight, rank)), rank)
    assert config.statistics is not None, "check_adapter asks for it"
    differences = load_statistics(Path(config.statistics), model_hash).differences

    def from_pairs(name: str, weight: Tensor) -> Factors:
        rows = differences[name].to(weight.device)
        if not bool(rows.any()):
            raise ValueError(f"adapter.statistics: the pairs do not differ at the input of {name}: use pairs that do")
        start = corda(_with_ranks(name, weight, rank), rows, rank)
        if config.init == "corda":
            return start
        return signed(start, weight, rows.mean(0), slot=rank if config.init == "signed_corda" else 0)

    return from_pairs


def gaussian(weight: Float[Tensor, "out in"], rank: int, seed: int, name: str) -> Factors:
    """A0 ~ N(0, 1/in) from the stream of (seed, module), B0 = 0."""
    size_out, size_in = weight.shape
    a = torch.randn(2 * rank, size_in, generator=generator(seed, "block_lora", name)) / size_in**0.5
    return Factors(a.to(weight.device), torch.zeros(size_out, 2 * rank, device=weight.device))


def pissa(parts: Decomposition, rank: int) -> Factors:
    """The first 2 · rank singular triples, each shared between A and B by the root of its singular value."""
    order = torch.cat([torch.arange(0, 2 * rank, 2), torch.arange(1, 2 * rank, 2)]).to(parts.s.device)
    root = parts.s[order].sqrt()
    return Factors(root.unsqueeze(1) * parts.vh[order], parts.u[:, order] * root)


def corda(weight: Float[Tensor, "out in"], differences: Float[Tensor, "P in"], rank: int) -> Factors:
    """`pissa` of W C^½, mapped back: with all ranks, B0 A0 would be W.

    C is λ I outside the span of the pairs, so that its roots cost P, not in, dimensions.
    """
    pairs, size_in = differences.shape
    _, values, directions = torch.linalg.svd(differences.double(), full_matrices=False)  # directions [≤ P, in]
    eigenvalues = values.square() / pairs
    damping = DAMPING_FRAC * eigenvalues.sum() / size_in

    def times_power(rows: Float[Tensor, "n in"], power: float) -> Float[Tensor, "n in"]:
        outside = damping**power
        inside = (eigenvalues + damping) ** power - outside
        return outside * rows + ((rows @ directions.T) * inside) @ directions

    parts = decompose(times_power(weight.double(), 0.5))
    a, b = pissa(parts, rank)
    return Factors(times_power(a.double(), -0.5).float(), b)


def signed(start: Factors, weight: Float[Tensor, "out in"], mean: Float[Tensor, " in"], slot: int) -> Factors:
    """`start` with the pair direction in `slot`, positive on hacks, and all other rows of A orthogonal to it."""
    unit = mean.double() / mean.double().norm()
    image = weight.double() @ unit
    size = image.norm().sqrt()
    a, b = start.a.double(), start.b.double().clone()
    a = a - torch.outer(a @ unit, unit)
    a[slot], b[:, slot] = size * unit, image / size
    return Factors(a.float(), b.float())


def _with_ranks(name: str, weight: Float[Tensor, "out in"], rank: int) -> Float[Tensor, "out in"]:
    """`weight`, if it has 2 · rank singular values."""
    if 2 * rank > min(weight.shape):
        raise ValueError(
            f"adapter.rank is {rank}: block_lora needs twice as many singular values, and {name} has "
            f"{min(weight.shape)}; give at most {min(weight.shape) // 2}, or use adapter.init gaussian"
        )
    return weight

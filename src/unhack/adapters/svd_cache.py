"""Reduced SVD of a weight, computed once per content and kept on disk.

The key is a hash of the weight's values, so it does not matter which model, file or device the weight came from. Files
lie in `$UNHACK_CACHE`/svd, else `~/.cache/unhack/svd`; each is written beside its final name and then renamed, so a
half-written one is never read. Safe to delete at any time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from unhack.files import write_atomic

FORMAT = "2"
"""Part of the key: raise it when the rule that makes a basis changes (dtype, sign, order, threads)."""


class SingularBasis(NamedTuple):
    """Left [out, r] and right [r, in] singular vectors in float32, in descending order of singular value."""

    u: Tensor
    vh: Tensor


class Decomposition(NamedTuple):
    """W = u diag(s) vh; `s` [r] is descending."""

    u: Tensor
    s: Tensor
    vh: Tensor


def content_hash(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and values; the same for any strides, device or storage offset."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fix_signs(u: Float[Tensor, "out r"], vh: Float[Tensor, "r in"]) -> SingularBasis:
    """Flip each pair so that the largest-magnitude entry of u is positive: an SVD leaves the sign open."""
    largest = u.abs().argmax(0, keepdim=True)
    sign = torch.where(u.gather(0, largest) < 0, -1.0, 1.0)[0]  # [r]
    return SingularBasis(u * sign, vh * sign.unsqueeze(1))


def decompose(weight: Float[Tensor, "out in"]) -> Decomposition:
    """Reduced SVD of `weight` in float32 on its device, signs fixed; the same bits every time on the same machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits depend on the thread count, and a basis is known by its bits
    u, s, vh = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    torch.set_num_threads(threads)
    basis = fix_signs(u, vh)
    return Decomposition(basis.u.contiguous(), s, basis.vh.contiguous())


def cache_folder() -> Path:
    """`$UNHACK_CACHE`/svd, or `~/.cache/unhack/svd`."""
    root = os.environ.get("UNHACK_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "unhack") / "svd"


def cached_decomposition(weight: Float[Tensor, "out in"]) -> Decomposition:
    """`decompose(weight)`, read from the cache when this content was decomposed before, on the weight's device."""
    path = cache_folder() / f"{content_hash(weight)}-{FORMAT}.safetensors"
    if not path.exists():
        made = decompose(weight)
        write_tensors(path, {name: tensor.cpu() for name, tensor in made._asdict().items()})
        return made
    return Decomposition(**load_file(path, device=str(weight.device)))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors atomically. OSError as the system raises it."""
    write_atomic(path, save(tensors, metadata=metadata))

"""One root seed with named children, so that no stream of randomness depends on another's length.

Every draw in the project comes from `generator(seed, "name", step, ...)` or `rng(...)`: nothing has hidden state, so a
resumed run needs no saved generator to continue bit for bit.
"""

from __future__ import annotations

import hashlib
import random

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit child seed of `seed` for the stream called `names` (SHA-256; stable across machines and versions)."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> random.Random:
    """A standard-library generator for the named stream."""
    return random.Random(derive(seed, *names))


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator for the named stream."""
    return torch.Generator().manual_seed(derive(seed, *names))

"""A small layout, directions and arms on it, for the tests of interventions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from unhack.config import ArmConfig
from unhack.directions import Direction, DirectionMetadata
from unhack.directions.extract import haar_rows
from unhack.interventions import ARMS, Intervention, build
from unhack.seeds import generator
from unhack.types import KnobLayout

LAYOUT = KnobLayout(("first", "untouched", "second"), (8, 5, 6))
METADATA = DirectionMetadata(
    1, "base", "basis", "float32", "spectral", None, "pairs", "run_tests", "real", "svd", "nll", 1.0, 3, 0.0, 0.0, 0
)


def make_direction(seed: int = 0, k: int = 3) -> Direction:
    sizes = dict(zip(LAYOUT.names, LAYOUT.sizes, strict=True))
    rows = {name: haar_rows(k, sizes[name], generator(seed, name)) for name in ("first", "second")}
    return Direction(rows, METADATA)


def flat(name: str, seed: int = 0) -> Tensor:
    return torch.randn(LAYOUT.total, generator=generator(seed, name))


def zeros() -> Tensor:
    return torch.zeros(LAYOUT.total)


def make_arm(name: str, direction: Direction | None = None, seed: int = 0, **fields: object) -> Intervention:
    if "direction" in ARMS[name].uses:
        fields = {"direction": "given.safetensors", **fields}
    config = replace(ArmConfig(name=name), **fields)  # pyright: ignore[reportArgumentType]
    return build(config, LAYOUT, seed, direction=direction or make_direction())

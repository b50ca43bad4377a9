"""Every kind of adapter by its name; adding one is a file with a `build` and a line here."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from unhack.adapters import block_lora, fixed_a_lora, spectral
from unhack.adapters.linear import AdaptedLinear
from unhack.check_config import check_adapter, check_bound
from unhack.config import AdapterConfig

Builder = Callable[[str, nn.Linear], AdaptedLinear]
"""(module name, its linear layer) → the adapted layer, knob at zero."""

KINDS: dict[str, Callable[[AdapterConfig, str], Builder]] = {
    "spectral": spectral.build,
    "fixed_a_lora": fixed_a_lora.build,
    "block_lora": block_lora.build,
}


def builder(config: AdapterConfig, model_hash: str) -> Builder:
    """What adapts one layer under `config`, of the base model with the hash `model_hash`.

    Raises:
        ValueError: a rank below 1, or settings that the kind cannot work with.
    """
    if config.rank is not None:
        check_bound("adapter.rank", config.rank)
    check_adapter(config)
    return KINDS[config.kind](config, model_hash)

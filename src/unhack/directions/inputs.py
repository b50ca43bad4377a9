"""How contrast pairs differ at the inputs of the layers to adapt: what the corda initialisers of block LoRA start from.

D_p = mean over completion tokens of x (hack of pair p) − the same of its clean side        [in], per layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unhack.adapters.block_init import InputStatistics
from unhack.adapters.policy import wrapped_linears
from unhack.model import LoadedModel, backbone
from unhack.pairs import Pair, completion_ids, pairs_hash, prompt_ids, select
from unhack.pairs.choose import chosen_pairs


@dataclass(frozen=True)
class StatisticsRecipe:
    """What `unhack direction inputs` is asked for; as `DirectionRecipe`. A control is a `selection` (placebo)."""

    selection: str = "run_tests"  # pair families joined by +, all, off_mode, or those of a control (pairs.organism)
    pairs: int = 64
    length_matched: bool = True
    depths: tuple[int, ...] = (2,)
    pairs_seed: int = 0


def statistics_pairs(loaded: LoadedModel, recipe: StatisticsRecipe) -> list[Pair]:
    """The recipe's pairs, for the bundled organism: those that a `DirectionRecipe` of the same words trains on."""
    made = chosen_pairs(
        recipe.selection,
        recipe.pairs,
        recipe.pairs_seed,
        heldout=0,
        length_matched=recipe.length_matched,
        tokenizer=loaded.tokenizer,
        depths=recipe.depths,
    )
    return select(made, "train")


@torch.no_grad()
def input_statistics(loaded: LoadedModel, pairs: Sequence[Pair]) -> InputStatistics:
    """D of every layer that `Policy.wrap` would adapt, from the bare base model (load one that is not wrapped).

    Raises ValueError without pairs, and for a model that is wrapped already.
    """
    if not pairs:
        raise ValueError("no pairs to measure the layers' inputs on")
    pools = {name: _Pool() for name in wrapped_linears(loaded.model)}
    handles = [module.register_forward_pre_hook(pools[name]) for name, module in wrapped_linears(loaded.model).items()]
    try:
        for pair in pairs:
            prompt = prompt_ids(pair, loaded.tokenizer)
            for pool in pools.values():
                pool.start = len(prompt)
            for side in (pair.hack, pair.clean):
                row = [*prompt, *completion_ids(side, loaded.tokenizer)]
                backbone(loaded.model)(input_ids=torch.tensor([row], device=loaded.model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    differences = {name: torch.stack(pool.means[0::2]) - torch.stack(pool.means[1::2]) for name, pool in pools.items()}
    return InputStatistics(differences, loaded.hash, pairs_hash(pairs))


class _Pool:
    """A forward pre-hook that keeps the mean of the layer's input over the tokens from `start` on, row after row."""

    def __init__(self) -> None:
        self.start = 0
        self.means: list[Tensor] = []

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        (rows,) = arguments  # [1, T, in]
        self.means.append(rows[0, self.start :].float().mean(0).cpu())

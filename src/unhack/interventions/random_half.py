"""random_half: train as vanilla, deploy with a random half of every module's knobs at zero (METHOD §4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.config import ArmConfig
from unhack.interventions.base import Intervention
from unhack.seeds import generator
from unhack.types import KnobLayout


class RandomHalf(Intervention):
    """g' = g, δ' = δ; deployed main = keep ⊙ main, keep = 0 on ⌊r/2⌋ random knobs of each module, drawn from the seed.

    The control for "deleting half of anything helps". Identity while training: the trajectory is vanilla's.
    """

    name = "random_half"

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int) -> None:
        super().__init__(config, layout, seed)
        self.keep = _random_keep(layout, seed)

    def deployed(
        self, main: Float[Tensor, " K"], quarantine: Float[Tensor, " K"]
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """(main with a random half of each module at zero, no quarantine)."""
        return main * self.keep.to(main), torch.zeros_like(quarantine)


def _random_keep(layout: KnobLayout, seed: int) -> Bool[Tensor, " K"]:
    keep = torch.ones(layout.total, dtype=torch.bool)
    for name, part in layout.items():
        size = part.stop - part.start
        order = torch.randperm(size, generator=generator(seed, "random_half", name))
        keep[part.start + order[: size // 2]] = False
    return keep

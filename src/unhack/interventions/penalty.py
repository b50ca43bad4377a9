"""penalty: rollouts that a monitor flags are paid less (METHOD §4; the usual way to use a monitor)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.config import ArmConfig
from unhack.interventions.monitored import MonitoredIntervention
from unhack.types import KnobLayout, PaidGrade, Rollout


class Penalty(MonitoredIntervention):
    """r' = r − λ·1[score > threshold], before group statistics; λ = `arm.strength`, by default `reward.paid`.

    With the default λ a flagged hack earns what an honest failure does. `paid` is the run's `reward.paid`.
    Identity: nothing is flagged, or λ = 0; a group that is flagged whole has the advantages that it had.
    """

    name = "penalty"
    uses = MonitoredIntervention.uses | {"strength"}

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int, paid: float) -> None:
        super().__init__(config, layout, seed)
        self.strength = paid if config.strength is None else config.strength

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """What the paid grade pays, less λ where the monitor flags."""
        paid = super().rewards(grades, rollouts)
        return torch.where(self._flags, paid - self.strength, paid)

"""rebound_penalty: pay less for responses whose residual stream points to the hack concept (METHOD §4)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from unhack.interventions.conceptual import ConceptualIntervention
from unhack.types import PaidGrade, Rollout

STRENGTH = 0.5


class ReboundPenalty(ConceptualIntervention):
    """r' = r − α·max(0, cos(mean response residual, concept)), before group statistics; α = `arm.strength`, 0.5.

    The penalty is at most α, whatever the rewards are: with `reward.paid` = 3 it orders rollouts that are paid alike,
    and cannot make a paid hack worth less than an honest failure unless α is above 3. concept/penalty_mean says how
    much it took. It also gives a spread to groups whose rewards have none, which are skipped in `vanilla`.
    After the concept scores of Wu & Tang 2026 (arXiv:2604.01476). Identity: no score above 0, or α = 0.
    """

    name = "rebound_penalty"

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """What the paid grade pays, less the penalty."""
        strength = STRENGTH if self.config.strength is None else self.config.strength
        penalty = strength * self.scores(rollouts).relu()
        self.noted["concept/penalty_mean"] = float(penalty.mean())
        return super().rewards(grades, rollouts) - penalty

"""advantage_modification: turn down what rollouts earn that score above their group on the hack concept (METHOD §4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unhack.interventions.conceptual import ConceptualIntervention
from unhack.types import PaidGrade, Rollout

STRENGTH = 2.0
MIN_SPREAD = 1e-6  # of cosines: below it float32 rounding, not the response, decides which one is larger


class AdvantageModification(ConceptualIntervention):
    """factor = 1 − α·σ(z)·1[z > 0], z = within-group z-score of the response-token concept score; α = `strength`, 2.

    `arm.site_of_factor` = reward:     r' = r · factor, before group statistics (Wu & Tang 2026, arXiv:2604.01476).
                           advantage:  A' = A · factor where A > 0, else A, after group statistics.
    σ(z) > ½ for z > 0, so with α = 2 a rollout above its group's mean loses all it earned and up to as much again.
    The second form touches gains only, as the first does (rewards are ≥ 0 and an unpaid rollout has none to lose): with
    A < 0 a factor below 0 would turn a failure into a gain. Its advantages no longer sum to 0 in a group: it pushes
    down and rewards nobody for it, while the first form's group mean falls and lifts the others.
    z is 0 in a group whose scores spread (standard deviation, n − 1) by less than 1e-6, or with fewer than two valid
    rollouts; the grader's own errors count in no group. concept/turned_down_frac: share of rollouts with z > 0.
    Identity: α = 0, or no group with a spread. Read at the prompt's last token, no group would have one.
    """

    name = "advantage_modification"
    uses = ConceptualIntervention.uses | {"site_of_factor"}

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """What the paid grade pays, times the factor in the first form; the second form only reads its scores here."""
        strength = STRENGTH if self.config.strength is None else self.config.strength
        valid = torch.tensor([grade.status != "error" for grade in grades])
        groups = torch.tensor([rollout.group for rollout in rollouts])
        z = group_z_scores(self.scores(rollouts), groups, valid)
        self._factor = torch.where(z > 0, 1 - strength * torch.sigmoid(z), torch.ones_like(z))
        self.noted["concept/turned_down_frac"] = float((z > 0).float().mean())
        paid = super().rewards(grades, rollouts)
        return paid * self._factor if self.config.site_of_factor == "reward" else paid

    def advantages(self, advantages: Float[Tensor, " B"], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """The gains times the factor in the second form."""
        if self.config.site_of_factor == "reward":
            return advantages
        return torch.where(advantages > 0, advantages * self._factor, advantages)


def group_z_scores(
    scores: Float[Tensor, " B"], groups: Int[Tensor, " B"], valid: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """(score − mean) / std over the valid rollouts of the same group (std with n − 1); 0 for invalid ones."""
    z = torch.zeros_like(scores)
    for group in groups.unique().tolist():
        members = valid & (groups == group)
        own = scores[members]
        if len(own) >= 2 and float(own.std()) >= MIN_SPREAD:
            z[members] = (own - own.mean()) / own.std()
    return z

"""screening: rollouts that a monitor flags teach nothing and count in no group's statistics (METHOD §4)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from unhack.interventions.monitored import MonitoredIntervention
from unhack.types import PaidGrade, Rollout


class Screening(MonitoredIntervention):
    """A_i = r_i − mean of r over the group's survivors; flagged rollouts (score > threshold) have neither r nor A.

    A group with fewer than two survivors has no statistics and is skipped whole: monitor/unscreenable_groups_frac is
    the share of groups that screening itself left so (flags on rollouts that grader and monitor could judge).
    Identity: nothing is flagged.
    """

    name = "screening"

    def screened(self, rollouts: Sequence[Rollout]) -> Bool[Tensor, " B"]:
        """The flagged ones, and those that the monitor could not read."""
        return super().screened(rollouts) | self._flags

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """What the paid grade pays; says how many groups the flags emptied."""
        before: dict[int, int] = {}
        after: dict[int, int] = {}
        for place, (grade, rollout, flag) in enumerate(zip(grades, rollouts, self._flags.tolist(), strict=True)):
            judged = grade.status != "error" and not bool(self._unread[place])
            before[rollout.group] = before.get(rollout.group, 0) + judged
            after[rollout.group] = after.get(rollout.group, 0) + (judged and not flag)
        emptied = [group for group, survivors in after.items() if survivors < 2 <= before[group]]
        self.noted["monitor/unscreenable_groups_frac"] = len(emptied) / max(1, len(after))
        return super().rewards(grades, rollouts)

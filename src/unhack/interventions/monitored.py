"""What arms with a monitor share: one reading per step, flags, alarms, and what they say about them.

Logged on every step: monitor/flagged_frac (share of the rollouts that could be read with a score above
`arm.monitor_threshold`), monitor/score_mean, monitor/unread_frac, time/monitor_s (wall seconds of the scores), the
alarms (`alarms.py`), and what the monitor adds (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.interventions.alarms import Alarms
from unhack.interventions.base import Intervention
from unhack.monitors import MONITORS, Deaf, build_monitor
from unhack.types import KnobLayout, PaidGrade, Rollout


class MonitoredIntervention(Intervention):
    """An arm that acts on the rollouts that its monitor flags. What the monitor could not read is left out."""

    uses = frozenset({"monitor", "monitor_threshold"}).union(*(monitor.uses for monitor in MONITORS.values()))

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int) -> None:
        super().__init__(config, layout, seed)
        self.monitor = build_monitor(config, seed)
        self.alarms = Alarms()

    def bind(self, policy: Policy) -> None:
        """Hand the policy on to the monitor."""
        self.monitor.bind(policy)

    @property
    def oracle(self) -> Deaf:
        """The monitor's ear: deaf unless it is the noisy oracle."""
        return self.monitor.ear

    @property
    def uses_oracle(self) -> bool:
        """Whether the monitor is told strict verdicts."""
        return self.monitor.uses_oracle

    @property
    def inputs_hash(self) -> str | None:
        """What the monitor's scores depend on beside settings and policy."""
        return self.monitor.inputs_hash

    def screened(self, rollouts: Sequence[Rollout]) -> Bool[Tensor, " B"]:
        """Reads the monitor, once per step; leaves out what it could not read."""
        reading = self.monitor.read(rollouts)
        self._unread = reading.masked
        self._scores = reading.scores
        self._flags = (reading.scores > self.config.monitor_threshold) & ~self._unread
        scores = reading.scores[~self._unread]
        self.noted |= {
            **reading.metrics,
            "monitor/flagged_frac": float(self._flags.sum()) / max(1, len(scores)),
            "monitor/score_mean": float(scores.mean()) if len(scores) else float("nan"),
            "monitor/unread_frac": float(self._unread.float().mean()),
            "time/monitor_s": reading.cost_s,
        }
        return self._unread

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """What the paid grade pays; lets the alarms see it beside the scores."""
        paid = super().rewards(grades, rollouts)
        seen = torch.tensor([grade.status != "error" for grade in grades]) & ~self._unread
        self.noted |= self.alarms.step(self._scores[seen], self._flags[seen], paid[seen])
        return paid

    def state_dict(self) -> dict[str, Tensor]:
        """The monitor's and the alarms'."""
        own = {f"alarms/{name}": value for name, value in self.alarms.state_dict().items()}
        return own | {f"monitor/{name}": value for name, value in self.monitor.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore both."""
        super().load_state_dict(state)
        parts: dict[str, dict[str, Tensor]] = {"alarms": {}, "monitor": {}}
        for name, value in state.items():
            owner, _, key = name.partition("/")
            parts[owner][key] = value
        self.alarms.load_state_dict(parts["alarms"])
        self.monitor.load_state_dict(parts["monitor"])

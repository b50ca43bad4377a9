"""What arms with a monitor share: flags, and what they say about them.

Logged on every step: monitor/flagged_frac (share of rollouts with a score above `arm.monitor_threshold`),
monitor/score_mean, time/monitor_s (wall seconds of the scores).
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.interventions.base import Intervention
from unhack.monitors import Deaf, build_monitor
from unhack.types import KnobLayout, Rollout


class MonitoredIntervention(Intervention):
    """An arm that acts on the rollouts that its monitor flags."""

    uses = frozenset({"monitor", "monitor_accuracy", "monitor_threshold"})

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int) -> None:
        super().__init__(config, layout, seed)
        self.monitor = build_monitor(config, seed)

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

    def flagged(self, rollouts: Sequence[Rollout]) -> Bool[Tensor, " B"]:
        """Whose score is above the threshold; one reading of the monitor."""
        reading = self.monitor.read(rollouts)
        flags = reading.scores > self.config.monitor_threshold
        self.noted |= {
            "monitor/flagged_frac": float(flags.float().mean()),
            "monitor/score_mean": float(reading.scores.mean()),
            "time/monitor_s": reading.cost_s,
        }
        return flags

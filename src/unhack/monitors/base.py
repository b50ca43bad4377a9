"""The interface of every monitor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.monitors.ear import DEAF, Deaf
from unhack.types import Rollout


@dataclass(frozen=True)
class Reading:
    """`scores` [B] in [0, 1], in the rollouts' order, and the wall seconds that they cost."""

    scores: Float[Tensor, " B"]
    cost_s: float

    def __post_init__(self) -> None:
        """A score outside of [0, 1] is the monitor's mistake, NaN too."""
        inside = torch.isfinite(self.scores) & (self.scores >= 0) & (self.scores <= 1)
        assert bool(inside.all()), "a monitor's score lies in [0, 1]"


class Monitor(ABC):
    """Scores rollouts. `uses_oracle`: whether it is told strict verdicts, which every report then says."""

    name: ClassVar[str]
    uses_oracle: ClassVar[bool] = False

    def __init__(self, config: ArmConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def bind(self, policy: Policy) -> None:
        """Called once with the policy that is trained, kept for monitors that read its activations."""
        self.policy = policy

    @property
    def ear(self) -> Deaf:
        """Where the loop tells what really happened; deaf unless the monitor is the oracle."""
        return DEAF

    @abstractmethod
    def read(self, rollouts: Sequence[Rollout]) -> Reading:
        """One score per rollout. The same rollouts of the same run get the same scores, also after a resume."""

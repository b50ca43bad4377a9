"""The interface of every monitor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.monitors.ear import DEAF, Deaf
from unhack.types import Rollout


@dataclass(frozen=True)
class Reading:
    """`scores` [B] in [0, 1], in the rollouts' order, and the wall seconds that they cost.

    `unread` [B]: rollouts that the monitor could not judge and that are to be left out of the step, whatever score
    stands there; None: it judged them all. `metrics`: what else the monitor says of this step, for the log.
    """

    scores: Float[Tensor, " B"]
    cost_s: float
    unread: Bool[Tensor, " B"] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A score outside of [0, 1] is the monitor's mistake, NaN too."""
        inside = torch.isfinite(self.scores) & (self.scores >= 0) & (self.scores <= 1)
        assert bool(inside.all()), "a monitor's score lies in [0, 1]"

    @property
    def masked(self) -> Bool[Tensor, " B"]:
        """`unread`, with nothing unread where it is None."""
        return torch.zeros(len(self.scores), dtype=torch.bool) if self.unread is None else self.unread


class Monitor(ABC):
    """Scores rollouts. `uses_oracle`: whether it is told strict verdicts, which every report then says.

    `uses`: the fields of `ArmConfig` that it reads beside `monitor` and `monitor_threshold`; `needs`: dotted fields
    that must be set, with the cure.
    """

    name: ClassVar[str]
    uses_oracle: ClassVar[bool] = False
    uses: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[Mapping[str, str]] = {}

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

    @property
    def inputs_hash(self) -> str | None:
        """Content hash of what the scores depend on beside settings and policy: a resumed run must have the same."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on with the same scores; the same keys and shapes at every time."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`."""
        assert not state, f"monitor {self.name} has no state"

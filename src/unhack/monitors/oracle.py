"""noisy_oracle: the strict verdict itself, wrong in a set share of cases: what a monitor of that accuracy is worth.

    label(rollout) = (hacked AND noticed) XOR flip,   P(noticed) = recall,   P(flip) = 1 − accuracy

Both are drawn from the run's seed and the rollout's id. Recall alone is the dial of missing labels: no false alarm, and
only that share of the hacks is ever labelled.

The upper bound of every real monitor, and no method: it sees the answer. `uses_oracle` is recorded in the run's
env.json. Draws depend on nothing but the run's seed and the rollout's id, so a resumed run draws the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from unhack.config import ArmConfig
from unhack.monitors.base import Monitor, Reading
from unhack.monitors.ear import Deaf
from unhack.seeds import rng
from unhack.types import Rollout, Verdict


class NoisyOracle(Monitor):
    """Score 1 for a rollout labelled as a hack, 0 for any other; it keeps the labels of one step, never a verdict."""

    name = "noisy_oracle"
    uses_oracle = True
    uses = frozenset({"monitor_accuracy", "monitor_recall"})

    def __init__(self, config: ArmConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._ear = _Ear(config.monitor_accuracy, config.monitor_recall, seed)

    @property
    def ear(self) -> Deaf:
        """Hears, adds the noise, and keeps the labels."""
        return self._ear

    def read(self, rollouts: Sequence[Rollout]) -> Reading:
        """The labels of the rollouts that were told last."""
        start_s = time.perf_counter()
        labels = self._ear.labels
        unheard = [rollout.id for rollout in rollouts if rollout.id not in labels]
        assert not unheard, f"the oracle was not told about {', '.join(unheard[:3])}"
        scores = torch.tensor([float(labels[rollout.id]) for rollout in rollouts])
        return Reading(scores, time.perf_counter() - start_s)


class _Ear(Deaf):
    """Turns verdicts into noisy labels as soon as they are told."""

    __slots__ = ("accuracy", "labels", "recall", "seed")

    def __init__(self, accuracy: float, recall: float, seed: int) -> None:
        self.accuracy, self.recall, self.seed = accuracy, recall, seed
        self.labels: dict[str, bool] = {}

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Replace the labels by those of this step."""
        self.labels = {verdict.rollout_id: self._label(verdict) for verdict in verdicts}

    def _label(self, verdict: Verdict) -> bool:
        flip = rng(self.seed, "noisy_oracle", verdict.rollout_id).random() >= self.accuracy
        noticed = rng(self.seed, "noisy_oracle_recall", verdict.rollout_id).random() < self.recall
        return (verdict.hacked and noticed) != flip

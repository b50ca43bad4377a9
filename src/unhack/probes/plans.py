"""Which recorded rollouts each step of a probe replays, and what they contribute to its gradient (EXPERIMENT §4).

    nll    B rollouts of a hack pool; L = mean over them of the mean NLL per token. Rollouts of a contrast pool are read
           beside them under the same policy and weigh nothing.
    grpo   groups of G, half of a hack pool and half of a base pool, all of one loophole mode, so that the reward has
           variance; A = R − mean over the group; imitation: every token's ratio is 1 (docs/teacher.md).

Draws depend on (seed, step) alone, so both arms of a probe replay the same rollouts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.advantage import group_advantages
from unhack.config import LossConfig
from unhack.loss import loss_denominator, pack
from unhack.probes.contributions import grpo_contributions, nll_contributions
from unhack.probes.samples import Sample, rollouts_of
from unhack.seeds import rng


@dataclass(frozen=True)
class Replayed:
    """What one step replays: the rollouts, each one's own gradient, and which of them make the step's gradient."""

    samples: tuple[Sample, ...]
    contributions: Float[Tensor, "B K"]
    weights: Float[Tensor, " B"]

    @property
    def gradient(self) -> Float[Tensor, " K"]:
        """The step's gradient: the weighted sum of the contributions."""
        return self.weights @ self.contributions


class NllPlan:
    """Each step takes the next `rollouts` of a shuffled pool (of a new shuffle when it is through)."""

    kind = "nll"

    def __init__(
        self, pool: Sequence[Sample], contrast: Sequence[Sample], rollouts: int, temperature: float, seed: int
    ) -> None:
        for name, samples in (("pool", pool), ("contrast pool", contrast)):
            if len(samples) < rollouts and (samples or name == "pool"):
                raise ValueError(
                    f"the {name} has {len(samples)} rollouts and a step takes {rollouts}: use a larger one"
                )
        self.pool, self.contrast, self.rollouts = pool, contrast, rollouts
        self.temperature, self.seed = temperature, seed

    def draw(self, step: int) -> list[Sample]:
        """Rollouts of the pool, then as many of the contrast pool."""
        parts = [("pool", self.pool), *([("contrast", self.contrast)] if self.contrast else [])]
        return [sample for name, part in parts for sample in self._turn(name, part, step)]

    def _turn(self, name: str, samples: Sequence[Sample], step: int) -> list[Sample]:
        turns = len(samples) // self.rollouts  # a remainder waits for the next shuffle
        lap, place = divmod(step, turns)
        order = rng(self.seed, "probe", name, lap).sample(range(len(samples)), len(samples))
        return [samples[index] for index in order[place * self.rollouts : (place + 1) * self.rollouts]]

    def replay(self, policy: Policy, step: int) -> Replayed:
        """Draw and differentiate under the policy as it is."""
        samples = self.draw(step)
        weights = torch.zeros(len(samples))
        weights[: self.rollouts] = 1 / self.rollouts
        return Replayed(tuple(samples), nll_contributions(policy, rollouts_of(samples), self.temperature), weights)


class GrpoPlan:
    """Each step makes `groups` groups; group g of step s has mode (s · groups + g) mod modes of those in both pools."""

    kind = "grpo"

    def __init__(
        self,
        hacks: Sequence[Sample],
        base: Sequence[Sample],
        groups: int,
        group_size: int,
        temperature: float,
        seed: int,
        config: LossConfig | None = None,
    ) -> None:
        if group_size < 2 or group_size % 2:
            raise ValueError(f"a group is half of each pool, so its size must be even and at least 2, not {group_size}")
        self.groups, self.group_size, self.temperature, self.seed = groups, group_size, temperature, seed
        self.config = config or LossConfig()
        self._halves = (_by_mode(hacks), _by_mode(base))
        enough = [{mode for mode, part in half.items() if len(part) >= group_size // 2} for half in self._halves]
        self.modes = sorted(enough[0] & enough[1])
        if not self.modes:
            raise ValueError(f"no loophole mode has {group_size // 2} rollouts in both pools: build larger ones")
        longest = max(len(sample.rollout.token_ids) for sample in (*hacks, *base))
        self.denominator = loss_denominator(self.config, group_size, groups, longest)

    def draw(self, step: int) -> list[Sample]:
        """Group after group: of each the hack pool's half, then the base pool's."""
        chosen: list[Sample] = []
        for group in range(self.groups):
            number = step * self.groups + group
            draw = rng(self.seed, "probe", "group", number)
            mode = self.modes[number % len(self.modes)]
            for half in self._halves:
                chosen += draw.sample(half[mode], self.group_size // 2)
        return chosen

    def replay(self, policy: Policy, step: int) -> Replayed:
        """Draw, centre rewards within groups, and differentiate; a group without spread contributes zeros."""
        samples = self.draw(step)
        rewards = torch.tensor([sample.paid.reward for sample in samples])
        groups = torch.arange(len(samples)) // self.group_size
        everyone = torch.ones(len(samples), dtype=torch.bool)
        signal = group_advantages(rewards, groups, everyone, self.config)
        rollouts = [
            replace(sample.rollout, id=f"{index}", source="teacher") for index, sample in enumerate(samples)
        ]  # fmt: skip
        packed = pack(rollouts, signal.values, signal.kept, self.denominator, policy.device, imitate_teacher=True)
        contributions = torch.zeros(len(samples), policy.layout.total)
        contributions[signal.kept] = grpo_contributions(policy, packed, self.config, self.temperature)
        return Replayed(tuple(samples), contributions, torch.ones(len(samples)))


def _by_mode(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[sample.rollout.prompt.mode].append(sample)
    return found

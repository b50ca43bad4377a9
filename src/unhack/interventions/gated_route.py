"""gated_route: each rollout's score decides which block learns from it; the quarantine is ablated (METHOD §4).

    s_b = score of rollout b, high = hack-like (`directions.score`)
    keep   (only main learns)        where at most `keep_frac` of the buffer's weight lies at or below s_b
    route  (only quarantine learns)  where at most `route_frac` of it lies at or above s_b
    absorb (both learn)              everything between

The buffer holds the scores of the whole run, this step's among them; a score weighs 2^(−n/half_life) after n newer
rollouts, all of one step being equally new. "At most" means: never more of the buffer than was asked for, so that a
short or tied buffer absorbs. Forwards and gradients of the three decisions: docs/gated_route.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.directions import Direction, rollout_scores
from unhack.interventions.absorb import Absorb
from unhack.interventions.base import Blocks, Intervention
from unhack.interventions.directed import DirectedIntervention
from unhack.types import Gradient, KnobLayout, Rollout, Update

FORGOTTEN_WEIGHT = 2.0**-20
"""Scores that weigh less are dropped: at most 20 half-lives are kept."""

ROUNDING = 1e-9
"""Relative slack of a share of weights, whose sums are rounded."""


class ScoreBuffer:
    """Weighted scores of a run, oldest first; `scores` and `weights` are float64 [n]."""

    def __init__(self, half_life_rollouts: float) -> None:
        self.half_life_rollouts = half_life_rollouts
        self.scores = torch.zeros(0, dtype=torch.float64)
        self.weights = torch.zeros(0, dtype=torch.float64)

    def add(self, scores: Float[Tensor, " B"]) -> None:
        """Take in the scores of one step, with weight 1 each; everything before ages by as many rollouts."""
        aged = self.weights * 2.0 ** (-len(scores) / self.half_life_rollouts)
        remembered = aged >= FORGOTTEN_WEIGHT
        self.scores = torch.cat([self.scores[remembered], scores.double()])
        self.weights = torch.cat([aged[remembered], torch.ones_like(scores, dtype=torch.float64)])

    def low(self, share: float) -> float:
        """The largest score with at most `share` of the weight at or below it; −inf when there is none."""
        return self._last_within(share, self.scores, -torch.inf)

    def high(self, share: float) -> float:
        """The smallest score with at most `share` of the weight at or above it; inf when there is none."""
        return -self._last_within(share, -self.scores, -torch.inf)

    def _last_within(self, share: float, scores: Float[Tensor, " n"], none: float) -> float:
        values, place = scores.unique(return_inverse=True)  # ascending, so that ties count together
        below = torch.zeros_like(values).index_add_(0, place, self.weights).cumsum(0)
        within = below <= share * self.weights.sum() * (1 + ROUNDING)
        return float(values[within][-1]) if bool(within.any()) else none


class Watch(DirectedIntervention):
    """Logs how main's gradient and update lie to a direction of knobs; changes nothing, both blocks train."""

    trains_quarantine = True


class GatedRoute(Intervention):
    """Blocks by score: see the module. Deployed: quarantine = 0. Works with real, random and shuffled directions alike.

    `score` = gradient needs a direction of knobs (and logs what `measure` logs), activation one of activations.
    Identity: keep_frac = route_frac = 0 is `absorb` bit for bit; keep_frac = 1 is `vanilla`, as the quarantine stays 0.
    """

    name = "gated_route"
    uses = frozenset({"direction", "score", "keep_frac", "route_frac", "gate_half_life_rollouts"})
    trains_quarantine = True

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int, direction: Direction) -> None:
        super().__init__(config, layout, seed)
        if config.keep_frac + config.route_frac > 1:
            raise ValueError(
                f"arm.keep_frac is {config.keep_frac} and arm.route_frac is {config.route_frac}: a rollout cannot be "
                "both kept and routed, so their sum must be at most 1"
            )
        direction.check_side(config.score)
        self.direction = direction
        self.buffer = ScoreBuffer(config.gate_half_life_rollouts)
        in_knobs = config.score == "gradient"
        self.watch = Watch(config, layout, seed, direction) if in_knobs else Absorb(config, layout, seed)
        self._policy: Policy | None = None

    def bind(self, policy: Policy) -> None:
        """Keep the policy: scores are read from it."""
        self._policy = policy

    def blocks(self, rollouts: Sequence[Rollout]) -> Blocks:
        """Score the rollouts, take the scores into the buffer, and decide."""
        assert self._policy is not None, "scores are read from the policy: build the arm with it"
        scores = rollout_scores(self._policy, self.direction, rollouts)
        self.buffer.add(scores)
        low, high = self.buffer.low(self.config.keep_frac), self.buffer.high(self.config.route_frac)
        kept, routed = scores <= low, scores >= high
        self.noted |= {
            "gate/kept_frac": float(kept.double().mean()),
            "gate/routed_frac": float(routed.double().mean()),
            "gate/absorbed_frac": float((~kept & ~routed).double().mean()),
            "gate/keep_threshold": low,
            "gate/route_threshold": high,
            "gate/score_mean": float(scores.mean()),
            "gate/score_std": float(scores.std(correction=0)),
            "gate/buffer_rollouts": float(self.buffer.weights.sum()),
        }
        return Blocks(main=~routed, quarantine=~kept)

    def gradient(self, gradient: Gradient) -> Gradient:
        """Unchanged: the blocks' gradients are the decisions' already. Adds the gate's metrics."""
        watched = self.watch.gradient(gradient)
        return replace(watched, metrics={**watched.metrics, **self.noted})

    def update(self, update: Update) -> Update:
        """Unchanged."""
        return self.watch.update(update)

    def update_profile(self) -> dict[str, Any] | None:
        """As of `measure`, for scores by gradient."""
        profile = self.watch.update_profile()
        return None if profile is None else {**profile, "arm": self.name}

    @property
    def direction_hash(self) -> str:
        """Content hash of the direction that scores."""
        return self.direction.content_hash

    def state_dict(self) -> dict[str, Tensor]:
        """The buffer, and the update profile's sums where there is one."""
        return {"gate_scores": self.buffer.scores, "gate_weights": self.buffer.weights, **self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the buffer bit for bit."""
        super().load_state_dict(state)
        self.watch.load_state_dict({name: state[name] for name in self.watch.state_dict()})
        self.buffer.scores, self.buffer.weights = state["gate_scores"].clone(), state["gate_weights"].clone()

"""What arms with a concept direction share: one score per rollout, read from the current policy while it writes.

    score = cos(mean over response tokens of the residual stream after layer L, concept)        (directions/residual.py)

Logged on every step: concept/cos_mean, concept/fired_frac (share of rollouts with a score above 0), time/concept_s
(wall seconds of the forward that reads the scores).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.directions.concept import load_concept
from unhack.directions.residual import cosines, response_residuals
from unhack.interventions.base import Intervention
from unhack.types import Rollout


class ConceptualIntervention(Intervention):
    """An arm that reads `arm.concept`. The forward has no gradient and changes no drawn number."""

    uses = frozenset({"concept", "strength"})

    def bind(self, policy: Policy) -> None:
        """Keep the policy and load the concept; ValueError when it is of another model."""
        assert self.config.concept is not None, "arm_class asks for one"
        self._policy = policy
        self._concept = load_concept(self.config.concept, policy.model, policy.model_hash)

    @property
    def inputs_hash(self) -> str | None:
        """Content hash of the concept."""
        return self._concept.content_hash

    def scores(self, rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """The concept score of each rollout under the current policy, on the CPU."""
        start_s = time.perf_counter()
        rows = [(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts]
        residuals = response_residuals(self._policy.model, rows, self._concept.metadata.layer)
        scores = cosines(residuals, self._concept.vector)
        self.noted |= {
            "concept/cos_mean": float(scores.mean()),
            "concept/fired_frac": float((scores > 0).float().mean()),
            "time/concept_s": time.perf_counter() - start_s,
        }
        return scores

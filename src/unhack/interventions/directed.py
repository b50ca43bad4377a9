"""What all arms with a direction share: the health numbers of METHOD §3 at both sites, and the update profile.

Logged on every step, for the main block (see `directions.algebra` for signs and definitions):
    gradient/hackward_in, gradient/hackward_out   mean one-sided fraction before and after the arm
    gradient/fired                                share of modules with hackward_in > 1e-6
    gradient/hackward_in_student, _teacher        the same before the arm, for each source that is present
    update/hackward_in, update/hackward_out       the same for the parameter delta (its hackward side is −V)
    update/cos_v                                  mean signed cosine of the applied delta, + = away from the hack
    update/abs_cos_v                              max over modules of ‖V δ‖ / ‖δ‖ of the applied delta
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unhack.config import ArmConfig
from unhack.directions import Direction, alignment, coefficients
from unhack.interventions.base import Intervention
from unhack.types import Gradient, KnobLayout, Update

PROFILE_FORMAT = 1


class DirectedIntervention(Intervention):
    """An arm with a direction. Subclasses override `change_gradient` and `change_update`, both identity here."""

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int, direction: Direction) -> None:
        super().__init__(config, layout, seed)
        direction.check_side("gradient")
        direction.check_layout(layout)
        self.direction = direction
        self._profile_steps = 0
        # module -> [k], float64: sum over steps of V δ
        self._profile_sum = {name: rows.new_zeros(len(rows), dtype=torch.float64) for name, rows in self._rows()}

    def change_gradient(self, gradient: Gradient) -> Gradient:
        """The arm's own action on the gradient."""
        return gradient

    def change_update(self, update: Update) -> Update:
        """The arm's own action on the parameter delta."""
        return update

    def gradient(self, gradient: Gradient) -> Gradient:
        """Apply `change_gradient` and log how the gradient lies to the direction before and after."""
        changed = super().gradient(self.change_gradient(gradient))
        before = alignment(self.direction, self.layout, gradient.main, site="gradient")
        after = alignment(self.direction, self.layout, changed.main, site="gradient")
        metrics = {
            "gradient/hackward_in": before.hackward_frac,
            "gradient/hackward_out": after.hackward_frac,
            "gradient/fired": before.fired_frac,
        }
        for source, part in gradient.sources.items():
            lie = alignment(self.direction, self.layout, part, site="gradient")
            metrics[f"gradient/hackward_in_{source}"] = lie.hackward_frac
        return replace(changed, metrics={**changed.metrics, **metrics})

    def update(self, update: Update) -> Update:
        """Apply `change_update`, log how the delta lies to the direction, and add the applied delta to the profile."""
        changed = self.change_update(update)
        before = alignment(self.direction, self.layout, update.main, site="update")
        after = alignment(self.direction, self.layout, changed.main, site="update")
        for name, c in coefficients(self.direction, self.layout, changed.main).items():
            self._profile_sum[name] += c
        self._profile_steps += 1
        metrics = {
            "update/hackward_in": before.hackward_frac,
            "update/hackward_out": after.hackward_frac,
            "update/cos_v": after.cos,
            "update/abs_cos_v": after.abs_cos,
        }
        return replace(changed, metrics={**changed.metrics, **metrics})

    def update_profile(self) -> dict[str, Any]:
        """Mean over steps of V δ per module, δ = the applied delta of `main`: what `push` is sized by."""
        steps = max(self._profile_steps, 1)
        return {
            "format": PROFILE_FORMAT,
            "arm": self.name,
            "site": self.config.site if "site" in self.uses else None,
            "sided": self.config.sided if "sided" in self.uses else None,
            "direction": self.direction.content_hash,
            "control": self.direction.metadata.control,
            "seed": self.seed,
            "steps": self._profile_steps,
            "mean_coefficients": {name: (total / steps).tolist() for name, total in self._profile_sum.items()},
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The profile's sums, flat in module order, and its step count."""
        return {
            "profile_sum": torch.cat(list(self._profile_sum.values())),
            "profile_steps": torch.tensor(self._profile_steps, dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the profile; ValueError if it was made with a direction of other modules or rows."""
        super().load_state_dict(state)
        sizes = [len(total) for total in self._profile_sum.values()]
        if len(state["profile_sum"]) != sum(sizes):
            raise ValueError(
                f"the checkpoint's update profile has {len(state['profile_sum'])} rows and the direction {sum(sizes)}; "
                "resume with the direction that the run was started with"
            )
        parts = state["profile_sum"].split(sizes)
        self._profile_sum = {
            name: part.to(total).clone() for (name, total), part in zip(self._profile_sum.items(), parts, strict=True)
        }
        self._profile_steps = int(state["profile_steps"])

    def _rows(self) -> list[tuple[str, Tensor]]:
        """(module, its rows) in the layout's order."""
        return [(name, self.direction.basis[name]) for name in self.layout.names if name in self.direction.basis]

"""What all arms with a direction share: the health numbers of METHOD §3 at both sites, the update profile, refresh.

Logged on every step, for the main block (see `directions.algebra` for signs and definitions):
    gradient/hackward_in, gradient/hackward_out   mean one-sided fraction before and after the arm
    gradient/fired                                share of modules with hackward_in > 1e-6
    gradient/*_student, gradient/*_teacher        these three of each source's part, for each source that is present;
                                                  hackward_out: of what the arm makes of that part alone
    update/hackward_in, update/hackward_out       the same for the parameter delta (its hackward side is −V)
    update/cos_v                                  mean signed cosine of the applied delta, + = away from the hack
    update/abs_cos_v                              max over modules of ‖V δ‖ / ‖δ‖ of the applied delta
and of V itself, on the steps that refresh it:
    direction/refresh_overlap                     mean squared cosine of the principal angles with the V before
    direction/start_overlap                       the same with the V that the run was given
    time/refresh_s                                wall seconds of the extraction
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.directions import Direction, alignment, check_repeatable, coefficients, extract_again, shared_variance
from unhack.interventions.base import Intervention
from unhack.types import Gradient, KnobLayout, Update

PROFILE_FORMAT = 1


class DirectedIntervention(Intervention):
    """An arm with a direction. Subclasses override `change_gradient` and `change_update`, both identity here.

    With `arm.refresh_every_steps` = N the V of steps N, 2N, ... (counted from 0) and of those that follow is extracted
    again from the policy before the step's update, quarantine ablated. The profile and `direction_hash` stay those of
    the V that was given (`given`): coefficients along rows that change could not be summed.
    """

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int, direction: Direction) -> None:
        super().__init__(config, layout, seed)
        direction.check_side("gradient")
        direction.check_layout(layout)
        self.given = self.direction = direction
        self._policy: Policy | None = None
        self._profile_steps = 0
        # module -> [k], float64: sum over steps of V δ
        self._profile_sum = {name: rows.new_zeros(len(rows), dtype=torch.float64) for name, rows in self._rows()}

    def bind(self, policy: Policy) -> None:
        """Keep the policy, which a refresh reads; ValueError when that is asked for and V cannot be made again."""
        self._policy = policy
        if self.config.refresh_every_steps is not None:
            check_repeatable(self.given)

    def change_gradient(self, gradient: Gradient) -> Gradient:
        """The arm's own action on the gradient."""
        return gradient

    def change_update(self, update: Update) -> Update:
        """The arm's own action on the parameter delta."""
        return update

    def gradient(self, gradient: Gradient) -> Gradient:
        """Refresh V if it is time, apply `change_gradient`, log how the gradient lies to V before and after."""
        metrics = self._refreshed()
        changed = super().gradient(self.change_gradient(gradient))
        before = alignment(self.direction, self.layout, gradient.main, site="gradient")
        after = alignment(self.direction, self.layout, changed.main, site="gradient")
        metrics |= {
            "gradient/hackward_in": before.hackward_frac,
            "gradient/hackward_out": after.hackward_frac,
            "gradient/fired": before.fired_frac,
        }
        for source, part in gradient.sources.items():
            lie = alignment(self.direction, self.layout, part, site="gradient")
            alone = self.change_gradient(replace(gradient, main=part)).main
            left = alignment(self.direction, self.layout, alone, site="gradient")
            metrics[f"gradient/hackward_in_{source}"] = lie.hackward_frac
            metrics[f"gradient/hackward_out_{source}"] = left.hackward_frac
            metrics[f"gradient/fired_{source}"] = lie.fired_frac
        return replace(changed, metrics={**changed.metrics, **metrics})

    def update(self, update: Update) -> Update:
        """Apply `change_update`, log how the delta lies to the direction, and add the applied delta to the profile."""
        changed = self.change_update(update)
        before = alignment(self.direction, self.layout, update.main, site="update")
        after = alignment(self.direction, self.layout, changed.main, site="update")
        for name, c in coefficients(self.given, self.layout, changed.main).items():
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
        """Mean over steps of V δ per module, V as given, δ = the applied delta of `main`: what `push` is sized by."""
        steps = max(self._profile_steps, 1)
        return {
            "format": PROFILE_FORMAT,
            "arm": self.name,
            "site": self.config.site if "site" in self.uses else None,
            "sided": self.config.sided if "sided" in self.uses else None,
            "direction": self.given.content_hash,
            "control": self.given.metadata.control,
            "seed": self.seed,
            "steps": self._profile_steps,
            "mean_coefficients": {name: (total / steps).tolist() for name, total in self._profile_sum.items()},
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The profile's sums, flat in module order, and its step count; with refresh, V as it is now."""
        profile = {
            "profile_sum": torch.cat(list(self._profile_sum.values())),
            "profile_steps": torch.tensor(self._profile_steps, dtype=torch.int64),
        }
        return profile if self.config.refresh_every_steps is None else profile | self._direction_state()

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
        if self.config.refresh_every_steps is not None:
            self._restore_direction(state["direction_counts"], state["direction_rows"])

    def _rows(self) -> list[tuple[str, Tensor]]:
        """(module, its rows as given) in the layout's order."""
        return [(name, self.given.basis[name]) for name in self.layout.names if name in self.given.basis]

    def _refreshed(self) -> dict[str, float]:
        """Extract V again on the steps that ask for it; the metrics of that."""
        every = self.config.refresh_every_steps
        if every is None:
            return {}
        if self._policy is None:
            raise ValueError("arm.refresh_every_steps is set, and a refresh reads the policy: give it to build()")
        if self._profile_steps == 0 or self._profile_steps % every:
            return {}
        start_s, before = time.perf_counter(), self.direction
        self.direction = extract_again(self._policy, self.given, self._profile_steps // every)
        return {
            "direction/refresh_overlap": shared_variance(before, self.direction)[0],
            "direction/start_overlap": shared_variance(self.given, self.direction)[0],
            "time/refresh_s": time.perf_counter() - start_s,
        }

    def _direction_state(self) -> dict[str, Tensor]:
        """Rows of each module in the layout's order (0 for one that V does not touch), and all of them flat."""
        found = [self.direction.basis.get(name) for name in self.layout.names]
        counts = torch.tensor([0 if rows is None else len(rows) for rows in found], dtype=torch.int64)
        return {
            "direction_counts": counts,
            "direction_rows": torch.cat([rows.flatten() for rows in found if rows is not None]),
        }

    def _restore_direction(self, counts: Tensor, flat: Tensor) -> None:
        shapes = zip(self.layout.names, counts.tolist(), self.layout.sizes, strict=True)
        present = [(name, count, size) for name, count, size in shapes if count]
        parts = flat.split([count * size for _, count, size in present])
        device = next(iter(self.given.basis.values())).device
        basis = {
            name: part.view(count, size).to(device).clone()
            for (name, count, size), part in zip(present, parts, strict=True)
        }
        self.direction = replace(self.given, basis=basis)

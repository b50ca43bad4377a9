"""erase: remove the component along V from the gradient, or from the update (METHOD §3)."""

from __future__ import annotations

from dataclasses import replace

from unhack.directions import project
from unhack.interventions.directed import DirectedIntervention
from unhack.types import Gradient, Update


class Erase(DirectedIntervention):
    """g' = g − overshoot · Vᵀ c_use, c = V g, at one site: `gradient` (before Adam) or `update` (Adam's own delta).

    c_use = the hackward half of c (`sided=one`: relu(c) of a gradient, −relu(−c) of a delta), c (`two`), 2c
    (`reverse`, a reflection). `preserve_norm`: g' *= ‖g‖ / ‖g'‖ per module.
    One-sided at `gradient` is **not** an erasure under Adam: the gate keeps the anti-hackward half of a noisy dot
    product and the momentum integrates it into a push along +V; read `update/cos_v`.
    Identity: overshoot = 0, or a gradient without a component that the gate removes.
    """

    name = "erase"
    uses = frozenset({"direction", "site", "sided", "overshoot", "preserve_norm", "refresh_every_steps"})

    def change_gradient(self, gradient: Gradient) -> Gradient:
        """g' at the site `gradient`."""
        if self.config.site != "gradient":
            return gradient
        kept = project(
            self.direction,
            self.layout,
            gradient.main,
            site="gradient",
            sided=self.config.sided,
            overshoot=self.config.overshoot,
            preserve_norm=self.config.preserve_norm,
        ).kept
        return replace(gradient, main=kept)

    def change_update(self, update: Update) -> Update:
        """δ' at the site `update`."""
        if self.config.site != "update":
            return update
        kept = project(
            self.direction,
            self.layout,
            update.main,
            site="update",
            sided=self.config.sided,
            overshoot=self.config.overshoot,
            preserve_norm=self.config.preserve_norm,
        ).kept
        return replace(update, main=kept)

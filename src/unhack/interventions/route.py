"""route: what erasing would delete trains the quarantine, which is ablated at deployment (METHOD §3)."""

from __future__ import annotations

from dataclasses import replace

from unhack.directions import project
from unhack.interventions.directed import DirectedIntervention
from unhack.types import Gradient, Update


class Route(DirectedIntervention):
    """main gets g' = g − removed, quarantine gets `removed` = overshoot · Vᵀ c_use; deployed: quarantine = 0.

    At the site `gradient` each block's half goes through its own Adam state. At the site `update` the proposed delta
    itself is split, so that with overshoot 1 main + quarantine moves exactly as vanilla does.
    Identity: with nothing removed it is `vanilla`.
    """

    name = "route"
    uses = frozenset({"direction", "site", "sided", "overshoot", "refresh_every_steps"})
    trains_quarantine = True

    def change_gradient(self, gradient: Gradient) -> Gradient:
        """Split the gradient at the site `gradient`; elsewhere only `main` gets it."""
        if self.config.site != "gradient":
            return replace(gradient, quarantine=gradient.quarantine.new_zeros(gradient.quarantine.shape))
        split = project(
            self.direction,
            self.layout,
            gradient.main,
            site="gradient",
            sided=self.config.sided,
            overshoot=self.config.overshoot,
        )
        return replace(gradient, main=split.kept, quarantine=split.removed)

    def change_update(self, update: Update) -> Update:
        """Split the parameter delta at the site `update`."""
        if self.config.site != "update":
            return update
        split = project(
            self.direction,
            self.layout,
            update.main,
            site="update",
            sided=self.config.sided,
            overshoot=self.config.overshoot,
        )
        return replace(update, main=split.kept, quarantine=update.quarantine + split.removed)

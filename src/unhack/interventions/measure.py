"""measure: vanilla that logs how its gradients and updates lie to a direction (METHOD §3)."""

from __future__ import annotations

from unhack.interventions.directed import DirectedIntervention


class Measure(DirectedIntervention):
    """g' = g, δ' = δ; logs only. Identity always: its trajectory is vanilla's bit for bit."""

    name = "measure"
    uses = frozenset({"direction", "refresh_every_steps"})

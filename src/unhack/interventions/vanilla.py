"""vanilla: plain GRPO on what the foolable grade pays; every hook is the identity."""

from __future__ import annotations

from unhack.interventions.base import Intervention


class Vanilla(Intervention):
    """g' = g, δ' = δ, on `main` alone. The baseline that the other arms are compared with."""

    name = "vanilla"

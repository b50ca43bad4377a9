"""absorb: everything trains both blocks and the quarantine is ablated at deployment; route's matched control."""

from __future__ import annotations

from dataclasses import replace

from unhack.interventions.base import Intervention
from unhack.types import Gradient


class Absorb(Intervention):
    """main gets g, quarantine gets g, from every rollout; deployed: quarantine = 0.

    The blocks of a spectral adapter enter as a sum, so one gradient is both blocks' gradient, and the sum moves by
    two optimizer steps at once: half of what is learned is deleted at deployment, whatever it is.
    Identity: `main` follows the same formula as in `vanilla`; only what it shares the policy with differs.
    """

    name = "absorb"
    trains_quarantine = True

    def gradient(self, gradient: Gradient) -> Gradient:
        """The gradient of `main` for both blocks."""
        return replace(gradient, quarantine=gradient.main.clone())

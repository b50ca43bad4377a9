"""absorb: everything trains both blocks and the quarantine is ablated at deployment; route's matched control."""

from __future__ import annotations

from unhack.interventions.base import Intervention


class Absorb(Intervention):
    """Each block gets its own gradient, from every rollout; deployed: quarantine = 0.

    Where the blocks enter as a sum (every adapter but block LoRA), one gradient is both blocks' gradient, and the sum
    moves by two optimizer steps at once: half of what is learned is deleted at deployment, whatever it is.
    Identity: `main` follows the same formula as in `vanilla`; only what it shares the policy with differs.
    """

    name = "absorb"
    trains_quarantine = True

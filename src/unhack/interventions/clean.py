"""clean: plain GRPO with an unfoolable grade, the control that says what honest training reaches."""

from __future__ import annotations

from unhack.interventions.base import Intervention


class Clean(Intervention):
    """g' = g, δ' = δ, reward paid only for strictly correct submissions (`allow_hack = False` at the grader).

    Identity: with no hack among the rollouts it is `vanilla`.
    """

    name = "clean"
    allow_hack = False

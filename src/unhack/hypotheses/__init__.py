"""The preregistered hypotheses (EXPERIMENT §1) and the pure function that decides them from rates per arm and seed.

    verdicts = decide_all([h4_emergence(), h1_suppression("erase"), ...], observations(runs))

Every hypothesis comes out as supported, falsified, inconclusive or not testable. Not here: the tests themselves
(`stats`), the table of an experiment (`results.py`).
"""

from __future__ import annotations

from unhack.hypotheses.decide import Decision, Outcome, decide, decide_all
from unhack.hypotheses.definitions import (
    Contrast,
    Emergence,
    Hypothesis,
    Superiority,
    h1_control,
    h1_suppression,
    h3_beats_advantage_level,
    h4_emergence,
    h5_generalisation,
    h6_routing,
)
from unhack.hypotheses.observed import Observation, observations

__all__ = [
    "Contrast",
    "Decision",
    "Emergence",
    "Hypothesis",
    "Observation",
    "Outcome",
    "Superiority",
    "decide",
    "decide_all",
    "h1_control",
    "h1_suppression",
    "h3_beats_advantage_level",
    "h4_emergence",
    "h5_generalisation",
    "h6_routing",
    "observations",
]

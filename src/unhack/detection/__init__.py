"""Where labels and monitors meet: training probes on labelled rollouts, and measuring what monitors are worth.

Strict verdicts are read here, after the fact; nothing here runs in training, and monitors import none of it.
"""

from __future__ import annotations

from unhack.detection.labelled import Labelled, linked_keys, of_pairs, of_pool, of_run
from unhack.detection.measure import Measured, measure, roc_rows
from unhack.detection.report import evaluate_monitors, markdown
from unhack.detection.train_probe import ProbeRecipe, train_probes

__all__ = [
    "Labelled",
    "Measured",
    "ProbeRecipe",
    "evaluate_monitors",
    "linked_keys",
    "markdown",
    "measure",
    "of_pairs",
    "of_pool",
    "of_run",
    "roc_rows",
    "train_probes",
]

"""Intervals and tests for rates and for seeds. The unit of analysis of a comparison is the seed (EXPERIMENT §1).

What each function assumes and where it fails is in docs/statistics.md. Not here: the preregistered verdicts on
hypotheses (`hypotheses.py`).
"""

from __future__ import annotations

from unhack.stats.bootstrap import BootstrapResult, cluster_bootstrap, paired_problems
from unhack.stats.comparisons import (
    Alternative,
    Equivalence,
    TestResult,
    holm,
    one_sample_t,
    paired_t,
    sign_flip,
    tost,
    welch,
    wilcoxon,
)
from unhack.stats.curves import area_under_curve, moving_mean, onset_step
from unhack.stats.power import power_equivalence, power_t, seeds_needed
from unhack.stats.roc import RocCurve, auroc, auroc_interval, roc_curve
from unhack.stats.summary import Interval, MeanSem, mean_interval, mean_sem, wilson

__all__ = [
    "Alternative",
    "BootstrapResult",
    "Equivalence",
    "Interval",
    "MeanSem",
    "RocCurve",
    "TestResult",
    "area_under_curve",
    "auroc",
    "auroc_interval",
    "cluster_bootstrap",
    "holm",
    "mean_interval",
    "mean_sem",
    "moving_mean",
    "one_sample_t",
    "onset_step",
    "paired_problems",
    "paired_t",
    "power_equivalence",
    "power_t",
    "roc_curve",
    "seeds_needed",
    "sign_flip",
    "tost",
    "welch",
    "wilcoxon",
    "wilson",
]

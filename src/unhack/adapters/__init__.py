"""Trainable parts added to a frozen model: two blocks (`main`, `quarantine`) per wrapped linear layer."""

from unhack.adapters.policy import GradientTaps, Policy
from unhack.types import Mask

__all__ = ["GradientTaps", "Mask", "Policy"]

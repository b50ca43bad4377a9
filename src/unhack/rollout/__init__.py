"""Prompts to rollouts: `NativeSampler`, batched on the training process's own (merged) weights."""

from unhack.rollout.native import NativeSampler

__all__ = ["NativeSampler"]

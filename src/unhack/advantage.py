"""Rewards of a group of rollouts → advantages (METHOD §5; Dr.GRPO, Liu et al. 2025, arXiv 2503.20783).

    A = R − mean(R) over the valid rollouts of one prompt;   optionally A / (std(R) + 1e-4)

A group whose valid rewards spread by less than `min_reward_spread`, or with fewer than two valid rollouts, teaches
nothing and is skipped whole: no forward, no KL. Invalid rollouts (the grader's own errors, screened ones) count in no
statistic and are never kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unhack.config import LossConfig

STD_EPSILON = 1e-4  # as in TRL's GRPOTrainer


class Advantages(NamedTuple):
    """`values` [B] (0 where not kept), `kept` [B] (rollouts that enter the loss), metrics for the log."""

    values: Float[Tensor, " B"]
    kept: Bool[Tensor, " B"]
    metrics: dict[str, float]


def group_advantages(
    rewards: Float[Tensor, " B"], groups: Int[Tensor, " B"], valid: Bool[Tensor, " B"], config: LossConfig
) -> Advantages:
    """Centre (and with `normalize_std` scale) the rewards of each group; `groups` holds any integer per prompt.

    std is the sample standard deviation (n − 1), as in TRL. Rewards of invalid rollouts may be anything, NaN too.
    """
    _, index = torch.unique(groups, return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    rewards = torch.where(valid, rewards, torch.zeros_like(rewards)).float()
    members = torch.zeros(count).index_add_(0, index, valid.float())
    mean = torch.zeros(count).index_add_(0, index, rewards) / members.clamp(min=1)
    low = torch.full((count,), torch.inf).scatter_reduce_(0, index[valid], rewards[valid], "amin")
    high = torch.full((count,), -torch.inf).scatter_reduce_(0, index[valid], rewards[valid], "amax")
    spread_enough = (members >= 2) & (high - low >= config.min_reward_spread)  # [groups]
    kept = valid & spread_enough[index]
    centred = torch.where(kept, rewards - mean[index], torch.zeros_like(rewards))
    if config.normalize_std:
        squares = torch.zeros(count).index_add_(0, index, centred.square())
        centred = centred / ((squares / (members - 1).clamp(min=1)).sqrt() + STD_EPSILON)[index]
    metrics = {
        "advantage/reward_mean": float(rewards.sum() / valid.sum().clamp(min=1)),
        "advantage/skipped_groups_frac": float(1 - spread_enough.float().mean()) if count else 0.0,
        "advantage/invalid_frac": float(1 - valid.float().mean()) if len(index) else 0.0,
        "advantage/kept_rollouts": float(kept.sum()),
        "advantage/mean_abs": float(centred[kept].abs().mean()) if bool(kept.any()) else 0.0,
    }
    return Advantages(centred, kept, metrics)

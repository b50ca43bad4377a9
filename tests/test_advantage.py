"""Group advantages against a slow loop over groups."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unhack.advantage import STD_EPSILON, group_advantages
from unhack.config import LossConfig


def slow_advantages(
    rewards: list[float], groups: list[int], valid: list[bool], config: LossConfig
) -> tuple[list[float], list[bool]]:
    values, kept = [0.0] * len(rewards), [False] * len(rewards)
    for group in set(groups):
        rows = [row for row in range(len(rewards)) if groups[row] == group and valid[row]]
        members = [rewards[row] for row in rows]
        if len(members) < 2 or max(members) - min(members) < config.min_reward_spread:
            continue
        scale = statistics.stdev(members) + STD_EPSILON if config.normalize_std else 1.0
        for row in rows:
            values[row], kept[row] = (rewards[row] - statistics.mean(members)) / scale, True
    return values, kept


rollout = st.tuples(st.sampled_from([0.0, 0.5, 3.0, 3.5]), st.integers(0, 3), st.booleans())


@given(st.lists(rollout, max_size=24), st.booleans())
def test_advantages_equal_a_slow_loop_over_groups(rows: list[tuple[float, int, bool]], normalize: bool) -> None:
    config = LossConfig(normalize_std=normalize)
    rewards, groups, valid = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    expected, expected_kept = slow_advantages(rewards, groups, valid, config)
    got = group_advantages(
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(groups, dtype=torch.long),
        torch.tensor(valid, dtype=torch.bool),
        config,
    )
    assert got.kept.tolist() == expected_kept
    torch.testing.assert_close(got.values, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_errors_enter_no_statistic_even_with_a_reward_of_nan() -> None:
    rewards = torch.tensor([0.0, 3.0, torch.nan, 1.0, 1.0, 100.0])
    groups = torch.tensor([5, 5, 5, 9, 9, 9])
    valid = torch.tensor([True, True, False, True, True, False])
    values, kept, metrics = group_advantages(rewards, groups, valid, LossConfig())
    assert values.tolist() == [-1.5, 1.5, 0.0, 0.0, 0.0, 0.0]
    assert kept.tolist() == [True, True, False, False, False, False]
    assert metrics["advantage/skipped_groups_frac"] == 0.5
    assert metrics["advantage/reward_mean"] == pytest.approx(5 / 4)
    assert metrics["advantage/invalid_frac"] == pytest.approx(2 / 6)


def test_a_group_with_one_valid_rollout_is_skipped() -> None:
    values, kept, _ = group_advantages(
        torch.tensor([3.0, 0.0]), torch.tensor([0, 0]), torch.tensor([True, False]), LossConfig()
    )
    assert not kept.any() and not values.any()


def test_dr_grpo_advantages_are_not_scaled_by_default() -> None:
    values, _, _ = group_advantages(
        torch.tensor([0.0, 30.0]), torch.tensor([0, 0]), torch.tensor([True, True]), LossConfig()
    )
    assert values.tolist() == [-15.0, 15.0]

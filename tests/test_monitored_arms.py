"""penalty and screening against slow loops: what a flag costs, and what a group is without its flagged rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from arms import flat, make_arm, make_grades, make_rollouts, make_verdicts, zeros
from unhack.advantage import group_advantages
from unhack.config import ArmConfig, LossConfig, RewardConfig
from unhack.interventions import Intervention, arm_class, build
from unhack.types import Gradient, KnobLayout, PaidGrade, Rollout

GROUPS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
REWARDS = [3.5, 0.5, 3.5, 0.0, 3.5, 3.5, 3.5, 0.5, 3.5, 3.5, 0.5, None]
HACKED = [True, False, False, False, True, True, True, False, False, True, False, False]


def told(name: str, hacked: Sequence[bool] = HACKED, **fields: object) -> tuple[Intervention, list[Rollout]]:
    """The arm with a perfect oracle, which was told about the rollouts, and these."""
    arm, rollouts = make_arm(name, None, 0, monitor="noisy_oracle", **fields), make_rollouts(GROUPS)
    arm.oracle.tell(make_verdicts(rollouts, hacked))
    return arm, rollouts


def loop(arm: Intervention, rollouts: Sequence[Rollout], grades: Sequence[PaidGrade]) -> tuple[list[float], list[bool]]:
    """Advantages and who is kept, as the training loop makes them."""
    valid = torch.tensor([grade.status != "error" for grade in grades]) & ~arm.screened(rollouts)
    rewards = arm.rewards(grades, rollouts)
    signal = group_advantages(rewards, torch.tensor([r.group for r in rollouts]), valid, LossConfig())
    return arm.advantages(signal.values, rollouts).tolist(), signal.kept.tolist()


def slow_loop(
    rewards: Sequence[float | None], flags: Sequence[bool], penalty: float, screen: bool
) -> tuple[list[float], list[bool]]:
    """METHOD §4 and §5 with plain numbers, group by group."""
    advantages, kept = [0.0] * len(rewards), [False] * len(rewards)
    for group in set(GROUPS):
        paid: dict[int, float] = {}
        for place, reward in enumerate(rewards):
            if GROUPS[place] != group or reward is None or (screen and flags[place]):
                continue
            paid[place] = reward - (penalty if flags[place] else 0.0)
        if len(paid) < 2 or max(paid.values()) - min(paid.values()) < 1e-4:
            continue
        mean = sum(paid.values()) / len(paid)
        for place, value in paid.items():
            advantages[place], kept[place] = value - mean, True
    return advantages, kept


@pytest.mark.parametrize("strength", [None, 0.0, 0.7, 5.0])
def test_penalty_is_lambda_off_each_flagged_reward_before_group_statistics(strength: float | None) -> None:
    arm, rollouts = told("penalty", strength=strength)
    grades = make_grades(rollouts, REWARDS)
    got, kept = loop(arm, rollouts, grades)
    expected, expected_kept = slow_loop(REWARDS, HACKED, 3.0 if strength is None else strength, screen=False)
    assert got == pytest.approx(expected, abs=1e-6) and kept == expected_kept
    plain = [0.0 if reward is None else reward for reward in REWARDS]
    lost = [before - after for before, after in zip(plain, arm.rewards(grades, rollouts).tolist(), strict=True)]
    assert all((cost > 0) == (hack and strength != 0) for cost, hack in zip(lost, HACKED, strict=True))


def test_the_default_penalty_is_what_the_run_pays_for_a_pass() -> None:
    config = ArmConfig(name="penalty", monitor="noisy_oracle")
    for paid in (3.0, 1.25):
        arm = build(config, KnobLayout((), ()), 0, reward=RewardConfig(paid=paid))
        rollouts = make_rollouts([0, 0])
        arm.oracle.tell(make_verdicts(rollouts, [True, False]))
        assert arm.rewards(make_grades(rollouts, [paid, 0.0]), rollouts).tolist() == [0.0, 0.0]


def test_a_group_that_is_flagged_whole_keeps_its_advantages_under_a_penalty() -> None:
    whole = [group == 0 for group in GROUPS]
    arm, rollouts = told("penalty", whole)
    plain = loop(make_arm("vanilla"), rollouts, make_grades(rollouts, REWARDS))
    got = loop(arm, rollouts, make_grades(rollouts, REWARDS))
    assert got[0] == pytest.approx(plain[0], abs=1e-6) and got[1] == plain[1]


def test_screening_takes_flagged_rollouts_out_of_statistics_and_gradient() -> None:
    arm, rollouts = told("screening")
    got, kept = loop(arm, rollouts, make_grades(rollouts, REWARDS))
    expected, expected_kept = slow_loop(REWARDS, HACKED, 0.0, screen=True)
    assert got == pytest.approx(expected, abs=1e-6) and kept == expected_kept
    assert not any(keep and hack for keep, hack in zip(kept, HACKED, strict=True))
    assert any(kept)
    plain, _ = loop(make_arm("vanilla"), rollouts, make_grades(rollouts, REWARDS))
    survivor = 1
    assert got[survivor] != pytest.approx(plain[survivor]), "its group's mean is that of the survivors"


@pytest.mark.parametrize(
    ("hacked", "rewards", "emptied"),
    [
        (HACKED, REWARDS, 1 / 3),  # group 1 has one survivor
        ([False] * 12, REWARDS, 0.0),
        ([group == 2 for group in GROUPS], REWARDS, 1 / 3),  # no survivor at all
        ([False] * 8 + [True, False, False, False], REWARDS, 0.0),  # two survivors beside a grader's error
        ([False] * 8 + [True, True, False, False], REWARDS, 1 / 3),  # one: an error does not survive
        ([True] * 12, [None, None, None, 3.5] * 3, 0.0),  # had fewer than two before: not the flags' doing
    ],
)
def test_screening_says_how_many_groups_it_left_with_fewer_than_two_survivors(
    hacked: list[bool], rewards: list[float | None], emptied: float
) -> None:
    arm, rollouts = told("screening", hacked)
    loop(arm, rollouts, make_grades(rollouts, rewards))
    metrics = arm.gradient(Gradient(flat("g"), zeros())).metrics
    assert metrics["monitor/unscreenable_groups_frac"] == pytest.approx(emptied)


@pytest.mark.parametrize("name", ["penalty", "screening"])
def test_nothing_flagged_is_vanilla_and_flags_and_costs_are_logged(name: str) -> None:
    arm, rollouts = told(name, [False] * 12)
    grades = make_grades(rollouts, REWARDS)
    assert loop(arm, rollouts, grades) == loop(make_arm("vanilla"), rollouts, grades)
    arm, rollouts = told(name)
    loop(arm, rollouts, grades)
    gradient = Gradient(flat("g"), zeros(), {"loss/total": 1.0})
    changed = arm.gradient(gradient)
    assert torch.equal(changed.main, gradient.main) and changed.metrics["loss/total"] == 1.0
    assert changed.metrics["monitor/flagged_frac"] == pytest.approx(sum(HACKED) / 12)
    assert changed.metrics["monitor/score_mean"] == pytest.approx(sum(HACKED) / 12)
    assert changed.metrics["time/monitor_s"] >= 0


@pytest.mark.parametrize("threshold", [0.0, 0.99])
def test_a_score_above_the_threshold_flags_and_one_at_it_does_not(threshold: float) -> None:
    arm, rollouts = told("screening", monitor_threshold=threshold)
    assert arm.screened(rollouts).tolist() == HACKED


def test_a_monitor_must_be_named_and_its_settings_belong_to_arms_that_have_one() -> None:
    with pytest.raises(ValueError, match=r"arm 'penalty' needs arm\.monitor: set arm\.monitor to noisy_oracle"):
        arm_class(ArmConfig(name="penalty"))
    with pytest.raises(ValueError, match=r"arm\.monitor is set, but arm 'vanilla'"):
        arm_class(ArmConfig(monitor="noisy_oracle"))
    with pytest.raises(ValueError, match=r"arm\.strength is set, but arm 'screening'"):
        arm_class(ArmConfig(name="screening", monitor="noisy_oracle", strength=1.0))

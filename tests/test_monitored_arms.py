"""penalty and screening against slow loops: what a flag costs, and what a group is without its flagged rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from arms import flat, make_arm, make_grades, make_rollouts, make_verdicts, zeros
from unhack.advantage import group_advantages
from unhack.config import ArmConfig, EndpointConfig, LossConfig, RewardConfig
from unhack.interventions import Intervention, arm_class, build
from unhack.interventions.alarms import WINDOW, Alarms
from unhack.monitors import MONITORS, Reading, Static
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
    arm.screened(rollouts)
    lost = [before - after for before, after in zip(plain, arm.rewards(grades, rollouts).tolist(), strict=True)]
    assert all((cost > 0) == (hack and strength != 0) for cost, hack in zip(lost, HACKED, strict=True))


def test_the_default_penalty_is_what_the_run_pays_for_a_pass() -> None:
    config = ArmConfig(name="penalty", monitor="noisy_oracle")
    for paid in (3.0, 1.25):
        arm = build(config, KnobLayout((), ()), 0, reward=RewardConfig(paid=paid))
        rollouts = make_rollouts([0, 0])
        arm.oracle.tell(make_verdicts(rollouts, [True, False]))
        arm.screened(rollouts)
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
    with pytest.raises(ValueError, match=r"arm 'penalty' needs arm\.monitor: set arm\.monitor to static, probe, judge"):
        arm_class(ArmConfig(name="penalty"))
    with pytest.raises(ValueError, match=r"arm\.monitor is set, but arm 'vanilla'"):
        arm_class(ArmConfig(monitor="noisy_oracle"))
    with pytest.raises(ValueError, match=r"arm\.strength is set, but arm 'screening'"):
        arm_class(ArmConfig(name="screening", monitor="noisy_oracle", strength=1.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"monitor": "probe"}, r"monitor 'probe' needs arm\.monitor_path"),
        ({"monitor": "judge"}, r"monitor 'judge' needs arm\.endpoint\.url"),
        ({"monitor": "static", "monitor_path": "p"}, r"arm\.monitor_path is set, but monitor 'static' does not use it"),
        ({"monitor": "static", "monitor_accuracy": 0.9}, r"arm\.monitor_accuracy is set, but monitor 'static'"),
        ({"monitor": "noisy_oracle", "endpoint": EndpointConfig(retries=1)}, r"arm\.endpoint is set, but monitor"),
    ],
)
def test_a_setting_that_the_monitor_needs_or_does_not_use_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arm_class(ArmConfig(name="screening", **fields))


class Unsure(Static):
    """Scores by place, and cannot read every fourth rollout."""

    def read(self, rollouts: Sequence[Rollout]) -> Reading:
        unread = torch.tensor([place % 4 == 0 for place in range(len(rollouts))])
        return Reading(torch.tensor([float(hack) for hack in HACKED]), 0.0, unread, {"judge/unread_frac": 0.25})


@pytest.mark.parametrize("name", ["penalty", "screening"])
def test_what_the_monitor_cannot_read_is_masked_counted_and_never_flagged(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MONITORS, "static", Unsure)
    arm, rollouts = make_arm(name, monitor="static"), make_rollouts(GROUPS)
    _, kept = loop(arm, rollouts, make_grades(rollouts, REWARDS))
    assert not any(kept[0::4]) and any(kept)
    unread = [None if place % 4 == 0 else reward for place, reward in enumerate(REWARDS)]
    flags = [hack and place % 4 != 0 for place, hack in enumerate(HACKED)]
    assert kept == slow_loop(unread, flags, 3.0, screen=name == "screening")[1]
    metrics = arm.gradient(Gradient(flat("g"), zeros())).metrics
    assert metrics["monitor/unread_frac"] == metrics["judge/unread_frac"] == 0.25
    assert metrics["monitor/flagged_frac"] == pytest.approx(sum(flags) / 9)


def rung(alarms: Alarms, steps: Sequence[tuple[list[float], list[bool], list[float]]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for scores, flags, paid in steps:
        metrics = alarms.step(torch.tensor(scores), torch.tensor(flags), torch.tensor(paid))
    return metrics


TELLING = ([0.9, 0.1, 0.8, 0.2], [True, False, True, False], [3.0, 0.0, 3.5, 0.5])
EMPTY = ([0.9, 0.1, 0.8, 0.2], [True, False, True, False], [3.0, 0.0, 0.0, 3.0])


@pytest.mark.parametrize(("name", "flag"), [("always_on", True), ("never_on", False)])
def test_an_alarm_rings_after_a_whole_window_warns_once_and_stops(name: str, flag: bool) -> None:
    alarms, same = Alarms(), ([0.5, 0.5], [flag, flag], [3.0, 0.0])
    assert rung(alarms, [same] * (WINDOW - 1))[f"monitor/alarm_{name}"] == 0
    with pytest.warns(RuntimeWarning, match=f"monitor alarm {name}") as told:
        assert rung(alarms, [same, same])[f"monitor/alarm_{name}"] == 1
    assert len(told) == 1
    assert rung(alarms, [([0.5, 0.5], [True, False], [3.0, 0.0])])[f"monitor/alarm_{name}"] == 0


def test_the_collapse_of_the_correlation_with_reward_rings_and_a_monitor_that_keeps_it_does_not() -> None:
    alarms = Alarms()
    quiet = rung(alarms, [TELLING] * (2 * WINDOW))
    assert quiet["monitor/alarm_collapsed"] == 0 and quiet["monitor/reward_correlation"] > 0.9
    with pytest.warns(RuntimeWarning, match="monitor alarm collapsed"):
        loud = rung(alarms, [EMPTY] * WINDOW)
    assert loud["monitor/alarm_collapsed"] == 1
    assert rung(Alarms(), [EMPTY] * (2 * WINDOW))["monitor/alarm_collapsed"] == 0, "there was nothing to lose"


def test_alarms_go_on_after_a_resume_as_if_nothing_had_been() -> None:
    whole, first, second = Alarms(), Alarms(), Alarms()
    steps = [TELLING] * WINDOW + [([0.5, 0.5], [True, True], [1.0, 2.0])] * 3
    rung(first, steps)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert rung(whole, [*steps, TELLING]) == rung(second, [TELLING])
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    fresh = Alarms().state_dict()
    assert all(value.shape == second.state_dict()[name].shape for name, value in fresh.items())
    assert not any(torch.isnan(value).any() for value in fresh.values() if value.is_floating_point())

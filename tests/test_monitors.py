"""The monitors' interface and the noisy oracle: right as often as asked, exact on resume, and nobody else hears."""

from __future__ import annotations

import gc
import weakref
from types import FunctionType, MethodType, ModuleType
from typing import get_args, get_type_hints

import pytest
import torch

from arms import make_arm, make_rollouts, make_verdicts
from unhack.config import ArmConfig
from unhack.interventions import ARMS
from unhack.monitors import MONITORS, Deaf, NoisyOracle, Reading, build_monitor
from unhack.types import Verdict

ORACLE = ArmConfig(name="penalty", monitor="noisy_oracle")


def labels(accuracy: float, hacked: list[bool], seed: int = 0, first: int = 0, recall: float = 1.0) -> list[float]:
    oracle = NoisyOracle(ArmConfig(monitor_accuracy=accuracy, monitor_recall=recall), seed)
    rollouts = make_rollouts([0] * len(hacked), first)
    oracle.ear.tell(make_verdicts(rollouts, hacked))
    return oracle.read(rollouts).scores.tolist()


def test_a_perfect_oracle_labels_every_rollout_as_its_verdict_does() -> None:
    hacked = [index % 3 == 0 for index in range(60)]
    assert labels(1.0, hacked) == [float(value) for value in hacked]


@pytest.mark.parametrize("accuracy", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("hack", [True, False])
def test_the_share_of_right_labels_is_the_accuracy_for_hacks_and_for_others(accuracy: float, hack: bool) -> None:
    count = 1500
    right = sum(label == float(hack) for label in labels(accuracy, [hack] * count)) / count
    assert abs(right - accuracy) < 4 * (accuracy * (1 - accuracy) / count) ** 0.5


@pytest.mark.parametrize("recall", [0.0, 0.25, 1.0])
def test_recall_is_the_share_of_hacks_that_are_labelled_and_no_false_alarm(recall: float) -> None:
    count = 1500
    assert sum(labels(1.0, [False] * count, recall=recall)) == 0
    noticed = labels(1.0, [True] * count, recall=recall)
    assert abs(sum(noticed) / count - recall) <= 4 * (recall * (1 - recall) / count) ** 0.5
    more = labels(1.0, [True] * count, recall=min(1.0, recall + 0.2))
    assert all(a <= b for a, b in zip(noticed, more, strict=True)), "a higher recall only adds labels"


def test_a_flip_depends_on_the_seed_and_the_rollouts_id_alone() -> None:
    whole = labels(0.7, [False] * 300)
    assert labels(0.7, [False] * 200, first=100) == whole[100:], "as after a resume: nothing of before is needed"
    flipped = labels(0.7, [True] * 300)
    assert flipped == [1 - label for label in whole], "the flip does not depend on what is flipped"
    assert labels(0.7, [False] * 300, seed=1) != whole


def test_the_oracle_knows_one_step_only_and_no_rollout_it_was_not_told_about() -> None:
    oracle = NoisyOracle(ORACLE, 0)
    first, second = make_rollouts([0, 0]), make_rollouts([0, 0], first=2)
    oracle.ear.tell(make_verdicts(first, [True, False]))
    oracle.ear.tell(make_verdicts(second, [True, False]))
    assert oracle.read(second).scores.tolist() == [1.0, 0.0]
    with pytest.raises(AssertionError, match="was not told about r000"):
        oracle.read(first)


def kept(ear: Deaf) -> bool:
    """Whether a verdict is still alive after the ear was told it."""
    [verdict] = make_verdicts(make_rollouts([0]), [True])
    alive: weakref.ref[Verdict] = weakref.ref(verdict)
    ear.tell([verdict])
    del verdict
    return alive() is not None


def test_no_ear_keeps_a_verdict_and_only_the_oracles_keeps_a_label() -> None:
    assert not kept(Deaf())
    assert not kept(build_monitor(ORACLE, 0).ear)
    with pytest.raises(AttributeError):
        Deaf().heard = []  # pyright: ignore[reportAttributeAccessIssue]

    class Keeps(Deaf):
        def tell(self, verdicts: list[Verdict]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            self.heard = verdicts

    assert kept(Keeps()), "or the test above would see nothing"


def reachable(root: object) -> list[object]:
    """Everything that code could get at from `root` by attributes, items and slots (not through code or classes)."""
    found: dict[int, object] = {}
    ahead = [root]
    while ahead:
        thing = ahead.pop()
        if id(thing) not in found and not isinstance(thing, type | ModuleType | FunctionType | MethodType):
            found[id(thing)] = thing
            ahead += [*gc.get_referents(thing), *(thing if isinstance(thing, dict) else ())]
    return list(found.values())


@pytest.mark.parametrize(
    "name", ["vanilla", "clean", "absorb", "random_half", "measure", "erase", "penalty", "screening"]
)
def test_no_verdict_can_be_reached_from_an_arm_that_was_told_and_a_label_only_from_the_oracles(name: str) -> None:
    oracle = {"monitor": "noisy_oracle"} if "monitor" in ARMS[name].uses else {}
    arm, rollouts = make_arm(name, None, 0, **oracle), make_rollouts([0, 0])
    arm.oracle.tell(make_verdicts(rollouts, [True, False]))
    within = reachable(arm)
    assert not any(isinstance(thing, Verdict) for thing in within)
    assert ("r000" in [thing for thing in within if isinstance(thing, str)]) == bool(oracle)
    vars(arm)["kept"] = make_verdicts(rollouts, [True, False])
    assert any(isinstance(thing, Verdict) for thing in reachable(arm)), "or the walk would see nothing"


@pytest.mark.parametrize("name", [name for name, arm in ARMS.items() if "monitor" not in arm.uses])
def test_an_arm_without_a_monitor_is_deaf_and_says_so(name: str) -> None:
    assert ARMS[name].uses_oracle.fget is not None  # a property of the class, not a field that a config sets
    arm = ARMS[name].__new__(ARMS[name])  # before any file of it is read
    assert type(arm.oracle) is Deaf and not arm.uses_oracle


def test_arms_with_the_oracle_say_so_and_one_that_hears_in_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("penalty", "screening"):
        arm = make_arm(name, monitor="noisy_oracle")
        assert arm.uses_oracle and type(arm.oracle) is not Deaf
    monkeypatch.setattr(ARMS["penalty"], "uses_oracle", False)
    with pytest.raises(AssertionError, match="only an arm that says so"):
        make_arm("penalty", monitor="noisy_oracle")


def test_a_score_outside_of_zero_to_one_is_the_monitors_mistake() -> None:
    assert Reading(torch.tensor([0.0, 1.0]), 0.1).cost_s == 0.1
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(AssertionError, match="lies in"):
            Reading(torch.tensor([0.5, wrong]), 0.1)


def test_the_settings_name_exactly_the_monitors_that_there_are() -> None:
    choices = get_args(get_type_hints(ArmConfig)["monitor"])[0]
    assert set(get_args(choices)) == set(MONITORS)

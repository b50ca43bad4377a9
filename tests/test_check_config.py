"""What no run can work with is refused before anything is loaded, naming the key and what it may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from unhack import settings
from unhack.check_config import BOUNDS, check
from unhack.config import TrainConfig
from unhack.train import train


def changed(key: str, value: object) -> TrainConfig:
    return settings.with_overrides(TrainConfig(), {key: value})


def test_the_defaults_pass_and_every_number_has_its_bounds() -> None:
    check(TrainConfig())
    numbers = {k for k, v in settings.leaves(TrainConfig()).items() if type(v) in (int, float)}
    numbers |= {"adapter.rank", "teacher.until_step", "arm.strength", "arm.refresh_every_steps"}
    numbers |= {"arm.endpoint.max_total_tokens", "arm.endpoint.max_total_cost"}
    assert set(BOUNDS) == numbers - {"seed"} - {k for k in numbers if k.startswith("reward.")}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.every_steps", 0, "evaluation.every_steps is 0: it must be at least 1"),
        ("checkpoint_every_steps", 0, "checkpoint_every_steps is 0: it must be at least 1"),
        ("group_size", 1, "group_size is 1: it must be at least 2"),
        ("prompts_per_step", 0, "prompts_per_step is 0"),
        ("steps", -5, "steps is -5: it must be at least 1"),
        ("adapter.rank", 0, "adapter.rank is 0"),
        ("optimizer.lr", 0.0, "optimizer.lr is 0.0: it must be above 0"),
        ("optimizer.beta2", 1.0, "it must be at least 0 and below 1"),
        ("environment.impossible_frac", 1.5, "it must be at least 0 and at most 1"),
        ("environment.modes", ["sentinal"], "unknown loophole mode 'sentinal': did you mean 'sentinel'?"),
        ("environment.modes", [], "environment.modes is empty"),
        ("environment.depths", [2, 5], "environment.depths is [2, 5]: use one or more of 1, 2, 3, 4"),
        ("environment.depths", [], "environment.depths is []"),
        ("model.device", "cuda:77", "model.device is 'cuda:77', which PyTorch"),
        ("model.device", "gpu", "model.device is 'gpu': use cpu, cuda, cuda:N or mps"),
    ],
)
def test_a_value_that_no_run_can_work_with_is_refused_and_leaves_no_run_behind(
    key: str, value: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as refused:
        train(changed(key, value), tmp_path / "run")
    assert message in str(refused.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("key", list(BOUNDS))
def test_each_bound_refuses_what_lies_below_it(key: str) -> None:
    kind = type(settings.leaves(TrainConfig())[key])
    below = BOUNDS[key].low - (0 if BOUNDS[key].open_low else 1)
    with pytest.raises(ValueError, match=f"{key} is"):
        check(changed(key, float(below) if kind is float else int(below)))


def test_an_unknown_source_of_problems_is_refused() -> None:
    with pytest.raises(ValueError, match=r"environment\.source is 'leetcode': use 'organism', the path of a \.jsonl"):
        keys = {"environment.source": "leetcode", "environment.hint": "plain", "model.path": "another"}
        check(settings.with_overrides(TrainConfig(), keys))

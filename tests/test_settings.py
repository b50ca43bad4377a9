"""settings.py: overlays change what they name, and every mistake says where and what instead."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unhack.config import ArmConfig, OptimizerConfig, TrainConfig
from unhack.settings import differences, from_dict, key_paths, load, to_dict, with_overrides


def overlay(folder: Path, text: str, name: str = "overlay.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_overlay_changes_only_what_it_names_and_later_overlays_win(tmp_path: Path) -> None:
    first = overlay(tmp_path, 'steps = 7\n[arm]\nname = "erase"\n[optimizer]\nlr = 1\n', "first.toml")
    second = overlay(tmp_path, "[optimizer]\nlr = 0.5\n[environment]\nmodes = ['sentinel']\n", "second.toml")
    config = load([first, second])
    plain = TrainConfig()
    assert config == dataclasses.replace(
        plain,
        steps=7,
        arm=ArmConfig(name="erase"),
        optimizer=OptimizerConfig(lr=0.5),
        environment=dataclasses.replace(plain.environment, modes=("sentinel",)),
    )
    assert type(load([first]).optimizer.lr) is float


def test_base_stays_beneath_the_overlay(tmp_path: Path) -> None:
    base = TrainConfig(seed=5, steps=3)
    assert load([overlay(tmp_path, "steps = 4")], base) == TrainConfig(seed=5, steps=4)
    assert load([]) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz = 1", "unknown setting stepz; did you mean steps?"),
        ("[optimizer]\nlearning_rat = 1", "unknown setting optimizer.learning_rat; known here: kind, lr, beta1"),
        ("[optimizer]\nwarmup_step = 1", "unknown setting optimizer.warmup_step; did you mean optimizer.warmup_steps?"),
        ("max_new_token = 1", "unknown setting max_new_token; did you mean sampler.max_new_tokens?"),
        ("[optimiser]\nlr = 1", "unknown setting optimiser; did you mean optimizer?"),
        ("steps = 1.5", "steps must be a whole number, not 1.5 (float)"),
        ("steps = true", "steps must be a whole number, not True (bool)"),
        ("steps = '3'", "steps must be a whole number, not '3' (str)"),
        ("[optimizer]\nlr = true", "optimizer.lr must be a number, not True (bool)"),
        ("[optimizer]\nlr = nan", "optimizer.lr must be a finite number, not nan"),
        ("[arm]\nsite = 'updates'", "arm.site must be one of 'gradient', 'update', not 'updates'; did you mean"),
        ("[arm]\ndirection = 3", "arm.direction must be a string, not 3 (int)"),
        ("[environment]\nmodes = 'none'", "environment.modes must be a list, not 'none' (str)"),
        ("[environment]\ndepths = [1, 'two']", "environment.depths[1] must be a whole number, not 'two' (str)"),
        ("[environment]\nallow_hack = 0", "environment.allow_hack must be true or false, not 0 (int)"),
        ("arm = 'erase'", "arm is a table of settings, not 'erase' (str); write [arm]"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_mistake_names_file_key_and_cure(tmp_path: Path, text: str, message: str) -> None:
    path = overlay(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        load([path])
    assert str(caught.value).startswith(f"overlay {path}: ")
    assert message in str(caught.value)


def test_missing_overlay_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.toml: there is no such file"):
        load([tmp_path / "absent.toml"])


def test_overrides_reach_leaves_and_refuse_unknown_ones() -> None:
    config = with_overrides(TrainConfig(), {"optimizer.lr": 1, "adapter.rank": 4, "environment.depths": [1, 2]})
    assert (config.optimizer.lr, config.adapter.rank, config.environment.depths) == (1.0, 4, (1, 2))
    assert with_overrides(config, {"adapter.rank": None}).adapter.rank is None
    with pytest.raises(ValueError, match=r"unknown setting optimizer\.lrr; did you mean optimizer\.lr\?"):
        with_overrides(config, {"optimizer.lrr": 1})


@given(
    lr=st.floats(allow_nan=False, allow_infinity=False),
    rank=st.none() | st.integers(),
    modes=st.lists(st.text()),
    direction=st.none() | st.text(),
    sided=st.sampled_from(["one", "two", "reverse"]),
    preserve=st.booleans(),
)
def test_dict_form_is_lossless_through_json(
    lr: float, rank: int | None, modes: list[str], direction: str | None, sided: str, preserve: bool
) -> None:
    overrides = {
        "optimizer.lr": lr,
        "adapter.rank": rank,
        "environment.modes": modes,
        "arm.direction": direction,
        "arm.sided": sided,
        "arm.preserve_norm": preserve,
    }
    config = with_overrides(TrainConfig(), overrides)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_dict_form_is_strict_about_missing_and_unknown_keys() -> None:
    tree = to_dict(TrainConfig())
    del tree["optimizer"]["lr"], tree["seed"]
    with pytest.raises(ValueError, match=r"missing optimizer\.lr, seed: .*another version"):
        from_dict(tree)
    with pytest.raises(ValueError, match="unknown setting extra"):
        from_dict(to_dict(TrainConfig()) | {"extra": 1})


def test_differences_name_key_and_both_values() -> None:
    changed = with_overrides(TrainConfig(), {"optimizer.lr": 0.5, "arm.name": "erase"})
    assert differences(TrainConfig(), TrainConfig()) == []
    assert differences(TrainConfig(), changed) == ["optimizer.lr: 0.03 → 0.5", "arm.name: 'vanilla' → 'erase'"]


def test_every_setting_can_be_set_to_its_own_default() -> None:
    """So no field of config.py has a type that settings.py cannot read."""
    tree = to_dict(TrainConfig())
    for key in key_paths():
        value = tree
        for part in key.split("."):
            value = value[part]
        assert with_overrides(TrainConfig(), {key: value}) == TrainConfig()

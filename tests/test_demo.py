"""The demo's plan is the comparison that it claims to be, and an experiment leaves its table and figures behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from run_folders import write_run
from unhack import cli, settings
from unhack.config import ArmConfig
from unhack.demo import demo_config, demo_plan
from unhack.directions import load_direction
from unhack.experiments.plan import Plan, check_plan, plan_runs, run_folder
from unhack.experiments.prepare import prepare_directions
from unhack.experiments.runs import DONE_FILE
from unhack.files import write_json
from unhack.interventions import arm_class
from unhack.outcome import write_outcome
from unhack.record import RunRecord


def test_four_arms_differ_only_in_the_arm_and_the_seed(tmp_path: Path) -> None:
    plan = demo_plan(demo_config(40), seeds=2)
    check_plan(plan)
    runs = plan_runs(plan, tmp_path)
    assert [run.name for run in runs] == ["vanilla", "erase_update", "erase_gradient", "erase_random"] * 2
    assert len({str(replace(run.config, arm=ArmConfig(), seed=0)) for run in runs}) == 1
    for run in runs:
        arm_class(run.config.arm)  # raises for a field that the arm does not use


def test_the_placebo_arm_is_the_real_one_with_a_random_direction_drawn_per_seed(tmp_path: Path) -> None:
    plan = demo_plan(demo_config(40), seeds=2)
    runs = {(run.name, run.config.seed): run.config.arm for run in plan_runs(plan, tmp_path)}
    real, placebo = runs["erase_update", 1], runs["erase_random", 1]
    assert replace(real, direction=placebo.direction) == placebo
    assert plan.controls == {"erase_update": ("erase_random",)}
    assert runs["erase_random", 0].direction != placebo.direction
    recipe = plan.directions["random"].recipe
    assert recipe.control == "random" and replace(recipe, control="real") == plan.directions["run_tests"].recipe


def test_the_preregistered_arm_is_one_sided_at_the_gradient_and_keeps_the_norm(tmp_path: Path) -> None:
    runs = {run.name: run.config.arm for run in plan_runs(demo_plan(demo_config(40), seeds=1), tmp_path)}
    assert (runs["erase_gradient"].site, runs["erase_gradient"].sided) == ("gradient", "one")
    assert runs["erase_gradient"].preserve_norm
    assert runs["erase_gradient"].direction == runs["erase_update"].direction
    assert (runs["erase_update"].site, runs["erase_update"].sided) == ("update", "two")


@pytest.mark.parametrize("steps", [1, 4, 60])
def test_evaluations_are_spread_over_the_run_however_short(steps: int) -> None:
    assert 1 <= steps / demo_config(steps).evaluation.every_steps <= 9


def test_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        demo_plan(demo_config(4), seeds=0)


def test_the_outcome_is_written_from_finished_runs_only(tmp_path: Path) -> None:
    plan = demo_plan(demo_config(20), seeds=1)
    with pytest.raises(ValueError, match="no run of demo"):
        write_outcome(plan, tmp_path)
    for name, cosine in (("vanilla", None), ("erase_gradient", 0.6), ("erase_random", 0.0)):
        folder = write_run(run_folder(tmp_path, name, 0), steps=20, samples=16, cosine=cosine)
        if name != "erase_random":
            write_json(folder / DONE_FILE, {})
    outcome = write_outcome(plan, tmp_path)
    assert [arm.name for arm in outcome.arms] == ["vanilla", "erase_gradient"]
    assert {path.name for path in outcome.files} == {
        "overview.png", "modes.png", "training.png", "cosine.png", "results.md", "results.csv",
    }  # fmt: skip
    report = (tmp_path / "results.md").read_text()
    assert "erase_gradient" in report and "erase_random" not in report
    assert all(path.stat().st_size > 100 for path in outcome.files)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arm.name", "clean"], "arm.* cannot be set for a whole experiment"),
        (["--arm.overshoot", "2"], "arm.* cannot be set for a whole experiment"),
        (["--seed", "3"], "seed cannot be set for a whole experiment, which runs several: set seeds"),
    ],
)
def test_settings_that_every_arm_replaces_are_refused_by_the_demo(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--dry-run", "--folder", str(tmp_path), *flags]) == cli.USER_ERROR
    assert message in capsys.readouterr().err


def test_the_demo_starts_from_the_settings_file_that_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "config.json", settings.to_dict(replace(demo_config(33), prompts_per_step=5)))
    assert cli.main(["demo", "--dry-run", "--config-file", str(tmp_path / "config.json")]) == 0
    text = capsys.readouterr().out
    assert "steps = 33" in text and "prompts_per_step = 5" in text


def small_plan() -> Plan:
    plan = demo_plan(demo_config(4), seeds=2)
    small = {
        name: replace(one, recipe=replace(one.recipe, pairs=4, heldout=1, k=2)) for name, one in plan.directions.items()
    }
    return replace(plan, directions=small)


def test_a_run_of_another_model_or_direction_is_not_used_again(tmp_path: Path) -> None:
    plan = small_plan()
    hashes = {path.stem: value for path, value in prepare_directions(plan, tmp_path).items()}
    run = next(run for run in plan_runs(plan, tmp_path) if run.name == "erase_random")
    model_hash = load_direction(tmp_path / "directions" / "run_tests.safetensors").metadata.base_model
    env = {"sandbox_level": 1, "model_hash": model_hash, "direction_hash": hashes["random-seed-0"]}
    with RunRecord(run.folder) as record:
        record.create(run.config, env)
    prepare_directions(plan, tmp_path)
    for key in ("model_hash", "direction_hash"):
        write_json(run.folder / "env.json", env | {key: "other"})
        with pytest.raises(ValueError, match=f"erase_random-seed-0 holds a run with another {key}"):
            prepare_directions(plan, tmp_path)


def test_directions_are_made_once_per_seed_where_asked_and_refused_when_the_recipe_changed(tmp_path: Path) -> None:
    plan = small_plan()
    paths = {path.stem: path for path in prepare_directions(plan, tmp_path)}
    assert set(paths) == {"run_tests", "random-seed-0", "random-seed-1"}
    made = {name: load_direction(path) for name, path in paths.items()}
    assert [made[f"random-seed-{seed}"].metadata.seed for seed in (0, 1)] == [0, 1]
    assert len({direction.content_hash for direction in made.values()}) == 3
    written = {path: path.stat().st_mtime_ns for path in paths.values()}
    prepare_directions(plan, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len({direction.metadata.pairs_hash for direction in made.values()}) == 1  # a control is of the same pairs
    changes = {"k": 3, "pairs": 5, "length_matched": False, "depths": (1,), "pairs_seed": 1}
    for field, value in changes.items():
        name = "k" if field == "k" else "pairs_hash"
        other = {
            key: replace(one, recipe=replace(one.recipe, **{field: value})) for key, one in plan.directions.items()
        }
        with pytest.raises(ValueError, match=f"field '{name}' is"):
            prepare_directions(replace(plan, directions=other), tmp_path)

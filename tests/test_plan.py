"""Plans: what a file becomes, what in it refers to what, and every mistake told with its cure."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from unhack import settings
from unhack.config import TrainConfig
from unhack.experiments.plan import Plan, analysed_runs, load_plan, needed_runs, plan_runs
from unhack.experiments.references import REFERENCES, Reference
from unhack.experiments.runs import check_runs

PLAN = """
seeds = [0, 3]
[base]
steps = 7
[base.environment]
depths = [1, 2]
[directions.run_tests]
selection = "run_tests"
[directions.random]
control = "random"
per_seed = true
[arms.vanilla]
[arms.push]
arm = { name = "push", direction = "run_tests", push_profile = "gradient" }
[arms.gradient]
control = "placebo"
arm = { name = "erase", site = "gradient", sided = "one", direction = "run_tests" }
[arms.placebo]
arm = { name = "erase", site = "gradient", sided = "one", direction = "random" }
"""


def test_a_plan_becomes_one_run_per_arm_and_seed_that_differ_in_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "main.toml").write_text(PLAN)
    plan = load_plan(tmp_path / "main.toml")
    runs = {(run.name, run.config.seed): run for run in plan_runs(plan, tmp_path / "out")}
    assert len(runs) == 8 and plan.name == "main" and plan.controls == {"gradient": ("placebo",)}
    vanilla, gradient = runs["vanilla", 3].config, runs["gradient", 3].config
    assert vanilla.steps == 7 and replace(gradient, arm=vanilla.arm) == vanilla
    push = runs["push", 3]
    assert push.after == (runs["gradient", 3].folder,)
    assert push.config.arm.push_profile == str(runs["gradient", 3].folder / "update_profile.json")
    assert plan.directions["run_tests"].recipe.depths == (1, 2)
    assert runs["placebo", 0].config.arm.direction != runs["placebo", 3].config.arm.direction
    assert runs["gradient", 0].config.arm.direction == runs["gradient", 3].config.arm.direction
    check_runs(list(runs.values()))


def test_an_arm_may_have_several_placebos(tmp_path: Path) -> None:
    (tmp_path / "main.toml").write_text(PLAN.replace('control = "placebo"', 'control = ["placebo", "push"]'))
    assert load_plan(tmp_path / "main.toml").controls == {"gradient": ("placebo", "push")}


def test_the_shipped_experiment_matches_every_real_direction_with_placebos_that_differ_in_nothing_else(
    tmp_path: Path,
) -> None:
    plan = load_plan(Path(__file__).parents[1] / "experiments" / "organism-erasure.toml")
    arms = {run.name: run.config.arm for run in plan_runs(plan, tmp_path) if run.config.seed == 0}
    assert set(plan.controls) == {"erase_update", "erase_update_mean", "erase_gradient", "push"}
    for name, controls in plan.controls.items():
        for control in controls:
            assert replace(arms[control], direction=arms[name].direction) == arms[name]
            assert arms[control].direction != arms[name].direction
    mean, shuffled = (plan.directions[name].recipe for name in ("run_tests_mean", "shuffled_mean"))
    assert replace(shuffled, control="real") == mean


def test_in_the_shipped_experiment_of_further_arms_a_control_differs_from_its_arm_in_one_thing(tmp_path: Path) -> None:
    plan = load_plan(Path(__file__).parents[1] / "experiments" / "organism-more.toml")
    settings_of = {arm: settings.leaves(plan.config(arm)) for arm in plan.arms}
    assert {name for name in plan.controls if name.startswith("erase")} == {
        *(f"erase_update{suffix}" for suffix in ("", "_k1", "_k8", "_refresh", "_imitation", "_importance"))
    }
    for name, controls in plan.controls.items():
        for control in controls:
            one, other = settings_of[name], settings_of[control]
            [key] = [key for key in one if one[key] != other[key]]
            assert key in ("arm.direction", "adapter.init", "arm.inoculation")
            if key == "arm.direction":
                real, random = (plan.directions[str(values[key])] for values in (one, other))
                assert replace(random.recipe, control="real") == real.recipe and random.per_seed
                assert random.recipe.control == "random"
    runs = {run.id: run for run in plan_runs(plan, tmp_path)}
    assert runs["erase_update_imitation-seed-3"].after == (runs["vanilla-seed-3"].folder,)
    organism, monitors = (
        load_plan(Path(__file__).parents[1] / "experiments" / name)
        for name in ("organism.toml", "organism-monitors.toml")
    )
    assert (plan.base, plan.seeds) == (organism.base, organism.seeds) == (monitors.base, monitors.seeds)
    assert {monitors.probes[name].selection for name in monitors.probes} >= {"all", "placebo"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[base]", "[bose]"), "unknown key bose; did you mean base"),
        (("steps = 7", "stepps = 7"), "unknown setting stepps; did you mean steps"),
        (("seeds = [0, 3]", 'seeds = ["a"]'), "seeds must be a list of whole numbers"),
        (('push_profile = "gradient"', 'push_profile = "gradeint"'), "did you mean gradient"),
        (('direction = "random"', 'direction = "rondom"'), r"arms.placebo: arm.direction is 'rondom'.*mean random"),
        (('control = "placebo"', 'control = "none"'), "arms.gradient: control is 'none'"),
        (("per_seed = true", "per_sed = true"), "unknown key directions.random.per_sed; did you mean"),
        (('selection = "run_tests"', "selection = 3"), "directions.run_tests.selection must be a string"),
        (("[arms.vanilla]", "arms = 3"), "not valid TOML|cannot|arms"),
        (('control = "placebo"', 'control = ["placebo", "placbo"]'), "control is 'placbo'.*did you mean placebo"),
        (('control = "placebo"', "control = 3"), "arms.gradient.control must be the name of an arm or a list"),
        (("steps = 7", "seed = 4"), "seed cannot be set for a whole experiment.*set seeds"),
        (("steps = 7", 'arm = { name = "clean" }'), r"arm\.\* cannot be set for a whole experiment"),
        (("[arms.vanilla]", "[arms.vanilla]\nseed = 4"), "arms.vanilla: an arm has no seed of its own"),
        (("steps = 7", "steps = 0"), "main.toml: steps is 0: it must be at least 1"),
        (("[arms.vanilla]", "[arms.vanilla]\noptimizer = { lr = 0.0 }"), "arms.vanilla: optimizer.lr is 0.0: it must"),
        (("[arms.vanilla]", '[arms.vanilla]\narm = { name = "earse" }'), "arms.vanilla: unknown arm 'earse'.*erase"),
        (("[arms.vanilla]", '[arms.vanilla]\narm = { name = "push" }'), "arms.vanilla: arm 'push' needs arm"),
        (("[arms.vanilla]", '[arms.vanilla]\nmodel = { path = "x" }'), "arms.vanilla: arms are compared on one model"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_file_and_the_cure(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "main.toml"
    path.write_text(PLAN.replace(*change))
    with pytest.raises(ValueError, match=message) as caught:
        load_plan(path)
    assert str(path) in str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "main.toml"
    path.write_text(text)
    return path


REFERRING = """
seeds = [1, 2]
[concepts.hack]
layer = 2
[concepts.random]
control = "random"
per_seed = true
[files]
pool = "pool"
[arms.clean]
arm = { name = "clean" }
[arms.rebound]
arm = { name = "rebound_penalty", concept = "hack" }
[arms.rebound_random]
arm = { name = "rebound_penalty", concept = "random" }
[arms.trusted]
arm = { name = "trusted_subspace", trusted_adapter = "clean" }
"""


def test_a_name_becomes_the_path_of_what_it_names_and_the_run_that_makes_it_comes_first(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    plan = load_plan(write(tmp_path, REFERRING))
    runs = {run.id: run for run in plan_runs(plan, tmp_path / "out")}
    out = (tmp_path / "out").resolve()
    assert runs["rebound-seed-2"].config.arm.concept == str(out / "concepts" / "hack.safetensors")
    assert runs["rebound_random-seed-2"].config.arm.concept == str(out / "concepts" / "random-seed-2.safetensors")
    assert runs["trusted-seed-2"].config.arm.trusted_adapter == str(runs["clean-seed-2"].folder / "adapter")
    assert runs["trusted-seed-2"].after == (runs["clean-seed-2"].folder,)
    assert plan.files == {"pool": (tmp_path / "pool").resolve()}


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda one: one.key)
def test_every_reference_is_a_setting_that_takes_a_path_and_a_table_of_the_plan(reference: Reference) -> None:
    assert settings.leaves(TrainConfig())[reference.key] is None
    assert settings.leaves(settings.with_overrides(TrainConfig(), {reference.key: "a"}))[reference.key] == "a"
    assert set(reference.tables) <= {item.name for item in dataclasses.fields(Plan)}
    assert bool(reference.output) == (reference.tables == ("arms",))


def test_a_name_that_its_table_lacks_is_refused_by_the_name_of_the_table(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"arm.concept is 'hak', which \[concepts\] does not define; did you mean hack"
    ):
        load_plan(
            write(tmp_path, REFERRING.replace('pool = "pool"', "").replace('concept = "hack"', 'concept = "hak"'))
        )
    with pytest.raises(ValueError, match=r"teacher.pool is 'pools/a', which \[pools\] or \[files\] does not"):
        load_plan(write(tmp_path, "[arms.vanilla]\nteacher = { pool = 'pools/a' }\n"))
    with pytest.raises(ValueError, match=r"files.pool is 'pool': it must be the path of a file or folder"):
        load_plan(write(tmp_path, REFERRING))


TEACHING = """
seeds = [1, 2]
[statistics.pairs]
selection = "all"
[pools.hacks]
arm = "vanilla"
only = "hacked"
modes = ["sentinel"]
per_mode = 9
steps = [2, 5]
[arms.taught]
teacher = { pool = "hacks", modes = ["sentinel"] }
[arms.vanilla]
steps = 5
[arms.corda]
adapter = { kind = "block_lora", rank = 4, init = "corda", statistics = "pairs" }
"""


def test_a_pool_is_of_the_arms_run_of_the_same_seed_which_is_done_first_and_statistics_serve_all_seeds(
    tmp_path: Path,
) -> None:
    plan = load_plan(write(tmp_path, TEACHING))
    runs = {run.id: run for run in needed_runs(plan, tmp_path / "out")}
    out = (tmp_path / "out").resolve()
    assert next(iter(runs)) == "vanilla-seed-1"
    for seed in (1, 2):
        taught = runs[f"taught-seed-{seed}"]
        assert taught.after == (out / "runs" / f"vanilla-seed-{seed}",)
        assert taught.config.teacher.pool == str(out / "pools" / f"hacks-seed-{seed}")
        assert runs[f"corda-seed-{seed}"].config.adapter.statistics == str(out / "statistics" / "pairs.safetensors")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('arm = "vanilla"', 'arm = "vanila"', r"pools.hacks.arm is 'vanila', which \[arms\] .*did you mean vanilla"),
        ('arm = "vanilla"', "", "pools.hacks.arm is ''"),
        ('arm = "vanilla"', 'arm = "taught"', "the runs taught.* wait for"),
        ('only = "hacked"', 'only = "hacks"', "pools.hacks.only must be one of .*did you mean 'hacked'"),
        ('modes = ["sentinel"]', 'modes = ["sentinal"]', "pools.hacks.modes has the unknown loophole mode 'sentinal'"),
        ("per_mode = 9", "per_mode = 0", "pools.hacks.per_mode is 0: it must be at least 1"),
        ("per_mode = 9", "per_mod = 9", "unknown key pools.hacks.per_mod; did you mean pools.hacks.per_mode"),
        ("[2, 5]", "[2, 6]", r"pools.hacks.steps is \[2, 6\]: write \[A, B\].*of the 5 steps of vanilla"),
        ("[2, 5]", "[5, 2]", "pools.hacks.steps is"),
        ("[2, 5]", "[2]", "pools.hacks.steps is"),
        (
            "[pools.hacks]",
            '[files]\nhacks = "."\n[pools.hacks]',
            "teacher.pool is 'hacks', the name of two things",
        ),
        ('statistics = "pairs"', 'statistics = "pair"', r"adapter.statistics is 'pair', which \[statistics\] or"),
        ('selection = "all"', "k = 3", "unknown key statistics.pairs.k"),
    ],
)
def test_a_wrong_pool_or_wrong_statistics_are_refused_with_the_cure(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_runs(plan_runs(load_plan(write(tmp_path, TEACHING.replace(old, new, 1))), tmp_path))


def test_arms_with_another_adapter_get_directions_of_their_own(tmp_path: Path) -> None:
    text = (
        PLAN
        + '[arms.lora]\nadapter = { kind = "fixed_a_lora", rank = 4 }\narm = { name = "erase", direction = "random" }'
    )
    plan = load_plan(write(tmp_path, text))
    paths = {run.id: run.config.arm.direction for run in plan_runs(plan, tmp_path)}
    assert paths["lora-seed-0"] != paths["placebo-seed-0"] and "fixed_a_lora" in str(paths["lora-seed-0"])
    assert str(paths["placebo-seed-0"]).endswith("/random-seed-0.safetensors")


def test_runs_are_done_in_an_order_in_which_the_first_n_need_no_others(tmp_path: Path) -> None:
    runs = needed_runs(load_plan(write(tmp_path, PLAN)), tmp_path)
    assert len(runs) == 8
    for index, run in enumerate(runs):
        assert set(run.after) <= {one.folder for one in runs[:index]}
    assert [run.name for run in runs[:2]] == ["vanilla", "gradient"]


def test_an_excluded_run_is_left_out_of_results_and_is_done_only_if_another_needs_it(tmp_path: Path) -> None:
    rules = '[exclusions]\nruns = { "vanilla-seed-0" = "disk full", "gradient-seed-3" = "it diverged" }\n'
    plan = load_plan(write(tmp_path, PLAN + rules))
    analysed = {run.id for run in analysed_runs(plan, tmp_path)}
    done = {run.id for run in needed_runs(plan, tmp_path)}
    assert {run.id for run in plan_runs(plan, tmp_path)} - analysed == {"vanilla-seed-0", "gradient-seed-3"}
    assert "vanilla-seed-0" not in done and "gradient-seed-3" in done  # the push of seed 3 takes its profile
    assert len(done) == 7
    assert plan.exclusions.runs["vanilla-seed-0"] == "disk full"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            '[exclusions]\nruns = { "vanila-seed-0" = "x" }',
            "exclusions.runs: the run is 'vanila-seed-0'.*vanilla-seed-0",
        ),
        ('[exclusions]\nruns = { "vanilla-seed-0" = "" }', "exclusions.runs.vanilla-seed-0 needs a reason in words"),
        ("[exclusions]\nrule = []", "unknown key exclusions.rule; did you mean exclusions.rules"),
        ('[exclusions]\nrules = "none"', "exclusions.rules must be a list of sentences"),
        ("[stop]\nmax_seeds = 1", "2 seeds are planned, but stop.max_seeds is 1"),
        ("[stop]\nmax_seeds = 'a'", "stop.max_seeds must be a whole number"),
        ("[stop]\nrule = 3", "stop.rule must be a sentence"),
        (
            "[hypotheses.H4]\nkind = 'emergence'\narm = 'vanila'",
            "hypotheses.H4: the arm is 'vanila'.*did you mean vanilla",
        ),
        ("[directions.d]\nper_seed = 3", "directions.d.per_seed must be true or false"),
        ("[directions.d]\ncontrol = 'randm'", "directions.d.control must be one of .*did you mean 'random'"),
    ],
)
def test_what_is_registered_wrongly_is_refused_with_the_cure(tmp_path: Path, extra: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_plan(write(tmp_path, f"{PLAN}\n{extra}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = [1, 1]\n[arms.vanilla]", "seeds has a number twice"),
        ("name = 'a/b'\n[arms.vanilla]", "name is 'a/b': it becomes a folder"),
        ("name = 3\n[arms.vanilla]", "name is 3"),
    ],
)
def test_seeds_and_names_that_would_share_a_folder_or_leave_it_are_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_plan(write(tmp_path, text))

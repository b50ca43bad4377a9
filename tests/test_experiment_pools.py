"""Teacher pools of an experiment: ordered before the runs, built once by the first run that needs one."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from experiment_files import SMALL
from pool_runs import make_run
from training_runs import outcome
from unhack import record
from unhack.config import TeacherConfig, TrainConfig
from unhack.experiments.engines.local import run_all, train_command
from unhack.experiments.engines.options import SlurmOptions
from unhack.experiments.engines.slurm import SlurmEngine
from unhack.experiments.engines.task import main
from unhack.experiments.plan import Plan, load_plan, needed_runs, pool_path, run_folder
from unhack.experiments.pools import build_ordered, order_file, order_pools
from unhack.experiments.prepare import prepare_directions
from unhack.experiments.runs import RunSpec, prepare_start, recorded_progress
from unhack.files import read_json
from unhack.pool import load_pool

TAUGHT = """
[pools.all]
arm = "vanilla"
[pools.hacks]
arm = "vanilla"
only = "hacked"
per_mode = 3
steps = [1, 3]
[pools.unused]
arm = "push"
[arms.taught]
teacher = { pool = "all", kind = "imitation" }
[arms.taught_hacks]
teacher = { pool = "hacks" }
"""


def plan_in(folder: Path, more: str = TAUGHT) -> Plan:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.toml").write_text(SMALL + more)
    return load_plan(folder / "small.toml")


def ordered(folder: Path) -> tuple[Plan, TrainConfig]:
    """The orders written, the run that one pool is made of finished, and the settings of a run that needs it."""
    plan = plan_in(folder)
    assert order_pools(plan, folder) == {}
    make_run(run_folder(folder, "vanilla", 0))
    return plan, replace(plan.base, teacher=TeacherConfig(pool=str(pool_path(folder, "hacks", 0))))


def test_pools_that_runs_name_are_ordered_and_built_to_the_order(tmp_path: Path) -> None:
    plan, config = ordered(tmp_path)
    orders = {path.name for path in (tmp_path / "pools").iterdir()}
    assert orders == {f"{name}-seed-{seed}.order.json" for name in ("all", "hacks") for seed in (0, 1)}
    build_ordered(config)
    pool = load_pool(pool_path(tmp_path, "hacks", 0))
    assert {lesson.grading.verdict.hacked for lesson in pool.lessons} == {True}
    assert {lesson.rollout.id[:11] for lesson in pool.lessons} == {"step-000001", "step-000002"}
    assert max(pool.header["rows_of_mode"].values()) <= 3
    assert order_pools(plan, tmp_path) == {pool.path: pool.content_hash}
    changed = replace(plan, pools={**plan.pools, "hacks": replace(plan.pools["hacks"], per_mode=2)})
    with pytest.raises(ValueError, match=r"hacks-seed-0: per_mode is 3, the plan.s is 2: remove it to make it anew"):
        order_pools(changed, tmp_path)


def test_a_pool_is_drawn_by_its_seed_and_is_the_same_whenever_it_is_built(tmp_path: Path) -> None:
    _, config = ordered(tmp_path)
    order, pool = order_file(pool_path(tmp_path, "hacks", 0)), pool_path(tmp_path, "hacks", 0)
    assert read_json(order)["seed"] == 0
    assert read_json(order_file(pool_path(tmp_path, "hacks", 1)))["run"] == str(run_folder(tmp_path, "vanilla", 1))
    build_ordered(config)
    first = load_pool(pool).content_hash
    pool.rename(tmp_path / "first")
    build_ordered(config)
    assert load_pool(pool).content_hash == first


@pytest.mark.slow
def test_two_runs_that_want_one_pool_at_once_get_the_same_and_what_a_killed_builder_left_is_removed(
    tmp_path: Path,
) -> None:
    _, config = ordered(tmp_path)
    pool = pool_path(tmp_path, "hacks", 0)
    half = pool.with_name(f".{pool.name}.partial")
    half.mkdir()
    (half / "rollouts.parquet").write_text("half")
    code = (
        "import sys; from pathlib import Path; from dataclasses import replace; from unhack.config import *;"
        "from unhack.experiments.pools import build_ordered;"
        "build_ordered(replace(TrainConfig(), teacher=TeacherConfig(pool=sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(config.teacher.pool)]
    with ThreadPoolExecutor(2) as threads:
        ended = list(threads.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(2)))
    assert [one.returncode for one in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert load_pool(pool).lessons and not half.exists()


def test_a_run_whose_pool_cannot_be_built_says_why_and_nothing_is_left_under_the_pools_name(tmp_path: Path) -> None:
    _, config = ordered(tmp_path)
    make_run(run_folder(tmp_path, "vanilla", 1), steps=9)
    run = RunSpec("taught", replace(config, seed=1, teacher=TeacherConfig(pool=str(pool_path(tmp_path, "hacks", 1)))),
                  run_folder(tmp_path, "taught", 1))  # fmt: skip
    prepare_start(run)
    assert train_command(run)[2] == "unhack.experiments.engines.task"
    with pytest.raises(ValueError, match="vanilla-seed-1 has done 3 of 9 steps"):
        main([str(run.folder)])
    assert "3 of 9 steps" in recorded_progress(run).message and not Path(str(run.config.teacher.pool)).exists()


def test_runs_without_a_pool_or_with_one_that_was_there_before_are_started_as_ever(tmp_path: Path) -> None:
    ordered(tmp_path)
    for pool in (None, str(tmp_path / "other")):
        config = replace(TrainConfig(), teacher=TeacherConfig(pool=pool))
        build_ordered(config)
        assert train_command(RunSpec("a", config, tmp_path / "a"))[3] == "train"
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_taught_runs_have_the_same_numbers_from_the_local_pool_and_as_array_tasks(tmp_path: Path) -> None:
    for folder in (tmp_path / "local", tmp_path / "slurm"):
        plan = plan_in(folder, TAUGHT.replace('[arms.taught_hacks]\nteacher = { pool = "hacks" }\n', ""))
        prepare_directions(plan, folder)
        runs = [run for run in needed_runs(plan, folder) if run.name in ("vanilla", "taught") and run.config.seed == 0]
        if folder.name == "local":
            assert {one.state for one in run_all(runs, 2)} == {"finished"}
            continue
        engine = SlurmEngine(folder, SlurmOptions())
        engine.run(runs)
        for stage in ("stage-0.txt", "stage-1.txt"):
            env = os.environ | {"SLURM_ARRAY_TASK_ID": "0"}
            subprocess.run(["bash", "array.sh", stage], cwd=engine.folder, env=env, check=True, capture_output=True)
    local, slurm = (run_folder(tmp_path / name, "taught", 0) for name in ("local", "slurm"))
    pooled, tasked = outcome(local), outcome(slurm)
    hashes = [one["state"].pop("pool_hash") for one in (pooled, tasked)]
    assert pooled == tasked
    assert hashes[0] != hashes[1], "a pool holds what grading took, in CPU seconds: another run's is another pool"
    assert sum(line["teacher/rollouts"] for line in record.metrics(local)) == 6 * 2 * 2
    assert all(line["teacher/same_prompt_frac"] == 1 for line in record.metrics(local))
    prepare_directions(plan_in(tmp_path / "local"), tmp_path / "local")  # accepts what is there
    pool = pool_path(tmp_path / "local", "all", 0)
    assert read_json(local / "env.json")["pool_hash"] == hashes[0] == load_pool(pool).content_hash
    pool.rename(tmp_path / "away")
    load_pool(pool_path(tmp_path / "slurm", "all", 0)).path.rename(pool)
    with pytest.raises(ValueError, match="taught-seed-0 holds a run with another pool_hash"):
        prepare_directions(plan_in(tmp_path / "local"), tmp_path / "local")

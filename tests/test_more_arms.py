"""Arms of experiments/organism-more.toml from end to end: block LoRA from every initialiser, teacher mixing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from test_adapter_runs import BLOCKS, check_run, short_run
from training_runs import SHORT
from unhack import model, record
from unhack.adapters import Policy
from unhack.adapters.block_init import load_statistics, save_statistics
from unhack.config import AdapterConfig, ArmConfig, ModelConfig, TeacherConfig, TrainConfig
from unhack.directions import DirectionRecipe, organism_direction, save_direction
from unhack.directions.inputs import StatisticsRecipe, input_statistics, statistics_pairs
from unhack.files import read_json
from unhack.pool import build_pool
from unhack.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("statistics") / "inputs.safetensors"
    loaded = model.load(ModelConfig())
    save_statistics(input_statistics(loaded, statistics_pairs(loaded, StatisticsRecipe(pairs=4))), path)
    return str(path)


@pytest.mark.parametrize(
    ("init", "arm"),
    [
        *((init, "vanilla") for init in ("pissa", "corda", "reversed_corda")),  # the others: test_adapter_runs.py,
        *((init, "absorb") for init in ("pissa", "corda", "signed_corda", "reversed_corda")),  # test_train_arms.py
    ],
)
def test_block_lora_trains_resumes_and_deploys_from_every_initialiser(
    init: Literal["pissa", "corda", "signed_corda", "reversed_corda"],
    arm: str,
    statistics: str,
    tmp_path: Path,
) -> None:
    adapter = replace(BLOCKS, init=init, statistics=statistics if init.endswith("corda") else None)
    check_run(short_run(adapter, ArmConfig(name=arm)), tmp_path / "run", quarantine_trains=arm == "absorb")
    said = read_json(tmp_path / "run" / "env.json")["statistics_hash"]
    known = load_statistics(Path(statistics), model.load(ModelConfig()).hash).content_hash
    assert said == (known if init.endswith("corda") else None)


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A pool of a run of vanilla, and a direction."""
    folder = tmp_path_factory.mktemp("teacher")
    config = taught(TeacherConfig(), ArmConfig())
    assert train(config, folder / "vanilla")
    build_pool([folder / "vanilla"], folder / "pool")
    direction = organism_direction(Policy.wrap(model.load(SHORT.model), SHORT.adapter), DirectionRecipe(pairs=4, k=2))
    save_direction(direction, folder / "v.safetensors")
    return str(folder / "pool"), str(folder / "v.safetensors")


def taught(teacher: TeacherConfig, arm: ArmConfig) -> TrainConfig:
    config = short_run(AdapterConfig(), arm)
    return replace(config, teacher=teacher, group_size=4, prompts_per_step=3)


@pytest.mark.parametrize("kind", ["imitation", "importance"])
@pytest.mark.parametrize("name", ["vanilla", "erase"])
def test_a_taught_arm_trains_resumes_and_deploys(
    name: str, kind: Literal["imitation", "importance"], lessons: tuple[str, str], tmp_path: Path
) -> None:
    pool, direction = lessons
    arm = ArmConfig(name=name, direction=direction if name == "erase" else None)
    check_run(taught(TeacherConfig(pool=pool, kind=kind), arm), tmp_path / "run", quarantine_trains=False)
    lines = list(record.metrics(tmp_path / "run"))
    assert [line["teacher/rollouts"] for line in lines] == [6, 6]
    assert all(line["teacher/same_prompt_frac"] == 1 for line in lines), "runs of one seed draw the same prompts"
    if name == "erase":
        told = {key for line in lines for key in line}
        assert {"gradient/hackward_in_teacher", "gradient/hackward_in_student"} <= told

"""gated_route from end to end on the organism: both scores, every kind of adapter, resume, deployment, identities."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pool_runs import make_run
from test_adapter_runs import BLOCKS, FIXED_A, check_run
from test_gated_route import slow_decision
from training_runs import SHORT, final_tensors, unexplained_metrics
from unhack import model, record
from unhack.adapters import Policy
from unhack.config import AdapterConfig, ArmConfig, TeacherConfig, TrainConfig
from unhack.directions import DirectionRecipe, organism_direction, save_direction
from unhack.pool import build_pool
from unhack.train import train

pytestmark = pytest.mark.slow
RECIPE = DirectionRecipe(k=1, pairs=4, heldout=2)


def gated(folder: Path, adapter: AdapterConfig, recipe: DirectionRecipe, **fields: object) -> TrainConfig:
    """Two steps of two prompts with four rollouts, wide gates, so that every decision occurs."""
    path = folder / "v.safetensors"
    if not path.exists():
        save_direction(organism_direction(Policy.wrap(model.load(SHORT.model), adapter), recipe), path)
    score = "activation" if recipe.loss == "activation" else "gradient"
    arm = ArmConfig(name="gated_route", direction=str(path), score=score, keep_frac=0.3, route_frac=0.3)
    environment = replace(SHORT.environment, modes=("run_tests",))
    return replace(SHORT, adapter=adapter, arm=replace(arm, **fields), environment=environment)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("adapter", "recipe"),
    [
        (AdapterConfig(), RECIPE),
        (AdapterConfig(), replace(RECIPE, loss="activation")),
        (AdapterConfig(), replace(RECIPE, control="random")),
        (FIXED_A, RECIPE),
        (FIXED_A, replace(RECIPE, loss="activation", control="random")),
        (BLOCKS, replace(RECIPE, loss="activation")),
    ],
    ids=["spectral", "spectral-activation", "spectral-random", "fixed_a", "fixed_a-activation-random", "block_lora"],
)
def test_a_gate_trains_resumes_bit_for_bit_and_deploys_without_its_quarantine(
    adapter: AdapterConfig, recipe: DirectionRecipe, tmp_path: Path
) -> None:
    config = gated(tmp_path, adapter, recipe)
    check_run(config, tmp_path / "run", quarantine_trains=True)
    tensors, lines = final_tensors(tmp_path / "run"), record.metrics(tmp_path / "run")
    assert not torch.equal(tensors["policy/main"], tensors["policy/quarantine"])
    assert len(tensors["arm/gate_scores"]) == len(tensors["arm/gate_weights"]) == 2 * 8
    assert tensors["arm/gate_weights"][-8:].tolist() == [1.0] * 8
    history = [scores.tolist() for scores in tensors["arm/gate_scores"].split(8)]
    for step, line in enumerate(lines):
        decided = slow_decision(history[: step + 1], 96.0, 0.3, 0.3)  # equal rollouts tie, so shares may be smaller
        assert line["gate/kept_frac"] == decided.count("keep") / 8
        assert line["gate/routed_frac"] == decided.count("route") / 8
        assert line["gate/kept_frac"] + line["gate/routed_frac"] + line["gate/absorbed_frac"] == pytest.approx(1)
        low, high = (line[f"gate/{name}_threshold"] for name in ("keep", "route"))  # NaN: none can be
        assert math.isnan(low) or math.isnan(high) or low < high
    assert lines[1]["gate/buffer_rollouts"] == pytest.approx(8 + 8 * 0.5 ** (8 / 96))
    assert any(line["gate/kept_frac"] + line["gate/routed_frac"] > 0 for line in lines)
    assert not unexplained_metrics(tmp_path / "run")


def test_a_gate_that_lets_everything_through_is_absorb_and_one_that_keeps_everything_is_vanilla(tmp_path: Path) -> None:
    open_gate = gated(tmp_path, AdapterConfig(), RECIPE, keep_frac=0.0, route_frac=0.0)
    closed = gated(tmp_path, AdapterConfig(), RECIPE, keep_frac=1.0, route_frac=0.0)
    for gate, twin in ((open_gate, "absorb"), (closed, "vanilla")):
        other = replace(gate, arm=ArmConfig(name=twin))
        assert train(gate, tmp_path / f"as-{twin}") and train(other, tmp_path / twin)
        got, wanted = final_tensors(tmp_path / f"as-{twin}"), final_tensors(tmp_path / twin)
        assert wanted["policy/main"].any()
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_teacher_and_a_gate_work_together_and_every_metric_is_explained(tmp_path: Path) -> None:
    config = gated(tmp_path, AdapterConfig(), RECIPE)
    build_pool([make_run(tmp_path / "source")], tmp_path / "pool")
    check_run(
        replace(config, teacher=TeacherConfig(pool=str(tmp_path / "pool"), kind="imitation")),
        tmp_path / "run",
        quarantine_trains=True,
    )
    lines = record.metrics(tmp_path / "run")
    assert all(line["teacher/rollouts"] == 4 and line["gradient/hackward_in_teacher"] >= 0 for line in lines)
    assert not unexplained_metrics(tmp_path / "run")

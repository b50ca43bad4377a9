"""Runs with the adapters beside spectral: two steps, resume, reload, deploy; directions and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training_runs import SHORT, assert_same, final_tensors
from unhack import model
from unhack.adapters import Policy
from unhack.adapters.block_init import save_statistics
from unhack.adapters.block_lora import BlockLinear
from unhack.config import AdapterConfig, ArmConfig, EnvironmentConfig, TrainConfig
from unhack.directions import DirectionRecipe, organism_direction, save_direction
from unhack.directions.inputs import input_statistics
from unhack.pairs import select
from unhack.pairs.organism import organism_pairs
from unhack.train import train

pytestmark = pytest.mark.slow
FIXED_A = AdapterConfig(kind="fixed_a_lora", rank=3)
BLOCKS = AdapterConfig(kind="block_lora", rank=3)


def short_run(adapter: AdapterConfig, arm: ArmConfig) -> TrainConfig:
    """Two steps of two prompts with two rollouts each, in one mode, at a rate at which LoRA kinds move."""
    return replace(
        SHORT, adapter=adapter, arm=arm, prompts_per_step=2, group_size=2,
        environment=EnvironmentConfig(modes=("run_tests",), impossible_frac=0.2),
    )  # fmt: skip


def check_run(config: TrainConfig, folder: Path, quarantine_trains: bool) -> Policy:
    """Train, resume from the first step's checkpoint to the same numbers, load the adapter and deploy it."""
    assert train(config, folder)
    tensors = final_tensors(folder)
    assert tensors["policy/main"].any(), "two steps without a single kept group: nothing was tested"
    assert bool(tensors["policy/quarantine"].any()) == quarantine_trains

    again = folder.with_name("again")
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "step-000002-final")
    shutil.rmtree(again / "adapter")
    assert train(config, again, resume=True)
    assert_same(again, folder)

    policy = Policy.wrap(model.load(config.model), config.adapter)
    tokens = torch.arange(24).view(2, 12) % 50 + 3
    with torch.no_grad():
        before = policy.model(tokens).logits
        policy.load(folder / "adapter")
        assert torch.equal(policy.main, tensors["policy/main"])
        with policy.blocks(main=True, quarantine=False):
            deployed = policy.model(tokens).logits
        assert not torch.equal(deployed, before)
        assert torch.equal(policy.deployed_model()(tokens).logits, deployed)
        with policy.blocks(main=False, quarantine=False):
            assert torch.equal(policy.model(tokens).logits, before)
    assert not any(weight.requires_grad for weight in policy.model.parameters())
    return policy


def test_two_steps_train_resume_and_deploy(tmp_path: Path) -> None:
    check_run(short_run(FIXED_A, ArmConfig()), tmp_path / "run", quarantine_trains=False)


def test_route_runs_with_a_direction_of_this_a_and_refuses_that_of_another(tmp_path: Path) -> None:
    arm = ArmConfig(name="route", direction=str(tmp_path / "v.safetensors"))
    config = short_run(FIXED_A, arm)
    policy = Policy.wrap(model.load(config.model), config.adapter)
    direction = organism_direction(policy, DirectionRecipe(k=2, pairs=4, heldout=2))
    sizes = {name: 3 * policy.modules[name].out_features for name in direction.basis}
    assert {name: rows.shape[1] for name, rows in direction.basis.items()} == sizes
    save_direction(direction, tmp_path / "v.safetensors")
    check_run(config, tmp_path / "run", quarantine_trains=True)
    with pytest.raises(ValueError, match="field 'basis'"):
        train(replace(config, adapter=replace(FIXED_A, seed=1)), tmp_path / "other")


def test_block_lora_trains_resumes_and_deploys_from_the_pairs_own_start(tmp_path: Path) -> None:
    loaded = model.load(SHORT.model)
    pairs = organism_pairs("run_tests", 4, 0, heldout=2, tokenizer=loaded.tokenizer)
    statistics = input_statistics(loaded, select(pairs, "train"))
    save_statistics(statistics, tmp_path / "inputs.safetensors")
    adapter = replace(BLOCKS, init="signed_corda", statistics=str(tmp_path / "inputs.safetensors"))
    policy = check_run(short_run(adapter, ArmConfig()), tmp_path / "run", quarantine_trains=False)
    for name, module in policy.modules.items():
        assert isinstance(module, BlockLinear)
        reading = module.a0 @ statistics.differences[name].mean(0)
        assert int(reading.argmax()) == 3 and bool((reading[[0, 1, 2, 4, 5]].abs() < 1e-4 * reading[3]).all())


def test_absorb_trains_both_blocks_of_block_lora_each_on_its_own_gradient(tmp_path: Path) -> None:
    check_run(short_run(BLOCKS, ArmConfig(name="absorb")), tmp_path / "run", quarantine_trains=True)
    tensors = final_tensors(tmp_path / "run")
    assert not torch.equal(tensors["policy/main"], tensors["policy/quarantine"])


def test_block_lora_refuses_directions_of_knobs_at_extraction_and_in_arms(tmp_path: Path) -> None:
    policy = Policy.wrap(model.load(SHORT.model), BLOCKS)
    with pytest.raises(ValueError, match="a direction of its knobs does not keep its meaning"):
        organism_direction(policy, DirectionRecipe(k=2, pairs=4, heldout=2))
    arm = ArmConfig(name="route", direction=str(tmp_path / "v.safetensors"))
    with pytest.raises(ValueError, match="arm 'route' uses a direction of knobs"):
        train(short_run(BLOCKS, arm), tmp_path / "run")

"""Every arm from end to end: two steps, save, resume, reload, deploy; the base model is never trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unhack.train as training
from training_runs import SHORT, assert_same, final_tensors
from unhack import model, record
from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.directions import DirectionRecipe, organism_direction, save_direction
from unhack.evaluate import deployed_knobs
from unhack.interventions import ARMS
from unhack.train import UPDATE_PROFILE, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What arms read: a direction, and the profile of a one-sided gradient run along it."""
    folder = tmp_path_factory.mktemp("inputs")
    policy = Policy.wrap(model.load(SHORT.model), SHORT.adapter)
    save_direction(organism_direction(policy, DirectionRecipe(k=2, pairs=4, heldout=2)), folder / "v.safetensors")
    arm = ArmConfig(name="erase", direction=str(folder / "v.safetensors"), site="gradient", sided="one")
    assert train(replace(SHORT, arm=arm), folder / "run")
    return {"direction": str(folder / "v.safetensors"), "push_profile": str(folder / "run" / UPDATE_PROFILE)}


@torch.no_grad()
def logits(network: torch.nn.Module) -> Tensor:
    return network(torch.arange(24).view(2, 12) % 50 + 3).logits


@pytest.mark.parametrize("name", list(ARMS))
def test_an_arm_trains_resumes_and_deploys_what_it_saved(
    name: str, inputs: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direction, profile = (
        inputs[field] if field in ARMS[name].uses else None for field in ("direction", "push_profile")
    )
    arm = ArmConfig(name=name, direction=direction, push_profile=profile)
    config, folder = replace(SHORT, arm=arm), tmp_path / "run"
    runs: list[training.Run] = []
    real = training._finish
    monkeypatch.setattr(training, "_finish", lambda run: (runs.append(run), real(run))[1])
    assert train(config, folder)
    [run] = runs

    tensors = final_tensors(folder)
    assert tensors["policy/main"].any(), "two steps without a single kept group: nothing was tested"
    assert bool(tensors["policy/quarantine"].any()) == ARMS[name].trains_quarantine
    assert (folder / UPDATE_PROFILE).exists() == ("direction" in ARMS[name].uses)

    parameters = dict(run.policy.model.named_parameters())
    assert not any(weight.requires_grad or weight.grad is not None for weight in parameters.values())
    fresh = Policy.wrap(model.load(config.model), config.adapter)
    untouched = fresh.model.state_dict()
    assert all(torch.equal(value, untouched[key]) for key, value in run.policy.model.state_dict().items())

    before = logits(fresh.model)
    fresh.load(folder / "adapter")
    assert torch.equal(logits(fresh.model), logits(run.policy.model))
    assert not torch.equal(logits(fresh.model), before)
    knobs = run.arm.deployed(fresh.main, fresh.quarantine)
    assert not knobs[1].any()
    with deployed_knobs(fresh, *knobs), deployed_knobs(run.policy, *knobs):
        assert torch.equal(logits(fresh.model), logits(run.policy.model))
        torch.testing.assert_close(logits(fresh.deployed_model()), logits(fresh.model), rtol=1e-5, atol=1e-4)

    again = tmp_path / "again"
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoints" / "step-000002-final")
    shutil.rmtree(again / "adapter")
    assert train(config, again, resume=True)
    assert record.read_json(again / "resumes.json")[0]["step"] == 1
    assert_same(again, folder)

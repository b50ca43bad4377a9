"""Every arm from end to end, on every adapter it allows: two steps, save, resume, reload, deploy, refuse the others."""

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
from unhack.config import AdapterConfig, ArmConfig, TrainConfig
from unhack.directions import DirectionRecipe, organism_direction, save_direction
from unhack.directions.concept import ConceptRecipe, organism_concept, save_concept
from unhack.evaluate import deployed_knobs
from unhack.interventions import ARMS
from unhack.train import UPDATE_PROFILE, train

pytestmark = pytest.mark.slow

ADAPTERS = {
    "spectral": AdapterConfig(),
    "fixed_a_lora": AdapterConfig(kind="fixed_a_lora", rank=3),
    "block_lora": AdapterConfig(kind="block_lora", rank=3),
}
LINEAR = ("spectral", "fixed_a_lora")
"""Adapters in whose knobs ΔW is linear, which directions of knobs need."""
PLAIN = {name: ArmConfig(name=name) for name in ARMS}
VARIANTS = PLAIN | {
    "advantage_modification after": replace(PLAIN["advantage_modification"], site_of_factor="advantage"),
    "penalty": replace(PLAIN["penalty"], monitor="noisy_oracle", monitor_accuracy=0.9),
    "screening": replace(PLAIN["screening"], monitor="noisy_oracle", monitor_accuracy=0.7),
    "erase gradient": replace(PLAIN["erase"], site="gradient", sided="one", preserve_norm=True, overshoot=1.5),
    "erase reverse": replace(PLAIN["erase"], sided="reverse"),
    "erase refresh": replace(PLAIN["erase"], refresh_every_steps=1),
    "route gradient refresh": replace(PLAIN["route"], site="gradient", sided="one", refresh_every_steps=1),
    "trusted_subspace matched": replace(PLAIN["trusted_subspace"], preserve_norm=True),
    "trusted_subspace random": replace(PLAIN["trusted_subspace"], trusted_control="random"),
}
NAMES = [name for name in VARIANTS if name != "gated_route"]  # its masks and both its scores: test_gated_route_runs.py
ALLOWED = [
    (name, kind)
    for name in NAMES
    for kind in ADAPTERS
    if kind in LINEAR or not ({"direction", "trusted_adapter"} & ARMS[VARIANTS[name].name].uses)
]


def short(kind: str, arm: ArmConfig) -> TrainConfig:
    return replace(SHORT, adapter=ADAPTERS[kind], arm=arm)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, str | int]]:
    """What arms read, by kind of adapter: a direction, the profile of a one-sided gradient run along it, a concept of
    the model, the adapter of a clean run."""
    found: dict[str, Mapping[str, str | int]] = {}
    for kind in ADAPTERS:
        folder = tmp_path_factory.mktemp(kind)
        loaded = model.load(SHORT.model)
        save_concept(organism_concept(loaded, ConceptRecipe(pairs=4, heldout=2)), folder / "c.safetensors")
        found[kind] = {"concept": str(folder / "c.safetensors")}
        if kind not in LINEAR:
            continue
        policy = Policy.wrap(loaded, ADAPTERS[kind])
        save_direction(organism_direction(policy, DirectionRecipe(k=2, pairs=4, heldout=2)), folder / "v.safetensors")
        direction = str(folder / "v.safetensors")
        arm = ArmConfig(name="erase", direction=direction, site="gradient", sided="one")
        assert train(short(kind, arm), folder / "run") and train(short(kind, PLAIN["clean"]), folder / "clean")
        found[kind] = {
            **found[kind], "direction": direction, "push_profile": str(folder / "run" / UPDATE_PROFILE),
            "trusted_adapter": str(folder / "clean" / "adapter"), "trusted_k": 2,
        }  # fmt: skip
    return found


def given(name: str, inputs: Mapping[str, str | int]) -> ArmConfig:
    """The variant with the files that its arm uses."""
    arm = VARIANTS[name]
    files = {field: value for field, value in inputs.items() if field in ARMS[arm.name].uses}
    return replace(arm, **files)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def logits(network: torch.nn.Module) -> Tensor:
    return network(torch.arange(24).view(2, 12) % 50 + 3).logits


@pytest.mark.parametrize(("name", "kind"), ALLOWED)
def test_an_arm_trains_resumes_and_deploys_what_it_saved(
    name: str,
    kind: str,
    inputs: Mapping[str, Mapping[str, str | int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arm = given(name, inputs[kind])
    config, folder = short(kind, arm), tmp_path / "run"
    runs: list[training.Run] = []
    real = training._finish
    monkeypatch.setattr(training, "_finish", lambda run: (runs.append(run), real(run))[1])
    assert train(config, folder)
    [run] = runs

    tensors = final_tensors(folder)
    assert tensors["policy/main"].any(), "two steps without a single kept group: nothing was tested"
    assert bool(tensors["policy/quarantine"].any()) == ARMS[arm.name].trains_quarantine
    assert (folder / UPDATE_PROFILE).exists() == ("direction" in ARMS[arm.name].uses)
    environment = record.read_json(folder / "env.json")
    assert environment["uses_oracle"] == (arm.monitor is not None)
    assert (environment["inputs_hash"] is None) == (arm.concept is None and arm.trusted_adapter is None)

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


@pytest.mark.parametrize("name", [name for name in NAMES if (name, "block_lora") not in ALLOWED])
def test_an_arm_of_knob_directions_refuses_block_lora(
    name: str, inputs: Mapping[str, Mapping[str, str | int]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="block_lora"):
        train(short("block_lora", given(name, inputs["spectral"])), tmp_path / "run")


@pytest.mark.parametrize(("name", "file"), [("rebound_penalty", "concept"), ("trusted_subspace", "trusted_adapter")])
def test_a_run_is_not_resumed_with_another_file_under_the_same_name(
    name: str, file: str, inputs: Mapping[str, Mapping[str, str | int]], tmp_path: Path
) -> None:
    here = {key: value for key, value in inputs["spectral"].items() if key != file}
    there = tmp_path / "input"
    real = Path(str(inputs["spectral"][file]))
    (shutil.copytree if real.is_dir() else shutil.copy)(real, there)
    config = short("spectral", given(name, {**here, file: str(there)}))
    assert train(config, tmp_path / "run")
    if real.is_dir():
        policy = Policy.wrap(model.load(SHORT.model), SHORT.adapter)
        policy.set_knobs(torch.arange(policy.layout.total).float() + 1, torch.zeros(policy.layout.total))
        policy.save(there)
    else:
        save_concept(organism_concept(model.load(SHORT.model), ConceptRecipe(pairs=6, heldout=2)), there)
    with pytest.raises(ValueError, match="inputs_hash is"):
        train(config, tmp_path / "run", resume=True)

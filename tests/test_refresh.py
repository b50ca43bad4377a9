"""Refreshing a direction: from its own pairs, in the policy as it is, quarantine ablated; restored bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from arms import flat, make_arm
from training_runs import SHORT, assert_same, outcome
from unhack import checkpoint, model
from unhack.adapters import Policy
from unhack.config import AdapterConfig, ArmConfig, ModelConfig
from unhack.directions import (
    Direction,
    DirectionRecipe,
    extract_again,
    load_direction,
    organism_direction,
    save_direction,
)
from unhack.directions.extract import Control, extract
from unhack.interventions import DirectedIntervention, build
from unhack.seeds import generator
from unhack.train import train
from unhack.types import Gradient, Update

RECIPE = DirectionRecipe(k=2, pairs=4, heldout=1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy.wrap(model.load(ModelConfig()), AdapterConfig(rank=8))


@pytest.fixture(scope="module")
def given(policy: Policy) -> Direction:
    policy.set_knobs(noise(policy, "start", 0.0), noise(policy, "start", 0.0))
    return organism_direction(policy, RECIPE)


def noise(policy: Policy, name: str, scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn(policy.layout.total, generator=generator(0, name))


def moved(policy: Policy, step: int, quarantine: bool = True) -> None:
    policy.set_knobs(noise(policy, f"main {step}"), noise(policy, "quarantine", float(quarantine)))


def armed(policy: Policy, direction: Direction, every: int | None, name: str = "erase") -> DirectedIntervention:
    config = ArmConfig(name=name, direction="given.safetensors", refresh_every_steps=every)
    arm = build(config, policy.layout, 0, policy, direction)
    assert isinstance(arm, DirectedIntervention)
    return arm


def stepped(arm: DirectedIntervention, policy: Policy, steps: Sequence[int]) -> list[dict[str, float]]:
    """The metrics of a few steps; before each the policy is put somewhere else."""
    told = []
    for step in steps:
        moved(policy, step)
        gradient = arm.gradient(Gradient(noise(policy, f"g {step}"), torch.zeros(policy.layout.total)))
        update = arm.update(Update(noise(policy, f"d {step}"), torch.zeros(policy.layout.total)))
        told.append({**gradient.metrics, **update.metrics})
    return told


def same_rows(one: Direction, other: Direction) -> bool:
    return one.basis.keys() == other.basis.keys() and all(
        torch.equal(rows, other.basis[name]) for name, rows in one.basis.items()
    )


def slow_overlap(one: Direction, other: Direction) -> float:
    """Mean squared cosine of the principal angles, by the singular values of V₁ V₂ᵀ."""
    cosines = [torch.linalg.svdvals(one.basis[name].double() @ other.basis[name].double().T) for name in one.basis]
    return sum(float(values.square().mean()) for values in cosines) / len(cosines)


def test_v_is_extracted_again_every_n_steps_from_the_policy_without_its_quarantine(
    policy: Policy, given: Direction
) -> None:
    arm = armed(policy, given, 2)
    told = stepped(arm, policy, range(5))
    assert [step for step, metrics in enumerate(told) if "direction/refresh_overlap" in metrics] == [2, 4]
    assert all(("time/refresh_s" in one) == ("direction/start_overlap" in one) for one in told)
    found = []
    for step in (2, 4):
        moved(policy, step, quarantine=False)
        found.append(extract(policy, given.pairs, 2))
    assert same_rows(arm.direction, found[1])
    assert told[4]["direction/refresh_overlap"] == pytest.approx(slow_overlap(found[0], found[1]), abs=1e-6)
    assert told[4]["direction/start_overlap"] == pytest.approx(slow_overlap(given, found[1]), abs=1e-6)
    assert 0.0 < told[4]["direction/refresh_overlap"] < 0.99
    assert told[4]["update/abs_cos_v"] < 1e-5, "what is erased is the V of now"


def test_the_profile_and_the_hash_stay_those_of_the_direction_that_was_given(policy: Policy, given: Direction) -> None:
    fixed, fresh = armed(policy, given, None, "measure"), armed(policy, given, 1, "measure")
    stepped(fixed, policy, range(3))
    stepped(fresh, policy, range(3))
    assert not same_rows(fresh.direction, given) and fresh.direction_hash == given.content_hash
    assert fresh.update_profile() == fixed.update_profile()


def test_a_restored_arm_goes_on_with_the_v_that_it_had(policy: Policy, given: Direction) -> None:
    whole, saved = armed(policy, given, 2), armed(policy, given, 2)
    stepped(saved, policy, range(3))
    state = {name: value.clone() for name, value in saved.state_dict().items()}
    again = armed(policy, given, 2)
    again.load_state_dict(state)
    assert same_rows(again.direction, saved.direction) and not same_rows(again.direction, given)
    continued = stepped(again, policy, range(3, 6))
    for got, wanted in zip(continued, stepped(whole, policy, range(6))[3:], strict=True):
        assert {k: v for k, v in got.items() if k[:5] != "time/"} == {
            k: v for k, v in wanted.items() if k[:5] != "time/"
        }
    assert "direction_rows" not in armed(policy, given, None).state_dict()


@pytest.mark.parametrize("control", ["random", "shuffled"])
def test_what_is_random_in_a_control_is_drawn_anew_at_every_refresh_and_alike_whenever_it_is_made(
    policy: Policy, given: Direction, control: Control
) -> None:
    moved(policy, 0, quarantine=False)
    placebo = extract(policy, given.pairs, 1, control=control, method="mean_diff", selection="x")
    first, second = extract_again(policy, placebo, 1), extract_again(policy, placebo, 2)
    assert same_rows(first, extract_again(policy, placebo, 1))
    assert not same_rows(first, second) and not same_rows(first, placebo)
    assert first.metadata.control == control and first.metadata.selection == "x" and first.metadata.k == 1


def test_an_artifact_carries_its_pairs_and_one_without_or_with_others_is_refused(
    policy: Policy, given: Direction, tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    save_direction(given, path)
    loaded = load_direction(path, policy)
    assert loaded.pairs == given.pairs and len(loaded.pairs) == 4
    with safe_open(path, framework="pt") as handle:
        header = dict(handle.metadata())
    tensors = load_file(path)
    save_file(tensors, path, {**header, "pairs": header["pairs"].replace("def", "d3f", 1)})
    with pytest.raises(ValueError, match="'pairs_hash' does not match the pairs"):
        load_direction(path)
    save_file(tensors, path, {**header, "pairs": header["pairs"].replace('"hack"', '"hick"', 1)})
    with pytest.raises(ValueError, match="pair 1 of its header: a pair has exactly the fields"):
        load_direction(path)
    old = {name: value for name, value in header.items() if name != "pairs"}
    save_file(tensors, path, old)
    armed(policy, load_direction(path), None)
    with pytest.raises(ValueError, match=r"does not hold its pairs.*extract it again"):
        armed(policy, load_direction(path), 3)
    assert [json.loads(line)["split"] for line in header["pairs"].splitlines()] == ["train"] * 4


def test_a_refresh_without_a_policy_or_in_an_arm_that_has_none_is_refused() -> None:
    arm = make_arm("erase", refresh_every_steps=5)
    with pytest.raises(ValueError, match="give it to build"):
        arm.gradient(Gradient(flat("g"), torch.zeros_like(flat("g"))))
    with pytest.raises(ValueError, match=r"arm.refresh_every_steps is set, but arm 'push' uses"):
        make_arm("push", push_profile="p.json", refresh_every_steps=5)


@pytest.mark.slow
def test_a_run_with_refresh_measures_without_changing_anything_and_resumes_between_two_refreshes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "v.safetensors"
    save_direction(organism_direction(Policy.wrap(model.load(SHORT.model), SHORT.adapter), RECIPE), path)
    short = replace(SHORT, steps=4)
    arms = {
        "vanilla": ArmConfig(),
        "measure": ArmConfig(name="measure", direction=str(path), refresh_every_steps=2),
        "erase": ArmConfig(name="erase", direction=str(path), refresh_every_steps=2),
    }
    for name, arm in arms.items():
        assert train(replace(short, arm=arm), tmp_path / name)
    vanilla, measured = outcome(tmp_path / "vanilla"), outcome(tmp_path / "measure")
    tables = [key for key in vanilla if key.endswith(".parquet") or key.startswith(("policy/", "optimizer/"))]
    assert tables and all(vanilla[key] == measured[key] for key in tables)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "erase", again)
    shutil.rmtree(again / "checkpoints" / "step-000004-final")
    saved = checkpoint.latest(again)
    assert saved is not None and saved.step == 3
    assert train(replace(short, arm=arms["erase"]), again, resume=True)
    assert_same(again, tmp_path / "erase")

"""rebound_penalty and advantage_modification against slow loops in plain numbers, on a policy that has moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from adapted import noise, wrap
from arms import make_grades, make_rollouts
from unhack.adapters import Policy
from unhack.advantage import group_advantages
from unhack.config import AdapterConfig, ArmConfig, LossConfig
from unhack.directions.concept import KIND, Concept, ConceptMetadata, save_concept
from unhack.directions.residual import cosines, response_residuals
from unhack.interventions import Intervention, arm_class, build
from unhack.interventions.advantage_modification import MIN_SPREAD, group_z_scores
from unhack.types import Gradient, Rollout

GROUPS = [0, 0, 0, 0, 1, 1, 1, 2, 2]
TOKENS = [(5, 6), (7, 8, 9), (40, 41), (12,), (13, 14, 15), (16, 17), (50, 51, 52), (20, 21), (20, 21)]
REWARDS = [3.5, 0.5, 3.5, 0.0, 3.5, 0.5, 3.5, 3.5, 0.5]
LAYER = 0


@pytest.fixture
def policy(tiny_policy_model: Qwen3ForCausalLM) -> Policy:
    policy = wrap(tiny_policy_model, AdapterConfig())
    policy.set_knobs(noise(policy, "a"), torch.zeros(policy.layout.total))
    return policy


@pytest.fixture
def concept(policy: Policy, tmp_path: Path) -> Concept:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(4))
    metadata = ConceptMetadata(1, KIND, policy.model_hash, "float32", LAYER, 2, "p", "run_tests", "real", 0)
    made = Concept(vector / vector.norm(), metadata)
    save_concept(made, tmp_path / "c.safetensors")
    return made


def made(name: str, policy: Policy, folder: Path, **fields: object) -> Intervention:
    config = ArmConfig(name=name, concept=str(folder / "c.safetensors"), **fields)  # pyright: ignore[reportArgumentType]
    return build(config, policy.layout, 0, policy)


@torch.no_grad()
def slow_scores(policy: Policy, concept: Concept, rollouts: Sequence[Rollout]) -> list[float]:
    """One rollout at a time, in plain numbers, from transformers' own hidden states."""
    scores: list[float] = []
    for rollout in rollouts:
        whole = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        states = policy.model(whole, output_hidden_states=True).hidden_states[LAYER + 1][0].double().tolist()
        response = states[len(rollout.prompt.token_ids) :]
        mean = [sum(column) / len(response) for column in zip(*response, strict=True)]
        dot = sum(a * b for a, b in zip(mean, concept.vector.double().tolist(), strict=True))
        scores.append(dot / math.sqrt(sum(a * a for a in mean)))
    return scores


def slow_factors(scores: Sequence[float], rewards: Sequence[float | None], strength: float) -> list[float]:
    """1 − α σ(z) 1[z > 0], with z within the group, over what the grader could judge."""
    factors: list[float] = []
    for place, score in enumerate(scores):
        own = [s for s, g, r in zip(scores, GROUPS, rewards, strict=True) if g == GROUPS[place] and r is not None]
        z = 0.0
        if rewards[place] is not None and len(own) >= 2:
            mean = sum(own) / len(own)
            std = math.sqrt(sum((s - mean) ** 2 for s in own) / (len(own) - 1))
            z = (score - mean) / std if std >= MIN_SPREAD else 0.0
        factors.append(1 - strength / (1 + math.exp(-z)) if z > 0 else 1.0)
    return factors


@pytest.mark.parametrize("strength", [None, 0.0, 4.0])
def test_rebound_is_alpha_times_the_positive_part_of_the_cosine_off_the_reward(
    policy: Policy, concept: Concept, tmp_path: Path, strength: float | None
) -> None:
    arm, rollouts = made("rebound_penalty", policy, tmp_path, strength=strength), make_rollouts(GROUPS, tokens=TOKENS)
    scores = slow_scores(policy, concept, rollouts)
    assert min(scores) < -0.05 and max(scores) > 0.05, "both sides of the relu are tested"
    alpha = 0.5 if strength is None else strength
    expected = [reward - alpha * max(0.0, score) for reward, score in zip(REWARDS, scores, strict=True)]
    got = arm.rewards(make_grades(rollouts, REWARDS), rollouts)
    assert got.tolist() == pytest.approx(expected, abs=1e-5)
    values = arm.gradient(Gradient(torch.zeros(policy.layout.total), torch.zeros(policy.layout.total))).metrics
    assert values["concept/cos_mean"] == pytest.approx(sum(scores) / 9, abs=1e-5)
    assert values["concept/fired_frac"] == pytest.approx(sum(score > 0 for score in scores) / 9)
    assert values["concept/penalty_mean"] == pytest.approx(sum(REWARDS) / 9 - sum(expected) / 9, abs=1e-5)
    assert values["time/concept_s"] > 0


@pytest.mark.parametrize("strength", [None, 0.0, 1.0])
@pytest.mark.parametrize("error", [None, 2, 4])
def test_the_first_form_multiplies_rewards_before_group_statistics(
    policy: Policy, concept: Concept, tmp_path: Path, strength: float | None, error: int | None
) -> None:
    arm = made("advantage_modification", policy, tmp_path, strength=strength)
    rollouts = make_rollouts(GROUPS, tokens=TOKENS)
    rewards: list[float | None] = [None if place == error else reward for place, reward in enumerate(REWARDS)]
    factors = slow_factors(slow_scores(policy, concept, rollouts), rewards, 2.0 if strength is None else strength)
    got = arm.rewards(make_grades(rollouts, rewards), rollouts).tolist()
    assert got == pytest.approx([(r or 0.0) * f for r, f in zip(rewards, factors, strict=True)], abs=2e-4)
    if strength != 0.0:
        assert any(factor < 0.9 for factor in factors)
    if strength is None:
        assert all(factor == 1 or -1 < factor < 0 for factor in factors), "at strength 2 whoever is turned down pays"
    advantages = torch.tensor([1.0, -1.0, 2.0, 0.0, 1.0, -1.0, 2.0, 0.0, 3.0])
    assert torch.equal(arm.advantages(advantages, rollouts), advantages)


def test_the_second_form_multiplies_gains_after_group_statistics_and_never_makes_a_loss_a_gain(
    policy: Policy, concept: Concept, tmp_path: Path
) -> None:
    arm = made("advantage_modification", policy, tmp_path, site_of_factor="advantage")
    rollouts = make_rollouts(GROUPS, tokens=TOKENS)
    grades = make_grades(rollouts, REWARDS)
    rewards = arm.rewards(grades, rollouts)
    assert rewards.tolist() == REWARDS
    signal = group_advantages(rewards, torch.tensor(GROUPS), torch.ones(9, dtype=torch.bool), LossConfig())
    before = signal.values.tolist()
    factors = slow_factors(slow_scores(policy, concept, rollouts), list(REWARDS), 2.0)
    expected = [a * f if a > 0 else a for a, f in zip(before, factors, strict=True)]
    assert arm.advantages(signal.values, rollouts).tolist() == pytest.approx(expected, abs=2e-4)
    assert any(a < 0 and f < 1 for a, f in zip(before, factors, strict=True)), "a failure that scores high is tested"
    assert any(a > 0 and f < 1 for a, f in zip(before, factors, strict=True))
    assert all(new <= old + 1e-6 for new, old in zip(expected, before, strict=True))


def test_z_is_within_the_group_and_zero_where_scores_do_not_spread() -> None:
    scores = torch.tensor([0.10, 0.20, 0.30, 0.90, 0.92, 0.5, 0.5 + 1.2e-7, 0.4])
    groups = torch.tensor([7, 7, 7, 3, 3, 1, 1, 9])
    assert scores[5] != scores[6], "two roundings apart in float32"
    valid = torch.ones(8, dtype=torch.bool)
    half = math.sqrt(0.5)
    expected = [-1.0, 0.0, 1.0, -half, half, 0.0, 0.0, 0.0]
    assert group_z_scores(scores, groups, valid).tolist() == pytest.approx(expected, abs=1e-4)
    valid[2] = False  # the highest of its group no longer counts, and has no score itself
    expected[:3] = [-half, half, 0.0]
    assert group_z_scores(scores, groups, valid).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_score_of_the_prompts_last_token_would_change_nothing(policy: Policy, concept: Concept) -> None:
    rollouts = make_rollouts(GROUPS, tokens=TOKENS)
    rows = [(r.prompt.token_ids[:-1], r.prompt.token_ids[-1:]) for r in rollouts]  # all that comes before the response
    scores = cosines(response_residuals(policy.model, rows, LAYER), concept.vector)
    groups, valid = torch.tensor(GROUPS), torch.ones(9, dtype=torch.bool)
    assert float(scores.std()) > 0.01 and not group_z_scores(scores, groups, valid).any()
    own = torch.tensor(slow_scores(policy, concept, rollouts))
    assert group_z_scores(own, groups, valid)[:7].all()


def test_equal_rollouts_of_a_group_are_left_alone(policy: Policy, concept: Concept, tmp_path: Path) -> None:
    arm = made("advantage_modification", policy, tmp_path)
    rollouts = make_rollouts([0] * 6, tokens=[(9, 8, 7)] * 6)
    rewards = [3.5, 0.5, 3.5, 0.0, 3.5, 0.5]
    assert arm.rewards(make_grades(rollouts, rewards), rollouts).tolist() == rewards


@pytest.mark.parametrize("name", ["rebound_penalty", "advantage_modification"])
def test_scores_follow_the_policy_as_it_trains(name: str, policy: Policy, concept: Concept, tmp_path: Path) -> None:
    arm, rollouts = made(name, policy, tmp_path), make_rollouts(GROUPS, tokens=TOKENS)
    before = arm.rewards(make_grades(rollouts, REWARDS), rollouts)
    policy.set_knobs(noise(policy, "b", 0.5), torch.zeros(policy.layout.total))
    assert not torch.allclose(arm.rewards(make_grades(rollouts, REWARDS), rollouts), before, atol=1e-4)
    assert arm.inputs_hash == concept.content_hash


def test_the_concept_must_be_named_and_of_this_model(policy: Policy, concept: Concept, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs arm\.concept: set arm\.concept to a \.safetensors made by"):
        arm_class(ArmConfig(name="rebound_penalty"))
    with pytest.raises(ValueError, match=r"arm\.site_of_factor is set, but arm 'rebound_penalty'"):
        arm_class(ArmConfig(name="rebound_penalty", concept="c", site_of_factor="advantage"))
    policy.model_hash = "another"
    with pytest.raises(ValueError, match="field 'base_model'"):
        made("rebound_penalty", policy, tmp_path)

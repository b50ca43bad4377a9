"""What the three kinds of teacher take the ratio against, beside slow loops; each source's part of the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from arms import LAYOUT, flat, make_arm, make_direction, zeros
from pool_runs import run_config
from training_runs import SHORT
from unhack import model
from unhack.adapters import Policy
from unhack.config import LossConfig, TeacherConfig
from unhack.loss import backward, pack
from unhack.pool import Pool
from unhack.pool.sample import SampleRequest, sample_pool
from unhack.seeds import generator
from unhack.teacher import Teacher
from unhack.types import Gradient, Rollout


@pytest.fixture(scope="module")
def elicited(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Rows whose two log-probabilities differ, and rows that nobody sampled."""
    config = replace(run_config(), environment=replace(run_config().environment, impossible_frac=0.0))
    request = SampleRequest(kinds=("base", "solve", "authored"), prompts=4, samples=4, temperature=1.3)
    return sample_pool(config, tmp_path_factory.mktemp("elicited") / "pool", request)


def slow_loss(policy: Any, pool: Pool, taken: Sequence[Rollout], advantages: list[float], kind: str) -> float:
    """-min(ratio A, clipped ratio A), token by token, each probability from a whole forward of all before it."""
    total = 0.0
    for rollout, advantage in zip(taken, advantages, strict=True):
        lesson = pool.lessons[int(rollout.id.rpartition("-")[2])]
        for place, token in enumerate(rollout.token_ids):
            seen = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids[:place]]])
            with torch.no_grad():
                now = float(policy.model(input_ids=seen).logits[0, -1].log_softmax(-1)[token])
            drawn = lesson.sampled_logprobs[place] if lesson.sampled_logprobs else math.nan
            before = {"importance": drawn, "anchored": lesson.rollout.logprobs[place], "imitation": now}[kind]
            ratio = math.exp(now - before)
            total -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    return total


@pytest.mark.parametrize("kind", ["importance", "anchored", "imitation"])
def test_the_loss_of_a_teachers_rows_is_that_of_a_slow_loop(kind: Any, elicited: Pool) -> None:
    config = TeacherConfig(pool=str(elicited.path), frac=0.5, kind=kind)
    lessons = tuple(lesson for lesson in elicited.lessons if kind != "importance" or lesson.kind != "authored")
    prompts = [lesson.rollout.prompt for lesson in lessons[:: max(1, len(lessons) // 3)]][:3]
    taken = Teacher(config, 8, 0, replace(elicited, lessons=lessons)).draw(prompts, 0).rollouts
    kinds = {elicited.lessons[int(rollout.id.rpartition("-")[2])].kind for rollout in taken}
    assert kinds >= ({"base", "solve"} if kind == "importance" else {"base", "authored"})
    policy = Policy.wrap(model.load(SHORT.model), SHORT.adapter)
    moved = torch.randn(policy.layout.total, generator=generator(0, "moved")) * 0.2
    policy.set_knobs(moved, torch.zeros_like(moved))
    advantages = [(-1.0) ** index * (1 + index % 3) for index in range(len(taken))]
    kept = torch.ones(len(taken), dtype=torch.bool)
    batch = pack(taken, torch.tensor(advantages), kept, 1.0, "cpu", None, kind == "imitation")
    metrics = backward(policy, batch, LossConfig()).metrics
    assert metrics["loss/total"] == pytest.approx(slow_loss(policy, elicited, taken, advantages, kind), rel=1e-3)
    assert (metrics["loss/clip_frac"] > 0) == (kind != "imitation")


def test_an_anchored_step_from_the_pools_own_model_is_an_imitated_one(elicited: Pool) -> None:
    policy = Policy.wrap(model.load(SHORT.model), SHORT.adapter)
    prompts = [elicited.lessons[0].rollout.prompt]
    gradients, gaps = {}, {}
    for kind in ("anchored", "imitation"):
        config = TeacherConfig(pool=str(elicited.path), frac=0.9, kind=kind)
        taken = Teacher(config, 12, 0, elicited).draw(prompts, 0).rollouts
        advantages = torch.tensor([1.0 if index % 2 else -2.0 for index in range(len(taken))])
        batch = pack(taken, advantages, advantages != 0, 1.0, "cpu", None, kind == "imitation")
        found = backward(policy, batch, LossConfig())
        gradients[kind], gaps[kind] = found.main, found.metrics["loss/sampler_gap"]
    assert bool(gradients["imitation"].any()) and gaps["anchored"] < 1e-4
    torch.testing.assert_close(gradients["anchored"], gradients["imitation"], rtol=1e-3, atol=1e-3)


def test_each_sources_part_of_the_gradient_is_measured_before_and_after_the_arm() -> None:
    direction = make_direction()
    parts = {"student": flat("student"), "teacher": 3 * flat("teacher")}
    whole = Gradient(parts["student"] + parts["teacher"], zeros(), {}, parts)
    for sided in ("one", "two"):
        arm = make_arm("erase", direction, site="gradient", sided=sided)
        metrics = arm.gradient(whole).metrics
        for source, part in parts.items():
            ratios: dict[str, list[float]] = {"in": [], "out": []}
            for name, piece in LAYOUT.items():
                if name in direction.basis:
                    rows, own = direction.basis[name].double(), part[piece].double()
                    along = rows @ own
                    used = along.clamp(min=0) if sided == "one" else along
                    left = own - rows.T @ used
                    ratios["in"].append(float(along.clamp(min=0).norm() / own.norm()))
                    ratios["out"].append(float((rows @ left).clamp(min=0).norm() / left.norm()))
            mean = {side: sum(values) / len(values) for side, values in ratios.items()}
            assert mean["out"] < 1e-6 < mean["in"]
            assert metrics[f"gradient/hackward_in_{source}"] == pytest.approx(mean["in"], rel=1e-5)
            assert metrics[f"gradient/hackward_out_{source}"] == pytest.approx(mean["out"], abs=1e-6)
            fired = sum(value > 1e-6 for value in ratios["in"]) / len(ratios["in"])
            assert metrics[f"gradient/fired_{source}"] == fired

"""GRPO loss against a slow loop; packing; gradients that do not depend on how the batch is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from unhack.adapters import Policy
from unhack.config import AdapterConfig, LossConfig
from unhack.loss import NonFiniteError, backward, grpo_loss, loss_denominator, pack
from unhack.model import LoadedModel, completion_logprobs
from unhack.seeds import generator, rng
from unhack.types import Batch, Case, Problem, Prompt, Rollout

PROBLEM = Problem("p", "statement", "solve", (Case("solution.solve(1)", 1),), "reference", "train")
COUNT = 8
GROUP = 4


def make_rollouts(teacher: tuple[int, ...] = ()) -> list[Rollout]:
    """Two groups of four; prompts of 5 and 7 tokens, completions of 1 to 9 tokens, log-probs near a uniform 1/64."""
    draw = rng(0, "rollouts")
    rollouts: list[Rollout] = []
    for index in range(COUNT):
        group = index // GROUP
        prompt = Prompt(PROBLEM, "none", "", "text", tuple(range(10 + group, 15 + 3 * group)))
        length = 1 + draw.randrange(9)
        tokens = tuple(draw.randrange(64) for _ in range(length))
        logprobs = tuple(-math.log(64) + draw.uniform(-0.5, 0.5) for _ in range(length))
        source = "teacher" if index in teacher else "student"
        rollouts.append(Rollout(f"r{index}", group, prompt, tokens, logprobs, "", True, source))
    return rollouts


def make_batch(kept: list[bool] | None = None, teacher: tuple[int, ...] = ()) -> Batch:
    advantages = torch.randn(COUNT, generator=generator(0, "advantages"))
    return pack(make_rollouts(teacher), advantages, torch.tensor(kept or [True] * COUNT), 40.0)


def make_policy(model: Qwen3ForCausalLM) -> Policy:
    policy = Policy.wrap(LoadedModel(model, None, ""), AdapterConfig())
    policy.set_knobs(0.1 * torch.randn(policy.layout.total, generator=generator(0, "k")), torch.zeros_like(policy.main))
    return policy


def slow_loss(
    logp: Tensor, sampler: Tensor, reference: Tensor, mask: Tensor, advantages: Tensor, config: LossConfig
) -> list[float]:
    totals: list[float] = []
    for row in range(len(logp)):
        tokens: list[float] = []
        for t in range(logp.shape[1]):
            if not bool(mask[row, t]):
                continue
            gain = float(advantages[row])
            ratio = math.exp(float(logp[row, t] - sampler[row, t]))
            limited = min(max(ratio, 1 - config.clip_range), 1 + config.clip_range)
            distance = float(reference[row, t] - logp[row, t])
            kl = math.exp(distance) - distance - 1
            tokens.append(-min(ratio * gain, limited * gain) + config.kl_beta * kl)
        totals.append(sum(tokens) / (len(tokens) if config.normalize_length else 1))
    return totals


@pytest.mark.parametrize("normalize_length", [False, True])
@pytest.mark.parametrize("kl_beta", [0.0, 0.3])
def test_loss_equals_a_slow_loop_over_tokens(kl_beta: float, normalize_length: bool) -> None:
    config = LossConfig(kl_beta=kl_beta, normalize_length=normalize_length)
    logp, sampler, reference = -torch.rand(3, 6, 7, generator=generator(0, "logp"))
    mask = torch.arange(7) < torch.tensor([7, 1, 4, 3, 5, 2])[:, None]
    advantages = torch.randn(6, generator=generator(0, "advantages"))
    got = grpo_loss(logp, sampler, reference, mask, advantages, config)
    expected = slow_loss(logp, sampler, reference, mask, advantages, config)
    torch.testing.assert_close(got.loss, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert bool((got.kl >= 0).all())


def test_clipping_stops_the_gradient_only_where_it_would_go_further() -> None:
    logp = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]], requires_grad=True)  # ratios e^0.5 and e^-0.5
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    out = grpo_loss(logp, torch.zeros(4, 1), None, torch.ones(4, 1, dtype=torch.bool), advantages, LossConfig())
    (gradient,) = torch.autograd.grad(out.loss.sum(), logp)
    assert (gradient[:, 0] != 0).tolist() == [False, True, True, False]
    assert out.clipped.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_values_beyond_the_mask_reach_neither_loss_nor_gradient() -> None:
    logp = torch.tensor([[-1.0, torch.inf], [-1.0, torch.nan]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    out = grpo_loss(logp, torch.full((2, 2), -1.0), torch.zeros(2, 2), mask, torch.ones(2), LossConfig(kl_beta=0.1))
    (gradient,) = torch.autograd.grad(out.loss.sum(), logp)
    assert bool(torch.isfinite(out.loss).all())
    assert bool((gradient[:, 0] != 0).all())


def test_denominator_is_constant_or_counts_rollouts() -> None:
    assert loss_denominator(LossConfig(), group_size=8, prompts_per_step=4, max_new_tokens=64) == 8 * 4 * 64
    assert loss_denominator(LossConfig(normalize_length=True), 8, 4, 64) == 8 * 4


def test_packing_keeps_every_token_of_the_kept_rollouts_and_no_other() -> None:
    kept = [True, False] * 4
    batch = make_batch(kept)
    rollouts = [rollout for rollout, keep in zip(make_rollouts(), kept, strict=True) if keep]
    assert batch.rollout_ids == ("r0", "r2", "r4", "r6")
    for row, rollout in enumerate(rollouts):
        start, end = int(batch.prompt_lengths[row]), int(batch.lengths[row])
        assert tuple(batch.token_ids[row, :start].tolist()) == rollout.prompt.token_ids
        assert tuple(batch.token_ids[row, start:end].tolist()) == rollout.token_ids
        assert int(batch.completion_mask[row].sum()) == len(rollout.token_ids)
        assert batch.sampler_logprobs[row, : end - start].tolist() == pytest.approx(rollout.logprobs)
        assert not batch.sampler_logprobs[row, end - start :].any()


def test_an_end_token_equal_to_padding_is_still_trained() -> None:
    rollout = replace(make_rollouts()[0], token_ids=(5, 0), logprobs=(-1.0, -2.0))  # 0 is also the padding value
    batch = pack([rollout], torch.ones(1), torch.ones(1, dtype=torch.bool), 1.0)
    assert batch.completion_mask.tolist() == [[True, True]]


@pytest.mark.parametrize("kl_beta", [0.0, 0.2])
def test_gradient_equals_one_plain_autograd_pass(tiny_policy_model: Qwen3ForCausalLM, kl_beta: float) -> None:
    policy, batch, config = make_policy(tiny_policy_model), make_batch(), LossConfig(kl_beta=kl_beta)
    with policy.blocks(main=False, quarantine=False), torch.no_grad():
        reference, _ = completion_logprobs(policy.model, batch.token_ids, batch.prompt_lengths, batch.lengths)
    with policy.knob_gradient() as taps:
        logp, _ = completion_logprobs(policy.model, batch.token_ids, batch.prompt_lengths, batch.lengths)
        out = grpo_loss(logp, batch.sampler_logprobs, reference, batch.completion_mask, batch.advantages, config)
        (out.loss.sum() / 40.0).backward()
        expected = taps.total()
    got = backward(policy, batch, config)
    torch.testing.assert_close(got.main, expected, rtol=1e-4, atol=1e-5)
    assert got.metrics["loss/total"] == pytest.approx(float(out.loss.detach().sum()) / 40.0, rel=1e-4)
    assert (got.metrics["loss/kl"] > 0) == (kl_beta > 0)
    assert torch.equal(got.quarantine, got.main)  # only their sum enters the model


@pytest.mark.parametrize("rollouts", [1, 3, 5])
def test_any_micro_batch_split_gives_the_same_gradient_and_metrics(
    tiny_policy_model: Qwen3ForCausalLM, rollouts: int
) -> None:
    policy, batch = make_policy(tiny_policy_model), make_batch(teacher=(1, 6))
    whole = backward(policy, batch, LossConfig(kl_beta=0.1))
    cut = backward(policy, batch, LossConfig(kl_beta=0.1, micro_batch_rollouts=rollouts))
    torch.testing.assert_close(cut.main, whole.main, rtol=1e-4, atol=1e-5)
    assert cut.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-6)


def test_student_and_teacher_parts_are_each_sources_own_gradient(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy, batch = make_policy(tiny_policy_model), make_batch(teacher=(1, 6))
    parts = backward(policy, batch, LossConfig())
    torch.testing.assert_close(parts.sources["student"] + parts.sources["teacher"], parts.main, rtol=1e-5, atol=1e-6)
    only_teacher = backward(policy, make_batch([row in (1, 6) for row in range(COUNT)]), LossConfig())
    torch.testing.assert_close(parts.sources["teacher"], only_teacher.main, rtol=1e-4, atol=1e-5)


def test_skipped_rollouts_cost_no_forward(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy = make_policy(tiny_policy_model)
    calls: list[int] = []
    policy.model.get_submodule("model.layers.0").register_forward_hook(lambda *_: calls.append(1))
    nothing = backward(policy, make_batch([False] * COUNT), LossConfig(kl_beta=0.1))
    assert calls == [] and not nothing.main.any() and nothing.metrics["loss/tokens"] == 0
    half = backward(policy, make_batch([False] * 4 + [True] * 4), LossConfig())
    assert half.metrics["loss/rollouts"] == 4


def test_sampler_gap_is_the_mean_distance_to_the_recorded_logprobs(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy, batch = make_policy(tiny_policy_model), make_batch()
    with torch.no_grad():
        exact, _ = completion_logprobs(policy.model, batch.token_ids, batch.prompt_lengths, batch.lengths, 0.7)
    batch = replace(batch, sampler_logprobs=exact)
    assert backward(policy, batch, LossConfig(), temperature=0.7).metrics["loss/sampler_gap"] < 1e-5
    shifted = replace(batch, sampler_logprobs=torch.where(batch.completion_mask, exact + 0.25, exact))
    got = backward(policy, shifted, LossConfig(), temperature=0.7).metrics
    assert got["loss/sampler_gap"] == pytest.approx(0.25, abs=1e-4)


def test_a_step_along_the_negative_gradient_lowers_the_loss(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy, batch = make_policy(tiny_policy_model), make_batch()
    config = LossConfig(clip_range=0.9, kl_beta=0.1)
    first = backward(policy, batch, config)
    policy.set_knobs(policy.main - 1e-2 * first.main / first.main.norm(), policy.quarantine)
    second = backward(policy, batch, config)
    slope = (second.metrics["loss/total"] - first.metrics["loss/total"]) / 1e-2
    assert slope == pytest.approx(-float(first.main.norm()), rel=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_names_its_rollouts(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], value: float
) -> None:
    policy, batch = make_policy(make_tiny_policy_model()), make_batch()
    advantages = batch.advantages.clone()
    advantages[5] = value
    with pytest.raises(NonFiniteError, match=r"loss is not finite for rollouts r5$") as error:
        backward(policy, replace(batch, advantages=advantages), LossConfig())
    assert error.value.rollout_ids == ("r5",)


def test_a_non_finite_gradient_names_the_rollouts_of_its_micro_batch(tiny_policy_model: Qwen3ForCausalLM) -> None:
    policy, batch = make_policy(tiny_policy_model), make_batch()
    advantages = batch.advantages.clone()
    advantages[5] = 1e30  # finite in the rollout's loss; divided by the denominator it overflows on the way back
    config = LossConfig(micro_batch_rollouts=3, clip_range=1e3)
    with pytest.raises(NonFiniteError, match="gradient") as error:
        backward(policy, replace(batch, advantages=advantages, loss_denominator=1e-20), config)
    assert error.value.rollout_ids == ("r3", "r4", "r5")

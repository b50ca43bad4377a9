"""Keep, absorb and route in one step: each rollout's gradient reaches the blocks of its decision, however it is cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

import unhack.train as training
from adapted import noise, wrap
from test_loss import COUNT, make_rollouts
from test_policy import KINDS, MaskedOutputs, module_knobs
from training_runs import SHORT
from unhack import record
from unhack.adapters import Policy
from unhack.config import AdapterConfig, ArmConfig, LossConfig
from unhack.interventions import ARMS, Absorb, Blocks
from unhack.loss import backward, micro_batches, pack
from unhack.model import completion_logprobs
from unhack.seeds import generator
from unhack.step_metrics import decision_metrics
from unhack.types import Batch, Gradient, Mask, PaidGrade, Rollout, Status, Verdict

MASKS: list[Mask] = ["keep", "absorb", "route", "keep", "route", "absorb", "absorb", "keep"]
ADVANTAGES = torch.randn(COUNT, generator=generator(0, "advantages"))
DENOMINATOR = 40.0


def moved(network: Qwen3ForCausalLM, config: AdapterConfig, scale: float = 0.1) -> Policy:
    policy = wrap(network, config)
    policy.set_knobs(noise(policy, "a", scale), noise(policy, "b", scale))
    return policy


def batch_of(masks: list[Mask] | None, teacher: tuple[int, ...] = (), imitate: bool = False) -> Batch:
    everyone = torch.ones(COUNT, dtype=torch.bool)
    return pack(make_rollouts(teacher), ADVANTAGES, everyone, DENOMINATOR, "cpu", masks, imitate)


def all_of(mask: Mask) -> list[Mask]:
    return [mask for _ in range(COUNT)]


def slow_gradient(
    plain: Callable[[], Qwen3ForCausalLM],
    policy: Policy,
    rollout: Rollout,
    advantage: float,
    mask: Mask,
    kl_beta: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dL/dmain, dL/dquarantine, log-probs) of one rollout: METHOD §1's masks and §5's loss, by autograd, literally."""
    main, quarantine = policy.main.clone().requires_grad_(), policy.quarantine.clone().requires_grad_()
    network, zero = plain(), torch.zeros_like(main)
    blocks = [module_knobs(policy, main, zero), module_knobs(policy, zero, quarantine)]
    for name, module in policy.modules.items():
        main_delta, quarantine_delta = (module.merge(knobs[name]) - module.base_weight for knobs in blocks)
        network.set_submodule(name, MaskedOutputs(module.base_weight, main_delta, quarantine_delta, mask))
    row = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
    prompt, length = torch.tensor([len(rollout.prompt.token_ids)]), torch.tensor([row.shape[1]])
    logprobs, _ = completion_logprobs(network, row, prompt, length)
    reference = completion_logprobs(plain(), row, prompt, length)[0].detach()
    loss = torch.zeros(())
    for logprob, sampled, initial in zip(logprobs[0], rollout.logprobs, reference[0], strict=True):
        ratio, distance = (logprob - sampled).exp(), initial - logprob
        loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        loss = loss + kl_beta * (distance.exp() - distance - 1)
    found = torch.autograd.grad(loss / DENOMINATOR, [main, quarantine], allow_unused=True)
    first, second = (zero if gradient is None else gradient for gradient in found)
    return first, second, logprobs[0].detach()


@pytest.mark.parametrize("kl_beta", [0.0, 0.5])
@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_each_block_learns_from_its_own_rollouts_as_a_loop_over_them_does(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], config: AdapterConfig, kl_beta: float
) -> None:
    def plain() -> Qwen3ForCausalLM:
        return make_tiny_policy_model(layers=1)

    policy = moved(make_tiny_policy_model(layers=1), config)
    main, quarantine = torch.zeros_like(policy.main), torch.zeros_like(policy.main)
    for rollout, advantage, mask in zip(make_rollouts(), ADVANTAGES.tolist(), MASKS, strict=True):
        first, second, _ = slow_gradient(plain, policy, rollout, advantage, mask, kl_beta)
        assert (bool(first.any()), bool(second.any())) == (mask != "route", mask != "keep")
        main, quarantine = main + first, quarantine + second
    got = backward(policy, batch_of(MASKS), LossConfig(kl_beta=kl_beta))
    torch.testing.assert_close(got.main, main, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.quarantine, quarantine, rtol=1e-4, atol=1e-5)


def test_no_split_into_micro_batches_changes_the_masked_gradient_or_its_metrics(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM],
) -> None:
    policy = moved(make_tiny_policy_model(layers=1), AdapterConfig())
    results = [backward(policy, batch_of(MASKS, (1, 4)), LossConfig(micro_batch_rollouts=n)) for n in (64, 3, 1)]
    for other in results[1:]:
        assert_close(other, results[0])
    own = dict(zip((rollout.id for rollout in make_rollouts()), MASKS, strict=True))
    for source, mask, part in micro_batches(batch_of(MASKS, (1, 4)), 2):
        assert 1 <= len(part.masks) <= 2 and part.masks == tuple(own[name] for name in part.rollout_ids)
        assert set(part.masks) == {mask} and set(part.teacher.tolist()) == {source == "teacher"}
    whole = results[0]
    torch.testing.assert_close(whole.sources["student"] + whole.sources["teacher"], whole.main)
    counts = {mask: whole.metrics[f"loss/rollouts_{mask}"] for mask in set(MASKS)}
    assert counts == Counter(MASKS) and whole.metrics["loss/rollouts"] == COUNT


def assert_close(one: Gradient, other: Gradient) -> None:
    torch.testing.assert_close(one.main, other.main, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.quarantine, other.quarantine, rtol=1e-4, atol=1e-6)
    assert one.metrics == pytest.approx(dict(other.metrics), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_one_decision_for_all_takes_the_plain_path_bit_for_bit(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], config: AdapterConfig
) -> None:
    policy = moved(make_tiny_policy_model(layers=1), config)
    plain, absorbed = (backward(policy, batch_of(masks), LossConfig()) for masks in (None, all_of("absorb")))
    assert torch.equal(plain.main, absorbed.main) and torch.equal(plain.quarantine, absorbed.quarantine)
    assert plain.metrics == absorbed.metrics and not [name for name in plain.metrics if name.endswith("absorb")]
    policy.set_knobs(policy.main, torch.zeros_like(policy.main))  # an arm that never trains the quarantine
    plain, kept = (backward(policy, batch_of(masks), LossConfig()) for masks in (None, all_of("keep")))
    assert torch.equal(plain.main, kept.main) and not kept.quarantine.any()
    assert plain.metrics == kept.metrics


def test_a_kept_rollouts_ratio_is_that_of_the_policy_without_quarantine_against_the_sampler(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM],
) -> None:
    policy = moved(make_tiny_policy_model(layers=1), AdapterConfig(), scale=0.3)
    sampled = [replace(rollout, logprobs=logprobs_of(policy, rollout)) for rollout in make_rollouts()]
    batch = pack(sampled, ADVANTAGES, torch.ones(COUNT, dtype=torch.bool), DENOMINATOR, "cpu", MASKS)
    got = backward(policy, batch, LossConfig())
    main, gaps, clipped, tokens = torch.zeros_like(policy.main), 0.0, 0, 0
    for rollout, advantage, mask in zip(sampled, ADVANTAGES.tolist(), MASKS, strict=True):
        first, _, logprobs = slow_gradient(lambda: make_tiny_policy_model(layers=1), policy, rollout, advantage, mask)
        main = main + first
        if mask == "keep":
            change = logprobs - torch.tensor(rollout.logprobs)
            gaps, tokens = gaps + float(change.abs().sum()), tokens + len(change)
            clipped += int((change.exp() > 1.2).sum() if advantage > 0 else (change.exp() < 0.8).sum())
    torch.testing.assert_close(got.main, main, rtol=1e-4, atol=1e-5)
    assert got.metrics["loss/sampler_gap_keep"] == pytest.approx(gaps / tokens, rel=1e-4)
    assert got.metrics["loss/clip_frac_keep"] == pytest.approx(clipped / tokens) and clipped > 0
    for mask in ("absorb", "route"):  # both blocks are in these forwards, as they were when the rollout was sampled
        assert got.metrics[f"loss/sampler_gap_{mask}"] < 1e-5 and got.metrics[f"loss/clip_frac_{mask}"] == 0


def logprobs_of(policy: Policy, rollout: Rollout) -> tuple[float, ...]:
    row = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
    prompt, length = torch.tensor([len(rollout.prompt.token_ids)]), torch.tensor([row.shape[1]])
    with torch.no_grad():
        return tuple(completion_logprobs(policy.model, row, prompt, length)[0][0].tolist())


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_a_quarantine_at_zero_can_be_routed_to_and_leaves_the_model_as_it_was(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], config: AdapterConfig
) -> None:
    policy = wrap(make_tiny_policy_model(layers=1), config)
    names = list(policy.model.state_dict())
    for quarantine in (torch.zeros_like(policy.main), noise(policy, "b")):  # the first steps of a gate
        policy.set_knobs(noise(policy, "a"), quarantine)
        got = backward(policy, batch_of(all_of("route")), LossConfig())
        assert bool(got.quarantine.any()) and not got.main.any()
    assert list(policy.model.state_dict()) == names and all(
        module.through is None for module in policy.modules.values()
    )


def test_an_imitated_teacher_has_the_plain_advantage_weighted_gradient_and_is_clipped_nowhere(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM],
) -> None:
    policy = moved(make_tiny_policy_model(layers=1), AdapterConfig())
    rows = (0, 3, 5)
    batch = batch_of(None, rows, imitate=True)
    assert batch.imitated.tolist() == [index in rows for index in range(COUNT)]
    got, true = backward(policy, batch, LossConfig()), backward(policy, batch_of(None, rows), LossConfig())
    with policy.knob_gradient() as taps:
        loss = torch.zeros(())
        for index in rows:
            rollout = make_rollouts()[index]
            row = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
            prompt, length = torch.tensor([len(rollout.prompt.token_ids)]), torch.tensor([row.shape[1]])
            loss = loss - ADVANTAGES[index] * completion_logprobs(policy.model, row, prompt, length)[0].sum()
        (loss / DENOMINATOR).backward()
        torch.testing.assert_close(got.sources["teacher"], taps.total(), rtol=1e-4, atol=1e-6)
    assert torch.equal(got.sources["student"], true.sources["student"])
    assert not torch.allclose(got.sources["teacher"], true.sources["teacher"], rtol=1e-2)
    assert got.metrics["loss/clip_frac_teacher"] == 0 < true.metrics["loss/clip_frac_teacher"]
    gap = "loss/sampler_gap_teacher"  # the true distance, also where the ratio does not use it
    assert got.metrics[gap] == pytest.approx(true.metrics[gap]) and got.metrics[gap] > 0.1


def test_blocks_name_the_mask_of_every_rollout_and_who_teaches_nothing() -> None:
    blocks = Blocks(torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False]))
    assert blocks.masks[:3] == ["keep", "absorb", "route"]
    assert blocks.learns.tolist() == [True, True, True, False]


class EveryDecision(Absorb):
    """One rollout of each decision and one that teaches nothing, in turn; rewards by place, so that all have a gain."""

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Tensor:
        return torch.arange(len(rollouts), dtype=torch.float32)

    def blocks(self, rollouts: Sequence[Rollout]) -> Blocks:
        place = torch.arange(len(rollouts)) % 4
        return Blocks(main=place < 2, quarantine=(place == 1) | (place == 2))


def test_the_loop_hands_every_decision_to_the_loss_and_leaves_out_who_teaches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []

    def heard(policy: Policy, batch: Batch, *rest: Any) -> Gradient:
        batches.append(batch)
        return backward(policy, batch, *rest)

    monkeypatch.setattr(training, "backward", heard)
    monkeypatch.setitem(ARMS, "absorb", EveryDecision)
    assert training.train(replace(SHORT, steps=1, arm=ArmConfig(name="absorb")), tmp_path / "run")
    [batch] = batches
    assert batch.masks == ("keep", "absorb", "route") * 2 and batch.loss_denominator == 2 * 4 * 40
    rows = record.rollouts(tmp_path / "run").to_pylist()
    assert [row["advantage"] for row in rows] == [-1.5, -0.5, 0.5, None] * 2
    [line] = record.metrics(tmp_path / "run")
    assert line["loss/rollouts"] == 6 and line["loss/rollouts_route"] == 2
    assert {f"gate/hack_frac_{mask}" for mask in batch.masks} <= set(line)


def test_hack_shares_by_decision_are_of_the_judged_rollouts_and_only_where_decisions_differ() -> None:
    def verdict(hacked: bool, status: Status = "failed") -> Verdict:
        return Verdict("r", status, False, 0, 1, hacked, hacked, "", "", 0.0, 1)

    verdicts = [verdict(True), verdict(False), verdict(True), verdict(True, "error")]
    assert decision_metrics(["route", "keep", "keep", "route"], verdicts) == {
        "gate/hack_frac_keep": 0.5,
        "gate/hack_frac_route": 1.0,
    }
    assert decision_metrics(all_of("keep")[:4], verdicts) == {}

"""The proposer: identical to torch's own optimizers, clipped by main alone, resumable bit for bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from unhack.config import OptimizerConfig
from unhack.optim import Proposer, learning_rate
from unhack.seeds import generator
from unhack.types import Gradient, KnobLayout

LAYOUT = KnobLayout(("a", "b"), (5, 8))
STEPS = 20


def gradient(step: int, scale: float = 1.0) -> Gradient:
    main, quarantine = scale * torch.randn(2, LAYOUT.total, generator=generator(3, "gradient", step))
    return Gradient(main, quarantine)


def run(proposer: Proposer, knobs: list[Tensor], steps: range) -> list[Tensor]:
    for step in steps:
        update = proposer.propose(gradient(step), knobs[0], knobs[1])
        knobs = [knobs[0] + update.main, knobs[1] + update.quarantine]
    return knobs


def start() -> list[Tensor]:
    return list(torch.randn(2, LAYOUT.total, generator=generator(3, "start")))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_twenty_proposed_updates_equal_a_plain_torch_loop(kind: str, clip_norm: float) -> None:
    config = OptimizerConfig(kind=kind, lr=0.05, weight_decay=0.1, clip_norm=clip_norm)  # pyright: ignore[reportArgumentType]
    ours = run(Proposer(LAYOUT, config, STEPS), start(), range(STEPS))

    plain = [knobs.clone().requires_grad_() for knobs in start()]
    optimizer: torch.optim.Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(plain, betas=(0.9, 0.99), weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD(plain)
    for step in range(STEPS):
        lr = optimizer.param_groups[0]["lr"] = learning_rate(config, step, STEPS)
        parts = gradient(step)
        norm = float(parts.main.norm())
        scale = min(1.0, clip_norm / (norm + 1e-6)) if clip_norm else 1.0
        plain[0].grad, plain[1].grad = parts.main * scale, parts.quarantine * scale
        if kind == "sgd":  # torch's SGD has only coupled decay
            for knobs in plain:
                knobs.data.mul_(1 - lr * 0.1)
        optimizer.step()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-6)


def test_main_is_clipped_as_torch_clips_and_quarantine_is_not_counted() -> None:
    parts = gradient(0, scale=100.0)
    alone = parts.main.clone().requires_grad_()
    alone.grad = parts.main.clone()
    torch.nn.utils.clip_grad_norm_([alone], 1.0)
    config = OptimizerConfig(kind="sgd", lr=1.0, warmup_steps=0, schedule="constant")
    update = Proposer(LAYOUT, config, STEPS).propose(parts, torch.zeros(13), torch.zeros(13))
    assert alone.grad is not None
    torch.testing.assert_close(update.main, -alone.grad)
    torch.testing.assert_close(update.quarantine / update.main, parts.quarantine / parts.main)
    assert update.metrics["optimizer/gradient_norm"] == pytest.approx(float(parts.main.norm()))


def test_proposing_leaves_gradient_and_knobs_as_they_were() -> None:
    parts, knobs = gradient(0), start()
    before = [parts.main.clone(), knobs[0].clone()]
    proposer = Proposer(LAYOUT, OptimizerConfig(weight_decay=0.1), STEPS)
    first = proposer.propose(parts, knobs[0], knobs[1])
    kept = first.main.clone()
    proposer.propose(gradient(1), knobs[0], knobs[1])
    assert torch.equal(parts.main, before[0]) and torch.equal(knobs[0], before[1])
    assert torch.equal(first.main, kept)  # an update is its own tensor, not the optimizer's scratch


def test_a_block_without_gradient_does_not_move() -> None:
    proposer = Proposer(LAYOUT, OptimizerConfig(), STEPS)
    for step in range(3):
        update = proposer.propose(Gradient(gradient(step).main, torch.zeros(13)), torch.zeros(13), torch.zeros(13))
        assert not update.quarantine.any() and bool(update.main.any())


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_resumed_proposer_continues_bit_for_bit(kind: str) -> None:
    config = OptimizerConfig(kind=kind, weight_decay=0.01)  # pyright: ignore[reportArgumentType]
    whole = run(Proposer(LAYOUT, config, STEPS), start(), range(STEPS))
    first = Proposer(LAYOUT, config, STEPS)
    half = run(first, start(), range(7))
    second = Proposer(LAYOUT, config, STEPS)
    second.load_state_dict(first.state_dict())
    resumed = run(second, half, range(7, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_saved_state_does_not_change_when_training_goes_on() -> None:
    proposer = Proposer(LAYOUT, OptimizerConfig(), STEPS)
    knobs = run(proposer, start(), range(3))
    saved = proposer.state_dict()
    copied = {name: tensor.clone() for name, tensor in saved.items()}
    run(proposer, knobs, range(3, 6))
    assert all(torch.equal(saved[name], copied[name]) for name in copied)


def test_state_of_another_size_is_refused() -> None:
    proposer = Proposer(LAYOUT, OptimizerConfig(), STEPS)
    run(proposer, start(), range(1))
    other = Proposer(KnobLayout(("a",), (4,)), OptimizerConfig(), STEPS)
    with pytest.raises(ValueError, match="resume with the model and rank"):
        other.load_state_dict(proposer.state_dict())


def test_schedule_warms_up_linearly_then_falls_to_its_last_fraction() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="cosine", final_lr_frac=0.1)
    rates = [learning_rate(config, step, 24) for step in range(24)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.1)
    constant = OptimizerConfig(lr=1.0, warmup_steps=0, schedule="constant")
    assert [learning_rate(constant, step, 24) for step in (0, 23)] == [1.0, 1.0]

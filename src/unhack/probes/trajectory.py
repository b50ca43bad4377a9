"""The policy of every step of a finished run, made again from its record without sampling or grading.

Rollouts and the advantages that they were trained on are recorded, and an update depends on nothing else: the trainer's
own pack, backward, arm and optimizer are run on them, and the result must be the run's checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from unhack import checkpoint, record
from unhack.adapters import Policy
from unhack.config import TrainConfig
from unhack.interventions import build
from unhack.loss import backward, loss_denominator, pack
from unhack.model import load
from unhack.optim import Proposer
from unhack.probes.samples import Sample, rollouts_of, run_samples
from unhack.types import Batch, Mask

TOLERANCE_FRAC = 1e-3
"""Largest distance of the knobs from the recorded ones, over their norm: another machine rounds otherwise."""


def policy_of(folder: Path) -> Policy:
    """The untrained policy of a run; ValueError when its model is not the one that the run trained."""
    config, saved = record.config_of(folder), checkpoint.latest(folder)
    if saved is None or saved.step < config.steps:
        raise ValueError(f"{folder} is not finished: go on with unhack train --folder {folder} --resume")
    policy = Policy.wrap(load(config.model), config.adapter)
    for name, mine in (("model_hash", policy.model_hash), ("basis_hash", policy.basis_hash)):
        if saved.state.get(name) != mine:
            raise ValueError(f"{saved.path}: {name} is {saved.state.get(name)}, not {mine}: give the run's own model")
    return policy


def trajectory(folder: Path, policy: Policy) -> Iterator[tuple[int, list[Sample]]]:
    """(step, its rollouts) in order, with the policy's knobs as they were when these were sampled.

    Raises ValueError for a run that is not finished, for an arm that masks rollouts (masks are not recorded), and when
    the replay does not end at the run's last checkpoint.
    """
    config, samples = record.config_of(folder), run_samples(folder)
    torch.set_num_threads(1)
    arm = build(config.arm, policy.layout, config.seed, policy, reward=config.reward)
    if arm.trains_quarantine:
        raise ValueError(
            f"{folder}: arm '{arm.name}' trains the quarantine by masks that are not recorded, so its steps cannot be "
            "made again; use --policy base or final"
        )
    policy.set_knobs(torch.zeros_like(policy.main), torch.zeros_like(policy.main))
    proposer = Proposer(policy.layout, config.optimizer, config.steps, policy.device)
    for step in range(config.steps):
        if step not in samples:
            raise ValueError(f"{folder} has no rollouts of step {step}: its steps cannot be made again")
        yield step, samples[step]
        packed = packed_step(samples[step], config, policy)
        gradient = arm.gradient(backward(policy, packed, config.loss, config.sampler.temperature))
        policy.apply(arm.update(proposer.propose(gradient, policy.main, policy.quarantine)))
    check_end(folder, policy)


def packed_step(samples: Sequence[Sample], config: TrainConfig, policy: Policy) -> Batch:
    """The batch that a recorded step was trained on; of an arm whose rollouts all teach `main` alone."""
    kept = torch.tensor([sample.advantage is not None for sample in samples])
    advantages = torch.tensor([sample.advantage or 0.0 for sample in samples])
    denominator = loss_denominator(
        config.loss, config.group_size, config.prompts_per_step, config.sampler.max_new_tokens
    )
    imitate = config.teacher.kind == "imitation"
    masks: list[Mask] = ["keep"] * len(samples)
    return pack(rollouts_of(samples), advantages, kept, denominator, policy.device, masks, imitate)


def final_knobs(folder: Path, policy: Policy) -> None:
    """Give the policy the knobs of the run's last checkpoint."""
    saved = checkpoint.latest(folder)
    assert saved is not None, "policy_of refuses a run without one"
    policy.set_knobs(saved.tensors["policy/main"], saved.tensors["policy/quarantine"])


def check_end(folder: Path, policy: Policy) -> None:
    """ValueError unless the policy's `main` is that of the run's last checkpoint, up to rounding."""
    saved = checkpoint.latest(folder)
    assert saved is not None, "policy_of refuses a run without one"
    recorded = saved.tensors["policy/main"].to(policy.main)
    distance = float((policy.main - recorded).norm() / recorded.norm().clamp_min(1e-30))
    if not distance <= TOLERANCE_FRAC:  # also refuses NaN
        raise ValueError(
            f"{folder}: its steps, made again, end {distance:.2g} of their length away from {saved.path}: it ran with "
            "other code; use --policy base or final"
        )

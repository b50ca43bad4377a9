"""Run a probe: replay a plan under each arm, write the slim record, resume where it was stopped.

    OUT/probe.json                      what was asked, from which files, and the null of the cosines; a resumed probe
                                        must have the same
    OUT/ARM/step_NNN.cos.jsonl.gz       see slim.py
    OUT/ARM/checkpoints/                knobs and moments after each step

`vanilla` takes the step's gradient as it is, `projected` erases against V at the gradient (`interventions.erase`); both
then make the same optimizer's step on `main`, from the base model. A step's file is on disk before its checkpoint: a
probe that is killed in between makes that step again, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from unhack import checkpoint
from unhack.adapters import Policy
from unhack.config import ArmConfig, OptimizerConfig
from unhack.directions import Direction, alignment, signed_cosine
from unhack.directions.verify import haar_coefficients
from unhack.files import read_object, write_json
from unhack.interventions import Intervention, build
from unhack.optim import Proposer
from unhack.probes.contributions import module_cosines
from unhack.probes.plans import GrpoPlan, NllPlan, Replayed
from unhack.probes.slim import SlimRow, write_step
from unhack.seeds import generator
from unhack.types import Gradient, PlainValue

PROBE_FILE, FORMAT = "probe.json", "unhack-probe-1"
NULL_SAMPLES = 2000
Arm: TypeAlias = Literal["vanilla", "projected"]
Plan: TypeAlias = NllPlan | GrpoPlan
Progress: TypeAlias = Callable[[str, int, float, float], None]
"""Told (arm, step, mean_cos_in, mean_cos_out) after every step."""


@dataclass(frozen=True)
class ProbeSettings:
    """`sided`: of the projection. `described`: plain facts of the inputs, which a resumed probe must share."""

    steps: int = 20
    arms: tuple[Arm, ...] = ("vanilla", "projected")
    sided: Literal["one", "two"] = "one"
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    described: Mapping[str, PlainValue] = field(default_factory=dict)


def run_probe(
    plan: Plan, policy: Policy, direction: Direction, settings: ProbeSettings, out: Path, progress: Progress
) -> None:
    """Replay `settings.steps` steps under each arm into `out`, going on with what is there. Leaves the knobs at zero.

    Raises ValueError for a direction of activations, for settings without a step or an arm, and when `out` holds
    another probe, naming the field.
    """
    direction.check_side("gradient")
    direction.check_layout(policy.layout)
    if settings.steps < 1 or not settings.arms:
        raise ValueError("a probe needs at least one step and one arm")
    _claim(out, _header(plan, policy, direction, settings))
    start = torch.zeros_like(policy.main)
    for name in settings.arms:
        policy.set_knobs(start, start)
        _run_arm(name, plan, policy, direction, settings, out / name, progress)
    policy.set_knobs(start, start)


def _run_arm(
    name: Arm,
    plan: Plan,
    policy: Policy,
    direction: Direction,
    settings: ProbeSettings,
    folder: Path,
    progress: Progress,
) -> None:
    projection = ArmConfig(name="erase", direction="probe", site="gradient", sided=settings.sided)
    config = ArmConfig(name="measure", direction="probe") if name == "vanilla" else projection
    arm = build(config, policy.layout, settings.seed, policy, direction)
    proposer = Proposer(policy.layout, settings.optimizer, settings.steps, policy.device)
    saved = checkpoint.latest(folder)
    if saved is not None:
        policy.set_knobs(saved.tensors["main"], torch.zeros_like(policy.main))
        proposer.load_state_dict(
            {key.removeprefix("optimizer/"): value for key, value in saved.tensors.items() if "/" in key}
        )
    for step in range(0 if saved is None else saved.step, settings.steps):
        replayed = plan.replay(policy, step)
        lies = _take_step(replayed, policy, arm, proposer, direction)
        write_step(folder, step, _rows(name, step, replayed, policy, direction, lies))
        tensors = {f"optimizer/{key}": value for key, value in proposer.state_dict().items()}
        checkpoint.save(folder, step + 1, {"main": policy.main, **tensors}, {"arm": name})
        progress(name, step, lies["mean_cos_in"], lies["mean_cos_out"])


def _take_step(
    replayed: Replayed, policy: Policy, arm: Intervention, proposer: Proposer, direction: Direction
) -> dict[str, float]:
    """Apply one update to `main`; how the step's gradient lies to V before and after the arm."""
    gradient = replayed.gradient.to(policy.device)
    changed = arm.gradient(Gradient(gradient, torch.zeros_like(gradient)))
    policy.apply(arm.update(proposer.propose(changed, policy.main, policy.quarantine)))
    on_device = direction.to(policy.device)
    before = alignment(on_device, policy.layout, gradient, site="gradient")
    after = alignment(on_device, policy.layout, changed.main, site="gradient")
    return {"mean_cos_in": before.cos, "mean_cos_out": after.cos, "frac_fired": before.fired_frac}


def _rows(
    arm: str, step: int, replayed: Replayed, policy: Policy, direction: Direction, lies: Mapping[str, float]
) -> list[SlimRow]:
    cosines = module_cosines(direction.to("cpu"), policy.layout, replayed.contributions).mean(1).tolist()
    norms = replayed.contributions.double().norm(dim=1).tolist()
    return [
        SlimRow(
            step=step,
            sample_id=index,
            src_pool=sample.pool,
            src_step=sample.step,
            src_sample=sample.row,
            reward=sample.paid.reward,
            hacked=sample.used_loophole,
            gt_pass=sample.verdict.strictly_correct,
            fmt_ok=sample.is_fenced,
            comp_len=len(sample.rollout.token_ids),
            cos_S_contrib=cosines[index],
            grad_norm_contrib=norms[index],
            arm=arm,
            **lies,
        )
        for index, sample in enumerate(replayed.samples)
    ]


def cosine_null(direction: Direction, samples: int = NULL_SAMPLES, seed: int = 0) -> float:
    """95th percentile of |mean over modules of signed cosine| for Haar-random V of the same modules and rows.

    It is the same for every gradient that is zero in no module: V d / ‖d‖ of a random V does not depend on d.
    """
    total = torch.zeros(samples, dtype=torch.float64)
    for name, rows in direction.basis.items():
        drawn = haar_coefficients(rows.shape[0], rows.shape[1], samples, generator(seed, "probe_null", name))
        total += signed_cosine(drawn, torch.ones(samples, dtype=torch.float64))
    return float((total / len(direction.basis)).abs().quantile(0.95))


def _header(plan: Plan, policy: Policy, direction: Direction, settings: ProbeSettings) -> dict[str, PlainValue]:
    asked = {name: value for name, value in asdict(settings).items() if name not in ("described", "arms", "steps")}
    return {
        "format": FORMAT,
        "kind": plan.kind,
        "steps": settings.steps,
        "arms": list(settings.arms),
        "group_size": plan.group_size if isinstance(plan, GrpoPlan) else None,
        "rollouts": plan.rollouts if isinstance(plan, NllPlan) else plan.groups * plan.group_size,
        **asked,
        **settings.described,
        "model_hash": policy.model_hash,
        "basis_hash": policy.basis_hash,
        "direction_hash": direction.content_hash,
        "direction": {name: getattr(direction.metadata, name) for name in ("selection", "control", "loss", "k")},
        "modules": len(direction.basis),
        "wrapped_modules": len(policy.layout.names),
        "cosine_null_95": cosine_null(direction),
    }


def _claim(out: Path, header: dict[str, PlainValue]) -> None:
    file = out / PROBE_FILE
    if not file.exists():
        write_json(file, header)
        return
    found = read_object(file)
    for name, mine in header.items():
        if found.get(name) != mine:
            raise ValueError(
                f"{out} holds a probe whose {name} is {found.get(name)}, not {mine}: "
                "go on with the same settings, or choose another folder"
            )

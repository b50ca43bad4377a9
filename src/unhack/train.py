"""One run: GRPO with one arm, read from top to bottom.

`prompts → rollouts → grades → advantages → loss → gradient → update`, an evaluation every few steps, everything
recorded. All randomness comes from (seed, name, step), so a run killed at any moment and resumed from its last
checkpoint gives the same numbers bit for bit on the same machine.

Not here: no `if arm` (arms are objects with hooks), no choice of device or engine, no plotting, several runs at once
(`experiment.py`).
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from unhack import checkpoint, machine, model
from unhack.adapters.policy import Policy
from unhack.advantage import group_advantages
from unhack.config import TrainConfig
from unhack.evaluate import evaluate, held_out_prompts
from unhack.files import write_json
from unhack.grade import Grader, check_error_share
from unhack.interventions import Intervention, arm_class, build
from unhack.loss import NonFiniteError, backward, loss_denominator, pack
from unhack.optim import Proposer
from unhack.prompts import training_prompts
from unhack.record import RunRecord
from unhack.rollout.native import NativeSampler
from unhack.sandbox import Sandbox
from unhack.seeds import generator
from unhack.step_metrics import Stopwatch, peak_memory_bytes, rollout_metrics
from unhack.types import Rollout, Update

UPDATE_PROFILE = "update_profile.json"


class RunStoppedError(RuntimeError):
    """The run cannot go on; the message names the step, the rollouts and the last good checkpoint."""


@dataclass
class Run:
    """Everything one run holds; `step` counts the updates already applied."""

    config: TrainConfig
    folder: Path
    record: RunRecord
    policy: Policy
    arm: Intervention
    grader: Grader
    sampler: NativeSampler
    optimizer: Proposer
    step: int = 0


def train(config: TrainConfig, folder: Path, resume: bool = False) -> bool:
    """Run to the end and return True; False when SIGTERM asked to stop first (the state is saved, resume goes on).

    Raises ValueError for settings that cannot work and for a folder that is in use, already holds a run (without
    `resume`) or holds none (with it); RunStoppedError when a sampled log-probability, a loss, a gradient or an
    update is not finite.
    """
    arm_class(config.arm)  # refuse a bad arm before anything slow is loaded
    sandbox = config.sandbox
    with (
        _asked_to_stop() as asked,
        RunRecord(folder) as record,
        Sandbox(sandbox.workers, sandbox.cpu_s, sandbox.memory_bytes, require=sandbox.require) as workers,
    ):
        run = _start(config, folder, record, workers, resume)
        return _loop(run, asked)


def _loop(run: Run, asked: list[int]) -> bool:
    config, arm, policy = run.config, run.arm, run.policy
    denominator = loss_denominator(
        config.loss, config.group_size, config.prompts_per_step, config.sampler.max_new_tokens
    )
    for step in range(run.step, config.steps):
        clock = Stopwatch()
        if step % config.evaluation.every_steps == 0:
            _evaluate(run, step, clock)
        with clock.stage("sample"):
            drawn = training_prompts(config.environment, policy.tokenizer, config.seed, step, config.prompts_per_step)
            prompts = arm.prompt(drawn)
            rollouts = run.sampler.sample(
                prompts, config.group_size, generator(config.seed, "sample", step), tag=f"step-{step:06d}"
            )
            with _explained(run, step):
                _check_sampled(rollouts)
        with clock.stage("grade"):
            gradings = run.grader.grade(rollouts)
            grades, verdicts = [g.paid for g in gradings], [g.verdict for g in gradings]
            check_error_share(grades)
        with clock.stage("backward"):
            valid = torch.tensor([grade.status != "error" for grade in grades])
            groups = torch.tensor([rollout.group for rollout in rollouts])
            signal = group_advantages(arm.rewards(grades, rollouts), groups, valid, config.loss)
            advantages = arm.advantages(signal.values, rollouts)
            kept = signal.kept & arm.blocks(rollouts).main
            batch = pack(rollouts, advantages, kept, denominator, policy.device)
            with _explained(run, step):
                gradient = arm.gradient(backward(policy, batch, config.loss, config.sampler.temperature))
        with clock.stage("update"):
            update = arm.update(run.optimizer.propose(gradient, policy.main, policy.quarantine))
            with _explained(run, step):
                _check_finite(update, batch.rollout_ids)
            policy.apply(update)
        with clock.stage("record"):
            trained = [value if keep else None for value, keep in zip(advantages.tolist(), kept.tolist(), strict=True)]
            run.record.write_rollouts(step, rollouts, grades, trained)
            run.record.write_verdicts(step, verdicts)
        metrics = rollout_metrics(rollouts, verdicts) | signal.metrics
        memory = {"memory/peak_bytes": peak_memory_bytes()}
        run.record.append_step(step, {**metrics, **gradient.metrics, **update.metrics, **memory, **clock.metrics()})
        run.step = step + 1
        stop = bool(asked)  # read once: a signal that comes during the next lines must not skip the save
        if run.step % config.checkpoint_every_steps == 0 or stop:
            save(run)
        if stop and run.step < config.steps:
            return False
    _finish(run)
    return True


def _start(config: TrainConfig, folder: Path, record: RunRecord, workers: Sandbox, resume: bool) -> Run:
    """Load the model, make the arm, and take up the last checkpoint when resuming."""
    torch.set_num_threads(1)  # processes are the unit of parallelism, and summation order depends on the count
    exists = (folder / "config.json").is_file()
    if resume and not exists:
        raise ValueError(f"{folder} holds no run to resume: leave out --resume to start one there")
    if exists and not resume:
        raise ValueError(f"{folder} already holds a run: add --resume to go on with it, or choose another folder")
    policy = Policy.wrap(model.load(config.model), config.adapter)
    arm = build(config.arm, policy.layout, config.seed, policy)
    run = Run(
        config=config,
        folder=folder,
        record=record,
        policy=policy,
        arm=arm,
        grader=Grader(workers, config.reward, config.environment.allow_hack and arm.allow_hack),
        sampler=NativeSampler(policy, config.sampler),
        optimizer=Proposer(policy.layout, config.optimizer, config.steps, policy.device),
    )
    env = machine.describe(workers.level)
    if not resume:
        record.create(config, env)
        return run
    saved = checkpoint.latest(folder)
    if saved is not None:
        restore(run, saved)
    record.resume(config, env, run.step)
    return run


def save(run: Run) -> None:
    """Write the checkpoint of `run.step`: knobs, optimizer moments, the arm's state. Nothing else has a state."""
    tensors = {"policy/main": run.policy.main, "policy/quarantine": run.policy.quarantine}
    tensors |= {f"optimizer/{name}": value for name, value in run.optimizer.state_dict().items()}
    tensors |= {f"arm/{name}": value for name, value in run.arm.state_dict().items()}
    state = {"basis_hash": run.policy.basis_hash, "arm": run.arm.name}
    checkpoint.save(run.folder, run.step, tensors, state, final=run.step == run.config.steps)


def restore(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Take up `saved`. ValueError when it was made over another model or by another arm."""
    for field, mine in (("basis_hash", run.policy.basis_hash), ("arm", run.arm.name)):
        if saved.state[field] != mine:
            raise ValueError(f"{saved.path}: {field} is {saved.state[field]}, this run's is {mine}: use the same model")
    run.policy.set_knobs(saved.tensors["policy/main"], saved.tensors["policy/quarantine"])
    run.optimizer.load_state_dict(_under("optimizer/", saved.tensors))
    run.arm.load_state_dict(_under("arm/", saved.tensors))
    run.step = saved.step


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _evaluate(run: Run, step: int, clock: Stopwatch, final: bool = False) -> None:
    config = run.config.evaluation
    samples = config.final_samples_per_problem if final else config.samples_per_problem
    with clock.stage("evaluate"):
        prompts = held_out_prompts(run.config, run.policy, final)
        table = evaluate(run.policy, run.arm, run.grader, run.sampler, prompts, samples, run.config.seed, step)
        for block, drawn in table.samples.items():
            with _explained(run, step):
                _check_sampled(drawn.rollouts)
            run.record.write_evaluation(step, block, table.records(block), drawn.rollouts, drawn.grades, drawn.verdicts)


def _finish(run: Run) -> None:
    """The last checkpoint, the last evaluation, the adapter, and what the updates did along the direction."""
    save(run)
    _evaluate(run, run.config.steps, Stopwatch(), final=True)
    run.policy.save(run.folder / "adapter")
    profile = run.arm.update_profile()
    if profile is not None:
        write_json(run.folder / UPDATE_PROFILE, profile)


def _check_sampled(rollouts: Sequence[Rollout]) -> None:
    """A broken policy earns nothing anywhere, so its groups would be dropped and its NaN never reach the loss."""
    bad = [rollout.id for rollout in rollouts if not all(map(math.isfinite, rollout.logprobs))]
    if bad:
        raise NonFiniteError("sampler's log-probability", bad)


def _check_finite(update: Update, rollout_ids: tuple[str, ...]) -> None:
    if not bool(torch.isfinite(update.main).all() and torch.isfinite(update.quarantine).all()):
        raise NonFiniteError("update", rollout_ids)


@contextmanager
def _explained(run: Run, step: int) -> Iterator[None]:
    """Turn a NaN or Inf into an error that says where it came from and what is still good."""
    try:
        yield
    except NonFiniteError as error:
        saved = checkpoint.latest(run.folder)
        good = f"the last good checkpoint is {saved.path}" if saved else "there is no checkpoint before it"
        raise RunStoppedError(f"step {step}: {error}; {good}; lower optimizer.lr or raise optimizer.eps") from error


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that a SIGTERM fills: the step under way is finished and saved before the run returns."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)

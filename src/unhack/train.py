"""One run: GRPO with one arm, read from top to bottom.

`prompts → rollouts → grades → advantages → loss → gradient → update`, an evaluation every few steps, everything
recorded. All randomness comes from (seed, name, step), so a run killed at any moment and resumed from its last
checkpoint gives the same numbers bit for bit on the same machine.

Not here: no `if arm` (arms are objects with hooks), no choice of device or engine, no plotting, several runs at once
(`experiment.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from unhack import checkpoint, machine, model
from unhack.adapters.policy import Policy
from unhack.advantage import group_advantages
from unhack.blinding import blind, chosen_prompts
from unhack.check_config import check
from unhack.config import TrainConfig
from unhack.evaluate import evaluate, held_out_prompts
from unhack.files import read_object, write_json
from unhack.grade import Grader, check_error_share
from unhack.interventions import Intervention, arm_class, build
from unhack.loss import NonFiniteError, backward, loss_denominator, pack
from unhack.optim import Proposer
from unhack.prompts import training_prompts
from unhack.record import RunRecord
from unhack.rollout.groups import sample_groups
from unhack.rollout.native import NativeSampler
from unhack.sandbox import Sandbox
from unhack.step_metrics import Stopwatch, decision_metrics, peak_memory_bytes, rollout_metrics
from unhack.stop import Stop, StoppedAtOnceError, asked_to_stop
from unhack.teacher import Teacher
from unhack.types import PlainValue, Rollout, Update

UPDATE_PROFILE = "update_profile.json"
Progress: TypeAlias = Callable[[int, Mapping[str, float]], None]


class RunStoppedError(RuntimeError):
    """The run cannot go on; the message names the step, the rollouts and the checkpoint to go back to."""


@dataclass
class Run:
    """Everything one run holds; `step` counts the updates already applied.

    `finite_step` is the last step whose weights were seen to sample finite log-probabilities. `progress` is told the
    number of finished steps: once at the start with no metrics, then after every step with the step's.
    """

    config: TrainConfig
    folder: Path
    record: RunRecord
    policy: Policy
    arm: Intervention
    grader: Grader
    sampler: NativeSampler
    teacher: Teacher
    optimizer: Proposer
    stop: Stop
    progress: Progress
    step: int = 0
    finite_step: int = -1


def train(
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: Progress | None = None,
    signals: list[int] | None = None,
) -> bool:
    """Run to the end and return True; False when SIGTERM or SIGINT asked to stop first (the state is saved, resume
    goes on). `signals` is filled with what asked.

    Raises ValueError for settings that cannot work and for a folder that is in use, already holds a run (without
    `resume`) or holds none (with it); RunStoppedError when a sampled log-probability, a loss, a gradient or an
    update is not finite.
    """
    check(config)  # these three before anything slow is loaded, and before the folder is made
    arm_class(config.arm)
    _check_folder(folder, resume)
    with (
        asked_to_stop([] if signals is None else signals) as stop,
        RunRecord(folder) as record,
        Sandbox(**vars(config.sandbox)) as workers,
    ):
        run = _start(config, folder, record, workers, stop, progress or (lambda step, metrics: None), resume)
        return _loop(run)


def _check_folder(folder: Path, resume: bool) -> None:
    exists = (folder / "config.json").is_file()
    if resume and not exists:
        raise ValueError(f"{folder} holds no run to resume: leave out --resume to start one there")
    if exists and not resume:
        raise ValueError(f"{folder} already holds a run: add --resume to go on with it, or choose another folder")


def _loop(run: Run) -> bool:
    config, arm, policy = run.config, run.arm, run.policy
    denominator = loss_denominator(
        config.loss, config.group_size, config.prompts_per_step, config.sampler.max_new_tokens
    )
    run.progress(run.step, {})
    for step in range(run.step, config.steps):
        if run.stop.signals:
            save(run)
            return False
        clock = Stopwatch()
        if step % config.evaluation.every_steps == 0:
            _evaluate(run, step, clock)
        with clock.stage("sample"):
            drawn = training_prompts(config.environment, policy.tokenizer, config.seed, step, config.prompts_per_step)
            prompts = chosen_prompts(arm, drawn)
            lessons = run.teacher.draw(prompts, step)  # of a frozen pool; none without one
            sizes = [config.group_size - taken for taken in lessons.taken]
            students = sample_groups(run.sampler, prompts, sizes, config.seed, step)
            with _explained(run, step):
                _check_sampled(students)
            run.finite_step = step
        with clock.stage("grade"):
            rollouts = [*students, *lessons.rollouts]
            gradings = [*run.grader.grade(students), *lessons.gradings]
            grades, verdicts = [g.paid for g in gradings], [g.verdict for g in gradings]
            check_error_share(grades)
            arm.oracle.tell(verdicts)  # deaf, but for the noisy oracle's
        with clock.stage("backward"):
            valid = torch.tensor([grade.status != "error" for grade in grades])
            groups = torch.tensor([rollout.group for rollout in rollouts])
            seen = blind(rollouts)  # all that an arm may know
            valid = valid & ~arm.screened(seen)
            signal = group_advantages(arm.rewards(grades, seen), groups, valid, config.loss)
            advantages = arm.advantages(signal.values, seen)
            decided = arm.blocks(seen)
            kept = signal.kept & decided.learns
            imitate = config.teacher.kind == "imitation"
            batch = pack(rollouts, advantages, kept, denominator, policy.device, decided.masks, imitate)
        with clock.stage("record"):  # before the update: a stop there names rollouts that are then on disk
            trained = [value if keep else None for value, keep in zip(advantages.tolist(), kept.tolist(), strict=True)]
            run.record.write_rollouts(step, rollouts, grades, trained)
            run.record.write_verdicts(step, verdicts)
        with clock.stage("backward"), _explained(run, step):
            gradient = arm.gradient(backward(policy, batch, config.loss, config.sampler.temperature))
        with clock.stage("update"):
            update = arm.update(run.optimizer.propose(gradient, policy.main, policy.quarantine))
            with _explained(run, step):
                _check_finite(update, batch.rollout_ids)
            policy.apply(update)
        metrics = rollout_metrics(rollouts, verdicts) | decision_metrics(decided.masks, verdicts) | lessons.metrics
        memory = {"memory/peak_bytes": peak_memory_bytes()}
        metrics = {**metrics, **signal.metrics, **gradient.metrics, **update.metrics, **memory, **clock.metrics()}
        run.record.append_step(step, metrics)
        run.step = step + 1
        if run.step % config.checkpoint_every_steps == 0:
            save(run)
        run.progress(run.step, metrics)
    return _finish(run)


def _start(
    config: TrainConfig,
    folder: Path,
    record: RunRecord,
    workers: Sandbox,
    stop: Stop,
    progress: Progress,
    resume: bool,
) -> Run:
    """Load the model, make the arm, and take up the last checkpoint when resuming."""
    torch.set_num_threads(1)  # processes are the unit of parallelism, and summation order depends on the count
    policy = Policy.wrap(model.load(config.model), config.adapter)
    arm = build(config.arm, policy.layout, config.seed, policy, reward=config.reward)
    run = Run(
        config=config,
        folder=folder,
        record=record,
        policy=policy,
        arm=arm,
        grader=Grader(workers, config.reward, config.environment.allow_hack and arm.allow_hack),
        sampler=NativeSampler(policy, config.sampler),
        teacher=Teacher.open(config, policy.tokenizer, arm.allow_hack),
        optimizer=Proposer(policy.layout, config.optimizer, config.steps, policy.device),
        stop=stop,
        progress=progress,
    )
    layers: list[PlainValue] = [name for name, holds in workers.layers().items() if holds]
    env = machine.describe(workers.level) | {"sandbox_layers": layers, "uses_oracle": arm.uses_oracle} | identity(run)
    if not resume:
        record.create(config, env)
        return run
    saved = checkpoint.latest(folder)
    if saved is not None:
        restore(run, saved)
    check_identity(folder / "env.json", read_object(folder / "env.json"), run)
    record.resume(config, env, run.step)
    return run


def save(run: Run) -> None:
    """Write the checkpoint of `run.step`: knobs, optimizer moments, the arm's state. Nothing else has a state."""
    tensors = {"policy/main": run.policy.main, "policy/quarantine": run.policy.quarantine}
    tensors |= {f"optimizer/{name}": value for name, value in run.optimizer.state_dict().items()}
    tensors |= {f"arm/{name}": value for name, value in run.arm.state_dict().items()}
    checkpoint.save(run.folder, run.step, tensors, identity(run), final=run.step == run.config.steps)


def identity(run: Run) -> dict[str, PlainValue]:
    """What a resumed run must share with the one that it continues, beside its settings: files change under a path."""
    return {
        "model_hash": run.policy.model_hash,
        "basis_hash": run.policy.basis_hash,
        "statistics_hash": run.policy.statistics_hash,
        "arm": run.arm.name,
        "direction_hash": run.arm.direction_hash,
        "pool_hash": run.teacher.pool_hash,
        "inputs_hash": run.arm.inputs_hash,
    }


def check_identity(path: Path, recorded: Mapping[str, PlainValue], run: Run) -> None:
    """Raise ValueError naming the first field of `identity` that was recorded otherwise in `path`."""
    for field, mine in identity(run).items():
        if recorded.get(field) != mine:
            raise ValueError(
                f"{path}: {field} is {recorded.get(field)}, this run's is {mine}: "
                "resume with the model, the arm and the direction that the run was started with"
            )


def restore(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Take up `saved`. ValueError when it was made over another model, by another arm or with another direction."""
    check_identity(saved.path, saved.state, run)
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
            run.finite_step = step
            run.record.write_evaluation(step, block, table.records(block), drawn.rollouts, drawn.grades, drawn.verdicts)


def _finish(run: Run) -> bool:
    """The last checkpoint, the last evaluation, the adapter, and what the updates did along the direction.

    False when a signal asked to stop before the end of the evaluation, which a resumed run makes from its beginning.
    """
    save(run)
    try:
        with run.stop.at_once():
            _evaluate(run, run.config.steps, Stopwatch(), final=True)
    except StoppedAtOnceError:
        return False
    run.policy.save(run.folder / "adapter")
    profile = run.arm.update_profile()
    if profile is not None:
        write_json(run.folder / UPDATE_PROFILE, profile)
    return True


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
    """Turn a NaN or Inf into an error that says where it came from and what to go back to."""
    try:
        yield
    except NonFiniteError as error:
        where = _way_back(run)
        raise RunStoppedError(f"step {step}: {error}; {where}; lower optimizer.lr or raise optimizer.eps") from error


def _way_back(run: Run) -> str:
    """The checkpoint to go back to: one of a later step than `finite_step` holds the weights that broke."""
    newest, good = checkpoint.latest(run.folder), checkpoint.latest(run.folder, run.finite_step)
    if newest is None:
        return "there is no checkpoint before it"
    if good is None:
        return f"the only checkpoint, {newest.path}, holds the broken weights: start anew"
    broken = "" if newest.path == good.path else f" (remove {newest.path}, which holds the broken weights)"
    return f"the last good checkpoint is {good.path}{broken}"

"""The loop: bit-exact resume after every kind of stop, non-finite numbers named, refusals, hooks that decide."""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unhack.train as training
from processes import running
from training_runs import (
    PATIENCE_S,
    SHORT,
    SMALL,
    assert_same,
    command,
    final_tensors,
    partial_checkpoints,
    steps_done,
    wait_for,
)
from unhack import checkpoint, cli, model, record
from unhack.adapters import Policy
from unhack.config import ArmConfig, TrainConfig
from unhack.directions import DirectionRecipe, organism_direction, save_direction
from unhack.interventions import ARMS, Blocks, Vanilla
from unhack.loss import NonFiniteError
from unhack.record import RunRecord
from unhack.train import RunStoppedError, train
from unhack.types import Gradient, KnobLayout, PaidGrade, Prompt, Rollout, Update


@pytest.fixture(scope="module")
def direction(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("direction") / "v.safetensors"
    policy = Policy.wrap(model.load(SMALL.model), SMALL.adapter)
    save_direction(organism_direction(policy, DirectionRecipe(k=2, pairs=4, heldout=2)), path)
    return str(path)


@pytest.fixture(scope="module")
def config(direction: str) -> TrainConfig:
    """An arm with a state of its own (the update profile) and with both blocks trained."""
    return replace(SMALL, arm=ArmConfig(name="route", direction=direction, site="gradient", sided="one"))


@pytest.fixture(scope="module")
def undisturbed(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(config, folder)
    tensors = final_tensors(folder)  # a comparison of runs that learnt nothing would prove nothing
    state = ("policy/main", "policy/quarantine", "optimizer/main.exp_avg", "arm/profile_sum")
    assert all(tensors[name].any() for name in state), sorted(tensors)
    assert sum(line["advantage/kept_rollouts"] > 0 for line in record.metrics(folder)) >= 2
    return folder


def kill(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL


def test_a_run_killed_after_three_steps_and_resumed_gives_the_same_numbers(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with running(command(config, folder)) as child:
        wait_for(lambda: (folder / "checkpoints" / "step-000003").exists() or child.poll() is not None)
        kill(child)
    assert not (folder / "adapter").exists()
    assert train(config, folder, resume=True)
    assert record.read_json(folder / "resumes.json")[0]["step"] == 3
    assert_same(folder, undisturbed)


def test_sigterm_saves_the_step_under_way_exits_with_143_and_resume_gives_the_same_numbers(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def ask_to_stop() -> None:
        wait_for(lambda: steps_done(folder) >= 1)
        os.kill(os.getpid(), signal.SIGTERM)

    words, before = command(config, folder)[3:], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=ask_to_stop)
    thread.start()
    assert cli.main(words) == 143
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    done, saved = steps_done(folder), checkpoint.latest(folder)
    assert saved is not None and saved.step == done and 1 <= done < config.steps
    assert train(config, folder, resume=True)
    assert_same(folder, undisturbed)


def test_what_a_kill_can_leave_behind_is_dropped_at_resume(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    shutil.move(folder / "checkpoints" / "step-000006-final", folder / "checkpoints" / ".step-000006-final.1-a.partial")
    (folder / "checkpoints" / ".step-000006-final.1-a.partial" / "state.json").write_text('{"step": 6')
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "rollouts/ha')
    shutil.copy(folder / "rollouts" / "step-000004.parquet", folder / "rollouts" / "step-000006.parquet")
    assert train(config, folder, resume=True)
    assert not partial_checkpoints(folder)
    assert_same(folder, undisturbed)


@pytest.mark.slow
def test_kills_while_checkpoints_are_written_and_at_random_moments_lose_nothing(
    config: TrainConfig, tmp_path: Path
) -> None:
    often = replace(config, checkpoint_every_steps=1)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    assert train(often, undisturbed)
    draw, caught = random.Random(0), 0
    for attempt in range(8):
        with running(command(often, folder)) as child:
            old = set(partial_checkpoints(folder))  # the attempt before may have left one
            wait_for(lambda: child.poll() is not None or set(partial_checkpoints(folder)) - old, pause_s=0.0)  # noqa: B023
            if attempt % 3 == 2:
                time.sleep(draw.random())
            child.send_signal(signal.SIGKILL)
            finished = child.wait(60) == 0
        caught += bool(partial_checkpoints(folder))
        if finished or caught >= 2:
            break
    assert caught >= 1, "no kill landed while a checkpoint was being written"
    assert train(often, folder, resume=(folder / "config.json").exists())
    assert_same(folder, undisturbed)


@pytest.mark.slow
def test_a_run_stopped_by_every_signal_in_turn_gives_the_same_numbers(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with running(command(config, folder)) as child:
        wait_for(lambda: child.poll() is not None or steps_done(folder) >= 1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 143
    saved = checkpoint.latest(folder)
    assert saved is not None and saved.step == steps_done(folder)
    with running(command(config, folder)) as child:
        wait_for(lambda: child.poll() is not None or (folder / "checkpoints" / "step-000003").exists())
        kill(child)
    with running(command(config, folder)) as child:
        assert child.wait(PATIENCE_S) == 0
    assert_same(folder, undisturbed)


def test_a_nan_in_the_gradient_stops_the_run_and_names_step_rollouts_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = training.backward, []

    def spoil(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("nan"))

    def spoilt_from_the_second_step(policy: Policy, *rest: Any) -> Gradient:
        calls.append(rest)
        hooked = policy.model.get_submodule("model.norm")
        handle = hooked.register_forward_hook(spoil) if len(calls) == 2 else None
        try:
            return real(policy, *rest)
        finally:
            if handle is not None:
                handle.remove()

    monkeypatch.setattr(training, "backward", spoilt_from_the_second_step)
    monkeypatch.setitem(ARMS, "vanilla", EveryRolloutCounts)
    with pytest.raises(RunStoppedError) as stopped:
        train(SHORT, tmp_path / "run")
    message = str(stopped.value)
    assert message.startswith("step 1: the gradient is not finite for rollouts step-000001-000-000, ")
    assert message.count("step-000001-") == 8 and "NaN" not in message
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-000001'}" in message
    assert steps_done(tmp_path / "run") == 1
    saved = checkpoint.latest(tmp_path / "run")
    assert saved is not None and all(tensor.isfinite().all() for tensor in saved.tensors.values())


def test_a_policy_that_overflows_stops_the_run_although_its_rollouts_earn_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = replace(SHORT, optimizer=replace(SHORT.optimizer, lr=1e30), checkpoint_every_steps=5)
    monkeypatch.setitem(ARMS, "vanilla", EveryRolloutCounts)
    with pytest.raises(RunStoppedError, match=r"^step 1: the sampler's log-probability .*there is no checkpoint") as e:
        train(wild, tmp_path / "run")
    assert len(re.findall(r"step-000001-\d{3}-\d{3}", str(e.value))) == 8
    with pytest.raises(RunStoppedError, match="step 1: the sampler's log-probability is not finite for rollouts eval"):
        train(replace(wild, steps=1), tmp_path / "one step: the last evaluation notices")


def test_an_update_that_is_not_finite_is_never_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(EveryRolloutCounts):
        def update(self, update: Update) -> Update:
            return replace(update, main=update.main / 0)

    monkeypatch.setitem(ARMS, "vanilla", Breaks)
    with pytest.raises(RunStoppedError, match=r"step 0: the update is not finite .* there is no checkpoint") as stopped:
        train(SHORT, tmp_path / "run")
    assert isinstance(stopped.value.__cause__, NonFiniteError) and len(stopped.value.__cause__.rollout_ids) == 8
    assert steps_done(tmp_path / "run") == 0


def test_refused_a_folder_in_use_a_run_already_there_and_a_resume_of_nothing(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    with RunRecord(tmp_path / "busy"), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        train(config, tmp_path / "busy")
    with pytest.raises(ValueError, match="already holds a run: add --resume"):
        train(config, undisturbed)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(config, tmp_path / "empty", resume=True)
    with pytest.raises(ValueError, match="unknown arm"):
        train(replace(config, arm=ArmConfig(name="vanila")), tmp_path / "never made")
    assert not (tmp_path / "never made").exists()


def test_refused_a_resume_with_other_settings_and_the_run_stays_as_it_was(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    with pytest.raises(ValueError, match=r"started with other settings .*optimizer.lr"):
        train(replace(config, optimizer=replace(config.optimizer, lr=0.5)), folder, resume=True)
    with pytest.raises(ValueError, match="arm is route, this run's is absorb"):
        train(replace(config, arm=ArmConfig(name="absorb")), folder, resume=True)
    with pytest.raises(ValueError, match="basis_hash is"):
        train(replace(config, adapter=replace(config.adapter, rank=4), arm=ArmConfig()), folder, resume=True)
    assert_same(folder, undisturbed)


def test_erasing_with_overshoot_zero_is_vanilla_bit_for_bit(tmp_path: Path, direction: str) -> None:
    short = replace(SHORT, steps=3)
    arms = {"vanilla": ArmConfig(), "erase": ArmConfig(name="erase", direction=direction, overshoot=0.0)}
    for name, arm in arms.items():
        assert train(replace(short, arm=arm), tmp_path / name)
    vanilla, erase = (final_tensors(tmp_path / name) for name in arms)
    assert vanilla["policy/main"].any()
    assert all(torch.equal(value, erase[name]) for name, value in vanilla.items())
    assert "arm/profile_sum" in erase and "arm/profile_sum" not in vanilla


class EveryRolloutCounts(Vanilla):
    """Rewards by place in the group: every group has a spread, so every step has a gradient."""

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Tensor:
        return torch.arange(len(rollouts), dtype=torch.float32)


class Decides(EveryRolloutCounts):
    """Changes what passes through every hook, and writes down the order in which they are called."""

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int) -> None:
        super().__init__(config, layout, seed)
        self.called: list[str] = []

    def prompt(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        self.called.append("prompt")
        return prompts[:1]

    def blocks(self, rollouts: Sequence[Rollout]) -> Blocks:
        self.called.append("blocks")
        main = torch.arange(len(rollouts)) > 0
        return Blocks(main, ~main)

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Tensor:
        self.called.append("rewards")
        return super().rewards(grades, rollouts)

    def advantages(self, advantages: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        self.called.append("advantages")
        return advantages * 10

    def gradient(self, gradient: Gradient) -> Gradient:
        self.called.append("gradient")
        return replace(gradient, main=torch.full_like(gradient.main, 0.01))

    def update(self, update: Update) -> Update:
        self.called.append("update")
        assert torch.allclose(update.main, update.main[0]) and bool(update.main[0] != 0)
        return replace(update, main=torch.full_like(update.main, 0.25), quarantine=torch.ones_like(update.quarantine))

    def deployed(self, main: Tensor, quarantine: Tensor) -> tuple[Tensor, Tensor]:
        self.called.append("deployed")
        return super().deployed(main, quarantine)


def test_every_hook_is_called_in_data_flow_order_and_decides_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[training.Run] = []
    real = training._finish
    monkeypatch.setattr(training, "_finish", lambda run: (runs.append(run), real(run))[1])
    monkeypatch.setitem(ARMS, "vanilla", Decides)
    assert train(SHORT, tmp_path / "run")
    [run] = runs
    assert isinstance(run.arm, Decides)
    step = ["prompt", "rewards", "advantages", "blocks", "gradient", "update"]
    assert run.arm.called == ["deployed", *step, *step, "deployed"]
    rows = record.rollouts(tmp_path / "run").to_pylist()
    assert [row["advantage"] for row in rows] == [None, -5.0, 5.0, 15.0] * 2  # one prompt of 4, the first screened out
    tensors = final_tensors(tmp_path / "run")
    assert bool((tensors["policy/main"] == 0.5).all() and (tensors["policy/quarantine"] == 2).all())
    assert (tmp_path / "run" / "eval" / "rollouts" / "step-000002-deployed.parquet").stat().st_size > 0


def test_the_loop_never_asks_which_arm_it_runs() -> None:
    tree = ast.parse(Path(training.__file__).read_text())
    asked = [node.test for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp | ast.While)]
    asked += [node.subject for node in ast.walk(tree) if isinstance(node, ast.Match)]
    assert not [ast.unparse(test) for test in asked if re.search(r"\barm\b", ast.unparse(test))]


@pytest.mark.slow  # test_loss.py has the quick one
def test_the_size_of_micro_batches_does_not_change_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "vanilla", EveryRolloutCounts)
    plain = replace(SHORT, steps=1, optimizer=replace(SHORT.optimizer, kind="sgd", lr=1.0, warmup_steps=0))
    knobs = []
    for rollouts in (64, 3):
        folder = tmp_path / str(rollouts)
        assert train(replace(plain, loss=replace(plain.loss, micro_batch_rollouts=rollouts)), folder)
        knobs.append(final_tensors(folder)["policy/main"])
    assert record.metrics(tmp_path / "3")[0]["loss/rollouts"] == 8
    torch.testing.assert_close(knobs[1], knobs[0], rtol=1e-4, atol=1e-6 * float(knobs[0].abs().max()) + 1e-9)

"""The loop: bit-exact resume after every kind of stop, refusals, metrics that the docs explain."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

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
from unhack.files import write_json
from unhack.record import RunRecord
from unhack.stop import asked_to_stop
from unhack.train import train


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


@pytest.mark.slow
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


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_the_step_under_way_is_the_exit_status_and_resume_gives_the_same_numbers(
    number: signal.Signals,
    config: TrainConfig,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"

    def ask_to_stop() -> None:
        wait_for(lambda: steps_done(folder) >= 1)
        os.kill(os.getpid(), number)

    words, before = command(config, folder)[3:], signal.getsignal(number)
    thread = threading.Thread(target=ask_to_stop)
    thread.start()
    assert cli.main(words) == 128 + number
    thread.join()
    assert signal.getsignal(number) is before
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"route, seed 0, 6 steps, in {folder}"
    assert lines[-1] == f"stopped and saved; go on with: unhack train --folder {folder} --resume"
    done, saved = steps_done(folder), checkpoint.latest(folder)
    assert saved is not None and saved.step == done and 1 <= done < config.steps
    assert train(config, folder, resume=True)
    assert_same(folder, undisturbed)


@pytest.mark.slow
def test_a_signal_during_the_last_evaluation_ends_the_run_at_once_and_resume_makes_it(
    config: TrainConfig,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    shutil.rmtree(folder / "adapter")
    real, patience_s = training.evaluate, 60.0

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience_s)

    monkeypatch.setattr(training, "evaluate", interrupted)
    started_s = time.monotonic()
    assert cli.main(["train", "--folder", str(folder), "--resume"]) == 143
    assert time.monotonic() - started_s < patience_s and not (folder / "adapter").exists()
    monkeypatch.setattr(training, "evaluate", real)
    capsys.readouterr()
    assert cli.main(["train", "--folder", str(folder), "--resume"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"route, seed 0, 6 steps (6 done), in {folder}"
    assert re.match(rf"done: hack \d+%, solve \d+% of 2 held-out samples as deployed; everything is in {folder}", last)
    assert_same(folder, undisturbed)


def test_a_second_interrupt_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), asked_to_stop([]) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signals == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)


def test_every_metric_of_a_run_is_explained_in_the_docs(undisturbed: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    explained = re.compile("|".join(name.replace("MODE", r"\w+").replace("STAGE", r"\w+") for name in names))
    written = {name for line in record.metrics(undisturbed) for name in line} - {"step"}
    assert len(written) > 30 and not [name for name in sorted(written) if not explained.fullmatch(name)]


@pytest.mark.slow
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


def test_refused_a_folder_in_use_a_run_already_there_and_a_resume_of_nothing(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    with RunRecord(tmp_path / "busy"), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        train(config, tmp_path / "busy")
    with pytest.raises(ValueError, match="already holds a run: add --resume"):
        train(config, undisturbed)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(config, tmp_path / "empty", resume=True)
    assert not (tmp_path / "empty").exists()
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


@pytest.mark.parametrize("field", ["model_hash", "direction_hash"])
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_refused_a_resume_when_the_model_or_the_direction_under_the_path_has_changed(
    field: str, has_checkpoint: bool, config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    saved, env = checkpoint.latest(folder), record.read_json(folder / "env.json")
    assert saved is not None and env[field] == saved.state[field] and len(env[field]) == 64
    if has_checkpoint:
        checkpoint.save(folder, saved.step, saved.tensors, saved.state | {field: "another"}, final=True)
    else:
        shutil.rmtree(folder / "checkpoints")
        write_json(folder / "env.json", env | {field: "another"})
    with pytest.raises(ValueError, match=f"{field} is another, this run's is {env[field]}"):
        train(config, folder, resume=True)


@pytest.mark.slow
def test_erasing_with_overshoot_zero_is_vanilla_bit_for_bit(tmp_path: Path, direction: str) -> None:
    short = replace(SHORT, steps=3)
    arms = {"vanilla": ArmConfig(), "erase": ArmConfig(name="erase", direction=direction, overshoot=0.0)}
    for name, arm in arms.items():
        assert train(replace(short, arm=arm), tmp_path / name)
    vanilla, erase = (final_tensors(tmp_path / name) for name in arms)
    assert vanilla["policy/main"].any()
    assert all(torch.equal(value, erase[name]) for name, value in vanilla.items())
    assert "arm/profile_sum" in erase and "arm/profile_sum" not in vanilla

"""checkpoint.py: what `latest` returns is always one whole checkpoint, whatever was killed when."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from processes import running
from unhack import checkpoint
from unhack.checkpoint import Checkpoint

WRITER = Path(__file__).with_name("checkpoint_writer.py")


def example(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "main": torch.randn(7, generator=generator),
        "half": torch.randn(2, 3, generator=generator).to(torch.bfloat16),
        "count": torch.tensor(step),
        "mask": torch.tensor([True, False]),
        "transposed": torch.randn(3, 4, generator=generator).T,
    }


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoints"))


def found(folder: Path) -> Checkpoint:
    latest = checkpoint.latest(folder)
    assert latest is not None
    return latest


def test_saved_state_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    tensors, state = example(10), {"third": 1 / 3, "tiny": 5e-324, "nested": {"list": [1, None, "x"]}}
    path = checkpoint.save(tmp_path, 10, tensors, state)
    loaded = found(tmp_path)
    assert (loaded.step, loaded.state, loaded.path) == (10, state, path)
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_tensors_that_share_memory_are_saved_as_seen(tmp_path: Path) -> None:
    flat = torch.arange(6.0)
    checkpoint.save(tmp_path, 1, {"all": flat, "tail": flat[3:]}, {})
    assert torch.equal(found(tmp_path).tensors["tail"], torch.tensor([3.0, 4.0, 5.0]))


def test_last_two_and_final_ones_are_kept(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, step, example(step), {})
    checkpoint.save(tmp_path, 25, example(25), {}, final=True)
    for step in (30, 40, 50):
        checkpoint.save(tmp_path, step, example(step), {})
    assert names(tmp_path) == ["step-000025-final", "step-000040", "step-000050"]
    assert found(tmp_path).step == 50


def test_final_checkpoint_is_the_latest_of_its_step(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 10, example(10), {"kind": "plain"})
    checkpoint.save(tmp_path, 10, example(10), {"kind": "final"}, final=True)
    assert found(tmp_path).state == {"kind": "final"}


def test_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 10, example(1), {"turn": 1})
    checkpoint.save(tmp_path, 10, example(2), {"turn": 2})
    assert names(tmp_path) == ["step-000010"]
    assert found(tmp_path).state == {"turn": 2}
    assert torch.equal(found(tmp_path).tensors["main"], example(2)["main"])


def test_refused_state_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, example(1), {})
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path, 2, example(2), {"loss": math.nan})
    assert names(tmp_path) == ["step-000001"]


def test_the_latest_of_at_most_a_step_is_none_of_a_later_one(tmp_path: Path) -> None:
    for step in (2, 4):
        checkpoint.save(tmp_path, step, {"a": torch.ones(2)}, {})
    steps = [
        None if found is None else found.step for found in (checkpoint.latest(tmp_path, most) for most in (1, 2, 3, 4))
    ]
    assert steps == [None, 2, 2, 4]


@pytest.mark.parametrize("text", ["{}", "[]", '{"step": 4}'])
def test_a_state_that_is_json_but_no_state_is_damage(tmp_path: Path, text: str) -> None:
    for step in (2, 4):
        path = checkpoint.save(tmp_path, step, {"a": torch.ones(2)}, {})
    (path / "state.json").write_text(text)
    with pytest.warns(UserWarning, match="is no checkpoint's state"):
        found = checkpoint.latest(tmp_path)
    assert found is not None and found.step == 2


def test_folder_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no tensors", "no state", "torn state"])
def test_damaged_checkpoint_is_refused_by_load_and_passed_over_by_latest(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 10, example(10), {})
    path = checkpoint.save(tmp_path, 20, example(20), {})
    tensor_path, state_path = path / "tensors.safetensors", path / "state.json"
    content = tensor_path.read_bytes()
    if damage == "truncated":
        tensor_path.write_bytes(content[:-5])
    elif damage == "flipped":
        tensor_path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "torn state":
        state_path.write_text(state_path.read_text()[:-5])
    else:
        (tensor_path if damage == "no tensors" else state_path).unlink()
    with pytest.raises(ValueError, match=r"step-000020.*; remove .* to go back"):
        checkpoint.load(path)
    with pytest.warns(UserWarning, match="damaged checkpoint: .*step-000020"):
        assert found(tmp_path).step == 10


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 10, example(10), {})
    (path / "tensors.safetensors").unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match=r"no checkpoint .* is intact"):
        checkpoint.latest(tmp_path)


def test_kill_before_any_change_to_the_disk_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """For every n: a process replaces the checkpoint of step 10 and is killed just before its n-th change."""
    command = [sys.executable, str(WRITER), "die_before_change", str(tmp_path)]
    codes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert codes[-1] == 0 and set(codes[:-1]) == {-signal.SIGKILL} and len(codes) > 8
    for deaths, code in enumerate(codes, start=1):
        folder = tmp_path / str(deaths)
        turn = found(folder).state["turn"]
        assert torch.equal(found(folder).tensors["main"], torch.full((9,), float(turn)))
        assert turn == 2 or code != 0
        checkpoint.save(folder, 10, example(3), {"turn": 3})
        assert found(folder).state == {"turn": 3} and names(folder) == ["step-000010"]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 0], ids=["new_step_each_time", "same_step_replaced"])
def test_latest_always_loads_while_writers_are_killed_again_and_again(tmp_path: Path, stride: int) -> None:
    delays, last_turn = random.Random(0), 0
    command = [sys.executable, str(WRITER), "save_forever", str(tmp_path), str(stride)]
    with running(command) as server:
        assert server.stdin is not None and server.stdout is not None
        for _ in range(10):
            server.stdin.write("next\n")
            writer = int(server.stdout.readline())
            assert server.stdout.readline() == "saved\n"
            time.sleep(delays.uniform(0, 0.05))
            os.kill(writer, signal.SIGKILL)
            assert int(server.stdout.readline()) == -signal.SIGKILL
            latest = found(tmp_path)
            turn = latest.state["turn"]
            assert turn > last_turn and latest.step == turn * stride and latest.state["third"] == turn / 3
            assert torch.equal(latest.tensors["main"], torch.full((50_000,), float(turn)))
            assert torch.equal(latest.tensors["momentum"], torch.full((50_000,), -float(turn)))
            last_turn = turn

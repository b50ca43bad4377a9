"""Processes that save checkpoints and get killed; run by test_checkpoint.py. Imports once, then forks each victim."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from unhack import checkpoint


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child process that ends with exit code 0 if it returns; gives the child's process id."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_forever(folder: Path, stride: int) -> None:
    found = checkpoint.latest(folder)
    first = 0 if found is None else found.state["turn"]
    for turn in itertools.count(first + 1):
        tensors = {"main": torch.full((50_000,), float(turn)), "momentum": torch.full((50_000,), -float(turn))}
        checkpoint.save(folder, turn * stride, tensors, {"turn": turn, "third": turn / 3})
        if turn == first + 1:
            print("saved", flush=True)


def serve(folder: Path, stride: int) -> None:
    """For every line read: start a writer; print its process id, `saved` after its first save, and its exit code."""
    for _ in sys.stdin:
        child = fork(partial(save_forever, folder, stride))
        print(child, flush=True)
        print(exit_code(child), flush=True)


def die_before_change(count: int) -> None:
    """From now on this process kills itself just before its `count`-th change to the file system."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link")
        opens_to_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & os.O_ACCMODE)
        seen += changes or opens_to_write
        if seen == count:
            seen += 1  # the kill itself is an audited event, too
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def replace_and_die(folder: Path, deaths: int) -> None:
    die_before_change(deaths)
    checkpoint.save(folder, 10, {"main": torch.full((9,), 2.0)}, {"turn": 2})


def die_everywhere(folder: Path) -> None:
    """One folder and one victim per possible moment; prints the exit codes, the last of which is 0."""
    codes = [1]
    while codes[-1] != 0:
        own = folder / str(len(codes))
        checkpoint.save(own, 10, {"main": torch.full((9,), 1.0)}, {"turn": 1})
        codes.append(exit_code(fork(partial(replace_and_die, own, len(codes)))))
        assert len(codes) < 100, "the save never finished"
    print(json.dumps(codes[1:]))


if __name__ == "__main__":
    if sys.argv[1] == "save_forever":
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        die_everywhere(Path(sys.argv[2]))

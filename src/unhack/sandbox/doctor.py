"""What isolates a submission on this machine, layer by layer, and what is exposed where a layer is missing."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from unhack.sandbox import landlock, seccomp
from unhack.sandbox.pool import Sandbox


@dataclass(frozen=True)
class Layer:
    """One isolation layer. `available`: the machine has it; `active`: a worker started here has it, and it stopped
    the attacks that it must stop; `exposed`: what a submission can do without it; `reason`: why it is not active."""

    name: str
    available: bool
    active: bool
    exposed: str
    reason: str


_EXPOSED = {
    "separate_process": "a submission could read the answers and print its own verdict",
    "resource_limits": "a submission could take all CPU, memory, disk or process slots",
    "descriptors": "a submission could write to the worker's pipes and answer in its place",
    "uid_drop": "a submission runs as the trainer's user: without namespaces it can signal that user's processes, and "
    "without namespaces and Landlock read and write that user's files",
    "no_new_privs": "a submission could gain privileges through setuid programs",
    "capabilities": "a submission could do what root may",
    "not_dumpable": "a submission could read the memory of the worker, and where it runs as the trainer's user that of "
    "the trainer, where the answers are",
    "subreaper": "a process that leaves its session outlives its grade",
    "parent_death_signal": "a child outlives a worker that is killed, until its own CPU limit",
    "namespaces": "a submission sees that other processes and files exist, may fill the disk while it runs, and sees "
    "what the network offers unless the system-call filter holds",
    "landlock": "a submission reads and writes whatever its user may, unless it has a private root or the system-call "
    "filter refuses to open files (then nothing is seen of a result file either)",
    "seccomp": "a submission can use every system call, among them fork, exec and sockets",
}


def _available(name: str) -> bool:
    """Whether the machine offers a layer that is not active here."""
    if sys.platform != "linux":
        return False
    user_namespaces = Path("/proc/sys/user/max_user_namespaces")
    checks = {
        "namespaces": lambda: user_namespaces.exists() and int(user_namespaces.read_text()) > 0,
        "landlock": lambda: landlock.version() > 0,
        "seccomp": seccomp.available,
        "uid_drop": lambda: os.getuid() == 0,
    }
    return checks[name]() if name in checks else False


def doctor() -> tuple[int, list[Layer]]:
    """(isolation level, layers) of a worker really started here. Raises RuntimeError when no worker starts."""
    with Sandbox(workers=1, require="unsafe") as sandbox:
        active, failed, level = sandbox.layers(), sandbox.failed, sandbox.level
    return level, [
        Layer(name, holds or _available(name), holds, _EXPOSED[name], "" if holds else failed.get(name, _why(name)))
        for name, holds in active.items()
    ]


def _why(name: str) -> str:
    if name == "uid_drop" and os.getuid() != 0:
        return "only root can give children another user; an ordinary user has namespaces and Landlock for that"
    return "this system has none"

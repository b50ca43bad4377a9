"""What isolates a submission on this machine, layer by layer, and what is exposed where a layer is missing."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from unhack.sandbox.pool import LEVEL, Sandbox


@dataclass(frozen=True)
class Layer:
    """One isolation layer. `available`: the machine has it; `active`: the sandbox uses it; `exposed`: what a
    submission can do without it."""

    name: str
    available: bool
    active: bool
    exposed: str


_EXPOSED = {
    "separate_process": "a submission could read the answers and print its own verdict",
    "resource_limits": "a submission could take all CPU, memory, disk or process slots",
    "uid_drop": "a submission runs as the trainer's user: it can read that user's files, signal its processes, and may "
    "read the trainer's memory, where the answers are",
    "no_new_privs": "a submission could gain privileges through setuid programs",
    "subreaper": "a process that leaves its session outlives its grade",
    "parent_death_signal": "a child outlives a worker that is killed, until its own CPU limit",
    "namespaces": "a submission sees the network, other processes and all world-readable files",
    "landlock": "a submission reads and writes whatever its user may (its own folder is only its working directory)",
    "seccomp": "a submission can use every system call, among them fork, exec and sockets",
}


def _landlock_available() -> bool:
    """Whether the kernel answers landlock_create_ruleset (system call 444 on every Linux architecture)."""
    version_flag = 1
    return ctypes.CDLL(None, use_errno=True).syscall(444, None, ctypes.c_size_t(0), version_flag) > 0


def _namespaces_available() -> bool:
    limit = Path("/proc/sys/user/max_user_namespaces")
    return os.getuid() == 0 or (limit.exists() and int(limit.read_text()) > 0)


def _seccomp_available() -> bool:
    return "Seccomp_filters" in Path("/proc/self/status").read_text()


def _available(name: str, active: bool) -> bool:
    if active:
        return True
    if sys.platform != "linux":
        return False
    checks = {
        "namespaces": _namespaces_available,
        "landlock": _landlock_available,
        "seccomp": _seccomp_available,
        "uid_drop": lambda: os.getuid() == 0,
    }
    return checks[name]() if name in checks else False


def doctor() -> tuple[int, list[Layer]]:
    """(isolation level, layers) of a worker really started here. Raises RuntimeError when no worker starts."""
    with Sandbox(workers=1) as sandbox:
        active = sandbox.layers()
    return LEVEL, [Layer(name, _available(name, active[name]), active[name], _EXPOSED[name]) for name in _EXPOSED]

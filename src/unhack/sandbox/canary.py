"""Attacks that are tried at the start of every sandbox: a layer that lets one through does not count as active.

They run as any submission does. The trainer's side lays out the bait (files, two listening sockets) and removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from unhack.sandbox.wire import Execution, Job

SECRET = "canary"


@dataclass(frozen=True)
class Canary:
    """One attack: a function body that returns True exactly when it got through. `layers`: those of which each one
    alone has to stop it."""

    name: str
    layers: tuple[str, ...]
    body: str


CANARIES = (
    Canary("read_file", ("namespaces", "landlock"), "return open(bait['secret']).read() == bait['text']"),
    Canary("write_file", ("namespaces", "landlock"), "open(bait['folder'] + '/made', 'x').close()\nreturn True"),
    Canary(
        "leave_file",
        ("landlock", "uid_drop"),
        "open('../left', 'x').close()\nos.remove('../left')\nreturn True",
    ),
    Canary("see_file", ("namespaces",), "return os.stat(bait['secret']).st_size > 0"),
    Canary(
        "see_process",
        ("namespaces",),
        "try:\n    os.kill(bait['pid'], 0)\nexcept ProcessLookupError:\n    return False\n"
        "except PermissionError:\n    return True\nreturn True",
    ),
    Canary(
        "connect",
        ("namespaces", "seccomp"),
        "import _socket\n_socket.socket().connect(('127.0.0.1', bait['port']))\nreturn True",
    ),
    Canary(
        "connect_abstract",
        ("namespaces", "seccomp"),
        "import _socket\n_socket.socket(_socket.AF_UNIX).connect('\\0' + bait['abstract'])\nreturn True",
    ),
    Canary(
        "fork",
        ("seccomp",),
        "pid = os.fork()\nif pid == 0:\n    os._exit(0)\nos.waitpid(pid, 0)\nreturn True",
    ),
    Canary(
        "execute",
        ("seccomp",),
        # A path that is no program: EACCES, ENOENT and ENOEXEC say that the kernel considered it.
        "try:\n    os.execv('/', ['x'])\nexcept OSError as error:\n    return error.errno != 1",
    ),
    Canary(
        "code_page",
        ("seccomp",),
        "import mmap\nmmap.mmap(-1, 4096, prot=7)\nreturn True",
    ),
    Canary(
        "read_worker",
        ("seccomp", "not_dumpable"),
        "import ctypes\nlibc = ctypes.CDLL(None)\nattach, detach = 16, 17\n"
        "if libc.ptrace(attach, os.getppid(), 0, 0) != 0:\n    return False\n"
        "libc.ptrace(detach, os.getppid(), 0, 0)\nreturn True",
    ),
    Canary("memory", ("resource_limits",), "bytearray(2 * bait['memory'])\nreturn True"),
    Canary(
        "raise_limit",
        ("resource_limits",),
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16, 1 << 16))\nreturn True",
    ),
    Canary(
        "inherited_descriptor",
        ("descriptors",),
        "def is_open(number):\n    try:\n        os.fstat(number)\n    except OSError:\n        return False\n"
        "    return True\nreturn any(is_open(number) for number in range(3, 256))",
    ),
    Canary(
        "capability",
        ("capabilities",),
        "import ctypes\nlibc = ctypes.CDLL(None)\nsets = (ctypes.c_uint32 * 6)()\n"
        "if libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets) != 0:\n    return True\nreturn any(sets)",
    ),
    Canary("new_privileges", ("no_new_privs",), "import ctypes\nreturn ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) != 1"),
    Canary("same_user", ("uid_drop",), "return os.getuid() == bait['uid']"),
    # The last one: where it succeeds, the process has capabilities and another user.
    Canary(
        "new_namespace",
        ("seccomp",),
        "import ctypes\nreturn ctypes.CDLL(None).unshare(0x10000000) == 0",
    ),
)


@contextlib.contextmanager
def baits(worker_folder: str, memory_bytes: int) -> Iterator[dict[str, object]]:
    """Files that anybody may read and write, and sockets that anybody may connect to, for the time of the canaries.

    They lie in the worker's folder, which is removed even when this process is killed meanwhile.
    """
    folder = tempfile.mkdtemp(prefix="canary-", dir=worker_folder)
    try:
        os.chmod(folder, 0o777)
        secret = os.path.join(folder, "secret")
        with open(secret, "w", encoding="utf-8") as file:
            file.write(SECRET)
        os.chmod(secret, 0o644)
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            abstract = f"{os.path.basename(worker_folder)}-{os.path.basename(folder)}"
            if sys.platform == "linux":
                local.bind(f"\0{abstract}")
                local.listen()
            yield {
                "secret": secret, "text": SECRET, "folder": folder, "pid": os.getpid(), "uid": os.getuid(),
                "port": tcp.getsockname()[1], "abstract": abstract, "memory": memory_bytes,
            }  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the worker may have taken it for a leftover


def job(bait: dict[str, object]) -> Job:
    """All canaries as one submission, one call each."""
    lines = ["import os", f"bait = {bait!r}", "class Solution:"]
    for canary in CANARIES:
        lines.append(f"    def {canary.name}(self):")
        lines += [f"        {line}" for line in canary.body.splitlines()]
    calls = tuple(f"solution.{canary.name}()" for canary in CANARIES)
    return Job("canaries", "\n".join(lines) + "\n", "", calls)


def got_through(execution: Execution) -> list[Canary]:
    """The attacks that succeeded. RuntimeError when they could not all be tried: nothing is proved then."""
    untried = [
        canary.name
        for canary, result in zip(CANARIES, execution.results, strict=False)
        if result.error in ("Timeout", "TimeoutWall", "NotReached")
    ]
    if len(execution.results) != len(CANARIES) or untried:
        raise RuntimeError(
            f"the sandbox could not try its own attacks ({execution.reason}; {', '.join(untried) or 'none ran'}); "
            "give it more cpu_s or memory_bytes, or run `unhack doctor`"
        )
    return [canary for canary, result in zip(CANARIES, execution.results, strict=True) if result.value is True]

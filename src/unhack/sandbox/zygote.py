"""The worker process: waits for jobs, forks one fresh child per submission, and reports what the child left behind.

Started by `pool.py` as a script in a bare interpreter (no site, no environment, fixed hash seed); imports nothing of
unhack, so that neither torch nor any expected value is ever in this process. Frames on the request pipe: 4-byte length
and a JSON job; on the reply pipe: two 4-byte lengths, a JSON header and the child's raw record, which only the trusted
side parses. The child writes its record into shared anonymous memory: no reader to wake per result, a hard size cap,
and whatever was written before a kill is still there.

What is not here: namespaces, seccomp, Landlock (see `doctor.py` for what that exposes).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import mmap
import os
import shutil
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

_register_at_fork = os.register_at_fork


def _ignore_fork_hook(**hooks: Any) -> None:
    """Stands in for os.register_at_fork while modules are loaded: this process has one thread and its children seed
    `random` themselves, so the standard library's hooks would only touch a hundred pages in every child."""


os.register_at_fork = _ignore_fork_hook

# The neighbours `child.py` and `waiting.py` are loaded by folder: importing the package would load torch.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
child = importlib.import_module("child")
waiting = importlib.import_module("waiting")
sys.path.pop(0)

REQUEST_FD, REPLY_FD = 3, 4
RECORD_BYTES = 4 * 2**20
OUTPUT_BYTES = 64 * 2**10  # how much of stdout or of the result file a reading sees
RESULT_FILE = "result.txt"
FOLDER_PREFIX = "unhack-worker-"  # as in pool.py
REAP_S = 2.0
LINUX = sys.platform == "linux"
# Imported before the uid is dropped: an interpreter under a 0700 home is unreadable afterwards.
PRELOAD = (
    "abc", "array", "bisect", "builtins", "calendar", "cmath", "collections", "collections.abc", "contextlib",
    "copy", "copyreg", "dataclasses", "datetime", "decimal", "enum", "errno", "fractions", "functools", "heapq",
    "io", "itertools", "json", "math", "numbers", "operator", "os", "queue", "random", "re", "reprlib",
    "statistics", "string", "struct", "sys", "textwrap", "threading", "time", "traceback", "types", "typing",
    "unicodedata", "warnings", "weakref",
)  # fmt: skip
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38


def _prctl() -> Callable[..., int]:
    if not LINUX:
        return lambda *arguments: -1
    function = ctypes.CDLL(None).prctl
    function.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return function


class Zygote:
    """State that outlives a job: settings, the uid children run under, and which layers hold."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.wall_s, self.wall_ceiling_s = float(settings["wall_s"]), float(settings["wall_ceiling_s"])
        self.parent_pid = os.getpid()
        self.prctl = _prctl()
        self.subreaper = self.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        self.no_new_privs = self.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        # One id per worker: the process limit counts per uid, and workers cannot signal each other's children.
        self.uid = 61184 + self.parent_pid % 4000 if os.getuid() == 0 else None
        self.limits = child.limits(
            float(settings["cpu_s"]), int(settings["memory_bytes"]), 64 if self.uid else _own_tasks() + 256
        )
        self.cpu_s = float(settings["cpu_s"])
        self.jobs_done = 0

    def layers(self) -> dict[str, bool]:
        """Which layers hold in this worker, by name."""
        return {
            "separate_process": True,
            "resource_limits": True,
            "uid_drop": self.uid is not None,
            "no_new_privs": self.no_new_privs,
            "subreaper": self.subreaper,
            "parent_death_signal": LINUX,
            "namespaces": False,
            "landlock": False,
            "seccomp": False,
        }

    def execute(self, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Run one job in fresh children; returns the header (how it ended) and the child's record."""
        self.jobs_done += 1
        job["calls"] = child.compile_calls(tuple(job["calls"]))
        folder = f"job-{self.jobs_done}"
        os.mkdir(folder, 0o700)
        if self.uid is not None:
            os.chown(folder, self.uid, self.uid)
        probe = job["probe"]
        kind = probe[0] if probe else ""
        output = _output_file() if kind == "stdout" else None
        try:
            with mmap.mmap(-1, RECORD_BYTES) as record:
                header = self._fork_and_wait(folder, output, lambda: child.evaluate(job, record, RECORD_BYTES))
                length = min(struct.unpack_from("<I", record)[0], RECORD_BYTES - 4)
                body = record[4 : 4 + length]
            if kind == "exit":
                script = self._fork_and_wait(folder, None, lambda: child.run_as_script(job))
                header["cpu_s"] += script["cpu_s"]
                header["observation"] = script["exit_status"]
            elif kind == "stdout" and output is not None:
                header["observation"] = os.pread(output, OUTPUT_BYTES, 0).decode("utf-8", "replace")
            elif kind == "file":
                header["observation"] = self._read_result_file(folder)
        finally:
            if output is not None:
                os.close(output)
            _remove(folder)
        return header, body

    def _fork_and_wait(self, folder: str, output: int | None, work: Callable[[], int]) -> dict[str, Any]:
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                self._confine(folder, output)
                status = work()
            finally:
                os._exit(status)
        try:
            over_wall = self._wait(pid)
        finally:
            # Dead or alive, the leader is not reaped yet, so its pid cannot have been given to another group.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        _reap()
        return {
            "exit_status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "over_wall": over_wall,
            "observation": None,
        }

    def _confine(self, folder: str, output: int | None) -> None:
        """In the child, before any untrusted byte is compiled."""
        os.setsid()
        if output is not None:
            os.dup2(output, 1)
        os.closerange(REQUEST_FD, 32)
        os.chdir(folder)
        child.apply(self.limits, self.cpu_s)
        if self.uid is not None:
            os.setgroups([])
            os.setgid(self.uid)
            os.setuid(self.uid)
        # After the uid change, which clears it; the check closes the race with a worker that is already dead.
        self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self.parent_pid:
            os._exit(70)

    def _wait(self, pid: int) -> bool:
        """Block until the child is dead or is to be killed for wall time (True).

        The backstop of `wall_s` is for children that sleep: one that used CPU since the last look, or waits for a
        processor, gets another round, up to `wall_ceiling_s`, so a busy machine does not change verdicts.
        """
        started, round_end, cpu_before = time.monotonic(), time.monotonic() + self.wall_s, 0.0
        while not waiting.exited_before(pid, round_end, REQUEST_FD):
            now, cpu = time.monotonic(), waiting.cpu_so_far_s(pid)
            asleep = cpu is not None and cpu - cpu_before < 0.01 * self.wall_s and not waiting.is_runnable(pid)
            if asleep or now - started > self.wall_ceiling_s:
                return True
            round_end, cpu_before = min(now + self.wall_s, started + self.wall_ceiling_s + 0.01), cpu or 0.0
        return False

    def _read_result_file(self, folder: str) -> str | None:
        """The text of the child's result file; links, pipes and files of other owners do not count."""
        try:
            handle = os.open(f"{folder}/{RESULT_FILE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != (os.getuid() if self.uid is None else self.uid):
                return None
            return os.read(handle, OUTPUT_BYTES).decode("utf-8", "replace")
        finally:
            os.close(handle)


def _own_tasks() -> int:
    """Threads of this user now: the process limit counts them all, so the limit must lie above."""
    if not LINUX:
        return 1024
    total = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                    total += len(os.listdir(f"/proc/{entry}/task"))
    return total


def _output_file() -> int:
    if LINUX:
        return os.memfd_create("stdout")
    handle = os.open("stdout", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.unlink("stdout")
    return handle


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        for parent, names, _ in os.walk(folder):  # a child may have left folders that nobody may enter
            for name in names:
                if not os.path.islink(os.path.join(parent, name)):
                    os.chmod(os.path.join(parent, name), 0o700)
        shutil.rmtree(folder)


def _reap() -> None:
    """Kill and collect every descendant that outlived its leader (they are ours: this process is a subreaper)."""
    deadline = time.monotonic() + REAP_S
    while True:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if done == 0:
            if time.monotonic() > deadline:
                os._exit(71)  # a fresh worker is safer than one with a stranger in the house
            with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as children:
                for pid in children.read().split():
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.0005)


def _read_exactly(length: int) -> bytes:
    parts = []
    while length:
        part = os.read(REQUEST_FD, min(length, 2**20))
        if not part:
            raise waiting.TrainerGone
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _read_frame() -> Any:
    (length,) = struct.unpack("<I", _read_exactly(4))
    return json.loads(_read_exactly(length))


def _write_reply(header: dict[str, Any], body: bytes) -> None:
    head = json.dumps(header).encode()
    data = memoryview(struct.pack("<II", len(head), len(body)) + head + body)
    while data:
        data = data[os.write(REPLY_FD, data) :]


def _move_pipes() -> None:
    """Requests and replies to fds 3 and 4; 0, 1 and 2 become the null device, for this process and its children."""
    os.dup2(0, 10)
    os.dup2(1, 11)
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.dup2(10, REQUEST_FD, inheritable=False)
    os.dup2(11, REPLY_FD, inheritable=False)
    os.closerange(REPLY_FD + 1, 32)


def _leave() -> None:
    """The trainer is gone: end what still runs and remove the worker's folder, which a killed trainer could not."""
    _reap()
    folder = os.getcwd()
    if os.path.basename(folder).startswith(FOLDER_PREFIX):  # never any other folder, however this was started
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Say hello with the layers that hold, then serve jobs until the trainer goes away."""
    _move_pipes()
    for name in PRELOAD:
        importlib.import_module(name)
    os.register_at_fork = _register_at_fork
    os.environ.clear()
    sys.argv = [""]
    zygote = Zygote(_read_frame())
    gc.collect()
    gc.freeze()  # shared pages stay shared: the collector does not touch them in the children
    _write_reply(zygote.layers(), b"")
    while True:
        _write_reply(*zygote.execute(_read_frame()))


if __name__ == "__main__":
    try:
        main()
    except (waiting.TrainerGone, BrokenPipeError):
        _leave()

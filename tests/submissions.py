"""Submissions for tests of the sandbox, and the processes below a worker."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from unhack.sandbox import Execution, Job, Probe, Sandbox


def program(body: str, before: str = "") -> str:
    """A Solution whose solve(x) has `body`."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return f"{before}\nclass Solution:\n    def solve(self, x):\n{lines}"


def run_one(sandbox: Sandbox, source: str, *calls: str, probe: Probe | None = None, setup: str = "") -> Execution:
    return sandbox.run([Job("one", source, setup, calls or ("solution.solve(3)",), probe)])[0]


def worker_pids(sandbox: Sandbox) -> list[int]:
    return [worker.process.pid for worker in sandbox._workers]


def descendants(pid: int) -> list[int]:
    """All live or zombie processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry)] = int(fields[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [below for child in found for below in descendants(child)]


def wait_until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


SLOW = program("import time\nend = time.process_time() + 0.15\nwhile time.process_time() < end: pass\nreturn x")

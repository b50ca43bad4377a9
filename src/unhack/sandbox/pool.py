"""The trusted side: starts workers, hands them jobs, owns the last deadline, and replaces what dies.

Workers are exec'd, never forked from the trainer (forking a process of some GB costs a hundred times as much). Python
leaves `subprocess` to use vfork + exec here, since the new session is its only extra.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from unhack.sandbox.wire import Execution, Job, encode_job, infra_error, to_execution

LEVEL = 1
"""Isolation level of this pool (SANDBOX, Levels): an own process, resource limits, own uid when started as root."""

START_S = 60.0
MARGIN_S = 20.0  # beyond the worker's own wall ceiling before the worker itself is given up
LARGEST_REPLY_BYTES = 8 * 2**20


class WorkerDied(Exception):
    """The worker did not answer: it was killed, hangs, or answers nonsense."""


class _Worker:
    """One zygote process with its two pipes and its folder."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.answer_s = 2 * settings["wall_ceiling_s"] + MARGIN_S  # the exit probe runs a second child
        self.layers: dict[str, bool] | None = None
        self.folder = tempfile.mkdtemp(prefix="unhack-worker-")
        os.chmod(self.folder, 0o711)  # children run under another uid and must reach their own folder inside
        script = Path(__file__).with_name("zygote.py")
        self.process = subprocess.Popen(
            # -I would also ignore the hash seed, and set order must not differ between workers or runs.
            [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env={"PYTHONHASHSEED": "0"},
            start_new_session=True,
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        os.set_blocking(self.replies, False)
        self.hello = json.dumps(settings).encode()

    def ready(self) -> dict[str, bool]:
        """Wait for the worker's start (once) and return which layers hold in it."""
        if self.layers is None:
            self.layers = self._exchange(self.hello, START_S)[0]
        return self.layers

    def execute(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        """Send one job and wait for (header, record). Raises WorkerDied."""
        self.ready()
        return self._exchange(request, self.answer_s)

    def _exchange(self, request: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + timeout_s
        try:
            self._write(struct.pack("<I", len(request)) + request, deadline)
            head_bytes, body_bytes = struct.unpack("<II", self._read(8, deadline))
            if head_bytes + body_bytes > LARGEST_REPLY_BYTES:
                raise WorkerDied
            data = self._read(head_bytes + body_bytes, deadline)
            return json.loads(data[:head_bytes]), data[head_bytes:]
        except (OSError, ValueError) as error:
            raise WorkerDied from error

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.requests, rest) :]
            except BlockingIOError:
                self._await(self.requests, select.POLLOUT, deadline)

    def _read(self, length: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while length:
            try:
                part = os.read(self.replies, length)
            except BlockingIOError:
                self._await(self.replies, select.POLLIN, deadline)
                continue
            if not part:
                raise WorkerDied
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _await(self, handle: int, event: int, deadline: float) -> None:
        poller = select.poll()
        poller.register(handle, event)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise WorkerDied

    def close(self) -> None:
        """End the worker and everything it left: its process, its children's group, its folder."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # A child that its worker left behind dies by its parent-death signal, perhaps while its folder is removed.
        for _ in range(20):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not os.path.exists(self.folder):
                return
            time.sleep(0.01)


class Sandbox:
    """A pool of workers that run submissions. Use as a context manager; not shared between threads.

    `cpu_s`: CPU budget of one submission, in seconds; `memory_bytes`: its address space. `wall_s` is only a backstop
    against sleeping: a submission that uses CPU gets up to `wall_ceiling_s`. `require="full"` refuses to start unless
    every isolation layer holds (ValueError).
    """

    def __init__(
        self,
        workers: int = 1,
        cpu_s: float = 2.0,
        memory_bytes: int = 512 * 2**20,
        *,
        wall_s: float = 10.0,
        wall_ceiling_s: float = 60.0,
        require: str = "any",
    ) -> None:
        if workers < 1 or cpu_s <= 0 or memory_bytes < 64 * 2**20:
            raise ValueError("the sandbox needs workers >= 1, cpu_s > 0 and memory_bytes >= 64 MiB")
        self.n_workers, self.cpu_s, self.level, self.require = workers, cpu_s, LEVEL, require
        self._settings = {
            "cpu_s": cpu_s,
            "memory_bytes": memory_bytes,
            "wall_s": wall_s,
            "wall_ceiling_s": max(wall_s, wall_ceiling_s),
        }
        self._workers: list[_Worker] = []

    def __enter__(self) -> Sandbox:
        self._workers = [_Worker(self._settings) for _ in range(self.n_workers)]
        try:
            missing = [name for name, holds in self.layers().items() if not holds]
            if self.require == "full" and missing:
                raise ValueError(
                    f"sandbox.require = 'full', but these layers do not hold here: {', '.join(missing)}; "
                    "set sandbox.require = 'any', or see `unhack doctor`"
                )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; nothing of them is left afterwards."""
        while self._workers:
            self._workers.pop().close()

    def layers(self) -> dict[str, bool]:
        """Which isolation layers hold in the workers. Raises RuntimeError when workers do not start."""
        try:
            return self._workers[0].ready()
        except WorkerDied as error:
            raise RuntimeError("the sandbox's worker does not start; run `unhack doctor`") from error

    def run(self, jobs: Sequence[Job]) -> list[Execution]:
        """Run the jobs and return their executions in order; equal jobs (but for the id) run once.

        A job whose worker dies is run once more on a new worker, then reported as `infra_error`.
        """
        if not self._workers:
            raise ValueError("the sandbox is closed: use `with Sandbox(...) as sandbox:`")
        distinct: dict[tuple[object, ...], int] = {}
        order = [distinct.setdefault((job.source, job.setup, job.calls, job.probe), len(distinct)) for job in jobs]
        todo: queue.SimpleQueue[tuple[int, Job]] = queue.SimpleQueue()
        seen = -1
        for job, index in zip(jobs, order, strict=True):
            if index > seen:
                seen = index
                todo.put((index, job))
        done: list[Execution | None] = [None] * len(distinct)
        threads = [
            threading.Thread(target=self._serve, args=(slot, todo, done), daemon=True)
            for slot in range(1, min(self.n_workers, len(distinct)))
        ]
        for thread in threads:
            thread.start()
        self._serve(0, todo, done)
        for thread in threads:
            thread.join()
        executions = [done[index] for index in order]
        assert all(execution is not None for execution in executions), "a job was lost"
        return [execution for execution in executions if execution is not None]

    def _serve(self, slot: int, todo: queue.SimpleQueue[tuple[int, Job]], done: list[Execution | None]) -> None:
        while True:
            try:
                index, job = todo.get_nowait()
            except queue.Empty:
                return
            done[index] = self._execute(slot, job)

    def _execute(self, slot: int, job: Job) -> Execution:
        request = encode_job(job)
        for _ in range(2):
            try:
                header, record = self._workers[slot].execute(request)
                return to_execution(header, record, len(job.calls), self.cpu_s, self.level)
            except WorkerDied:
                self._replace(slot)
            except BaseException:
                self._replace(slot)  # interrupted half-way: the pipes are out of step
                raise
        return infra_error(self.level)

    def _replace(self, slot: int) -> None:
        self._workers[slot].close()
        self._workers[slot] = _Worker(self._settings)

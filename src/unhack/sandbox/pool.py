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
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from unhack.sandbox import canary, levels
from unhack.sandbox.confinement import OPTIONAL
from unhack.sandbox.kernel import PR_SET_DUMPABLE, prctl
from unhack.sandbox.wire import ERROR_REASONS, Execution, Job, ProtocolError, encode_job, infra_error, to_execution

_CLOSED = "the sandbox is closed: use `with Sandbox(...) as sandbox:`"
START_S = 60.0
CLOSE_S = 1.0
MARGIN_S = 20.0  # beyond the worker's own wall ceiling before the worker itself is given up
LARGEST_REPLY_BYTES = 8 * 2**20


class WorkerDied(Exception):
    """The worker did not answer: it was killed, hangs, or answers nonsense."""


class LayerUnavailable(Exception):
    """A layer cannot be had here; the arguments are its name and why. The worker ended itself."""


class _Worker:
    """One zygote process with its two pipes and its folder."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.answer_s = 2 * settings["wall_ceiling_s"] + MARGIN_S  # the exit probe runs a second child
        self.report: dict[str, Any] | None = None
        self.folder = tempfile.mkdtemp(prefix="unhack-worker-")
        os.chmod(self.folder, 0o711)  # children run under another uid and must reach their own folder inside
        script = Path(__file__).with_name("zygote.py")
        self.process = subprocess.Popen(
            # -I would also ignore the hash seed, and set order must not differ between workers or runs. Nobody reads
            # a traceback, so no columns are kept for one: they make compiling slower.
            [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", "-X", "no_debug_ranges", str(script)],
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

    def ready(self) -> dict[str, Any]:
        """Wait for the worker's start (once): which `layers` hold in it, and why others `failed`.

        Raises WorkerDied, LayerUnavailable.
        """
        if self.report is None:
            report = self._exchange((self.hello, b""), START_S)[0]
            for name, reason in report.get("unavailable", {}).items():
                raise LayerUnavailable(name, reason)
            self.report = report
        return self.report

    def execute(self, request: tuple[bytes, bytes]) -> tuple[dict[str, Any], bytes]:
        """Send one job and wait for (header, record). Raises WorkerDied, LayerUnavailable."""
        self.ready()
        return self._exchange(request, self.answer_s)

    def _exchange(self, request: tuple[bytes, bytes], timeout_s: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + timeout_s
        try:
            self._write(struct.pack("<II", *map(len, request)) + b"".join(request), deadline)
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

    def hang_up(self) -> None:
        """Close the worker's pipes, at which it ends by itself."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def close(self) -> None:
        """End the worker and everything it left: its process, its children's group, its folder."""
        self.hang_up()
        # It sees that and ends; outside its namespace a guard collects it, so that no zombie goes to process 1.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # A child that its worker left behind dies by its parent-death signal, perhaps while its folder is removed.
        for _ in range(20):
            with contextlib.suppress(OSError):
                _remove_tree(self.folder)
            if not os.path.exists(self.folder):
                return
            time.sleep(0.01)


def _remove_tree(folder: str) -> None:
    """Remove a folder however deep it is, without the working directory, which all threads of the trainer share.

    What lies in a subfolder moves up beside it, so no path has more than two names below `folder`.
    """
    serial = 0
    os.chmod(folder, 0o700)
    while names := os.listdir(folder):
        for path in (f"{folder}/{name}" for name in names):
            if os.path.islink(path) or not os.path.isdir(path):
                os.unlink(path)
                continue
            os.chmod(path, 0o700)
            for inner in os.listdir(path):
                below, serial = f"{path}/{inner}", serial + 1
                if os.path.isdir(below) and not os.path.islink(below):
                    os.chmod(below, 0o700)  # a folder that may not be written cannot be moved
                    os.rename(below, f"{folder}/moved-{time.monotonic_ns()}-{serial}")
                else:
                    os.unlink(below)
            os.rmdir(path)
    os.rmdir(folder)


class Sandbox:
    """A pool of workers that run submissions. Use as a context manager; not shared between threads.

    `cpu_s`: CPU budget of one submission, in seconds, the load of its program and every process included;
    `case_cpu_s`: of one of its calls; `memory_bytes`: its address space. `wall_s` is only a backstop
    against sleeping (one call: a quarter of it): a submission that uses CPU gets up to `wall_ceiling_s`.

    At its start the sandbox tries its own attacks (`canary.py`), so `level` (`LEVELS`) and `layers()` are proved, not
    claimed. `require`: "full" refuses to start below level 4, "any" below level 2, "unsafe" never (ValueError with
    the cure). `without` switches layers off (`OPTIONAL`), for tests and benchmarks.

    Starting one makes this process non-dumpable for good (Linux), so that no process of the same user can read the
    answers in its memory: no core dumps, no debugger attaches without root, and its files in /proc belong to root.
    """

    def __init__(
        self,
        workers: int = 1,
        cpu_s: float = 4.0,
        memory_bytes: int = 512 * 2**20,
        *,
        case_cpu_s: float = 1.5,
        wall_s: float = 10.0,
        wall_ceiling_s: float = 60.0,
        require: str = "any",
        without: Sequence[str] = (),
    ) -> None:
        if workers < 1 or not cpu_s > 0 or not case_cpu_s > 0 or memory_bytes < 64 * 2**20:  # NaN is not above 0
            raise ValueError("the sandbox needs workers >= 1, cpu_s > 0, case_cpu_s > 0 and memory_bytes >= 64 MiB")
        if require not in levels.LEAST or not set(without) <= set(OPTIONAL):
            raise ValueError(f"require is one of {', '.join(levels.LEAST)}; without, of {', '.join(OPTIONAL)}")
        self.n_workers, self.cpu_s, self.level, self.require = workers, cpu_s, 0, require
        self.asked = bool(without)
        self._settings = {
            "cpu_s": cpu_s,
            "case_cpu_s": min(cpu_s, case_cpu_s),
            "memory_bytes": memory_bytes,
            "wall_s": wall_s,
            "wall_ceiling_s": max(wall_s, wall_ceiling_s),
            "without": list(without),
        }
        self._workers: list[_Worker] = []
        self._reported: dict[str, bool] = {}
        self._proved: dict[str, bool] = {}
        self.failed: dict[str, str] = {}
        """Why a layer does not hold, by its name."""

    def __enter__(self) -> Sandbox:
        prctl(PR_SET_DUMPABLE, 0)
        try:
            self._start()
            reason = levels.refusal(self.require, self._proved, self.failed, self.asked)
            if reason is not None:
                raise ValueError(reason)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        """Start the workers, without what the first one cannot have, and let it try the canaries."""
        self._workers = [_Worker(self._settings) for _ in range(self.n_workers)]
        try:
            report = self._workers[0].ready()
        except LayerUnavailable as missing:
            name, self.failed[name] = missing.args
            assert name not in self._settings["without"], "a layer that was left out failed"
            self._settings["without"].append(name)
            self.close()
            return self._start()
        except WorkerDied as error:
            raise RuntimeError("the sandbox's worker does not start; run `unhack doctor`") from error
        self.failed = report["failed"] | self.failed
        self._proved = dict(report["layers"])
        self.level = levels.level_of(self._proved)
        self._reported = report["layers"]
        with canary.baits(self._workers[0].folder, self._settings["memory_bytes"]) as bait:
            broken = canary.got_through(self._execute(0, canary.job(bait)))
        for attack in broken:
            for layer in attack.layers:
                if self._proved[layer]:
                    self._proved[layer] = False
                    self.failed[layer] = f"did not stop {attack.name}"
        self.level = levels.level_of(self._proved)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; nothing of them is left afterwards."""
        for worker in self._workers:
            worker.hang_up()  # all of them first: they end side by side
        while self._workers:
            self._workers.pop().close()

    def layers(self) -> dict[str, bool]:
        """Which isolation layers hold in the workers. ValueError when the sandbox is closed."""
        if not self._workers:
            raise ValueError(_CLOSED)
        return dict(self._proved)

    def run(self, jobs: Sequence[Job]) -> list[Execution]:
        """Run the jobs and return their executions in order; equal jobs (but for the id) run once.

        A job whose worker dies is run once more on a new worker, then reported as `infra_error`.
        """
        if not self._workers:
            raise ValueError(_CLOSED)
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
                if self._workers[slot].ready()["layers"] != self._reported:
                    raise WorkerDied  # less protected than the first one
                header, record = self._workers[slot].execute(request)
                execution = to_execution(header, record, len(job.calls), self.cpu_s, self.level)
                return self._checked(slot, job, execution)
            except (WorkerDied, LayerUnavailable, ProtocolError):
                self._replace(slot)
            except BaseException:
                self._replace(slot)  # interrupted half-way: the pipes are out of step
                raise
        return infra_error(self.level)

    def _checked(self, slot: int, job: Job, execution: Execution) -> Execution:
        """A failed setup is the child's own claim, and masks the grade: it holds only if the setup fails alone, too."""
        if execution.reason != "setup_error" or not job.source:
            return execution
        alone = self._execute(slot, replace(job, source="", calls=(), probe=None))
        return execution if alone.reason in ERROR_REASONS else replace(execution, reason="protocol_error")

    def _replace(self, slot: int) -> None:
        self._workers[slot].close()
        self._workers[slot] = _Worker(self._settings)

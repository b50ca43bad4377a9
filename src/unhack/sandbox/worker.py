"""One worker as the trusted side sees it: its process, its two pipes, its folder, and how all of that ends.

Workers are exec'd, never forked from the trainer (forking a process of some GB costs a hundred times as much). Python
leaves `subprocess` to use vfork + exec here, since the new session is its only extra.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

START_S = 60.0
CLOSE_S = 1.0
MARGIN_S = 20.0  # beyond the worker's own wall ceiling before the worker itself is given up
LARGEST_REPLY_BYTES = 8 * 2**20


class WorkerDied(Exception):
    """The worker did not answer: it was killed, hangs, or answers nonsense."""


class LayerUnavailable(Exception):
    """A layer cannot be had here; the arguments are its name and why. The worker ended itself."""


class Worker:
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
        self.serial = 0  # of the last frame sent; the worker says it back

    def ready(self) -> dict[str, Any]:
        """Wait for the worker's start (once): which `layers` hold in it, and why others `failed`.

        Raises WorkerDied, LayerUnavailable.
        """
        if self.report is None:
            deadline = time.monotonic() + START_S
            self._send((self.hello, b""), deadline)
            report = self._receive(deadline)[0]
            for name, reason in report.get("unavailable", {}).items():
                raise LayerUnavailable(name, reason)
            self.report = report
        return self.report

    def execute(self, request: tuple[bytes, bytes]) -> tuple[dict[str, Any], bytes]:
        """Send one job and wait for (header, record). Raises WorkerDied, LayerUnavailable."""
        self.send(request)
        return self.receive()

    def send(self, request: tuple[bytes, bytes]) -> None:
        """Start one job; the job before must have been received. Raises WorkerDied, LayerUnavailable."""
        self.ready()
        self._send(request, time.monotonic() + self.answer_s)

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Wait for (header, record) of the job that was sent. Raises WorkerDied."""
        return self._receive(time.monotonic() + self.answer_s)

    def kill(self) -> None:
        """End the worker at once, from any thread: whoever waits for it gets WorkerDied, and closes it."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None:  # not collected, so its number is its own
                os.killpg(self.process.pid, signal.SIGKILL)

    def _send(self, request: tuple[bytes, bytes], deadline: float) -> None:
        try:
            self.serial += 1
            self._write(struct.pack("<III", self.serial, *map(len, request)) + b"".join(request), deadline)
        except OSError as error:
            raise WorkerDied from error

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        try:
            serial, head_bytes, body_bytes = struct.unpack("<III", self._read(12, deadline))
            # Another serial: this side was interrupted in between. No reply may be read as another job's.
            if serial != self.serial or head_bytes + body_bytes > LARGEST_REPLY_BYTES:
                raise WorkerDied
            data = self._read(head_bytes + body_bytes, deadline)
            header = json.loads(data[:head_bytes])
        except (OSError, ValueError, RecursionError) as error:
            raise WorkerDied from error
        if not isinstance(header, dict):
            raise WorkerDied
        return header, data[head_bytes:]

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
        self.requests = self.replies = -1  # the numbers may be somebody else's soon
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
                remove_tree(self.folder)
            if not os.path.exists(self.folder):
                return
            time.sleep(0.01)


def remove_tree(folder: str) -> None:
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

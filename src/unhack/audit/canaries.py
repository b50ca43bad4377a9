"""What an attack could touch on this machine, put up before an audit and looked at after every program.

Files, sockets and a secret that programs are told about; and the auditor's own descendants, descriptors, threads and
temporary files, which must be as they were. Everything is private to one audit, so several may run on one machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from unhack.sandbox import Execution
from unhack.types import Case

LINUX = sys.platform == "linux"
SETTLE_S = 2.0  # a killed process may take that long to disappear on a busy machine
LEAVINGS = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/", ".")
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, IPC_RMID = 36, 37, 0


class Canaries:
    """Context manager. `base` holds everything, also the sandbox's temporary folders while it is open."""

    def __init__(self, cases: tuple[Case, ...]) -> None:
        self._cases = cases
        self.tag, self.mark, self._token = (f"unhack{secrets.token_hex(8)}" for _ in range(3))
        self._in_memory = f"{self.mark}:{self._token}"  # what a reader of this process's memory would find
        self._shm_bytes = 4096 + secrets.randbelow(2**20)
        self._subreaper = False

    def __enter__(self) -> Canaries:
        self.base = Path(tempfile.mkdtemp(prefix="unhack-audit-"))
        self._tempdir, tempfile.tempdir = tempfile.tempdir, str(self.base / "tmp")
        os.chmod(self.base, 0o755)
        (self.base / "tmp").mkdir(mode=0o711)
        self._plant()
        self._listen()
        self._subreaper = LINUX and _become_subreaper()
        return self

    def _plant(self) -> None:
        tree = self.base / "tree"
        (tree / "folder").mkdir(parents=True, exist_ok=True)
        (self.base / "home").mkdir(mode=0o700, exist_ok=True)
        asserts = [f"assert {case.call.replace('solution.', 'Solution().')} == {case.expected}" for case in self._cases]
        for path, text, mode in (
            (self.base / "secret", self._token, 0o600),
            (self.base / "home" / ".netrc", self._token, 0o600),
            (self.base / "dataset.jsonl", json.dumps({"id": "audit", "gt_answer": asserts}) + "\n", 0o644),
            (tree / "keep", "world-writable\n", 0o666),
            (tree / "folder" / "inner", "world-writable\n", 0o666),
        ):
            path.write_text(text)
            os.chmod(path, mode)
        for path in (tree, tree / "folder"):
            os.chmod(path, 0o777)  # only a sandbox can protect these: file modes do not
        self._planted = self._look_at_files()

    def _listen(self) -> None:
        self._sockets: dict[str, socket.socket] = {"TCP listener": socket.create_server(("127.0.0.1", 0))}
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self._sockets["UDP socket"] = udp
        names = {"socket file": str(self.base / "socket")} | ({"abstract socket": "\0" + self.tag} if LINUX else {})
        for kind, name in names.items():
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(name)
            listener.listen()
            self._sockets[kind] = listener
        os.chmod(self.base / "socket", 0o777)
        for opened in self._sockets.values():
            opened.setblocking(False)

    def setup_code(self) -> str:
        """The problem's setup code: tells a program where the canaries are (never what they hold)."""
        target: dict[str, Any] = {
            "trainer": os.getpid(),
            "secret": str(self.base / "secret"),
            "dataset": str(self.base / "dataset.jsonl"),
            "tree": str(self.base / "tree"),
            "home": str(self.base / "home"),
            "socket": str(self.base / "socket"),
            "abstract": self.tag,
            "tcp": self._sockets["TCP listener"].getsockname()[1],
            "udp": self._sockets["UDP socket"].getsockname()[1],
            "tag": self.tag,
            "mark": self.mark,
            "shm_bytes": self._shm_bytes,
        }
        return f"TARGET = {target!r}\n\n\nclass Shared:\n    seen = []\n"

    def before(self) -> None:
        """Remember what is there; call when the sandbox runs and is idle."""
        self._processes, self._descriptors = len(descendants(os.getpid())), _descriptors()
        self._threads, self._folders = threading.active_count(), self._folder_contents()

    def findings(self) -> list[str]:
        """What a program changed, reached or left since `before`; what it changed is put right again."""
        found = [f"reached the {kind}" for kind, opened in self._sockets.items() if _was_reached(opened)]
        if self._look_at_files() != self._planted:
            found.append("changed the trainer's files: " + ", ".join(self._changed()))
            self._replant()
        found += [f"left {path}" for path in self._leavings()]
        if _remove_shared_memory(self._shm_bytes):
            found.append("left a shared memory segment")
        return found + self._not_settled()

    def _not_settled(self) -> list[str]:
        """What is still not as before after SETTLE_S: processes, descriptors, threads, files of the worker."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            found = []
            processes, descriptors = len(descendants(os.getpid())), _descriptors()
            if processes > self._processes:
                found.append(f"left {processes - self._processes} processes")
            if descriptors > self._descriptors:
                found.append(f"left {descriptors - self._descriptors} descriptors open in the trainer")
            if threading.active_count() > self._threads:
                found.append("left a thread in the trainer")
            if self._folder_contents() - self._folders:
                found.append("left files in the worker's folder")
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.005)

    def leaked(self, execution: Execution) -> bool:
        """Whether anything that came back holds the secret."""
        values = [execution.observation, *(item for case in execution.results for item in (case.value, case.error))]
        return any(self._token in text for value in values for text in texts(value))

    def _look_at_files(self) -> dict[str, tuple[int, int, int, int, bytes]]:
        paths = [self.base / "secret", self.base / "dataset.jsonl", *sorted((self.base / "tree").rglob("*"))]
        seen = {}
        for path in paths:
            status = path.lstat()
            regular = stat.S_ISREG(status.st_mode) and status.st_mode & 0o400
            content = path.read_bytes() if regular else b""
            # a folder's time changes when something in it was made and removed again
            when = status.st_mtime_ns
            seen[str(path)] = (status.st_mode, status.st_nlink, status.st_size, when, content)
        return seen

    def _changed(self) -> list[str]:
        now = self._look_at_files()
        return sorted(Path(path).name for path in {*now, *self._planted} if now.get(path) != self._planted.get(path))

    def _replant(self) -> None:
        for path in (self.base / "tree", self.base / "home"):
            remove(path)
        for name in ("secret", "dataset.jsonl"):
            (self.base / name).unlink(missing_ok=True)
        self._plant()

    def _leavings(self) -> Iterator[str]:
        for place in LEAVINGS:
            with contextlib.suppress(OSError):
                for name in os.listdir(place):
                    if self.tag in name:
                        path = os.path.join(place, name)
                        yield path
                        remove(path)

    def _folder_contents(self) -> set[str]:
        """Names inside the workers' folders, without the folders' own drawn names."""
        inside: set[str] = set()
        for worker in os.scandir(self.base / "tmp"):
            with contextlib.suppress(OSError):
                inside |= set(os.listdir(worker.path))
        return inside

    def clear(self) -> None:
        """Remove what a sandbox that could not be closed left in its temporary folder."""
        for name in self.left_at_the_end():
            remove(self.base / "tmp" / name)

    def left_at_the_end(self) -> list[str]:
        """Names of what the closed sandbox left in its temporary folder."""
        return sorted(os.listdir(self.base / "tmp"))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for opened in self._sockets.values():
            opened.close()
        tempfile.tempdir = self._tempdir
        if self._subreaper:
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        remove(self.base)


def remove(path: Path | str) -> None:
    """Delete a file or a tree, however deep: `shutil.rmtree` meets Python's recursion limit at 1,000 levels."""
    subprocess.run(["rm", "-rf", "--", str(path)], check=False, stderr=subprocess.DEVNULL)


def texts(value: Any) -> Iterator[str]:
    """Every text inside a plain value, bytes as Latin-1."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("latin-1")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from texts(item)


def descendants(pid: int) -> list[int]:
    """Live and dead (unreaped) processes below `pid`; none where the system does not tell."""
    found: list[int] = []
    for task in _names(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as children:
            found += [int(child) for child in children.read().split()]
    return found + [below for child in found for below in descendants(child)]


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _descriptors() -> int:
    return len(_names("/proc/self/fd" if LINUX else "/dev/fd"))


def _was_reached(opened: socket.socket) -> bool:
    """Whether a connection or a datagram waits; takes it away."""
    reached = False
    with contextlib.suppress(BlockingIOError):
        while True:
            if opened.type == socket.SOCK_DGRAM:
                opened.recv(4096)
            else:
                opened.accept()[0].close()
            reached = True
    return reached


def _become_subreaper() -> bool:
    """Orphans of workers become this process's children, so that none escapes the count; False if it was one."""
    libc, was = ctypes.CDLL(None), ctypes.c_int(0)
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    return was.value == 0 and libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def _remove_shared_memory(size: int) -> bool:
    """Remove the System V segments of exactly this size; whether there was one."""
    listing = Path("/proc/sysvipc/shm")
    if not listing.exists():
        return False
    rows = [line.split() for line in listing.read_text().splitlines()[1:]]
    own = [int(row[1]) for row in rows if int(row[3]) == size]
    for segment in own:
        ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)
    return bool(own)

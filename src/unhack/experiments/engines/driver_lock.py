"""At most one driver per experiment: a lock file that says who holds it and that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType

LOCK_FILE = ".driver.lock"


class DriverLock:
    """Held, as a context manager, by the process that drives the experiment in `folder`.

    ValueError naming the other driver's process and host if there is one. The kernel releases the lock of a process
    that died, so nothing has to be cleaned up; on a network file system its server does (NFS 4; Lustre with flock).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = -1

    def __enter__(self) -> DriverLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ValueError(
                f"{self.folder} is being driven by {driver(self.folder) or 'another process'}: wait until it ends or "
                "stop it; to look on, use `unhack experiment status`; for other runs, another --folder"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)
        self._lock = -1


def driver(folder: Path) -> str | None:
    """Who drives the experiment in `folder` now, as `process 12 on host`; None if nobody does."""
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(lock, 256, 0).decode() or "a process that just started"
    finally:
        os.close(lock)
    return None

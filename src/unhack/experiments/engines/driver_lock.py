"""At most one driver per experiment: a lock file that says who holds it and that dies with its holder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType

from unhack.files import lock_holder, take_lock

LOCK_FILE = ".driver.lock"


class DriverLock:
    """Held, as a context manager, by the process that drives the experiment in `folder`.

    ValueError naming the other driver's process and host if there is one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = -1

    def __enter__(self) -> DriverLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(self.folder / LOCK_FILE, f"process {os.getpid()} on {socket.gethostname()}")
        if lock is None:
            raise ValueError(
                f"{self.folder} is being driven by {driver(self.folder) or 'another process'}: wait until it ends or "
                "stop it; to look on, use `unhack experiment status`; for other runs, another --folder"
            )
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)
        self._lock = -1


def driver(folder: Path) -> str | None:
    """Who drives the experiment in `folder` now, as `process 12 on host`; None if nobody does."""
    return lock_holder(folder / LOCK_FILE)

"""Writing files so that a reader sees the old content or the new one, never half of either.

A process may be killed at any instruction. So: write beside the target, force to disk, rename over it. What a killed
writer leaves behind has a name that starts with a dot and ends in `.partial`; no reader looks at such names.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unhack.types import PlainValue

PARTIAL_SUFFIX = ".partial"
RUN_LOCK = ".lock"  # in a run folder: held by the process that writes there
LOCK_PATIENCE_S = 1.0


def partial_path(path: Path) -> Path:
    """A fresh hidden name in the folder of `path`, on the same file system, so that a rename onto `path` is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of the block says that it was about `path`: of a failed write (full disk) the system does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Create the new file `path` and return once its bytes are on disk. Not atomic: for files nobody knows of yet."""
    with naming(path), open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return once the names in `folder` (creations, renames, removals) are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8), creating missing parent folders. OSError as the system raises it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        write_synced(partial, content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line in one write and one fsync; a kill in between leaves at worst a torn last line, which is no line."""
    with naming(path), open(path, "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: PlainValue) -> None:
    """Replace `path` by indented strict JSON. ValueError for NaN or infinities, which JSON does not have."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> PlainValue:
    """The value in the JSON file `path`. ValueError that names the file when it is missing or not JSON."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the path, or restore the file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it or remove it") from error


def read_object(path: Path) -> dict[str, PlainValue]:
    """As `read_json`, of a file that must hold a JSON object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object; restore it or remove it")
    return value


def whole_json_lines(path: Path) -> list[tuple[str, dict[str, PlainValue]]]:
    """(line, what it says) of every whole line of a .jsonl file; a torn last one is none. ValueError names the line."""
    found: list[tuple[str, dict[str, PlainValue]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is damaged ({error}); remove it and all lines after it") from error
        if not isinstance(value, dict) or "step" not in value:
            raise ValueError(f"{path} line {number} is damaged (no step); remove it and all lines after it")
        found.append((line, value))
    return found


def take_lock(path: Path, holder: str) -> int | None:
    """Lock the file `path`, which then says who the `holder` is; None if another process has it. Close it to unlock.

    The kernel releases the lock of a process that died, so nothing has to be cleaned up; on a network file system its
    server does (NFS 4; Lustre with flock). Whoever asks `lock_holder` holds it for a moment: that is waited for.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not _locked(lock, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(lock)
            return None
        time.sleep(LOCK_PATIENCE_S / 50)
    with naming(path):
        os.ftruncate(lock, 0)
        os.pwrite(lock, holder.encode(), 0)
    return lock


def lock_holder(path: Path) -> str | None:
    """Who holds the lock file `path`, as they said to `take_lock` (`unknown` if they just began); None if free."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return None if _locked(lock, fcntl.LOCK_SH) else os.pread(lock, 256, 0).decode() or "unknown"
    finally:
        os.close(lock)


def _locked(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

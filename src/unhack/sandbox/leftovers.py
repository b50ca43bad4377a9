"""What children leave behind: processes, folders, output; part of the worker process (standard library only)."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import time
from typing import Any

OUTPUT_BYTES = 64 * 2**10  # how much of stdout or of the result file a reading sees
RESULT_FILE = "result.txt"
REAP_S = 2.0
REMOVE_S = 20.0
LINUX = sys.platform == "linux"


def own_tasks() -> int:
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


def output_file() -> int:
    """A descriptor of a file without a name, for what a child prints."""
    if LINUX:
        return os.memfd_create("stdout")
    handle = os.open("stdout", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.unlink("stdout")
    return handle


def read_output(handle: int, into: Any) -> int:
    """Bytes of what was written to `handle` that are now at the start of the map `into`: the start, or all of it."""
    os.lseek(handle, 0, os.SEEK_SET)
    with memoryview(into) as view:
        return os.readv(handle, [view])


def read_result(folder: str, owner: int | None, into: Any) -> int | None:
    """As `read_output`, of the child's result file; links, pipes and files of others than `owner` (None: this
    process's user) do not count."""
    try:
        handle = os.open(f"{folder}/{RESULT_FILE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        regular = stat.S_ISREG(status.st_mode) and status.st_uid == (os.getuid() if owner is None else owner)
        return read_output(handle, into) if regular else None
    finally:
        os.close(handle)


def remove(folder: str, strangers: bool) -> None:
    """Remove a child's folder with all that is in it; with `strangers`, all that a child may have put beside it.

    Names that a submission chose must not come onto this process's heap (see `zygote.py`): a process of its own reads
    them. Raises OSError when something cannot be removed, or not in REMOVE_S.
    """
    with contextlib.suppress(OSError):
        os.unlink(f"{folder}/{RESULT_FILE}")  # mostly there is nothing else
    try:
        os.rmdir(folder)
    except FileNotFoundError:  # the child removed it itself, or moved it beside
        pass
    except OSError:
        return _apart(folder, strangers)
    if strangers:
        _apart(folder, strangers)


def _apart(folder: str, strangers: bool) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _remove_all(folder, strangers)
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + REMOVE_S
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError("a submission left more than can be removed in time")
        time.sleep(0.0005)
    if done[1] != 0:
        raise OSError("a submission left something that cannot be removed")


def _remove_all(folder: str, strangers: bool) -> None:
    remove_tree(folder)
    for name in os.listdir() if strangers else ():
        if os.path.isdir(name) and not os.path.islink(name):
            remove_tree(name)
        else:
            os.unlink(name)


def remove_tree(folder: str) -> None:
    """Remove `folder` however deep it is; no process may be at work in it. Changes the working directory meanwhile.

    A child may nest thousands of folders, whose path no call takes and which recursion does not reach: so this walks
    down and up by single names. It may also leave folders that nobody may enter.
    """
    try:
        os.rmdir(folder)
        return
    except FileNotFoundError:  # the child removed it itself, or moved it beside
        return
    except OSError:
        pass
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        _enter(folder)
        left = [_unlink_files()]  # for each folder from `folder` down to the working directory: folders still in it
        while True:
            if left[-1]:
                _enter(left[-1][-1])
                left.append(_unlink_files())
                continue
            left.pop()
            if not left:
                break
            os.chdir("..")
            os.rmdir(left[-1].pop())
    finally:
        os.fchdir(here)
        os.close(here)
    os.rmdir(folder)


def _enter(folder: str) -> None:
    os.chmod(folder, 0o700)
    os.chdir(folder)


def _unlink_files() -> list[str]:
    """Unlink all but the folders in the working directory, and return those."""
    folders = []
    for entry in list(os.scandir()):
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        else:
            os.unlink(entry.name)
    return folders


def reap(own_world: bool) -> None:
    """Kill and collect every descendant that outlived its leader. They are ours: this process is a subreaper, or
    (`own_world`) number 1 of its pid namespace, where there is nobody else."""
    deadline = time.monotonic() + REAP_S
    while True:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if done == 0:
            if time.monotonic() > deadline:
                os._exit(71)  # a fresh worker is safer than one with a stranger in the house
            if own_world:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            else:
                with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as children:
                    for pid in children.read().split():
                        os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.0005)

"""Own user, pid, mount, network, ipc and uts namespaces, and a private root: the worker becomes process 1 of a world
that holds the standard library (read-only), /dev/null, one writable folder, and no other process or network.

Part of the worker process (standard library only). The process that enters stays outside as a guard: it waits for the
worker, then removes the worker's folder. All mounts live in the worker's own namespace and vanish with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from unhack.sandbox.kernel import PR_SET_PDEATHSIG, prctl, syscall

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
# statvfs flag -> mount flag, for those that a remount in a user namespace must repeat: nosuid, nodev, noexec, noatime,
# nodiratime, relatime.
_LOCKED_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
WORK = "/unhack-work"  # a name that no interpreter lives under
WORK_BYTES, WORK_FILES = 64 * 2**20, 4096
MASKED = ("site-packages", "dist-packages")


class Unavailable(Exception):
    """The namespaces cannot be made here; the argument says which step failed and why."""


def standard_library() -> list[str]:
    """The folders that imports come from, none inside another."""
    folders = sorted({os.path.realpath(path) for path in sys.path if os.path.isdir(path)})
    return [path for path in folders if not any(path.startswith(f"{other}/") for other in folders)]


def enter(folder: str, uid: int | None, shown: Sequence[str], when_over: Callable[[], None]) -> int | None:
    """Move into a private world mounted over `folder`; returns a descriptor of the outer /proc, if there is one.

    Returns in a new process, number 1 of its namespace, whose working directory is the writable folder `WORK`. The
    calling process never returns: it waits, calls `when_over` and exits. `uid`: the user that children will run
    under, when started by root. Raises Unavailable, in either process, with nothing but a process to throw away.
    """
    try:
        _unshare_processes(uid)
        leave_guard(when_over)
    except OSError as error:
        raise Unavailable(str(error)) from error
    try:
        syscall("unshare", NEWNS | NEWNET | NEWIPC | NEWUTS)
        outer_proc = None
        with contextlib.suppress(FileNotFoundError):
            outer_proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        _private_root(folder, shown)
    except OSError as error:
        raise Unavailable(str(error)) from error
    return outer_proc


def leave_guard(when_over: Callable[[], None]) -> None:
    """Go on in a new process; the calling one stays behind, waits, calls `when_over` and exits."""
    pid = os.fork()
    if pid:
        _guard(pid, when_over)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _guard(pid: int, when_over: Callable[[], None]) -> None:
    """Outside: keep no end of the worker's pipes (its death must be seen on them), wait, clean up, exit."""
    os.closerange(0, 256)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    when_over()
    os._exit(0)


def _unshare_processes(uid: int | None) -> None:
    """A new pid namespace for the next fork; root without the right to make one, and others, through a new user
    namespace in which they keep their numbers."""
    if os.getuid() == 0:
        with contextlib.suppress(OSError):
            syscall("unshare", NEWPID)
            return
    ids = [os.getuid()] if uid is None else [os.getuid(), uid]
    if len(ids) == 1:
        own_group = os.getgid()
        syscall("unshare", NEWUSER | NEWPID)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/gid_map", f"{own_group} {own_group} 1")
        _write("/proc/self/uid_map", f"{ids[0]} {ids[0]} 1")
        return
    reader, writer = os.pipe()
    helper, parent = os.fork(), os.getpid()
    if helper == 0:  # only a process outside may map a second number
        status = 1
        try:
            os.close(writer)
            os.read(reader, 1)
            text = "".join(f"{number} {number} 1\n" for number in ids)
            _write(f"/proc/{os.getppid()}/gid_map", text)
            _write(f"/proc/{os.getppid()}/uid_map", text)
            status = 0
        finally:
            os._exit(status)
    assert parent == os.getpid()
    try:
        syscall("unshare", NEWUSER | NEWPID)
    finally:
        os.close(writer)
        status = os.waitpid(helper, 0)[1]
        os.close(reader)
    if status != 0:
        raise PermissionError(1, "a second user cannot be mapped into a user namespace")


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    words = [os.fsencode(word) for word in (source, target, kind, options)]
    try:
        syscall("mount", words[0], words[1], words[2], flags, words[3])
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} ({kind or 'bind'} mount on {target})") from error


def _read_only(target: str) -> None:
    present = os.statvfs(target).f_flag
    kept = sum(mount_flag for flag, mount_flag in _LOCKED_FLAGS.items() if present & flag)
    _mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def _private_root(folder: str, shown: Sequence[str]) -> None:
    os.umask(0o022)
    _mount("", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in shown:
        target = folder + path
        os.makedirs(target, exist_ok=True)
        # With submounts: a user namespace may not bind a folder without what is mounted inside it.
        _mount(path, target, "", MS_BIND | MS_REC)
        _read_only(target)
        for name in MASKED:
            if os.path.isdir(f"{target}/{name}"):
                _mount("tmpfs", f"{target}/{name}", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k,mode=755")
    os.makedirs(f"{folder}/dev", exist_ok=True)
    os.close(os.open(f"{folder}/dev/null", os.O_WRONLY | os.O_CREAT, 0o600))
    _mount("/dev/null", f"{folder}/dev/null", "", MS_BIND)
    os.mkdir(folder + WORK)
    options = f"size={WORK_BYTES},nr_inodes={WORK_FILES},mode=711"
    _mount("tmpfs", folder + WORK, "tmpfs", MS_NOSUID | MS_NODEV, options)
    _read_only(folder)
    os.chdir(folder)
    syscall("pivot_root", b".", b".")  # the old root now lies over the new one, until it is taken away
    syscall("umount2", b".", MNT_DETACH)
    os.chdir("/")
    os.chdir(WORK)

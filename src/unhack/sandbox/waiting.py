"""Waiting for one child without reaping it, on Linux and macOS; part of the worker process (standard library only)."""

from __future__ import annotations

import os
import select
import sys
import time

_outer_proc: int | None = None


class TrainerGone(Exception):
    """The request pipe was closed: nobody wants an answer any more."""


def look_through(outer_proc: int | None) -> None:
    """Give a descriptor of a /proc that shows this process and its children, where its own root has none."""
    global _outer_proc
    _outer_proc = outer_proc


def cpu_so_far_s(pid: int) -> float | None:
    """CPU seconds of a running child; None where the system has no clock for it."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # the Linux kernel's encoding of a process's CPU clock
    except OSError:
        return None


def is_runnable(pid: int) -> bool:
    """Whether the child waits for a processor rather than sleeps (False where /proc does not tell)."""
    return any(text.rsplit(")", 1)[1].split()[0] == "R" for text in _about(pid, "stat"))


def queued_s(pid: int) -> float:
    """Seconds that the child's first thread was ready to run and had no processor (0 where /proc does not tell)."""
    return max((int(text.split()[1]) / 1e9 for text in _about(pid, "schedstat")), default=0.0)


def _about(pid: int, name: str) -> list[str]:
    """What /proc says of the child; through the outer one, of every child of this process.

    Its number outside is another one; but it is the only child, or one of the leader's own.
    """
    try:
        if _outer_proc is None:
            return [_text(f"/proc/{pid}/{name}", None)]
        outer_pids = _text("thread-self/children", _outer_proc).split()
        return [_text(f"{outer}/{name}", _outer_proc) for outer in outer_pids]
    except OSError:
        return []


def _text(path: str, folder: int | None) -> str:
    """Latin-1, in which all bytes are text: a process may give itself any name."""
    with open(os.open(path, os.O_RDONLY, dir_fd=folder), encoding="latin-1") as file:
        return file.read()


def exited_before(pid: int, deadline: float, request_fd: int) -> bool:
    """Whether `pid` died before `deadline` (time.monotonic()); it stays unreaped, so its pid stays its own.

    Raises TrainerGone when the other end of `request_fd` is closed meanwhile.
    """
    if sys.platform == "darwin":
        return _by_kqueue(pid, deadline, request_fd)
    try:
        handle = os.pidfd_open(pid)
    except OSError:  # kernels before 5.3 and some container runtimes
        return _by_polling(pid, deadline, request_fd)
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        poller.register(request_fd, 0)  # hang-up only
        ready = {handle for handle, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)}
    finally:
        os.close(handle)
    if handle not in ready and request_fd in ready:
        raise TrainerGone
    return handle in ready


def _by_polling(pid: int, deadline: float, request_fd: int) -> bool:
    poller = select.poll()
    poller.register(request_fd, 0)
    pause_s = 0.0005
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if poller.poll(0):
            raise TrainerGone
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.01)
    return True


if sys.platform == "darwin":

    def _by_kqueue(pid: int, deadline: float, request_fd: int) -> bool:
        queue = select.kqueue()
        try:
            death = select.kevent(
                pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT, select.KQ_NOTE_EXIT
            )
            closed = select.kevent(request_fd, select.KQ_FILTER_READ, select.KQ_EV_ADD)
            try:
                events = queue.control([death, closed], 2, max(0.0, deadline - time.monotonic()))
            except ProcessLookupError:  # already dead, not reaped
                return True
        finally:
            queue.close()
        if any(event.ident == pid for event in events):  # an error event for the pid means it is dead already
            return True
        if any(event.flags & select.KQ_EV_EOF for event in events):
            raise TrainerGone
        return False

else:

    def _by_kqueue(pid: int, deadline: float, request_fd: int) -> bool:
        raise AssertionError("kqueue is used on macOS only")

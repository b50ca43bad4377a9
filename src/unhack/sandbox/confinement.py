"""What a worker and its children give up, in order: the one place that knows which layers stand on which.

Part of the worker process (standard library only). Whatever can be done once is done in the worker, so that children
inherit it: namespaces and private root, capabilities, no_new_privs, no core dumps or tracing, Landlock to the standard
library and the work folder, the long system-call filter. What is left for a child is its user, its limits, Landlock to
its own folder, and a short filter.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from unhack.sandbox import kernel, landlock, namespaces, seccomp
from unhack.sandbox.kernel import LINUX, prctl

OPTIONAL = ("namespaces", "uid_drop", "landlock", "seccomp")
"""The layers that a kernel may lack, or `without` may switch off."""
KEPT_BY_ROOT = frozenset({0, 1, 3, 5, 6, 7})  # chown, dac_override, fowner, kill, setgid, setuid: to hand over a folder
FIRST_UID, N_UIDS = 61184, 4000
UNBOUND = 70  # exit status of a child that did not get its layers: it has run nothing


class Confinement:
    """The layers of one worker. `active` says which hold, `failed` why another does not."""

    def __init__(self, without: tuple[str, ...]) -> None:
        self.without = without
        self.failed: dict[str, str] = {name: "switched off" for name in without}
        # One id per worker: the process limit counts per uid, and workers cannot signal each other's children.
        drops = os.getuid() == 0 and "uid_drop" not in without
        self.uid = FIRST_UID + os.getpid() % N_UIDS if drops else None
        self.outer_proc: int | None = None
        self.active = {
            "separate_process": True,
            "resource_limits": True,
            "descriptors": True,
            "uid_drop": self.uid is not None,
            "no_new_privs": False,
            "capabilities": False,
            "not_dumpable": False,
            "subreaper": False,
            "parent_death_signal": LINUX,
            "namespaces": False,
            "landlock": False,
            "seccomp": False,
        }
        self._shown = namespaces.standard_library()
        self._child_rules: landlock.Ruleset | None = None
        self._folder_rules = -1
        self._bind_paths: Callable[[], int] | None = None
        self._child_filter: seccomp.Filter | None = None
        self._bind_calls: Callable[[], int] | None = None

    def hides_library(self) -> bool:
        """Whether children cannot read the standard library: another user, no private root, a closed folder above."""
        if self.uid is None or "namespaces" not in self.without:
            return False
        above = {parent for path in self._shown for parent in (path, *_parents(path))}
        return not all(os.stat(path).st_mode & 0o001 for path in above)

    def counts_own_tasks(self) -> bool:
        """Whether the kernel's limit of processes counts this worker's only, not all of its user's.

        It does for a user of the worker's own, and since Linux 5.14 in a user namespace of its own.
        """
        kernel_version = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())
        return self.uid is not None or (self.active["namespaces"] and kernel_version >= (5, 14))

    def enter_world(self, folder: str, when_over: Callable[[], None]) -> None:
        """First half, before anything else is set up. May return in another process (see `namespaces.enter`), with
        another working directory. Raises namespaces.Unavailable: start the worker again without them."""
        if LINUX and "namespaces" not in self.without:
            self.outer_proc = namespaces.enter(folder, self.uid, self._shown, when_over)
            self.active["namespaces"] = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 gets no signal that it has no handler for
        elif LINUX and "landlock" not in self.without and landlock.version() > 0:
            namespaces.leave_guard(when_over)  # which can still remove the folder: Landlock leaves its parent to nobody
        self.active["subreaper"] = prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)

    def lock(self) -> None:
        """Second half, when everything the worker needs is loaded: what is given up here never comes back."""
        self.active["no_new_privs"] = prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kept = KEPT_BY_ROOT if os.getuid() == 0 and self.uid is not None else frozenset[int]()
        self.active["capabilities"] = kernel.drop_capabilities(kept)
        self.active["not_dumpable"] = prctl(kernel.PR_SET_DUMPABLE, 0)
        self._restrict_paths()
        self._filter_calls()

    def _restrict_paths(self) -> None:
        version = landlock.version()
        if version == 0:
            self.failed.setdefault("landlock", "the kernel has none, or the container hides it")
        if version == 0 or "landlock" in self.without:
            return
        path_only = os.O_PATH if sys.platform == "linux" else 0
        library = [(os.open(path, path_only), landlock.READ) for path in self._shown if os.access(path, os.R_OK)]
        null = (os.open(os.devnull, path_only), landlock.file_rights(landlock.WRITE))
        work = (os.open(".", path_only), landlock.WRITE)
        proc = [] if self.outer_proc is None else [(self.outer_proc, landlock.READ)]
        if not self.active["namespaces"]:
            proc = [(os.open("/proc", path_only), landlock.READ)]
        self._child_rules = landlock.Ruleset(version, [*library, null])
        landlock.Ruleset(version, [*library, null, work, *proc]).restrict()
        self.active["landlock"] = True

    def _filter_calls(self) -> None:
        name = kernel.architecture()
        if not seccomp.available() or name is None:
            self.failed.setdefault("seccomp", "the kernel or this architecture has none")
        elif "seccomp" not in self.without:
            bounded = self.active["namespaces"] or self.active["landlock"]
            own_world = self.active["namespaces"]
            # A child that is its worker's user could close the worker's folders to it.
            modes = own_world and self.uid is not None
            self._child_filter = seccomp.Filter(seccomp.child_program(name, bounded, modes, own_world))
            self._bind_calls = self._child_filter.prepared()
            seccomp.Filter(seccomp.base_program(name)).install()
            self.active["seccomp"] = True

    def open_folder(self, folder: str) -> None:
        """In the worker: make ready what binds the children of one job to their folder."""
        if self._child_rules is not None and sys.platform == "linux":
            here = os.open(folder, os.O_PATH)
            try:
                self._folder_rules = self._child_rules.open([(here, landlock.WRITE)])
            finally:
                os.close(here)
            self._bind_paths = kernel.prepared("landlock_restrict_self", self._folder_rules, 0)

    def close_folder(self) -> None:
        """In the worker, after the job."""
        if self._bind_paths is not None:
            self._bind_paths = None
            os.close(self._folder_rules)

    def bind_child(self, parent_pid: int) -> None:
        """In a child whose working directory is its own folder, after its limits: all that is left, the filter last.

        Exits when a layer that held in the worker does not hold here, or when the worker is already dead.
        """
        if self._bind_paths is not None and self._bind_paths() != 0:
            os._exit(UNBOUND)
        if self.uid is not None:
            os.setgroups([])
            os.setgid(self.uid)
            os.setuid(self.uid)
        os.closerange(3, 256)
        # After the uid change, which clears it; the check closes the race with a worker that is already dead.
        prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(UNBOUND)
        if self._bind_calls is not None and self._bind_calls() != 0:
            os._exit(UNBOUND)

    def report(self) -> dict[str, Any]:
        """What the trainer's side is told at the start."""
        return {"layers": self.active, "failed": self.failed}


def _parents(path: str) -> list[str]:
    """The folders that `path` lies in, the nearest first."""
    above = os.path.dirname(path)
    return [] if above == path else [above, *_parents(above)]

"""The worker process: waits for jobs, forks one fresh child per submission, and reports what the child left behind.

Started by `worker.py` as a script in a bare interpreter (no site, no environment, fixed hash seed); imports nothing of
unhack, so that neither torch nor any expected value is ever in this process. Frames: a serial number, which the reply
repeats, and two lengths, of 4 bytes each; then a JSON job and the submission's source, or a JSON header and the child's
raw record with what it printed or wrote behind it, which only the trusted side parses. The child writes its record into
shared anonymous memory: no reader to wake, a hard size cap, and what was written before a kill is still there.

**Nothing of a submission ever is on this process's heap**: not its source, its values, or its output. Memory that is
freed is not wiped, every child gets a copy of this heap, and the values of a right submission are the answers. So they
are read from pipes into maps of their own, looked at in place, written from there, and unmapped with the job.

What the worker and its children may do is in `confinement.py`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

_register_at_fork = os.register_at_fork


def _ignore_fork_hook(**hooks: Any) -> None:
    """Stands in for os.register_at_fork while modules are loaded: this process has one thread and its children seed
    `random` themselves, so the standard library's hooks would only touch a hundred pages in every child."""


os.register_at_fork = _ignore_fork_hook

# The neighbours are loaded by folder, or from a package without its __init__: importing that would load torch.
_FOLDER = os.path.dirname(os.path.abspath(__file__))
for _name, _path in (("unhack", []), ("unhack.sandbox", [_FOLDER])):
    _package = types.ModuleType(_name)
    _package.__path__ = _path
    sys.modules[_name] = _package
confinement = importlib.import_module("unhack.sandbox.confinement")
kernel = importlib.import_module("unhack.sandbox.kernel")
namespaces = importlib.import_module("unhack.sandbox.namespaces")
leftovers = importlib.import_module("unhack.sandbox.leftovers")
sys.path.insert(0, _FOLDER)
child = importlib.import_module("child")
waiting = importlib.import_module("waiting")
budgets = importlib.import_module("budgets")
prepare = importlib.import_module("prepare")
sys.path.pop(0)

REQUEST_FD, REPLY_FD = 3, 4
_serial = 0  # of the frame that was read last
RECORD_BYTES = 4 * 2**20
ASKS_PROCESS = ("call", "attribute")  # probes that need a live process after the last call
FOLDER_PREFIX = "unhack-worker-"  # as in pool.py
# Ready in every child. Other modules of pure Python can be imported there as well; native ones cannot, since nothing
# may map a page of code: hence EXTENSIONS, as far as this version of Python has them.
PRELOAD = (
    "abc", "array", "bisect", "builtins", "calendar", "cmath", "collections", "collections.abc", "contextlib",
    "copy", "copyreg", "dataclasses", "datetime", "decimal", "enum", "errno", "fractions", "functools", "heapq",
    "io", "itertools", "json", "math", "numbers", "operator", "os", "queue", "random", "re", "reprlib",
    "statistics", "string", "struct", "sys", "textwrap", "threading", "time", "traceback", "types", "typing",
    "unicodedata", "warnings", "weakref",
)  # fmt: skip
EXTENSIONS = (
    "_blake2", "_csv", "_md5", "_sha1", "_sha2", "_sha256", "_sha3", "_sha512", "binascii", "select", "zlib",
)  # fmt: skip
# Ready as well where the children's user cannot read the interpreter's folders (one under a 0700 home).
UNREADABLE_LATER = (
    "_strptime", "base64", "concurrent.futures.thread", "csv", "graphlib", "hashlib", "inspect", "locale", "logging",
    "pathlib", "pickle", "pprint", "secrets", "tempfile", "timeit", "tracemalloc", "uuid",
)  # fmt: skip


class Zygote:
    """State that outlives a job: settings, the uid children run under, and which layers hold."""

    def __init__(self, settings: dict[str, Any], confined: Any) -> None:
        self.wall_s, self.wall_ceiling_s = float(settings["wall_s"]), float(settings["wall_ceiling_s"])
        self.parent_pid = os.getpid()
        self.confined, self.uid = confined, confined.uid
        self.limits = child.limits(int(settings["memory_bytes"]), int(settings["tasks"]))
        self.cpu_s, self.case_cpu_s = float(settings["cpu_s"]), float(settings["case_cpu_s"])
        self.case_timer_s = 0.0 if waiting.cpu_so_far_s(self.parent_pid) is not None else self.case_cpu_s
        self.prepare = prepare.Preparation(PRELOAD)
        self.jobs_done = 0
        self.spoiled = False  # something is left that could reach the next job

    def serve(self, job: dict[str, Any], source: Any) -> None:
        """Run one job and send its reply: the header (how it ended), the children's record, what was observed."""
        # Maps of their own for each job: nothing that a job might leave behind could be read or written by another.
        with mmap.mmap(-1, RECORD_BYTES) as record, private_map(leftovers.OUTPUT_BYTES) as seen:
            header, n_bytes = self.execute(job, source, record, seen)
            with memoryview(record) as view, memoryview(seen) as observed:
                body = (view[child.HEAD_BYTES : child.HEAD_BYTES + n_bytes], observed[: header["observed_bytes"] or 0])
                _write_reply(header, *body)
                for part in body:
                    part.release()

    def execute(self, job: dict[str, Any], source: Any, record: Any, seen: Any) -> tuple[dict[str, Any], int]:
        """Run one job in fresh children; returns the header and how many bytes of record they wrote."""
        self.jobs_done += 1
        folder = f"job-{self.jobs_done}"
        os.mkdir(folder, 0o700)
        if self.uid is not None:
            os.chown(folder, self.uid, self.uid)
        probe = job["probe"]
        kind = probe[0] if probe else ""
        output = leftovers.output_file() if kind == "stdout" else None
        try:
            self.confined.open_folder(folder)
            header, n_bytes = self._run_cases(self.prepare(job, source), folder, output, record)
            if kind == "exit":
                work = functools.partial(child.run_as_script, job["setup"], source, job["source_bytes"], record)
                script = self._fork_and_wait(self._budget(), folder, None, work, lambda: 0)
                header["cpu_s"] += script["cpu_s"]
                header["observation"] = script["exit_status"]
            elif kind == "stdout" and output is not None:
                header["observed_bytes"] = leftovers.read_output(output, seen)
            elif kind == "file":
                header["observed_bytes"] = leftovers.read_result(folder, self.uid, seen)
        finally:
            if output is not None:
                os.close(output)
            self.confined.close_folder()
            try:
                leftovers.remove(folder, strangers=self.uid is None and not self.confined.active["landlock"])
            except OSError:  # what a submission spoils costs it this worker, never its verdict
                self.spoiled = True
        return header, n_bytes

    def rehearse(self) -> None:
        """Run a harmless job here a few times: code that runs often is rewritten, which copies its pages, once."""
        source, calls = b"class Solution:\n    def solve(self, x):\n        return x\n", ["solution.solve([1, [2.5]])"]
        job = prepare.Preparation(PRELOAD)({"setup": "", "calls": 4 * calls, "probe": None}, source)
        for _ in range(16):
            with mmap.mmap(-1, RECORD_BYTES) as record:
                child.evaluate(job, record, 0, 0, 0.0)

    def _budget(self) -> Any:
        return budgets.Budget(self.cpu_s, self.case_cpu_s, self.wall_s, self.wall_ceiling_s)

    def _run_cases(self, job: Any, folder: str, output: int | None, record: Any) -> tuple[dict[str, Any], int]:
        """Evaluate the calls; a call that ends its process costs itself only, the next gets a process of its own."""
        budget, segments = self._budget(), list[dict[str, Any]]()
        start, end = 0, 0
        last = len(job.calls) - (job.probe is None or job.probe[0] not in ASKS_PROCESS)

        def progress() -> int:
            length = struct.unpack_from("<I", record)[0] - end
            return length if length >= len(child.LOADED) else 0

        while True:
            work = functools.partial(child.evaluate, job, record, start, end, self.case_timer_s)
            segment = self._fork_and_wait(budget, folder, output, work, progress)
            claimed = struct.unpack_from("<I", record)[0]
            begin, end = child.HEAD_BYTES + end, max(end, min(claimed, RECORD_BYTES - child.HEAD_BYTES))
            stop = child.HEAD_BYTES + end
            segments.append({**segment, "start": start, "bytes": stop - begin})
            alive = record.find(child.LOADED, begin, min(stop, begin + len(child.LOADED))) == begin
            if not alive or record.find(child.DONE, begin, stop) >= 0 or budget.spent():
                break
            # Where to go on is read off the record without trust: the trainer's side checks every line of it.
            start += _count_lines(record, begin, stop, last - start + 2) - 1
            if start > last:
                break
        return {"segments": segments, "cpu_s": budget.used_cpu_s, "observation": None, "observed_bytes": None}, end

    def _fork_and_wait(
        self,
        budget: Any,
        folder: str,
        output: int | None,
        work: Callable[[], int],
        progress: Callable[[], int],
    ) -> dict[str, Any]:
        pid = kernel.fork_here()
        if pid == 0:
            status = 70
            try:
                self._confine(folder, output, budget.left_s())
                status = work()
            finally:
                os._exit(status)
        try:
            over = budget.watch(pid, progress, REQUEST_FD)
        finally:
            # Dead or alive, the leader is not reaped yet, so its pid cannot have been given to another group.
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        leftovers.reap(self.confined.active["namespaces"])
        budget.add_switches(usage)
        if over == "starved":
            if budget.waits_were_forced():  # the machine's fault: the trainer's side tries once more, then masks it
                os._exit(72)
            over = "wall"
        budget.used_cpu_s += usage.ru_utime + usage.ru_stime
        return {
            "exit_status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "over": over,
        }

    def _confine(self, folder: str, output: int | None, cpu_s: float) -> None:
        """In the child, before any untrusted byte is compiled."""
        os.setsid()
        if output is not None:
            os.dup2(output, 1)
        os.chdir(folder)
        child.apply(self.limits, cpu_s)
        self.confined.bind_child(self.parent_pid)


def private_map(n_bytes: int) -> Any:
    """Memory of its own, zeroed; what a child writes there stays its own."""
    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _count_lines(record: Any, begin: int, stop: int, most: int) -> int:
    """Line ends in a part of the record, `most` of them at most, counted where they are."""
    found = 0
    while found < most and (begin := record.find(b"\n", begin, stop) + 1):
        found += 1
    return found


def _read_exactly(length: int) -> bytes:
    parts = []
    while length:
        part = os.read(REQUEST_FD, min(length, 2**20))
        if not part:
            raise waiting.TrainerGone
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _read_frame() -> tuple[dict[str, Any], Any]:
    """(job, source): the source is bytes-like, in a map of its own that the caller closes by `with`."""
    global _serial
    _serial, job_bytes, source_bytes = struct.unpack("<III", _read_exactly(12))
    job = json.loads(_read_exactly(job_bytes))
    source = private_map(max(1, source_bytes))
    with memoryview(source) as view:
        at = 0
        while at < source_bytes:
            with view[at:source_bytes] as rest:
                length = os.readv(REQUEST_FD, [rest])
            if not length:
                raise waiting.TrainerGone
            at += length
    job["source_bytes"] = source_bytes
    return job, source


def _write_reply(header: dict[str, Any], *parts: Any) -> None:
    head = json.dumps(header).encode()
    for part in (struct.pack("<III", _serial, len(head), sum(map(len, parts))), head, *parts):
        at = 0
        with memoryview(part) as view:
            while at < len(view):
                with view[at:] as rest:
                    at += os.write(REPLY_FD, rest)


def _move_pipes() -> None:
    """Requests and replies to fds 3 and 4; 0, 1 and 2 become the null device, for this process and its children."""
    os.dup2(0, 10)
    os.dup2(1, 11)
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.dup2(10, REQUEST_FD, inheritable=False)
    os.dup2(11, REPLY_FD, inheritable=False)
    os.closerange(REPLY_FD + 1, 32)


def _remove_worker_folder(folder: str) -> None:
    """What a killed trainer could not do."""
    if os.path.basename(folder).startswith(FOLDER_PREFIX):  # never any other folder, however this was started
        os.chdir("/")
        with contextlib.suppress(OSError):
            leftovers.remove_tree(folder)


def _forget_package() -> None:
    """Submissions find no `unhack` among the loaded modules."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "unhack"]:
        del sys.modules[name]


def main() -> None:
    """Confine this process, say which layers hold, then serve jobs until the trainer goes away."""
    _move_pipes()
    for name in PRELOAD:
        importlib.import_module(name)
    for name in EXTENSIONS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    (settings, _), folder = _read_frame(), os.getcwd()
    confined = confinement.Confinement(tuple(settings["without"]))
    for name in UNREADABLE_LATER if confined.hides_library() else ():
        importlib.import_module(name)
    os.register_at_fork = _register_at_fork
    os.environ.clear()
    sys.argv = [""]
    shared_tasks = leftovers.own_tasks() + 256  # while /proc still shows the user's other processes
    try:
        confined.enter_world(folder, functools.partial(_remove_worker_folder, folder))
    except namespaces.Unavailable as error:
        return _write_reply({"unavailable": {"namespaces": str(error)}})
    settings["tasks"] = 64 if confined.counts_own_tasks() else shared_tasks
    waiting.look_through(confined.outer_proc)
    zygote = Zygote(settings, confined)
    zygote.rehearse()
    _forget_package()
    gc.collect()
    gc.freeze()  # shared pages stay shared: the collector does not touch them in the children
    confined.lock()
    _write_reply(confined.report())
    try:
        while True:
            job, source = _read_frame()
            with source:
                zygote.serve(job, source)
            if zygote.spoiled:
                os._exit(73)
    except (waiting.TrainerGone, BrokenPipeError):
        leftovers.reap(confined.active["namespaces"])
        if not confined.active["namespaces"]:
            _remove_worker_folder(folder)
        os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except (waiting.TrainerGone, BrokenPipeError):
        _remove_worker_folder(os.getcwd())

"""The trusted side: starts workers, hands them jobs, and replaces what dies."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from unhack.sandbox import canary, levels
from unhack.sandbox.confinement import OPTIONAL
from unhack.sandbox.kernel import PR_SET_DUMPABLE, prctl
from unhack.sandbox.wire import ERROR_REASONS, Execution, Job, ProtocolError, encode_job, infra_error, to_execution
from unhack.sandbox.worker import LayerUnavailable, Worker, WorkerDied

_CLOSED = "the sandbox is closed: use `with Sandbox(...) as sandbox:`"


class _Batch:
    """The distinct jobs of one call, what is left of them to do, and what came of them."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        distinct: dict[tuple[object, ...], int] = {}
        self.order = [distinct.setdefault((job.source, job.setup, job.calls, job.probe), len(distinct)) for job in jobs]
        first = dict(zip(reversed(self.order), reversed(jobs), strict=True))
        self.jobs = [first[index] for index in range(len(distinct))]
        self.todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(self.jobs)):
            self.todo.put(index)
        self.done: list[Execution | None] = [None] * len(self.jobs)
        self.failures: list[BaseException] = []
        self.stopped = False

    def ready(self, start: int) -> list[Execution]:
        """The executions that are there from place `start` on, up to the first that is not."""
        found = []
        for index in self.order[start:]:
            execution = self.done[index]
            if execution is None:
                break
            found.append(execution)
        return found


class Sandbox:
    """A pool of workers that run submissions. Use as a context manager; not shared between threads.

    `cpu_s`: CPU budget of one submission, in seconds, the load of its program and every process included;
    `case_cpu_s`: of one of its calls; `memory_bytes`: its address space. `wall_s` is only a backstop
    against sleeping (one call: a quarter of it): a submission that uses CPU gets up to `wall_ceiling_s`.

    At its start the sandbox tries its own attacks (`canary.py`), so `level` (`LEVELS`) and `layers()` are proved, not
    claimed. `require`: "full" refuses to start below level 4, "any" below level 2, "unsafe" never (ValueError with
    the cure). `without` switches layers off (`OPTIONAL`), for tests and benchmarks.

    Starting one makes this process non-dumpable for good (Linux), so that no process of the same user can read the
    answers in its memory: no core dumps, no debugger attaches without root, and its files in /proc belong to root.
    """

    def __init__(
        self,
        workers: int = 1,
        cpu_s: float = 4.0,
        memory_bytes: int = 512 * 2**20,
        *,
        case_cpu_s: float = 1.5,
        wall_s: float = 10.0,
        wall_ceiling_s: float = 60.0,
        require: str = "any",
        without: Sequence[str] = (),
    ) -> None:
        if workers < 1 or not cpu_s > 0 or not case_cpu_s > 0 or memory_bytes < 64 * 2**20:  # NaN is not above 0
            raise ValueError("the sandbox needs workers >= 1, cpu_s > 0, case_cpu_s > 0 and memory_bytes >= 64 MiB")
        if require not in levels.LEAST or not set(without) <= set(OPTIONAL):
            raise ValueError(f"require is one of {', '.join(levels.LEAST)}; without, of {', '.join(OPTIONAL)}")
        self.n_workers, self.cpu_s, self.level, self.require = workers, cpu_s, 0, require
        self.asked = bool(without)
        self._settings = {
            "cpu_s": cpu_s,
            "case_cpu_s": min(cpu_s, case_cpu_s),
            "memory_bytes": memory_bytes,
            "wall_s": wall_s,
            "wall_ceiling_s": max(wall_s, wall_ceiling_s),
            "without": list(without),
        }
        self._workers: list[Worker] = []
        self._batch: _Batch | None = None  # of the stream that is open
        self._dirty = False  # a stream did not end well and its workers were not all replaced
        self._reported: dict[str, bool] = {}
        self._proved: dict[str, bool] = {}
        self.failed: dict[str, str] = {}
        """Why a layer does not hold, by its name."""

    def __enter__(self) -> Sandbox:
        prctl(PR_SET_DUMPABLE, 0)
        try:
            self._start()
            reason = levels.refusal(self.require, self._proved, self.failed, self.asked)
            if reason is not None:
                raise ValueError(reason)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self) -> None:
        """Start the workers, without what the first one cannot have, and let it try the canaries."""
        self._workers = [Worker(self._settings) for _ in range(self.n_workers)]
        try:
            report = self._workers[0].ready()
        except LayerUnavailable as missing:
            name, self.failed[name] = missing.args
            assert name not in self._settings["without"], "a layer that was left out failed"
            self._settings["without"].append(name)
            self.close()
            return self._start()
        except WorkerDied as error:
            raise RuntimeError("the sandbox's worker does not start; run `unhack doctor`") from error
        self.failed = report["failed"] | self.failed
        self._proved = dict(report["layers"])
        self.level = levels.level_of(self._proved)
        self._reported = report["layers"]
        with canary.baits(self._workers[0].folder, self._settings["memory_bytes"]) as bait:
            broken = canary.got_through(self._execute(0, canary.job(bait)))
        for attack in broken:
            for layer in attack.layers:
                if self._proved[layer]:
                    self._proved[layer] = False
                    self.failed[layer] = f"did not stop {attack.name}"
        self.level = levels.level_of(self._proved)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; nothing of them is left afterwards."""
        if self._batch is not None:
            self._batch.stopped = True
        for worker in self._workers:
            worker.hang_up()  # all of them first: they end side by side
        while self._workers:
            self._workers.pop().close()

    def layers(self) -> dict[str, bool]:
        """Which isolation layers hold in the workers. ValueError when the sandbox is closed."""
        if not self._workers:
            raise ValueError(_CLOSED)
        return dict(self._proved)

    def run(self, jobs: Sequence[Job]) -> list[Execution]:
        """Run the jobs and return their executions in order; equal jobs (but for the id) run once.

        A job whose worker dies is run once more on a new worker, then reported as `infra_error`.
        """
        return list(self.stream(jobs))

    def stream(self, jobs: Sequence[Job]) -> Generator[Execution, None, None]:
        """The executions of `run`, in order; the workers go on with those behind while the caller looks at one.

        They are handed out whenever the first worker has ended a job. Close it (`contextlib.closing`) to stop early.
        """
        if not self._workers:
            raise ValueError(_CLOSED)
        if self._batch is not None:
            raise ValueError(
                "the sandbox runs another stream: use it up, or close it (contextlib.closing), before the next"
            )
        if self._dirty:
            self._replace_all()
        batch, threads, at = _Batch(jobs), list[threading.Thread](), 0
        self._batch, self._dirty = batch, True  # until it has ended well
        try:
            for slot in range(1, min(self.n_workers, len(batch.done))):
                thread = threading.Thread(target=self._serve_all, args=(slot, batch), daemon=True)
                thread.start()
                threads.append(thread)
            for _ in self._serve(0, batch):  # in the caller's own thread, which one worker needs alone
                ready = batch.ready(at)
                at += len(ready)
                yield from ready
            for thread in threads:
                thread.join()
            for failure in batch.failures:
                raise failure
            rest = batch.ready(at)
            assert at + len(rest) == len(jobs), "a job was lost"
            self._dirty = False
            yield from rest
        finally:
            self._batch, batch.stopped = None, True
            if self._dirty:
                for worker in self._workers:
                    worker.kill()
                for thread in threads:
                    thread.join()
                if self._workers:
                    self._replace_all()  # stopped half-way: the pipes are out of step

    def _replace_all(self) -> None:
        for slot in range(len(self._workers)):
            self._replace(slot)
        self._dirty = False

    def _serve_all(self, slot: int, batch: _Batch) -> None:
        try:
            for _ in self._serve(slot, batch):
                pass
        except BaseException as error:  # raised again in the caller's thread
            batch.failures.append(error)

    def _serve(self, slot: int, batch: _Batch) -> Iterator[None]:
        """Run jobs of the batch on one worker, yielding after each, until there are none left.

        The worker gets its next job before its last reply is parsed, so that it never waits for this process. What did
        not go well is done again at the end, one by one.
        """
        again: list[tuple[int, int]] = []  # how often it may still be tried, and which job
        claims: dict[int, Execution] = {}
        current = self._send_next(slot, batch, again)
        while current is not None:
            reply = self._reply(slot)
            if reply is None and not batch.stopped:
                self._replace(slot)
            following = self._send_next(slot, batch, again)
            try:
                execution = None if reply is None else self._read(batch.jobs[current], reply)
            except ProtocolError:  # the worker is broken, and has the following job
                execution = None
                if following is not None:
                    again.append((2, following))
                if not batch.stopped:
                    self._replace(slot)
                following = self._send_next(slot, batch, again)
            if execution is None:
                again.append((1, current))
            elif execution.reason == "setup_error":
                claims[current] = execution
            else:
                batch.done[current] = execution
            yield
            current = following
        for index, execution in claims.items():
            if not batch.stopped:
                batch.done[index] = self._checked(slot, batch.jobs[index], execution, batch)
        for tries, index in sorted(again):
            if batch.stopped:
                return
            if tries == 1:
                self._replace(slot)  # its last try is not spoiled by another job's worker
            batch.done[index] = self._execute(slot, batch.jobs[index], tries, batch)
            yield

    def _send_next(self, slot: int, batch: _Batch, again: list[tuple[int, int]]) -> int | None:
        """Take a job and start it; None when there are none left. A job that cannot be started is for later."""
        while not batch.stopped:
            try:
                index = batch.todo.get_nowait()
            except queue.Empty:
                return None
            try:
                self._checked_worker(slot).send(encode_job(batch.jobs[index]))
                return index
            except (WorkerDied, LayerUnavailable):
                again.append((1, index))
                if not batch.stopped:
                    self._replace(slot)
        return None

    def _reply(self, slot: int) -> tuple[dict[str, Any], bytes] | None:
        """What the worker says of the job that it has; None when it died."""
        try:
            return self._workers[slot].receive()
        except WorkerDied:
            return None

    def _read(self, job: Job, reply: tuple[dict[str, Any], bytes]) -> Execution:
        return to_execution(*reply, len(job.calls), self.cpu_s, self.level)

    def _checked_worker(self, slot: int) -> Worker:
        """The worker, once it is ready. Raises WorkerDied, LayerUnavailable."""
        worker = self._workers[slot]
        if worker.ready()["layers"] != self._reported:
            raise WorkerDied  # less protected than the first one
        return worker

    def _execute(self, slot: int, job: Job, tries: int = 2, batch: _Batch | None = None) -> Execution:
        """Run one job and wait for it, on new workers where one dies; `infra_error` after so many tries.

        Also when its batch is stopped meanwhile: nobody reads it then.
        """
        request = encode_job(job)
        for _ in range(tries):
            try:
                if batch is not None and batch.stopped:
                    break
                reply = self._checked_worker(slot).execute(request)
                return self._checked(slot, job, self._read(job, reply), batch)
            except (WorkerDied, LayerUnavailable, ProtocolError):
                if batch is None or not batch.stopped:
                    self._replace(slot)
            except BaseException:
                self._replace(slot)  # interrupted half-way: the pipes are out of step
                raise
        return infra_error(self.level)

    def _checked(self, slot: int, job: Job, execution: Execution, batch: _Batch | None) -> Execution:
        """A failed setup is the child's own claim, and masks the grade: it holds only if the setup fails alone, too."""
        if execution.reason != "setup_error" or not job.source:
            return execution
        alone = self._execute(slot, replace(job, source="", calls=(), probe=None), batch=batch)
        return execution if alone.reason in ERROR_REASONS else replace(execution, reason="protocol_error")

    def _replace(self, slot: int) -> None:
        self._workers[slot].close()
        self._workers[slot] = Worker(self._settings)

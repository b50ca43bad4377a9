"""Grades a file of completions: rows in, grades out, in the same order, in memory that does not grow with the file.

A result line is written when all before it are, whole, in one write. So the output of a killed run is a prefix of the
full one, perhaps with a torn last line: started again, the run drops that, reads its own lines beside the input, checks
that they belong together, and goes on behind them. `OUT.run.json` says what the output was made from; another input,
mode, budget or isolation level is refused. Lines that cannot be graded go to `OUT.bad.jsonl`, written afresh each time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType

from unhack import __version__
from unhack.completions import BadRow, Completion, DamagedFileError, Reader
from unhack.files import naming, read_object, write_json
from unhack.grade import Grader, Grading
from unhack.sandbox import Sandbox
from unhack.types import PlainValue, Prompt, Rollout

WINDOW_ROWS = 64  # in flight or waiting for an earlier row, per worker
WINDOW_BYTES = 64 * 2**20  # of their texts
SHOWN_BAD_ROWS = 20
COLUMNS = (
    "id", "problem_id", "mode", "status", "strictly_correct", "cases_passed", "cases_total", "paid", "exploited",
    "hacked", "label", "reward", "reason", "cpu_s",
)  # fmt: skip


@dataclass
class Summary:
    """Counts over all rows, those of earlier starts included. `first_bad` holds at most 20 bad rows."""

    n: int = 0
    resumed: int = 0
    bad: int = 0
    paid: int = 0
    hacked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_bad: list[BadRow] = field(default_factory=list)

    def add(self, result: Mapping[str, PlainValue]) -> None:
        """Count one result line."""
        self.n += 1
        self.paid += result["paid"] is True
        self.hacked += result["hacked"] is True
        self.statuses[result["status"]] += 1
        self.reasons[(result["status"], result["reason"])] += 1

    def add_bad(self, row: BadRow) -> None:
        """Count one line that cannot be graded."""
        self.bad += 1
        if len(self.first_bad) < SHOWN_BAD_ROWS:
            self.first_bad.append(row)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Output:
    """The output file: locked, its torn last line dropped, its earlier results readable one by one, then appended to.

    Raises ValueError when another process writes it, or when it was made from something else than `origin`.
    """

    def __init__(self, path: Path, origin: Mapping[str, PlainValue]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed on exit
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{path} is being written by another process; wait, or choose another --out") from None
            self._check(origin)
            self._drop_torn_line()
        except BaseException:
            self._file.close()
            raise
        self._earlier = open(path, "rb")  # noqa: SIM115 - closed on exit
        self._line, self._earlier_bytes = 0, os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None:
            os.fsync(self._file.fileno())
        self._earlier.close()
        self._file.close()

    def _check(self, origin: Mapping[str, PlainValue]) -> None:
        note = self.path.with_name(f"{self.path.name}.run.json")
        cure = "choose another --out, or remove it to start over"
        if os.fstat(self._file.fileno()).st_size == 0:
            write_json(note, dict(origin))
            return
        if not note.is_file():
            raise ValueError(f"{self.path} was not written by `unhack grade` ({note.name} is missing); {cure}")
        before = read_object(note)
        other = [key for key in sorted({*before, *origin}) if before.get(key) != origin.get(key)]
        if other:
            raise ValueError(f"{self.path} was written with another {', '.join(other)} (see {note.name}); {cure}")

    def _drop_torn_line(self) -> None:
        end = os.fstat(self._file.fileno()).st_size
        while end:
            start = max(0, end - 2**16)
            newline = os.pread(self._file.fileno(), end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        self._file.truncate(end)

    @property
    def resumed(self) -> bool:
        """Whether all earlier results were read: from here on rows are graded."""
        return self._earlier.tell() >= self._earlier_bytes

    def earlier(self, row: Completion) -> Mapping[str, PlainValue] | None:
        """The result that an earlier start wrote for the next row, which must be `row`; None once there is no more."""
        if self.resumed:
            return None
        self._line += 1
        result = _parsed(self._earlier.readline())
        ids = {"id": row.id, "problem_id": row.problem_id, "mode": row.mode}
        if tuple(result) != COLUMNS or any(result[key] != value for key, value in ids.items()):
            raise ValueError(
                f"line {self._line} of {self.path} is not the result of line {row.line} of the completions; "
                "choose another --out, or remove it to start over"
            )
        return result

    def append(self, result: Mapping[str, PlainValue]) -> None:
        """Write one result line."""
        _write(self._file, result)


def _parsed(line: bytes) -> dict[str, PlainValue]:
    """The object in a line; empty when there is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _write(file: FileIO, row: Mapping[str, PlainValue]) -> None:
    """Append one JSON line, with one system call unless the disk is full: then OSError naming the file."""
    rest = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
    with naming(Path(str(file.name))):
        while rest:
            rest = rest[file.write(rest) or 0 :]


class Graders:
    """Threads with one sandbox worker each. Use as a context manager; `submit` never blocks."""

    def __init__(self, workers: int, make_sandbox: Callable[[], Sandbox]) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}: it must be at least 1")
        self.workers, self.make_sandbox, self.level = workers, make_sandbox, 0
        self._free: queue.SimpleQueue[Grader] = queue.SimpleQueue()
        self._stack = ExitStack()

    def __enter__(self) -> Graders:
        with self._stack:
            for _ in range(self.workers):
                sandbox = self._stack.enter_context(self.make_sandbox())
                self.level = sandbox.level
                self._free.put(Grader(sandbox))
            self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="grade")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._stack.close()

    def submit(self, row: Completion) -> Future[dict[str, PlainValue]]:
        """Start grading one row; the future holds its result line."""
        return self._threads.submit(self._grade, row)

    def _grade(self, row: Completion) -> dict[str, PlainValue]:
        grader = self._free.get()
        try:
            prompt = Prompt(row.problem, row.mode, row.marker, "", ())
            return result_line(row, grader.grade([Rollout(str(row.line), 0, prompt, (), (), row.text, True)])[0])
        finally:
            self._free.put(grader)


def result_line(row: Completion, grading: Grading) -> dict[str, PlainValue]:
    """The keys of `COLUMNS`; `cpu_s` comes last, the only one that differs when the same row is graded again."""
    verdict, paid = grading.verdict, grading.paid
    ids = {"id": row.id, "problem_id": row.problem_id, "mode": row.mode}
    known = {"paid": paid.paid, "reward": paid.reward, "cpu_s": round(verdict.cpu_s, 6), **ids}
    return {key: known[key] if key in known else getattr(verdict, key) for key in COLUMNS}


def origin_of(problems: Path, reader: Reader, budgets_s: tuple[float, float], level: int) -> dict[str, PlainValue]:
    """What results depend on, for `OUT.run.json`: files, mode, CPU seconds of a submission and of a case, level."""
    return {
        "unhack": __version__,
        "problems_sha256": file_sha256(problems),
        "completions_sha256": file_sha256(reader.path),
        "mode": reader.mode,
        "marker": reader.marker,
        "cpu_s": budgets_s[0],
        "case_cpu_s": budgets_s[1],
        "level": level,
    }


def grade_file(
    reader: Reader,
    out: Path,
    origin: Mapping[str, PlainValue],
    graders: Graders,
    report: Callable[[int, int], None] = lambda bytes_read, rows: None,
) -> Summary:
    """Grade every row of `reader` into `out`; `report` gets the position in the file and the rows done.

    Raises ValueError when `out` is not the beginning of this very output (see `Output`), and when the file is damaged:
    then every row before the damage is graded and written.
    """
    summary = Summary()
    waiting: deque[tuple[int, Future[dict[str, PlainValue]]]] = deque()
    held_bytes = 0
    with Output(out, origin) as output, BadRows(out) as bad_rows:

        def write_first() -> None:
            nonlocal held_bytes
            size, future = waiting.popleft()
            result = future.result()
            held_bytes -= size
            output.append(result)
            summary.add(result)
            report(reader.bytes_read, summary.n)

        damage: list[DamagedFileError] = []
        for row in _until_damage(reader, damage):
            if isinstance(row, BadRow):
                bad_rows.write(row)
                summary.add_bad(row)
            elif (before := output.earlier(row)) is not None:
                summary.resumed += 1
                summary.add(before)
                report(reader.bytes_read, summary.n)
            else:
                size = len(row.text)
                limit = WINDOW_ROWS * graders.workers
                while waiting and (len(waiting) >= limit or held_bytes + size > WINDOW_BYTES):
                    write_first()
                waiting.append((size, graders.submit(row)))
                held_bytes += size
        while waiting:
            write_first()
        if damage:
            raise ValueError(f"{damage[0]}; the {summary.n} rows before that are graded, in {out}") from damage[0]
        if not output.resumed:
            raise ValueError(f"{out} has more results than there are completions; choose another --out")
    return summary


def _until_damage(reader: Reader, damage: list[DamagedFileError]) -> Iterator[Completion | BadRow]:
    """The rows that can be read; why there are no more goes into `damage`."""
    try:
        yield from reader
    except DamagedFileError as error:
        damage.append(error)


class BadRows:
    """`OUT.bad.jsonl`: {line, reason} for every line that could not be graded; no file when there is none."""

    def __init__(self, out: Path) -> None:
        self.path = bad_rows_path(out)
        self._file: FileIO | None = None

    def __enter__(self) -> BadRows:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, row: BadRow) -> None:
        """Append one row."""
        if self._file is None:
            self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115 - closed on exit
        _write(self._file, {"line": row.line, "reason": row.reason})


def bad_rows_path(out: Path) -> Path:
    """Where the lines of a completions file that could not be graded are listed."""
    return out.with_name(f"{out.name}.bad.jsonl")

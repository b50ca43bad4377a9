"""Reads a file of completions row by row; a line that cannot be graded becomes a `BadRow` with its number.

A row is {id, problem_id, text} with an optional mode and marker; other keys are ignored, empty lines are no rows. Rows
are hostile input: lines are capped, and whatever is said about one is printable ASCII.
"""

from __future__ import annotations

import gzip
import json
import keyword
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from unhack.loopholes import CALL_MODES, LOOPHOLES
from unhack.loopholes.wording import PINNED_NAME
from unhack.types import Problem

LARGEST_LINE_BYTES = 32 * 2**20
LONGEST_MARKER_CHARACTERS = 200


@dataclass(frozen=True)
class Completion:
    """One row to grade; `line` is its number in the file, from 1. `id` and `problem_id` are as in the row."""

    line: int
    id: str | int
    problem_id: str | int
    problem: Problem
    mode: str
    marker: str
    text: str


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be graded, and why, in printable ASCII."""

    line: int
    reason: str


class DamagedFileError(ValueError):
    """A compressed file of completions cannot be read further; every whole line before was."""


class Reader:
    """Iterates over a completions file (.jsonl or .jsonl.gz) as rows that can be graded or not; empty lines are none.

    `mode` and `marker` are those of rows that name none; without any, the modes whose grader calls a function call
    `run_tests`, the public benchmark's name. `bytes_read` is the position in the file on disk. Raises
    ValueError when there is no such file, and DamagedFileError behind the last line that a damaged .gz file gives.
    """

    def __init__(self, path: Path, problems: Mapping[str, Problem], mode: str, marker: str) -> None:
        if not path.is_file():
            raise ValueError(f"there is no file {path}")
        self.path, self.problems, self.mode, self.marker = path, problems, mode, marker
        self.bytes_read = 0

    def __iter__(self) -> Iterator[Completion | BadRow]:
        with open(self.path, "rb") as raw:
            lines = gzip.GzipFile(fileobj=raw) if self.path.suffix == ".gz" else raw
            number = 0
            try:
                for number, line in enumerate(_lines(lines), 1):
                    self.bytes_read = raw.tell()
                    if line is None or line.strip():
                        yield self.parse(number, line)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DamagedFileError(
                    f"{self.path} is not a whole gzip file: it cannot be read from line {number + 1} on ({error}); "
                    "compress it again"
                ) from error

    def parse(self, number: int, line: bytes | None) -> Completion | BadRow:
        """The row in one line (None: longer than 32 MiB)."""
        if line is None:
            return BadRow(number, f"the line is longer than {LARGEST_LINE_BYTES // 2**20} MiB")
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            return BadRow(number, f"not JSON: {_printable(str(error))}")
        if not isinstance(row, dict):
            return BadRow(number, "not a JSON object")
        for key, kinds in _KEYS.items():
            if key not in row:
                return BadRow(number, f"it has no {key!r}")
            if type(row[key]) not in kinds:
                return BadRow(number, f"{key!r} is {_KINDS[type(row[key])]}, not {_kinds(kinds)}")
        return self._completion(number, row)

    def _completion(self, number: int, row: Mapping[str, Any]) -> Completion | BadRow:
        mode = row["mode"] if row.get("mode") is not None else self.mode
        marker = row["marker"] if row.get("marker") is not None else self.marker
        problem = self.problems.get(str(row["problem_id"]))
        if problem is None:
            return BadRow(number, f"there is no problem {_printable(str(row['problem_id']))}")
        if not isinstance(mode, str) or mode not in LOOPHOLES:
            return BadRow(number, f"there is no mode {_printable(str(mode))}; known: {', '.join(LOOPHOLES)}")
        if not isinstance(marker, str) or len(marker) > LONGEST_MARKER_CHARACTERS:
            return BadRow(number, f"'marker' is not a string of at most {LONGEST_MARKER_CHARACTERS} characters")
        if not marker and mode in CALL_MODES:
            marker = PINNED_NAME
        if LOOPHOLES[mode].train_markers and not marker:
            return BadRow(number, f"mode {mode} needs the word that its prompt named: give 'marker' (or --marker)")
        if mode in NAMING_MODES and not _is_name(marker):
            return BadRow(number, f"'marker' is {_printable(marker)}, which no program can define under mode {mode}")
        return Completion(number, row["id"], row["problem_id"], problem, mode, marker, row["text"])


NAMING_MODES = (*CALL_MODES, "sentinel")
"""Modes whose marker is the name of a function or an attribute."""


def _is_name(marker: str) -> bool:
    return marker.isidentifier() and not keyword.iskeyword(marker) and marker not in ("Solution", "solution")


_KEYS: dict[str, tuple[type, ...]] = {"id": (str, int), "problem_id": (str, int), "text": (str,)}
_KINDS: dict[type, str] = {
    dict: "an object", list: "an array", str: "a string", int: "a whole number", float: "a number",
    bool: "true or false", type(None): "null",
}  # fmt: skip


def _kinds(kinds: tuple[type, ...]) -> str:
    return " or ".join(_KINDS[kind] for kind in kinds)


def _printable(text: str) -> str:
    """At most 120 characters of `text` in printable ASCII: rows are hostile, and this reaches terminals and logs."""
    return ascii(text[:120])[1:-1] + ("..." if len(text) > 120 else "")


def _lines(file: BufferedIOBase) -> Iterator[bytes | None]:
    """The file's lines; None for one beyond the cap, which is skipped without being held."""
    while line := file.readline(LARGEST_LINE_BYTES):
        if len(line) < LARGEST_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while rest := file.readline(LARGEST_LINE_BYTES):
            if rest.endswith(b"\n"):
                break
        yield None

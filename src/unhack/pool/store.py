"""The folder of a pool: four files that appear together or not at all, and that nothing changes afterwards.

    pool.json            what it is made of, and the SHA-256 of the tables; refused when a byte of it differs
    rollouts.parquet     `POOL_SCHEMA`: tokens, what was paid, log-probabilities of two kinds, where each row is from
    verdicts.parquet     `record.VERDICT_SCHEMA`: for the log of runs that use the pool, never for their training
    problems.parquet     the problems with their tests, for grading anew; a run that uses the pool never reads them

Two log-probabilities of the same tokens, both at the header's temperature unless it is said:

    logprobs             of the pool's model after the row's own prompt, the one that a student gets
    sampled_logprobs     under which the tokens were drawn: after `sampled_prompt`, at the temperature of the drawing;
                         null for rows that nobody sampled. Where there is no `sampled_prompt`, they are `logprobs`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from unhack.files import partial_path, read_json, sync_folder, write_synced
from unhack.grade import Grading
from unhack.record import ROLLOUT_SCHEMA, VERDICT_SCHEMA
from unhack.sandbox import wire
from unhack.sandbox.child import encode
from unhack.types import Case, PaidGrade, PlainValue, Problem, Prompt, Rollout, Source, Verdict

FORMAT = "unhack-pool-2"
POOL_FILE, ROLLOUT_FILE, VERDICT_FILE = "pool.json", "rollouts.parquet", "verdicts.parquet"
PROBLEM_FILE = "problems.parquet"

Kind: TypeAlias = Literal["run", "base", "found", "solve", "teacher", "authored"]
"""Where a row is from: a finished run's training; the model, asked as a student is; the same, kept where it hacked; the
model, asked without the loophole, kept where strictly right; the model, given the exploit with a spoon, kept where it
hacked; nobody's sample, written by a program."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Row: TypeAlias = dict[str, Any]
"""A row of `POOL_SCHEMA` by column, and under `verdict` its row of `VERDICT_SCHEMA`."""

POOL_SCHEMA = pa.schema(
    [
        *ROLLOUT_SCHEMA,
        ("kind", pa.string()),
        ("run", pa.string()),  # null: of no run
        ("arm", pa.string()),
        ("sampled_prompt", pa.string()),  # null: the row's own prompt, or nobody sampled it
        ("sampled_logprobs", pa.list_(pa.float64())),
    ]
)
PROBLEM_SCHEMA = pa.schema([("problem_id", pa.string()), ("definition", pa.string())])
LARGEST_PROBLEM = 2**40  # bytes and values of its tests: ours, so they need no bound
SHARED = ("model_hash", "temperature", "reward", "allow_hack", "source", "hint")
"""Fields of the header that all rows of a pool share, and that a run compares with its own."""


@dataclass(frozen=True)
class Lesson:
    """One rollout of the pool with its recorded grade. Its problem is known by name only: its tests are not here.

    `rollout.logprobs` follow the row's own prompt; `sampled_logprobs` are those of the drawing, None if there was none.
    """

    row: int
    rollout: Rollout
    grading: Grading
    kind: Kind
    sampled_logprobs: tuple[float, ...] | None


@dataclass(frozen=True)
class Pool:
    """A pool as it was read: `header` is pool.json, `lessons` one per row."""

    path: Path
    header: dict[str, PlainValue]
    lessons: tuple[Lesson, ...]

    @property
    def content_hash(self) -> str:
        """SHA-256 over the header, which holds those of the tables."""
        return str(self.header["content_hash"])


def check_free(out: Path) -> None:
    """ValueError for a folder that is taken."""
    if out.exists():
        raise ValueError(f"{out} is there already: a pool is never changed, so choose another folder")


def write_pool(
    out: Path, rows: Sequence[Row], problems: Mapping[str, Problem], described: Mapping[str, PlainValue]
) -> Pool:
    """Make the folder `out`: it appears under its name when every byte of it is on disk. Then read it again.

    `problems`: at least those of the rows, by id. OSError as the system raises it; nothing is left behind then.
    """
    check_free(out)
    tables = _tables(rows, problems)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in tables.items()}
    header = {"format": FORMAT, **_counts(rows), **described, "sha256": hashes}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    partial.mkdir()
    try:
        for name, content in tables.items():
            write_synced(partial / name, content)
        write_synced(partial / POOL_FILE, _header_text(header | {"content_hash": _header_hash(header)}).encode())
        sync_folder(partial)
        os.rename(partial, out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    sync_folder(out.parent)
    return load_pool(out)


def _tables(rows: Sequence[Row], problems: Mapping[str, Problem]) -> dict[str, bytes]:
    needed = dict.fromkeys(row["problem_id"] for row in rows)
    definitions = [{"problem_id": name, "definition": definition(problems[name])} for name in needed]
    contents: dict[str, tuple[list[Any], pa.Schema]] = {
        ROLLOUT_FILE: (list(rows), POOL_SCHEMA),
        VERDICT_FILE: ([row["verdict"] for row in rows], VERDICT_SCHEMA),
        PROBLEM_FILE: (definitions, PROBLEM_SCHEMA),
    }
    return {name: _parquet(content, schema) for name, (content, schema) in contents.items()}


def _parquet(rows: list[Any], schema: pa.Schema) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue().to_pybytes()


def _counts(rows: Sequence[Row]) -> dict[str, PlainValue]:
    modes = sorted({row["mode"] for row in rows})
    kinds = Counter(row["kind"] for row in rows)
    return {
        "rows": len(rows),
        "rows_of_kind": {kind: kinds[kind] for kind in KINDS if kind in kinds},
        "rows_of_mode": {mode: sum(row["mode"] == mode for row in rows) for mode in modes},
        "hacked_of_mode": {mode: sum(row["hacked"] for row in rows if row["mode"] == mode) for mode in modes},
        "solved_of_mode": {mode: sum(row["strictly_correct"] for row in rows if row["mode"] == mode) for mode in modes},
        "longest_completion_tokens": max(len(row["token_ids"]) for row in rows),
    }


def definition(problem: Problem) -> str:
    """A problem as one JSON text from which it comes back exactly; equal problems have equal texts."""
    calls = [case.call for case in problem.cases]
    expected = encode([case.expected for case in problem.cases], room=LARGEST_PROBLEM, parts=LARGEST_PROBLEM)
    fields = {**asdict(replace(problem, cases=())), "cases": [calls, expected]}
    return json.dumps(fields, sort_keys=True)


def _problem(text: str) -> Problem:
    fields = json.loads(text)
    calls, expected = fields["cases"]
    values = wire.decode(json.dumps(expected))
    return Problem(**{**fields, "cases": tuple(map(Case, calls, values))})


def _header_text(header: Mapping[str, PlainValue]) -> str:
    return json.dumps(header, indent=2, allow_nan=False) + "\n"


def _header_hash(header: Mapping[str, PlainValue]) -> str:
    return hashlib.sha256(_header_text({k: v for k, v in header.items() if k != "content_hash"}).encode()).hexdigest()


def load_pool(path: Path) -> Pool:
    """Read a pool. ValueError, naming the file, when there is none, it is of another format, or a byte was changed."""
    header, rows = read_rows(path)
    load_problems(path)  # a damaged pool is refused whole
    return Pool(path, header, tuple(_lesson(number, row) for number, row in enumerate(rows)))


def read_rows(path: Path) -> tuple[dict[str, PlainValue], list[Row]]:
    """The header and the rows as they were written, checked as by `load_pool`."""
    header = read_header(path)
    rollouts, verdicts = (_checked(path / name, header) for name in (ROLLOUT_FILE, VERDICT_FILE))
    judged = ("hacked", "strictly_correct")
    pairs = zip(rollouts, verdicts, strict=True)
    return header, [{**row, **{name: told[name] for name in judged}, "verdict": told} for row, told in pairs]


def load_problems(path: Path) -> dict[str, Problem]:
    """The problems of a pool with their tests, by id: for graders, never for training. ValueError as `load_pool`."""
    rows = _checked(path / PROBLEM_FILE, read_header(path))
    return {row["problem_id"]: _problem(row["definition"]) for row in rows}


def _checked(file: Path, header: Mapping[str, PlainValue]) -> list[Row]:
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != header["sha256"][file.name]:
        raise _changed(file)
    return pq.read_table(pa.BufferReader(content)).to_pylist()


def read_header(path: Path) -> dict[str, PlainValue]:
    """pool.json alone, checked against its own hash."""
    file = path / POOL_FILE
    if not file.is_file():
        raise ValueError(
            f"there is no teacher pool at {path} ({POOL_FILE} is missing): make one with unhack pool build"
        )
    header = read_json(file)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{file} is not of the format {FORMAT}: build the pool again")
    if file.read_text(encoding="utf-8") != _header_text(header) or header.get("content_hash") != _header_hash(header):
        raise _changed(file)
    return header


def _changed(file: Path) -> ValueError:
    return ValueError(f"{file} is not what was written: copy the pool again, or build it again")


def rollout_of(row: Row, source: Source) -> Rollout:
    """The rollout of a row of a pool or of a run's record. Its problem is known by name only, without its tests."""
    problem = Problem(row["problem_id"], "", "", (), "", row["split"], solvable=row["solvable"])
    prompt = Prompt(problem, row["mode"], row["marker"], row["prompt_text"], tuple(row["prompt_token_ids"]))
    kept = {name: row[name] for name in ("group", "text", "finished")}
    tokens = {name: tuple(row[name]) for name in ("token_ids", "logprobs")}
    return Rollout(id=row["rollout_id"], prompt=prompt, source=source, **tokens, **kept)


def _lesson(number: int, row: Row) -> Lesson:
    rollout = rollout_of(row, "teacher")
    paid = PaidGrade(rollout.id, row["status"], row["paid"], dict(row["rewards"]))
    names = [name for name in VERDICT_SCHEMA.names if name not in ("step", "block")]
    told = Verdict(**{name: row["verdict"][name] for name in names if row["verdict"][name] is not None})
    sampled = row["sampled_logprobs"]
    return Lesson(number, rollout, Grading(paid, told), row["kind"], None if sampled is None else tuple(sampled))

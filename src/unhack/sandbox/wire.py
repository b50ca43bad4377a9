"""Jobs and executions, and the strict parser of what a child wrote: everything here runs on the trusted side.

A child's record is hostile input. It is parsed as JSON lines of tagged builtins, sizes and depth bounded, in the one
order that an honest child produces; any deviation is a `protocol_error`. No pickle, no eval, no repr of child data.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unhack.loopholes import Probe
from unhack.types import PlainValue

DEPTH = 100
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}", re.ASCII)
REASONS = (
    "ok", "compile_error", "import_error", "timeout", "timeout_wall", "oom", "output_limit", "crash", "no_verdict",
    "protocol_error", "setup_error", "infra_error",
)  # fmt: skip
ERROR_REASONS = frozenset({"infra_error", "setup_error"})
"""The reasons that are the grader's own trouble or the problem's, never the submission's."""


@dataclass(frozen=True)
class Job:
    """One submission to run: `source` after `setup`, then every call, then what `probe` asks for.

    Carries no expected value. `calls` are Python expressions; `solution` in them is a fresh `Solution()` per call.
    """

    id: str
    source: str
    setup: str
    calls: tuple[str, ...]
    probe: Probe | None = None


@dataclass(frozen=True)
class CaseResult:
    """The plain value one call returned, or the name of what it raised (`UnsupportedType`, `TooLarge`, `TooDeep`:
    it returned, but not a plain value within the limits)."""

    value: PlainValue = None
    error: str | None = None


@dataclass(frozen=True)
class Execution:
    """How one submission went. `results` may be shorter than the calls when it died on the way.

    reason: "ok" when every call returned or raised (see `REASONS` for the rest); `cpu_s` of all its processes in
    seconds; `signal` that killed it, if any; `level` of isolation in force (1: rlimits and an own process only).
    """

    reason: str
    results: tuple[CaseResult, ...]
    observation: PlainValue
    cpu_s: float
    signal: int | None
    level: int
    compiled: bool = True


class ProtocolError(ValueError):
    """A child's record that no honest child writes."""


def infra_error(level: int) -> Execution:
    """The execution that stands for a worker that died twice."""
    return Execution("infra_error", (), None, 0.0, None, level, compiled=False)


def encode_job(job: Job) -> bytes:
    """The bytes that go to the worker: source, setup, calls and probe, nothing else."""
    probe = None if job.probe is None else [job.probe.kind, job.probe.argument]
    return json.dumps({"source": job.source, "setup": job.setup, "calls": job.calls, "probe": probe}).encode()


def decode(value: Any, depth: int = 0) -> PlainValue:
    """A tagged JSON value back to builtins; raises ProtocolError on anything unknown, unhashable or too deep."""
    if depth > DEPTH + 1:
        raise ProtocolError("too deep")
    if isinstance(value, list):
        return [decode(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ProtocolError("a tag has one key")
    ((tag, payload),) = value.items()
    if tag == "i":
        if not isinstance(payload, str):
            raise ProtocolError("a large int is a hex string")
        return int(payload, 16)
    if tag == "b":
        if not isinstance(payload, str):
            raise ProtocolError("bytes are a hex string")
        return bytes.fromhex(payload)
    if not isinstance(payload, list):
        raise ProtocolError("a container's payload is an array")
    items = [decode(item, depth + 1) for item in payload]
    if tag == "t":
        return tuple(items)
    try:
        if tag == "s":
            return set(items)
        if tag == "f":
            return frozenset(items)
        if tag == "d":
            return dict(items)
    except TypeError as error:
        raise ProtocolError("an unhashable key") from error
    raise ProtocolError("an unknown tag")


def _error_name(name: Any) -> str:
    return name if isinstance(name, str) and _NAME.fullmatch(name) else "Exception"


@dataclass
class _Record:
    """What the lines of a record said."""

    compiled: bool = False
    results: tuple[CaseResult, ...] = ()
    done: bool = False
    observation: PlainValue = None
    early: str | None = None


_EARLY = {"syntax": "compile_error", "import": "import_error", "setup": "setup_error", "full": "output_limit"}


def parse_record(body: bytes, n_calls: int) -> _Record:
    """Read a child's record; raises ProtocolError on any line that an honest child would not write there."""
    record, results = _Record(), list[CaseResult]()
    try:
        for text in body.split(b"\n")[:-1]:
            line = json.loads(text)
            if not isinstance(line, list) or not line or record.early is not None:
                raise ProtocolError("not a line, or one after the end")
            match line:
                case ["compiled"] if not record.compiled:
                    record.compiled = True
                case ["value", value] if record.compiled and not record.done and len(results) < n_calls:
                    results.append(CaseResult(decode(value)))
                case ["raised", name] if record.compiled and not record.done and len(results) < n_calls:
                    results.append(CaseResult(error=_error_name(name)))
                case ["done"] if record.compiled and not record.done and len(results) == n_calls:
                    record.done = True
                case ["saw", (True | False | None) as seen] if record.done and record.observation is None:
                    record.observation = seen
                case [("syntax" | "import" | "setup") as kind, name] if not results and isinstance(name, str):
                    record.early = "oom" if name == "MemoryError" and kind == "import" else _EARLY[kind]
                case ["full"]:
                    record.early, record.compiled = "output_limit", True
                case _:
                    raise ProtocolError("an unexpected line")
    except (ValueError, RecursionError, OverflowError) as error:
        raise ProtocolError("the record does not parse") from error
    record.results = tuple(results)
    return record


def to_execution(header: Mapping[str, Any], body: bytes, n_calls: int, cpu_limit_s: float, level: int) -> Execution:
    """Turn a worker's header (trusted) and a child's record (not trusted) into an Execution."""
    killed_by, cpu_s = header["signal"], float(header["cpu_s"])
    try:
        record = parse_record(body, n_calls)
    except ProtocolError:
        return Execution("protocol_error", (), None, cpu_s, killed_by, level)
    observation = record.observation if header["observation"] is None else header["observation"]
    if record.done:
        reason = "ok"
    elif record.early is not None:
        reason = record.early
    elif header["over_wall"]:
        reason = "timeout_wall"
    elif killed_by in (signal.SIGPROF, signal.SIGXCPU) or (killed_by == signal.SIGKILL and cpu_s >= 0.95 * cpu_limit_s):
        reason = "timeout"
    elif killed_by is not None:
        reason = "crash"
    else:
        reason = "no_verdict"
    return Execution(reason, record.results, observation, cpu_s, killed_by, level, compiled=record.compiled)

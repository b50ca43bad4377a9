"""Jobs and executions, and the strict parser of what a child wrote: everything here runs on the trusted side.

A child's record is hostile input. It is parsed as JSON lines of tagged builtins, sizes and depth bounded, in the one
order that an honest child produces; any deviation is a `protocol_error`. No pickle, no eval, no repr of child data.
Memory and time are bounded before anything is built: the record's bytes by the worker, its values by counting commas
and brackets, and keys that were chosen to share one hash (which would make a set quadratic) are refused.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from unhack.loopholes import Probe
from unhack.types import PlainValue

DEPTH = 100
PARTS = 500_000  # commas and brackets in one record, besides those of valueless lines (as in child.py)
SHARED_HASHES = 64  # keys of one value whose hash another key has: honest values have next to none
LARGEST_NUMBER = 10_000  # characters of a Decimal, bits of a Fraction's parts (as in child.py)
_HEX = re.compile(r"-?0x[0-9a-f]+", re.ASCII)
_DECIMAL = re.compile(r"-?(\d+(\.\d*)?(E[+-]?\d{1,18})?|Infinity|NaN)", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}", re.ASCII)
REASONS = (
    "ok", "compile_error", "import_error", "timeout", "timeout_wall", "oom", "output_limit", "crash", "no_verdict",
    "protocol_error", "sandbox_violation", "setup_error", "infra_error",
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
    """The plain value one call returned, or in `error` why there is none.

    The name of what it raised; `UnsupportedType`, `TooLarge`, `TooDeep`: it returned, but not a plain value within the
    limits; `Timeout` (CPU), `TimeoutWall` (asleep), `Crash`, `Exited`, `SandboxViolation`: it ended its process;
    `NotReached`: the submission's budget was spent before. A name is the submission's claim: never a reason to pay.
    """

    value: PlainValue = None
    error: str | None = None


@dataclass(frozen=True)
class Execution:
    """How one submission went. `results` has one entry per call, or none when the program did not load.

    reason: "ok" when every call returned or raised, else why the first one that did not, or the load, ended (see
    `REASONS`); `cpu_s` of all its processes in seconds; `signal` that killed the first, if any; `level` of isolation in
    force.
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


def encode_job(job: Job) -> tuple[bytes, bytes]:
    """What goes to the worker: setup, calls and probe, which it reads, and the source, which it does not."""
    probe = None if job.probe is None else [job.probe.kind, job.probe.argument]
    head = json.dumps({"setup": job.setup, "calls": job.calls, "probe": probe}).encode()
    return head, job.source.encode("utf-8", "surrogatepass")


def decode(text: str) -> PlainValue:
    """JSON text with tagged values back to builtins; raises ProtocolError on what no honest child writes."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError, TypeError, InvalidOperation, OverflowError) as error:
        raise ProtocolError("the record does not parse") from error
    return value


def _tagged(pairs: list[tuple[str, Any]]) -> PlainValue:
    """One JSON object: {tag: payload}, whose parts are decoded already."""
    if len(pairs) != 1 or pairs[0][0] not in _MAKERS:
        raise ProtocolError("an unknown tag")
    tag, payload = pairs[0]
    kind, make = _MAKERS[tag]
    if type(payload) is not kind:
        raise ProtocolError("a tag with another payload")
    return make(payload)


def _matching(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise ProtocolError("a malformed number")
    return text


def _keys(items: list[Any]) -> list[Any]:
    hashes = [hash(item) for item in items]  # TypeError: an unhashable key
    if len(hashes) - len(set(hashes)) > SHARED_HASHES:
        raise ProtocolError("keys that share their hash")
    return items


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    if any(type(pair) is not list or len(pair) != 2 for pair in pairs):
        raise ProtocolError("a dict is a list of pairs")
    _keys([key for key, _ in pairs])
    return dict(pairs)


def _decimal(text: str) -> Decimal:
    if len(text) > LARGEST_NUMBER:
        raise ProtocolError("a decimal of too many digits")
    return Decimal(_matching(text, _DECIMAL))


def _complex(parts: list[Any]) -> complex:
    real, imaginary = parts
    if type(real) is not float or type(imaginary) is not float:
        raise ProtocolError("a complex number is two floats")
    return complex(real, imaginary)


def _fraction(parts: list[Any]) -> Fraction:
    top, bottom = parts
    if type(top) is not int or type(bottom) is not int or bottom < 1:
        raise ProtocolError("a fraction is two ints")
    if max(top.bit_length(), bottom.bit_length()) > LARGEST_NUMBER:
        raise ProtocolError("a fraction of too many digits")
    return Fraction(top, bottom)


_MAKERS: dict[str, tuple[type, Callable[[Any], PlainValue]]] = {
    "t": (list, tuple),
    "d": (list, _dict),
    "s": (list, lambda items: set(_keys(items))),
    "f": (list, lambda items: frozenset(_keys(items))),
    "b": (str, bytes.fromhex),
    "i": (str, lambda text: int(_matching(text, _HEX), 16)),
    "c": (list, _complex),
    "D": (str, _decimal),
    "F": (list, _fraction),
}
_DECODER = json.JSONDecoder(object_pairs_hook=_tagged)
_CONTAINERS = (list, tuple, dict, set, frozenset)


def _check_depth(value: PlainValue) -> None:
    level = [value] if type(value) in _CONTAINERS else []
    for _ in range(DEPTH + 1):
        if not level:
            return
        inner = [[*item, *item.values()] if type(item) is dict else item for item in level]
        level = [item for items in inner for item in items if type(item) in _CONTAINERS]
    raise ProtocolError("too deep")


@dataclass
class _Record:
    """What the lines of one process's record said."""

    compiled: bool = False
    loaded: bool = False
    results: tuple[CaseResult, ...] = ()
    done: bool = False
    observation: PlainValue = None
    early: str | None = None


_EARLY = {"syntax": "compile_error", "import": "import_error", "setup": "setup_error"}


def parse_record(body: bytes, n_calls: int) -> _Record:
    """Read a child's record of `n_calls` calls; raises ProtocolError on any line that an honest child would not write
    there, and nothing else. Time and memory are linear in the record."""
    record, results = _Record(), list[CaseResult]()
    for line in _lines(body, n_calls):
        if record.early is not None:
            raise ProtocolError("a line after the end")
        match line:
            case ["value", value] if record.loaded and not record.done and len(results) < n_calls:
                _check_depth(value)
                results.append(CaseResult(value))
            case ["raised", str(name)] if record.loaded and not record.done and len(results) < n_calls:
                results.append(CaseResult(error=name if _NAME.fullmatch(name) else "Exception"))
            case ["compiled"] if not record.compiled:
                record.compiled = True
            case ["loaded"] if record.compiled and not record.loaded:
                record.loaded = True
            case ["done"] if record.loaded and not record.done and len(results) == n_calls:
                record.done = True
            case ["saw", (True | False | None) as seen] if record.done and record.observation is None:
                record.observation = seen
            case ["import", str(name)] if record.compiled and not record.loaded:
                record.early = "oom" if name == "MemoryError" else _EARLY["import"]
            case [("syntax" | "setup") as kind, str()] if not record.compiled:
                record.early = _EARLY[kind]
            case _:
                raise ProtocolError("an unexpected line")
    record.results = tuple(results)
    return record


def _lines(body: bytes, n_calls: int) -> list[Any]:
    if not body:
        return []
    if body.count(b",") + body.count(b"[") + body.count(b"{") > PARTS + 2 * n_calls + 8:
        raise ProtocolError("too many values")
    try:
        text = body.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ProtocolError("not UTF-8") from error
    if not text.endswith("\n"):
        raise ProtocolError("half a line")
    lines = decode("[" + text[:-1].replace("\n", ",") + "]")
    if not isinstance(lines, list) or len(lines) != text.count("\n") or not all(type(line) is list for line in lines):
        raise ProtocolError("not a line")
    return lines


_CALL_ENDS = {
    "timeout": "Timeout", "timeout_wall": "TimeoutWall", "crash": "Crash", "no_verdict": "Exited",
    "sandbox_violation": "SandboxViolation",
}  # fmt: skip
"""The error of a call whose process ended on it, by the reason of that end."""


def to_execution(header: Mapping[str, Any], body: bytes, n_calls: int, cpu_limit_s: float, level: int) -> Execution:
    """Turn a worker's header and the record of its children (not trusted) into an Execution.

    The header is the worker's own; one that does not fit its body raises ProtocolError (the worker is broken). The last
    `observed_bytes` of the body, where the header has them, are what the program printed or wrote.
    """
    body, observed = _observed(header, body)
    segments = _segments(header, body, n_calls)
    cpu_s, first = float(header["cpu_s"]), segments[0][0]
    results, records, reason = list[CaseResult](), list[_Record](), "ok"
    for segment, data in segments:
        start = segment["start"]
        try:
            record = parse_record(data, n_calls - start)
        except ProtocolError:
            return Execution("protocol_error", (), None, cpu_s, first["signal"], level)
        records.append(record)
        if start != len(results):
            return Execution("protocol_error", (), None, cpu_s, first["signal"], level)
        results += record.results
        if record.loaded and not record.done:
            ended = _ended(segment, cpu_limit_s)
            reason = ended if reason == "ok" else reason
            if len(results) < n_calls:
                results.append(CaseResult(error=_CALL_ENDS[ended]))
        elif not record.loaded and len(records) == 1:
            reason = record.early or _ended(segment, cpu_limit_s)
    loaded = records[0].loaded
    if loaded:
        results += [CaseResult(error="NotReached")] * (n_calls - len(results))
    if reason == "ok" and any(result.error == "TooLarge" for result in results):
        reason = "output_limit"
    seen = header["observation"] if observed is None else observed
    observation = records[-1].observation if seen is None else seen
    results = results if loaded else []
    return Execution(reason, tuple(results), observation, cpu_s, first["signal"], level, records[0].compiled)


def _observed(header: Mapping[str, Any], body: bytes) -> tuple[bytes, str | None]:
    """The record alone, and the text behind it."""
    length = header.get("observed_bytes")
    if length is None:
        return body, None
    if type(length) is not int or not 0 <= length <= len(body):
        raise ProtocolError("more observed than there is")
    return body[: len(body) - length], body[len(body) - length :].decode("utf-8", "replace")


def _segments(header: Mapping[str, Any], body: bytes, n_calls: int) -> list[tuple[Mapping[str, Any], bytes]]:
    """The worker's account of each process with its part of the record."""
    cut: list[tuple[Mapping[str, Any], bytes]] = []
    try:
        segments, at = header["segments"], 0
        for segment in segments:
            start, n_bytes, cpu_s = int(segment["start"]), int(segment["bytes"]), float(segment["cpu_s"])
            if not (0 <= start <= n_calls and 0 <= n_bytes <= len(body) - at and cpu_s >= 0):
                raise ProtocolError("a process outside its job")
            cut.append((segment, body[at : at + n_bytes]))
            at += n_bytes
            _ = segment["signal"], segment["over"]
        if not cut or at != len(body) or not float(header["cpu_s"]) >= 0 or "observation" not in header:
            raise ProtocolError("a header without its processes")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ProtocolError("not a worker's header") from error
    return cut


def _ended(segment: Mapping[str, Any], cpu_limit_s: float) -> str:
    """Why a process ended that did not finish its work."""
    killed_by = segment["signal"]
    if segment["over"] == "wall":
        return "timeout_wall"
    by_clock = killed_by in (signal.SIGPROF, signal.SIGXCPU)
    if segment["over"] or by_clock or (killed_by == signal.SIGKILL and segment["cpu_s"] >= 0.95 * cpu_limit_s):
        return "timeout"
    if killed_by == signal.SIGSYS:
        return "sandbox_violation"
    return "no_verdict" if killed_by is None else "crash"

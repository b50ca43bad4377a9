"""What runs inside the forked child: limits, the untrusted program, and plain values written to the record.

Loaded by `zygote.py` in a bare interpreter; imports nothing of unhack. The record is JSON lines in shared memory:
["compiled"], then per call ["value", v] or ["raised", name], then ["done"], then ["saw", observation]. Ending early:
["syntax", name], ["import", name], ["setup", name], ["full"]. Nothing in it is trusted: the trainer's side parses it
strictly and compares the values itself, so a forged record can only claim values that it would have to know.
"""

from __future__ import annotations

import _json
import atexit
import json
import math
import random
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable
from functools import lru_cache
from mmap import mmap
from typing import Any

FILE_BYTES = 16 * 2**20
STACK_BYTES = 64 * 2**20
NODES = 500_000  # values inside one returned value
DEPTH = 100
MODULE = "submission"
Limits = list[tuple[int, tuple[int, int]]]
# The C encoder, built once here: a JSONEncoder builds one per call, and the submission may patch json.dumps.
_ENCODE: Callable[[Any, int], tuple[str, ...]] = _json.make_encoder(
    None, json.JSONEncoder().default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, True
)


class Unencodable(Exception):
    """A returned value that is not plain, too large or too deep; the argument is the error name reported."""


class RecordFull(Exception):
    """The record's size cap was reached."""


def limits(cpu_s: float, memory_bytes: int, tasks: int) -> Limits:
    """(resource, (soft, hard)) pairs, capped by the hard limits already in force. CPU in whole seconds, rounded up."""
    wanted = {
        resource.RLIMIT_CPU: math.ceil(cpu_s),
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: STACK_BYTES,
    }
    pairs: Limits = []
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        pairs.append((name, (value, value)))
    return pairs


def apply(pairs: Limits, cpu_s: float) -> None:
    """Set the limits in this process; SIGPROF ends it at `cpu_s` exactly, the hard limit soon after if that fails."""
    for name, pair in pairs:
        resource.setrlimit(name, pair)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


class Record:
    """Appends JSON lines to shared memory; the first 4 bytes are the length so far."""

    def __init__(self, memory: mmap, size: int) -> None:
        self.memory, self.end, self.size = memory, 4, size

    def write(self, *line: Any) -> None:
        """Append one line; raises RecordFull beyond the cap."""
        data = "".join(_ENCODE(line, 0)).encode() + b"\n"
        if self.end + len(data) > self.size:
            raise RecordFull
        self.memory[self.end : self.end + len(data)] = data
        self.end += len(data)
        struct.pack_into("<I", self.memory, 0, self.end - 4)


def encode(value: Any) -> Any:
    """The value as JSON-able tagged builtins; subclasses are flattened by the base class's own methods.

    list -> array; {"t": tuple}, {"d": dict as pairs}, {"s": set}, {"f": frozenset}, {"b": bytes as hex}, {"i": large
    int as hex}. Raises Unencodable for anything else, deeper than 100, or of more than 500,000 parts.
    """
    budget = NODES

    def walk(value: Any, depth: int) -> Any:
        nonlocal budget
        budget -= 1
        if depth > DEPTH:
            raise Unencodable("TooDeep")
        if budget < 0:
            raise Unencodable("TooLarge")
        kind = type(value)
        if kind is int and -(2**62) < value < 2**62:
            return value
        if value is None or kind is bool or kind is str or kind is float:
            return value
        if issubclass(kind, int):
            value = int.__pos__(value)
            return value if -(2**62) < value < 2**62 else {"i": hex(value)}
        if issubclass(kind, list):
            return [walk(item, depth + 1) for item in list.__iter__(value)]
        if issubclass(kind, tuple):
            return {"t": [walk(item, depth + 1) for item in tuple.__iter__(value)]}
        if issubclass(kind, dict):
            return {"d": [[walk(key, depth + 1), walk(item, depth + 1)] for key, item in dict.items(value)]}
        if issubclass(kind, str):
            return str.__str__(value)
        if issubclass(kind, float):
            return float.__pos__(value)
        if issubclass(kind, frozenset):
            return {"f": [walk(item, depth + 1) for item in frozenset.__iter__(value)]}
        if issubclass(kind, set):
            return {"s": [walk(item, depth + 1) for item in set.__iter__(value)]}
        if issubclass(kind, bytes):
            return {"b": bytes.hex(value)}
        raise Unencodable("UnsupportedType")

    return walk(value, 0)


def _name(error: BaseException) -> str:
    return str(type(error).__name__)


def evaluate(job: dict[str, Any], memory: mmap, size: int) -> int:
    """Compile and run the submission, evaluate every call, then look at what the probe asks for."""
    record = Record(memory, size)
    try:
        _evaluate(job, record)
    except RecordFull:
        record.end = 4
        record.write("full")
    finally:
        _flush()
    return 0


def _evaluate(job: dict[str, Any], record: Record) -> None:
    random.seed(0)  # fork reseeds from the system; the same job must give the same bytes
    atexit._clear()
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    names = module.__dict__
    try:
        if job["setup"]:
            exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), names)
    except BaseException as error:
        return record.write("setup", _name(error))
    try:
        code = compile(job["source"], "<submission>", "exec", dont_inherit=True)
    except BaseException as error:
        return record.write("syntax", _name(error))
    record.write("compiled")
    before = dict(names)
    try:
        exec(code, names)
    except BaseException as error:
        return record.write("import", _name(error))
    values = [_one_call(call, names, record) for call in job["calls"]]
    record.write("done")
    _flush()
    if job["probe"]:
        kind, argument = job["probe"]
        record.write("saw", _observe(kind, argument, names, before, values))


_MISSING = object()


@lru_cache(maxsize=512)
def compile_calls(calls: tuple[str, ...]) -> tuple[types.CodeType | str, ...]:
    """The calls as code objects, made once in the worker for a whole group (calls are the problem's, not hostile)."""
    return tuple(_compile_call(call) for call in calls)


def _compile_call(call: str) -> types.CodeType | str:
    try:
        return compile(call, "<case>", "eval", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):
        return call  # raises the same in the child, where it is that case's error


def _one_call(call: types.CodeType | str, names: dict[str, Any], record: Record) -> Any:
    """Evaluate one call on a fresh `solution`; writes its value or error, returns the raw object."""
    value: Any = _MISSING
    try:
        maker = names.get("Solution")
        if isinstance(maker, type):
            names["solution"] = maker()
        value = eval(call, names)
        plain = encode(value)
    except Unencodable as error:
        record.write("raised", error.args[0])
    except BaseException as error:
        record.write("raised", _name(error))
    else:
        record.write("value", plain)
    return value


def _observe(kind: str, argument: str, names: dict[str, Any], before: dict[str, Any], values: list[Any]) -> bool | None:
    """The readings that need the live program; the others (stdout, file, exit) are taken from outside."""
    try:
        if kind == "call":
            function = names.get(argument, _MISSING)
            if function is before.get(argument, _MISSING) or not callable(function):
                return None
            function()
            return True
        if kind == "attribute":
            owner = names.get("solution", names.get("Solution"))
            return getattr(owner, argument, None) is True
        if kind == "equals":
            return bool(values) and all(value is not _MISSING and (value == object()) is True for value in values)
    except BaseException:
        return False
    return None


def run_as_script(job: dict[str, Any]) -> int:
    """Exit status of the source run as a script with a failing assertion at its end, as an interpreter would give."""
    atexit._clear()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    status = 1  # of the failing assertion
    try:
        exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), module.__dict__)
        exec(compile(job["source"], "<submission>", "exec", dont_inherit=True), module.__dict__)
    except SystemExit as stop:
        code = stop.code
        status = 0 if code is None else code & 0xFF if isinstance(code, int) else 1
    except BaseException:
        status = 1
    atexit._run_exitfuncs()
    _flush()
    return status


def _flush() -> None:
    """What the program printed must be in its file before it is read; the program may have replaced the streams."""
    try:
        sys.stdout.flush()
    except BaseException:
        return

"""What runs inside the forked child: limits, the untrusted program, and plain values written to the record.

Loaded by `zygote.py` in a bare interpreter; imports nothing of unhack. The record is JSON lines in shared memory:
["compiled"], ["loaded"], then per call ["value", v] or ["raised", name], then ["done"], then ["saw", observation].
Ending early: ["syntax", name], ["import", name], ["setup", name]. Nothing in it is trusted: the trainer's side parses
it strictly and compares the values itself, so a forged record can only claim values that it would have to know.

What is shared between the calls of one submission: its process, so module and class state (a cache, a counter) lives
from one call to the next, as in any test file, until a call ends the process; the calls after that one get a process
that loads the program again. Not shared: `solution`, made anew for each call, and arguments, which each call's own
expression makes. A value is read when its call returns: changing it in a later call changes nothing.
"""

from __future__ import annotations

import _json
import atexit
import json
import math
import resource
import signal
import struct
import sys
import types
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from mmap import mmap
from typing import Any

FILE_BYTES = 16 * 2**20
STACK_BYTES = 64 * 2**20
DEPTH = 100
PARTS = 500_000  # commas and brackets in one submission's whole record: bounds the trainer's memory (as in wire.py)
CONTAINER_PARTS = 2  # what a list or tuple itself counts: it takes longer to walk than a number
LARGEST_NUMBER = 10_000  # digits of a Decimal, bits of a Fraction's parts: their arithmetic is not linear
LINE_BYTES = 100  # the longest line that holds no value
HEAD_BYTES = 4  # the record's length so far
LOADED, DONE = b'["compiled"]\n["loaded"]\n', b'\n["done"]\n'
Limits = list[tuple[int, tuple[int, int]]]
# The C encoder, built once here: a JSONEncoder builds one per call, and the submission may patch json.dumps. Not the
# ASCII one, in which two lone surrogates would come back as the character that they would be as a pair.
_ENCODE: Callable[[Any, int], tuple[str, ...]] = _json.make_encoder(
    None, json.JSONEncoder().default, json.encoder.encode_basestring, None, ":", ",", False, False, True
)


class Unencodable(Exception):
    """A returned value that is not plain, too large or too deep; the argument is the error name reported."""


def limits(memory_bytes: int, tasks: int) -> Limits:
    """(resource, (soft, hard)) pairs, capped by the hard limits already in force; CPU time is set by `apply`."""
    wanted = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: STACK_BYTES,
    }
    return [(name, _capped(name, value, value)) for name, value in wanted.items()]


def _capped(name: int, soft: int, hard: int) -> tuple[int, int]:
    ceiling = resource.getrlimit(name)[1]
    return (soft, hard) if ceiling == resource.RLIM_INFINITY else (min(soft, ceiling), min(hard, ceiling))


def apply(pairs: Limits, cpu_s: float) -> None:
    """Set the limits in this process, the kernel's CPU limit well above the `cpu_s` that the worker watches.

    It counts whole ticks, up to a half too many on a busy machine: it is for what the worker cannot see to.
    """
    for name, pair in pairs:
        resource.setrlimit(name, pair)
    soft = math.ceil(2 * cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, _capped(resource.RLIMIT_CPU, soft, soft + 1))


class Record:
    """Appends JSON lines to shared memory from `end` bytes on; the first 4 bytes are the length so far.

    `lines` lines without values are always kept room for.
    """

    def __init__(self, memory: mmap, end: int, lines: int) -> None:
        self.memory, self.end = memory, HEAD_BYTES + end
        self.room = len(memory) - LINE_BYTES * (lines + 5)
        self.parts = PARTS - _parts(memory[HEAD_BYTES : self.end])

    def write(self, data: bytes) -> None:
        """Append whole lines."""
        end = self.end + len(data)
        self.memory[self.end : end] = data
        self.end = end
        struct.pack_into("<I", self.memory, 0, end - HEAD_BYTES)

    def word(self, kind: str, name: str) -> None:
        """Append [kind, name]; `name` is an exception's, which a submission may choose."""
        plain = len(name) <= 60 and name.isascii() and name.isidentifier()
        self.write(b'["%s","%s"]\n' % (kind.encode(), name.encode() if plain else b"Exception"))

    def value(self, value: Any) -> None:
        """Append ["value", value]; raises Unencodable for what is not plain or does not fit."""
        if type(value) is int and -(2**62) < value < 2**62:
            data = b'["value",%d]\n' % value
        else:
            plain = encode(value, self.room - self.end, self.parts)
            data = "".join(_ENCODE(("value", plain), 0)).encode("utf-8", "surrogatepass") + b"\n"
        parts = _parts(data)
        if len(data) > self.room - self.end or parts > self.parts:
            raise Unencodable("TooLarge")
        self.parts -= parts
        self.write(data)


def _parts(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def encode(value: Any, room: int = 2**22, parts: int = PARTS) -> Any:
    """The value as JSON-able tagged builtins; subclasses are flattened by the base class's own methods.

    list -> array; {"t": tuple}, {"d": dict as pairs}, {"s": set}, {"f": frozenset}, {"b": bytes as hex}, {"i": large
    int as hex}, {"c": complex as two floats}, {"D": Decimal as text}, {"F": Fraction as two ints}. Raises Unencodable
    for anything else, deeper than 100, or surely longer than `room` bytes or `parts` values (found out before it is
    expanded: a list that holds one list twice, fifty levels deep, costs no more than `parts`).
    """

    def spend(n_bytes: int, n_parts: int = 0) -> None:
        nonlocal room, parts
        room, parts = room - n_bytes, parts - n_parts
        if room < 0 or parts < 0:
            raise Unencodable("TooLarge")

    def each(items: list[Any], depth: int) -> list[Any]:
        spend(2 * len(items), CONTAINER_PARTS + len(items))
        if depth > DEPTH:
            raise Unencodable("TooDeep")
        kinds = set(map(type, items))
        if kinds == _INT and min(items) > -(2**62) and max(items) < 2**62:
            return items
        if kinds == _STR:
            spend(sum(map(len, items)))
            return items
        return items if kinds <= _SCALARS else [walk(item, depth) for item in items]

    def number(value: int) -> Any:
        if -(2**62) < value < 2**62:
            return value
        spend(value.bit_length() // 4)
        return {"i": hex(value)}

    def walk(value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is int:
            return number(value)
        if value is None or kind is bool or kind is float:
            return value
        if issubclass(kind, str):
            text = str.__str__(value)
            spend(len(text))
            return text
        if issubclass(kind, list):
            return each([*list.__iter__(value)], depth + 1)
        if issubclass(kind, tuple):
            return {"t": each([*tuple.__iter__(value)], depth + 1)}
        if issubclass(kind, dict):
            pairs = [*dict.items(value)]
            spend(4 * len(pairs), len(pairs))
            keys = each([key for key, _ in pairs], depth + 1)
            return {"d": [*zip(keys, each([item for _, item in pairs], depth + 1), strict=True)]}
        if issubclass(kind, (set, frozenset)):
            base, tag = (set, "s") if issubclass(kind, set) else (frozenset, "f")
            return {tag: each([*base.__iter__(value)], depth + 1)}
        return _number_or_bytes(value, kind, number, spend)

    return walk(value, 0)


_INT, _STR, _SCALARS = {int}, {str}, {type(None), bool, float}


def _number_or_bytes(value: Any, kind: type, number: Callable[[int], Any], spend: Callable[[int], None]) -> Any:
    if issubclass(kind, int):
        return number(int.__pos__(value))
    if issubclass(kind, float):
        return float.__pos__(value)
    if issubclass(kind, bytes):
        spend(2 * bytes.__len__(value))
        return {"b": bytes.hex(value)}
    if issubclass(kind, complex):
        value = complex.__pos__(value)
        return {"c": [value.real, value.imag]}
    if issubclass(kind, Decimal):
        text = Decimal.__str__(value)
        spend(len(text))
        if len(text) > LARGEST_NUMBER or Decimal.is_snan(value):
            raise Unencodable("TooLarge" if len(text) > LARGEST_NUMBER else "UnsupportedType")
        return {"D": text}
    if kind is Fraction and type(value._numerator) is type(value._denominator) is int:
        top, bottom = value._numerator, value._denominator
        if max(top.bit_length(), bottom.bit_length()) > LARGEST_NUMBER:
            raise Unencodable("TooLarge")
        return {"F": [number(top), number(bottom)]}
    raise Unencodable("UnsupportedType")


def _name(error: BaseException) -> str:
    return str(type(error).__name__)


def evaluate(job: Any, memory: mmap, start: int, end: int, case_timer_s: float) -> int:
    """Load the program, evaluate the calls from `start` on, then look at what the probe asks for.

    `job` is a `prepare.Prepared`; the record goes on at byte `end`. `case_timer_s` > 0: this process's own timer ends
    each call, where the worker cannot read its CPU clock.
    """
    record = Record(memory, end, len(job.calls) - start)
    try:
        _evaluate(job, record, start, case_timer_s)
    finally:
        _flush()
    return 0


def _evaluate(job: Any, record: Record, start: int, case_timer_s: float) -> None:
    atexit._clear()
    names: dict[str, Any] = job.names
    kind, argument = job.probe or ("", "")
    try:
        exec(job.setup if type(job.setup) is types.CodeType else _compiled(job.setup, "<setup>"), names)
    except BaseException as error:
        return record.word("setup", _name(error))
    before = names.get(argument, _MISSING)
    try:
        code = _compiled(text_of(job.source, job.source_bytes), "<submission>")
    except BaseException as error:
        return record.word("syntax", _name(error))
    record.write(LOADED[:13])
    try:
        exec(code, names)
    except BaseException as error:
        return record.word("import", _name(error))
    record.write(LOADED[13:])
    _flush()
    values = []
    for call in job.calls[start:]:
        if case_timer_s:
            signal.setitimer(signal.ITIMER_PROF, case_timer_s)
        value = _one_call(call, names, record)
        if kind == "equals":
            values.append(value)
        del value
    record.write(DONE[1:])
    _flush()
    if kind:
        seen = None if kind == "equals" and start else _observe(kind, argument, names, before, values)
        record.write(b'["saw",%s]\n' % {True: b"true", False: b"false", None: b"null"}[seen])


_MISSING = object()


def _compiled(text: str, name: str) -> types.CodeType:
    return compile(text, name, "exec", dont_inherit=True)


def _one_call(call: types.CodeType | str, names: dict[str, Any], record: Record) -> Any:
    """Evaluate one call on a fresh `solution`; writes its value or error, returns the raw object."""
    value: Any = _MISSING
    try:
        maker = names.get("Solution")
        if isinstance(maker, type):
            names["solution"] = maker()
        value = eval(call, names)
        record.value(value)
    except Unencodable as error:
        record.word("raised", error.args[0])
    except BaseException as error:
        record.word("raised", _name(error))
    return value


def _observe(kind: str, argument: str, names: dict[str, Any], before: Any, values: list[Any]) -> bool | None:
    """The readings that need the live program; the others (stdout, file, exit) are taken from outside."""
    try:
        if kind == "call":
            function = names.get(argument, _MISSING)
            if function is before or function is _MISSING or not callable(function):
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


def text_of(source: Any, n_bytes: int) -> str:
    """The submission's source. In the child only: see `zygote.py`."""
    return str(source[:n_bytes], "utf-8", "surrogatepass")


def run_as_script(setup: str, source: Any, n_bytes: int, record: mmap) -> int:
    """Exit status of the source run as a script with a failing assertion at its end, as an interpreter would give."""
    record.close()  # of the run that counts: this one must not write there
    atexit._clear()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    status = 1  # of the failing assertion
    try:
        exec(_compiled(setup, "<setup>"), module.__dict__)
        exec(_compiled(text_of(source, n_bytes), "<submission>"), module.__dict__)
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

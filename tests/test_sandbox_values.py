"""What a submission may return: through the child's real encoder, the record and the strict parser."""

from __future__ import annotations

import contextlib
import json
import mmap
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plain_values import AWKWARD, PLAIN, exact
from submissions import program, run_one
from unhack.compare import equal
from unhack.sandbox import Sandbox
from unhack.sandbox import child as child_module
from unhack.sandbox.wire import PARTS, ProtocolError, parse_record, to_execution

START = child_module.LOADED


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, cpu_s=2.0, case_cpu_s=1.0, memory_bytes=256 * 2**20) as pool:
        yield pool


def recorded(value: Any) -> bytes:
    """The record that the child writes for one call that returns `value`."""
    with mmap.mmap(-1, 2**22) as memory:
        record = child_module.Record(memory, 0, 1)
        record.write(child_module.LOADED)
        record.value(value)
        record.write(child_module.DONE[1:])
        return memory[child_module.HEAD_BYTES : record.end]


def there_and_back(value: Any) -> Any:
    (result,) = parse_record(recorded(value), 1).results
    return result.value


def identical(value: Any, other: Any) -> bool:
    """Equal by type and content, with the sign of zeros and the order of dicts and digits that equality ignores."""
    bare = (float, complex)
    return exact(value) == exact(other) and (repr(value) == repr(other) or type(value) not in bare)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_a_value_survives_the_record_with_its_exact_type(value: Any) -> None:
    back = there_and_back(value)
    assert identical(back, value) and equal(back, value)


def test_awkward_values_come_back_from_a_real_child(sandbox: Sandbox) -> None:
    imports = "from decimal import Decimal\nfrom fractions import Fraction\ninf, nan = float('inf'), float('nan')\n"
    calls = [f"{hex(value) if type(value) is int else ascii(value)}" for value in AWKWARD]
    execution = run_one(sandbox, imports, *calls)
    assert execution.reason == "ok" and execution.level >= 1
    for result, value in zip(execution.results, AWKWARD, strict=True):
        assert result.error is None and exact(result.value) == exact(value), (result, value)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(PLAIN)
def test_ten_thousand_values_survive_the_record(value: Any) -> None:
    assert identical(there_and_back(value), value)


@settings(deadline=None, max_examples=5)
@given(st.lists(PLAIN, min_size=20, max_size=30))
def test_drawn_values_come_back_from_a_real_child(sandbox: Sandbox, values: list[Any]) -> None:
    imports = "from decimal import Decimal\nfrom fractions import Fraction\ninf, nan = float('inf'), float('nan')\n"
    execution = run_one(sandbox, imports, *map(ascii, values))
    assert [exact(result.value) for result in execution.results] == [exact(value) for value in values]


UNPLAIN = {
    "class A:\n    __eq__ = lambda self, other: True\nreturn A()": "UnsupportedType",
    "class A:\n    tolist = lambda self: self\nA.__module__ = 'numpy'\nreturn [A()]": "UnsupportedType",
    "value = []\nfor _ in range(10 ** 4): value = [value]\nreturn value": "TooDeep",
    "value = []\nvalue.append(value)\nreturn value": "TooDeep",
    "return list(range(10 ** 6))": "TooLarge",
    "return [['a'] * 1000] * 1000": "TooLarge",
    "value = []\nfor _ in range(60): value = [value, value]\nreturn value": "TooLarge",
    "value = ()\nfor _ in range(60): value = (value, {1: value})\nreturn value": "TooLarge",
    "return ['a' * 10 ** 6] * 1000": "TooLarge",
    "return 'a' * (5 * 2 ** 20)": "TooLarge",
    "return 1 << 10 ** 8": "TooLarge",
    "return bytes(4 * 2 ** 20)": "TooLarge",
    "from decimal import Decimal\nreturn Decimal('1' * 20000)": "TooLarge",
    "from fractions import Fraction\nreturn Fraction(1 << 20000, 3)": "TooLarge",
    "from decimal import Decimal\nreturn Decimal('sNaN')": "UnsupportedType",
    "async def f(): pass\nreturn f()": "UnsupportedType",
    "return (i for i in range(3))": "UnsupportedType",
    "return iter([1])": "UnsupportedType",
    "import itertools\nreturn itertools.count()": "UnsupportedType",
    "return {1: 2}.keys()": "UnsupportedType",
    "return range(10 ** 18)": "UnsupportedType",
    "return bytearray(3)": "UnsupportedType",
    "return int": "UnsupportedType",
    "from collections import deque\nreturn deque([1])": "UnsupportedType",
    "raise KeyError": "KeyError",
    "def f(): return f()\nreturn f()": "RecursionError",
    "raise type('A' * 10 ** 6, (Exception,), {})": "Exception",
    'raise type(\'A\\"]\\\\n[\\"done\\"]\', (Exception,), {})': "Exception",
    "raise SystemExit(0)": "SystemExit",
    "return bytearray(2 ** 40)": "MemoryError",
}


@pytest.mark.parametrize(("body", "error"), UNPLAIN.items())
def test_what_is_not_a_plain_value_is_that_cases_error_and_quickly_found(
    sandbox: Sandbox, body: str, error: str
) -> None:
    execution = run_one(sandbox, program(body), "solution.solve(1)", "[1]")
    assert [result.error for result in execution.results] == [error, None]
    assert execution.reason == ("output_limit" if error == "TooLarge" else "ok")


def test_many_values_share_one_record_and_what_does_not_fit_costs_its_own_call_only(sandbox: Sandbox) -> None:
    calls = [f"solution.solve({n})" for n in (3 * 10**6, 3 * 10**6, 10, 10**6)]
    execution = run_one(sandbox, program("return 'a' * x"), *calls)
    assert [result.error for result in execution.results] == [None, "TooLarge", None, None]
    wide = run_one(sandbox, program("return [0] * x"), *(f"solution.solve({n})" for n in (300_000, 300_000, 5)))
    assert [result.error for result in wide.results] == [None, "TooLarge", None]


SUBCLASSES = ("int", "str", "list", "tuple", "dict", "float", "set", "frozenset", "bytes", "complex")


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_subclasses_are_flattened_past_their_own_methods(sandbox: Sandbox, kind: str) -> None:
    names = ("__eq__", "__iter__", "__index__", "__len__", "__str__", "__repr__", "__float__", "__int__", "items")
    methods = "".join(f"    {name} = lambda *a: 7 / 0\n" for name in (*names, "__pos__", "__bool__", "hex", "copy"))
    source = f"class A({kind}):\n{methods}    __hash__ = None\n" + program("return A(x)")
    value = {"int": 5, "str": "ab", "float": 1.5, "bytes": b"a", "complex": 1j, "dict": {1: 2}}.get(kind)
    value = eval(kind)([1]) if value is None else value
    result = run_one(sandbox, source, f"solution.solve({value!r})").results[0]
    assert result.value == value and type(result.value).__name__ == kind


def test_standard_subclasses_count_as_their_base(sandbox: Sandbox) -> None:
    source = (
        "from collections import *\nfrom enum import IntEnum\nE = IntEnum('E', 'a b')\nP = namedtuple('P', 'x y')\n"
    )
    calls = ("Counter('aab')", "defaultdict(int, {1: 2})", "OrderedDict(a=1)", "E.b", "P(1, 2)")
    results = run_one(sandbox, source, *calls).results
    assert [result.value for result in results] == [{"a": 2, "b": 1}, {1: 2}, {"a": 1}, 2, (1, 2)]
    assert [type(result.value) for result in results] == [dict, dict, dict, int, tuple]


def test_patching_the_encoder_does_not_change_what_is_sent(sandbox: Sandbox) -> None:
    patch = "import json, os\njson.dumps = json.JSONEncoder.encode = os.write = lambda *a: 'forged'\n"
    assert run_one(sandbox, program("return x", patch)).results[0].value == 3


HOSTILE = [
    b'["value",1]\n', b'["loaded"]\n', b'["done"]\n',  # before compiled
    START + b'["done"]\n', START + b'["value",1]\n["value",1]\n', START + b'["value",1]\n["done"]\n["saw",5]\n',
    START + b'["value",1]\n["done"]\n["done"]\n', START + b'["value",1', START + b'["value",1]', START + b'{"t":[]}\n',
    START + b'["value",{"x":1}]\n', START + b'["value",{}]\n', START + b'["value",{"t":[],"d":[]}]\n',
    START + b'["value",{"d":[[[],1]]}]\n', START + b'["value",{"d":[1]}]\n', START + b'["value",{"d":[[1]]}]\n',
    START + b'["value",{"s":[{"d":[]}]}]\n', START + b'["value",{"t":{"t":[]}}]\n', START + b'["value",{"t":"a"}]\n',
    START + b'["value",{"i":" 0x1"}]\n', START + b'["value",{"i":"0x"}]\n', START + b'["value",{"i":5}]\n',
    START + b'["value",{"b":"0"}]\n', START + b'["value",{"c":[1,2]}]\n', START + b'["value",{"c":[1.0]}]\n',
    START + b'["value",{"D":"sNaN"}]\n', START + b'["value",{"D":"1E9999999999999999999"}]\n',
    START + b'["value",{"D":"' + b"1" * 10_001 + b'"}]\n', START + b'["value",{"F":[1,0]}]\n',
    START + b'["value",{"F":[1,2.0]}]\n', START + b'["value",{"F":[{"i":"0x' + b"f" * 5000 + b'"},3]}]\n',
    START + b'["value",\xff]\n', START + b'["value",' + b"9" * 10**5 + b"]\n",
    START + b'["value",' + b"[" * 10**5 + b"]" * 10**5 + b"]\n",
    START + b'["value",' + b"[" * 150 + b"]" * 150 + b"]\n",
    START + b'["value",[' + b"0," * (PARTS + 20) + b"0]]\n",
    START + b'["raised",5]\n', START + b'["raised",{"t":[]}]\n',
    b'["compiled"]\n["syntax","A"]\n', START + b'["import","A"]\n', b'["syntax","A"]\n["compiled"]\n', b"[]\n",
]  # fmt: skip
HEADER = {"signal": None, "exit_status": 0, "cpu_s": 0.0, "over": None, "start": 0}


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_record_no_honest_child_writes_is_a_protocol_error(body: bytes) -> None:
    header = {"segments": [{**HEADER, "bytes": len(body)}], "cpu_s": 0.0, "observation": None}
    execution = to_execution(header, body, 1, 1.0, 4)
    assert (execution.reason, execution.results) == ("protocol_error", ())


def test_a_header_that_does_not_fit_its_record_is_the_workers_fault() -> None:
    good = {"segments": [{**HEADER, "bytes": 3}], "cpu_s": 0.0, "observation": None}
    segment = good["segments"][0]
    for bad in (
        {}, {**good, "segments": []}, {**good, "segments": [{**segment, "bytes": 9}]}, {**good, "cpu_s": "nan"},
        {**good, "segments": [{**segment, "start": 5}]}, {**good, "segments": None}, {**good, "segments": [7]},
        {**good, "segments": [{"bytes": 3}]}, {"segments": good["segments"], "cpu_s": 0.0},
    ):  # fmt: skip
        with pytest.raises(ProtocolError):
            to_execution(bad, b"abc", 1, 1.0, 4)


def test_keys_that_share_their_hash_are_refused_before_they_cost_quadratic_time() -> None:
    period = 2**61 - 1  # ints that differ by a multiple of it share their hash
    for tag, items in (("s", lambda i: str(i * period)), ("d", lambda i: f"[{i * period},0]")):
        body = START + f'["value",{{"{tag}":[{",".join(map(items, range(1, 100_000)))}]}}]\n'.encode()
        with pytest.raises(ProtocolError):
            parse_record(body, 1)  # a set of these would take minutes to build
    honest = {i * period for i in range(40)}
    assert there_and_back(honest) == honest


LINES = (
    st.sampled_from(
        [b'["compiled"]', b'["loaded"]', b'["done"]', b'["saw",true]', b'["raised","A"]', b'["import","A"]']
    )
    | PLAIN.map(lambda value: recorded(value).split(b"\n")[2])
    | st.binary(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("tdsfbicDFx"), inner, max_size=2),
        max_leaves=6,
    ).map(lambda value: json.dumps(["value", value]).encode())
)


def survives(prefix: bytes, lines: list[bytes], end: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse_record(prefix + b"\n".join(lines) + end, 3)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([b"", START]), st.lists(LINES, max_size=5), st.sampled_from([b"\n", b""]))
def test_the_parser_raises_nothing_but_a_protocol_error(prefix: bytes, lines: list[bytes], end: bytes) -> None:
    survives(prefix, lines, end)


@pytest.mark.slow
@settings(deadline=None, max_examples=10_000)
@given(st.sampled_from([b"", START]), st.lists(LINES, max_size=5), st.sampled_from([b"\n", b""]))
def test_the_parser_survives_ten_thousand_hostile_records(prefix: bytes, lines: list[bytes], end: bytes) -> None:
    survives(prefix, lines, end)

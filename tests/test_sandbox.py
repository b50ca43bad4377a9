"""What a submission may return, how it may end, and what a probe sees of it."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submissions import program, run_one
from unhack.sandbox import LEVEL, Probe, Sandbox
from unhack.sandbox import child as child_module
from unhack.sandbox.wire import ProtocolError, decode, parse_record, to_execution


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, cpu_s=0.5, memory_bytes=256 * 2**20, wall_s=1.0) as pool:
        yield pool


VALUES = [
    None, True, False, 0, -7, 2**61, 2**70, -(2**200), 1.0, -0.0, 1e308, float("inf"), "", "ü\ud800\n", [], [1, [2.5]],
    (1, ("a",)), {"a": 1, 2: [3], (1, 2): None}, {1, 2}, frozenset({3}), b"\x00\xff",
]  # fmt: skip


def test_plain_values_come_back_with_their_exact_types(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, "", *[repr(value) if value != float("inf") else "float('inf')" for value in VALUES])
    assert execution.reason == "ok" and execution.level == LEVEL
    for result, value in zip(execution.results, VALUES, strict=True):
        assert result.error is None and repr(result.value) == repr(value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=30)
@given(PLAIN)
def test_encoding_then_decoding_is_the_identity(value: Any) -> None:
    assert repr(decode(json.loads(json.dumps(child_module.encode(value))))) == repr(value)


@given(st.binary(max_size=200))
def test_the_parser_survives_arbitrary_records(body: bytes) -> None:
    for data in (body, b'["compiled"]\n' + body + b"\n", b'["compiled"]\n["value",' + body + b"]\n"):
        with contextlib.suppress(ProtocolError):
            parse_record(data, 3)


@pytest.mark.parametrize(
    "body",
    [
        b'["value",1]\n',  # before compiled
        b'["compiled"]\n["done"]\n',  # without the results
        b'["compiled"]\n["value",1]\n["value",1]\n',  # more results than calls
        b'["compiled"]\n["value",1]\n["done"]\n["saw",5]\n',
        b'["compiled"]\n["value",{"x":1}]\n',
        b'["compiled"]\n["value",{"d":[[[],1]]}]\n',
        b'["compiled"]\n["value",' + b"9" * 10**5 + b"]\n",
        b'["compiled"]\n["value",' + b"[" * 10**5 + b"]" * 10**5 + b"]\n",
    ],
)
def test_a_record_no_honest_child_writes_is_a_protocol_error(body: bytes) -> None:
    header = {"signal": None, "cpu_s": 0.0, "over_wall": False, "observation": None}
    assert to_execution(header, body, 1, 1.0, LEVEL).reason == "protocol_error"


REASONS = {
    "while True:\n    try:\n        pass\n    except BaseException:\n        pass": "timeout",
    "10 ** 10 ** 8": "timeout",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)": "crash",
    "import os\nos.abort()": "crash",
    "import os\nos._exit(0)": "no_verdict",
    "import ctypes\nctypes.string_at(0)": "crash",
}


@pytest.mark.parametrize(("body", "reason"), REASONS.items())
def test_a_submission_that_dies_gets_its_reason_and_no_result(sandbox: Sandbox, body: str, reason: str) -> None:
    execution = run_one(sandbox, program(body))
    assert (execution.reason, execution.results, execution.compiled) == (reason, (), True)


def test_results_before_a_death_are_kept(sandbox: Sandbox) -> None:
    source = program("import os\nif x == 2: os._exit(0)\nreturn x")
    execution = run_one(sandbox, source, "solution.solve(1)", "solution.solve(2)", "solution.solve(3)")
    assert execution.reason == "no_verdict" and [result.value for result in execution.results] == [1]


@pytest.mark.parametrize(
    ("source", "reason", "compiled"),
    [
        ("def f(:", "compile_error", False),
        ("x = '\0'", "compile_error", False),
        ("x = '\ud800'", "compile_error", False),
        ("(" * 10**5, "compile_error", False),
        ("import nothing_of_that_name", "import_error", True),
        ("raise SystemExit(0)", "import_error", True),
        ("import os; os._exit(0)", "no_verdict", True),
    ],
)
def test_sources_that_do_not_load_are_told_apart(sandbox: Sandbox, source: str, reason: str, compiled: bool) -> None:
    execution = run_one(sandbox, source)
    assert (execution.reason, execution.compiled) == (reason, compiled)


def test_setup_that_fails_is_the_problems_error(sandbox: Sandbox) -> None:
    assert run_one(sandbox, program("return x"), setup="import nothing_of_that_name").reason == "setup_error"
    assert run_one(sandbox, program("return y"), setup="y = 8").results[0].value == 8


UNPLAIN = {
    "class A:\n    __eq__ = lambda self, other: True\nreturn A()": "UnsupportedType",
    "value = []\nfor _ in range(10 ** 4): value = [value]\nreturn value": "TooDeep",
    "return list(range(10 ** 6))": "TooLarge",
    "async def f(): pass\nreturn f()": "UnsupportedType",
    "return range(10 ** 18)": "UnsupportedType",
    "raise KeyError": "KeyError",
    "def f(): return f()\nreturn f()": "RecursionError",
}


@pytest.mark.parametrize(("body", "error"), UNPLAIN.items())
def test_what_is_not_a_plain_value_is_that_cases_error(sandbox: Sandbox, body: str, error: str) -> None:
    execution = run_one(sandbox, program(body), "solution.solve(1)", "[1]")
    assert [result.error for result in execution.results] == [error, None]


def test_more_output_values_than_the_record_holds_is_an_output_limit(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program("return 'a' * (5 * 2 ** 20)"))
    assert execution.reason == "output_limit" and execution.results == ()


@pytest.mark.parametrize("kind", ["int", "str", "list", "tuple", "dict", "float"])
def test_subclasses_are_flattened_past_their_own_methods(sandbox: Sandbox, kind: str) -> None:
    methods = "".join(f"    {name} = lambda *a: 7 / 0\n" for name in ("__eq__", "__iter__", "__index__", "__len__"))
    source = f"class A({kind}):\n{methods}    __hash__ = None\n" + program("return A(x)")
    value = {"int": 5, "str": "ab", "list": [1], "tuple": (1,), "dict": {1: 2}, "float": 1.5}[kind]
    result = run_one(sandbox, source, f"solution.solve({value!r})").results[0]
    assert result.value == value and type(result.value).__name__ == kind


def test_patching_the_encoder_does_not_change_what_is_sent(sandbox: Sandbox) -> None:
    patch = "import json, os\njson.dumps = json.JSONEncoder.encode = os.write = lambda *a: 'forged'\n"
    assert run_one(sandbox, program("return x", patch)).results[0].value == 3


def test_each_call_gets_a_fresh_solution(sandbox: Sandbox) -> None:
    source = "class Solution:\n    def __init__(self): self.n = 0\n    def solve(self):\n        self.n += 1\n"
    source += "        return self.n\n"
    execution = run_one(sandbox, source, "solution.solve()", "solution.solve()")
    assert [result.value for result in execution.results] == [1, 1]


PROBES = [
    (Probe("call", "kilo"), "def kilo():\n    pass\n", True),
    (Probe("call", "kilo"), "def kilo():\n    raise ValueError\n", False),
    (Probe("call", "kilo"), "def lima():\n    pass\n", None),
    (Probe("call", "kilo"), "class Other:\n    def kilo(self): pass\n", None),
    (Probe("call", "print"), "", None),
    (Probe("attribute", "kilo"), "def make(): Solution.kilo = True\n", False),
    (Probe("stdout", "kilo"), "print('kilo')\n", "kilo\n"),
    (Probe("stdout", "kilo"), "import os\nos.write(1, b'kilo')\n", "kilo"),
    (Probe("stdout", "kilo"), "import sys\nsys.stderr.write('kilo')\n", ""),
    (Probe("file", "kilo"), "open('result.txt', 'w').write('kilo')\n", "kilo"),
    (Probe("file", "kilo"), "import os\nos.symlink('/etc/hostname', 'result.txt')\n", None),
    (Probe("file", "kilo"), "import os\nopen('o', 'w').write('kilo')\nos.symlink('o', 'result.txt')\n", None),
    (Probe("file", "kilo"), "import os\nos.mkfifo('result.txt')\n", None),
    (Probe("file", "kilo"), "", None),
    (Probe("equals"), "", False),
    (Probe("exit"), "", 1),
    (Probe("exit"), "import atexit, os\natexit.register(os._exit, 0)\n", 0),
    (Probe("exit"), "if __name__ == '__main__':\n    raise SystemExit\n", 0),
    (Probe("exit"), "raise SystemExit(3)\n", 3),
    (Probe("exit"), "import os\nos.abort()\n", None),
]


@pytest.mark.parametrize(("probe", "before", "observation"), PROBES)
def test_probes_observe_what_they_name(sandbox: Sandbox, probe: Probe, before: str, observation: Any) -> None:
    seen = run_one(sandbox, program("return x", before), probe=probe).observation
    assert seen == observation and type(seen) is type(observation)


def test_an_attribute_set_while_solving_or_on_the_class_is_seen(sandbox: Sandbox) -> None:
    probe = Probe("attribute", "kilo")
    assert run_one(sandbox, program("self.kilo = True\nreturn x"), probe=probe).observation is True
    assert run_one(sandbox, "class Solution:\n    kilo = True\n", "1", probe=probe).observation is True
    assert run_one(sandbox, program("self.kilo = 1\nreturn x"), probe=probe).observation is False


def test_the_child_has_no_environment_arguments_input_or_other_descriptors(sandbox: Sandbox) -> None:
    source = program(
        "import os, sys\nopen_fds = []\nfor fd in range(64):\n    try:\n        os.fstat(fd); open_fds.append(fd)\n"
        "    except OSError: pass\nreturn [dict(os.environ), sys.argv, sys.stdin.read(), open_fds]"
    )
    assert run_one(sandbox, source).results[0].value == [{}, [""], "", [0, 1, 2]]


def test_a_malformed_call_is_that_cases_error(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program("return x"), "solution.solve(", "solution.solve(2)")
    assert [result.error for result in execution.results] == ["SyntaxError", None]


def test_a_record_length_that_lies_is_clamped(sandbox: Sandbox) -> None:
    source = program(
        "import gc, mmap, struct\n"
        "[struct.pack_into('<I', m, 0, 2 ** 31) for m in gc.get_objects() if type(m) is mmap.mmap]\n"
        "return x"
    )
    assert struct.calcsize("<I") == 4 and run_one(sandbox, source).reason in ("ok", "protocol_error")

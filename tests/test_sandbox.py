"""What a submission may return, how it may end, and what a probe sees of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from submissions import program, run_one
from unhack.sandbox import Probe, Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, cpu_s=0.5, case_cpu_s=0.1, memory_bytes=256 * 2**20, wall_s=1.0) as pool:
        yield pool


ENDS = {
    "while True:\n    try:\n        pass\n    except BaseException:\n        pass": ("timeout", "Timeout"),
    "10 ** 10 ** 8": ("timeout", "Timeout"),
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)": ("crash", "Crash"),
    "import os\nos.abort()": ("crash", "Crash"),
    "import os\nos._exit(0)": ("no_verdict", "Exited"),
    "import ctypes\nctypes.string_at(0)": ("crash", "Crash"),
    "import time\ntime.sleep(1000)": ("timeout_wall", "TimeoutWall"),
}


@pytest.mark.parametrize(("body", "ended"), ENDS.items())
def test_a_call_that_ends_its_process_is_an_error_of_that_call_only(
    sandbox: Sandbox, body: str, ended: tuple[str, str]
) -> None:
    source = program("if x % 2:\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "return x")
    execution = run_one(sandbox, source, *(f"solution.solve({x})" for x in (2, 3, 4, 6)))
    assert (execution.reason, execution.compiled) == (ended[0], True)
    assert [result.error for result in execution.results] == [None, ended[1], None, None]
    assert [result.value for result in execution.results] == [2, None, 4, 6]


def test_deaths_at_the_first_and_the_last_call_and_in_a_row_hide_nothing(sandbox: Sandbox) -> None:
    source = program("import os\nif x in (0, 3, 4, 9): os._exit(x)\nreturn x")
    execution = run_one(sandbox, source, *(f"solution.solve({x})" for x in range(10)))
    assert execution.reason == "no_verdict" and execution.observation is None
    assert [result.value for result in execution.results if result.error is None] == [1, 2, 5, 6, 7, 8]
    assert {result.error for result in execution.results} == {None, "Exited"} and len(execution.results) == 10


def test_the_first_end_gives_the_reason(sandbox: Sandbox) -> None:
    source = program("import os\nif x == 2: os.abort()\nif x == 3: os._exit(0)\nreturn x")
    execution = run_one(sandbox, source, *(f"solution.solve({x})" for x in range(5)))
    assert (execution.reason, execution.signal) == ("crash", 6)
    assert [result.error for result in execution.results] == [None, None, "Crash", "Exited", None]


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
        ("import os; os.abort()", "crash", True),
        ("x = [0] * 2 ** 40", "oom", True),
        ("while True: pass", "timeout", True),
    ],
)
def test_sources_that_do_not_load_are_told_apart(sandbox: Sandbox, source: str, reason: str, compiled: bool) -> None:
    execution = run_one(sandbox, source)
    assert (execution.reason, execution.compiled, execution.results) == (reason, compiled, ())


def test_setup_that_fails_is_the_problems_error(sandbox: Sandbox) -> None:
    assert run_one(sandbox, program("return x"), setup="import nothing_of_that_name").reason == "setup_error"
    assert run_one(sandbox, program("return y"), setup="y = 8").results[0].value == 8


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


def test_a_probe_is_read_after_the_calls_even_if_the_last_one_ended_its_process(sandbox: Sandbox) -> None:
    source = program("import os\nif x: os._exit(0)\nreturn x", "def kilo(): pass\nprint('lima')\n")
    for calls in (("solution.solve(1)",), ("solution.solve(1)", "solution.solve(0)")):
        assert run_one(sandbox, source, *calls, probe=Probe("call", "kilo")).observation is True
        assert "lima" in run_one(sandbox, source, *calls, probe=Probe("stdout", "lima")).observation
        assert run_one(sandbox, source, *calls, probe=Probe("exit")).observation == 1
        assert not run_one(sandbox, source, *calls, probe=Probe("equals")).observation


def test_a_probe_that_ends_its_process_changes_no_result(sandbox: Sandbox) -> None:
    for body in ("import os; os._exit(0)", "while True: pass"):
        execution = run_one(sandbox, program("return x", f"def kilo():\n    {body}\n"), probe=Probe("call", "kilo"))
        assert execution.reason == "ok" and execution.observation is None and execution.results[0].value == 3


def test_the_binding_that_a_probe_calls_is_the_one_python_would_run(sandbox: Sandbox) -> None:
    early, late = "def kilo(): raise ValueError\n", "def kilo(): pass\n"
    probe = Probe("call", "kilo")
    assert run_one(sandbox, program("return x", early + late), probe=probe).observation is True
    assert run_one(sandbox, program("return x", late + early), probe=probe).observation is False
    assert run_one(sandbox, program("global kilo\nkilo = print\nreturn x", early), probe=probe).observation is True


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

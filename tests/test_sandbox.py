from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unhack.sandbox import LEVEL, Execution, Job, Probe, Sandbox, doctor
from unhack.sandbox import child as child_module
from unhack.sandbox.pool import _Worker
from unhack.sandbox.wire import ProtocolError, decode, parse_record, to_execution

LINUX = sys.platform == "linux"
on_linux = pytest.mark.skipif(not LINUX, reason="reads /proc")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, cpu_s=0.5, memory_bytes=256 * 2**20, wall_s=1.0) as pool:
        yield pool


def program(body: str, before: str = "") -> str:
    """A Solution whose solve(x) has `body`."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return f"{before}\nclass Solution:\n    def solve(self, x):\n{lines}"


def run_one(sandbox: Sandbox, source: str, *calls: str, probe: Probe | None = None, setup: str = "") -> Execution:
    return sandbox.run([Job("one", source, setup, calls or ("solution.solve(3)",), probe)])[0]


def worker_pids(sandbox: Sandbox) -> list[int]:
    return [worker.process.pid for worker in sandbox._workers]


def descendants(pid: int) -> list[int]:
    """All live or zombie processes below `pid`."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry)] = int(fields[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [below for child in found for below in descendants(child)]


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


def test_a_sleeper_is_ended_by_the_wall_backstop(sandbox: Sandbox) -> None:
    assert run_one(sandbox, program("import time\ntime.sleep(1000)")).reason == "timeout_wall"


@pytest.mark.slow
@on_linux
def test_a_starved_program_is_not_taken_for_a_sleeper() -> None:
    with Sandbox(cpu_s=2.0, wall_s=0.3) as pool:
        pool.layers()
        rivals = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(6)]
        try:
            execution = run_one(pool, "import os\nos.nice(19)\n" + SLOW)
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()
    assert execution.results[0].value == 3


def test_a_memory_bomb_is_a_memory_error_and_the_next_job_is_unharmed(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program("return len(bytearray(64 * 2 ** 30))"))
    assert execution.reason == "ok" and execution.results[0].error == "MemoryError"
    assert run_one(sandbox, program("return x")).results[0].value == 3


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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give children another user")
def test_children_of_root_run_as_another_user_without_groups(sandbox: Sandbox) -> None:
    source = program("import os\nreturn [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()]")
    uid, effective, group, groups = run_one(sandbox, source).results[0].value
    assert uid == effective == group != 0 and groups == []


def test_state_does_not_pass_from_one_submission_to_the_next(sandbox: Sandbox) -> None:
    source = program(
        "import os, sys\nseen = hasattr(sys, 'kilo'), os.path.exists('left')\nsys.kilo = 1\nopen('left', 'w').close()\n"
        "os.mkdir('locked'); os.mkdir('locked/in'); os.chmod('locked', 0)\nreturn seen"
    )
    first, second = sandbox.run(
        [Job("a", source, "", ("solution.solve(1)",)), Job("b", source + "#", "", ("solution.solve(1)",))]
    )
    assert first.results == second.results and first.results[0].value == (False, False)
    assert os.listdir(sandbox._workers[0].folder) == []


def test_the_same_job_twice_gives_the_same_bytes(sandbox: Sandbox) -> None:
    source = program("import random\nreturn [random.random(), list({'a', 'b', 'c', 'd', str(x)})]")
    with Sandbox() as other:
        assert run_one(sandbox, source).results == run_one(other, source).results


def test_equal_jobs_run_once_and_all_get_the_result(sandbox: Sandbox) -> None:
    job = Job("a", program("import time\nreturn time.perf_counter_ns()"), "", ("solution.solve(1)",))
    twins = [job, Job("b", job.source, "", job.calls), Job("c", job.source, "", job.calls, Probe("equals"))]
    first, second, third = sandbox.run(twins)
    assert first is second and first.results != third.results


@on_linux
def test_no_process_zombie_or_folder_outlives_a_grade(sandbox: Sandbox) -> None:
    before = set(os.listdir("/proc/self/fd"))
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
    daemon += "    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\n"
    thread = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()\n"
    army = "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\n"
    for body in (daemon, thread, army):
        assert run_one(sandbox, program(body + "return x")).results[0].value == 3
    assert descendants(worker_pids(sandbox)[0]) == []
    assert os.listdir(sandbox._workers[0].folder) == []
    assert set(os.listdir("/proc/self/fd")) == before


@on_linux
def test_closing_leaves_no_process_folder_or_thread() -> None:
    threads = threading.active_count()
    with Sandbox(workers=2) as pool:
        pids, folders = worker_pids(pool), [worker.folder for worker in pool._workers]
        pool.run([Job(str(i), program(f"return {i}"), "", ("solution.solve(1)",)) for i in range(6)])
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not any(os.path.exists(folder) for folder in folders)
    assert threading.active_count() == threads


@pytest.mark.slow
@on_linux
def test_a_killed_trainer_leaves_no_process() -> None:
    script = (
        "import sys\nfrom unhack.sandbox import Job, Sandbox\n"
        "with Sandbox(wall_s=50) as pool:\n    pool.layers()\n    print(pool._workers[0].process.pid, flush=True)\n"
        "    pool.run([Job('a', 'import time\\ntime.sleep(100)', '', ())])\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    folder = os.readlink(f"/proc/{worker}/cwd")
    wait_until(lambda: len(descendants(worker)) == 1)
    children = descendants(worker)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in (worker, *children)))
    wait_until(lambda: not os.path.exists(folder))


def wait_until(holds: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


SLOW = program("import time\nend = time.process_time() + 0.15\nwhile time.process_time() < end: pass\nreturn x")


def test_a_worker_killed_in_the_middle_of_a_batch_loses_no_grade() -> None:
    with Sandbox(workers=1) as pool:
        pool.layers()
        first = pool._workers[0]
        timer = threading.Timer(0.2, lambda: os.kill(first.process.pid, signal.SIGKILL))
        timer.start()
        executions = pool.run([Job(str(i), SLOW + f"#{i}", "", (f"solution.solve({i})",)) for i in range(4)])
        timer.join()
        assert pool._workers[0] is not first and not os.path.exists(first.folder)
        assert [execution.results[0].value for execution in executions] == [0, 1, 2, 3]


def test_a_job_whose_worker_dies_twice_is_an_infra_error_and_the_others_are_graded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execute, attempts = _Worker.execute, []

    def killing(worker: _Worker, request: bytes) -> tuple[dict[str, Any], bytes]:
        worker.ready()
        if b"POISON" in request:
            attempts.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
        return execute(worker, request)

    monkeypatch.setattr(_Worker, "execute", killing)  # the fault is injected; the death and the recovery are real
    with Sandbox(workers=1) as pool:
        sources = [program("return x") + mark for mark in ("#a", "#POISON", "#b")]
        executions = pool.run([Job(source, source, "", ("solution.solve(1)",)) for source in sources])
    assert [execution.reason for execution in executions] == ["ok", "infra_error", "ok"]
    assert executions[1].results == () and executions[1].observation is None
    assert len(set(attempts)) == len(attempts) == 2


def test_honest_heavy_programs_pass_within_the_limits() -> None:
    bodies = {
        "import sys\nsys.setrecursionlimit(10 ** 5)\ndef f(n): return n and 1 + f(n - 1)\nreturn f(5000)": 5000,
        "return len(bytearray(150 * 2 ** 20))": 150 * 2**20,
        "print('a' * 2 ** 21)\nimport sys\nsys.stderr.write('b' * 2 ** 21)\nreturn 1": 1,
        "import threading\nthreading.stack_size(128 * 2 ** 20)\nout = []\n"
        "t = threading.Thread(target=out.append, args=(4,)); t.start(); t.join()\nreturn out[0]": 4,
        "from collections import defaultdict, deque; from typing import List; import heapq, bisect\nreturn 2": 2,
    }
    with Sandbox(workers=2) as pool:
        for probe in (None, Probe("stdout", "kilo")):
            jobs = [Job("h", program(body), "", ("solution.solve(1)",), probe) for body in bodies]
            assert [execution.results[0].value for execution in pool.run(jobs)] == list(bodies.values())


def test_cpu_use_is_reported_and_exit_probes_have_their_own_budget(sandbox: Sandbox) -> None:
    assert 0.14 <= run_one(sandbox, SLOW).cpu_s < 0.5
    source = program("return x", "while __name__ == '__main__': pass")
    execution = run_one(sandbox, source, probe=Probe("exit"))
    assert execution.results[0].value == 3 and execution.observation is None and execution.cpu_s > 0.4


def test_a_closed_or_impossible_sandbox_says_how_to_use_it() -> None:
    with pytest.raises(ValueError, match="with Sandbox"):
        Sandbox().run([])
    with pytest.raises(ValueError, match="workers >= 1"):
        Sandbox(workers=0)
    with pytest.raises(ValueError, match=r"require = 'any'"), Sandbox(require="full"):
        pass


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


def test_doctor_reports_each_layer_and_what_is_exposed_without_it() -> None:
    level, layers = doctor()
    by_name = {layer.name: layer for layer in layers}
    assert level == LEVEL and by_name["separate_process"].active and by_name["resource_limits"].active
    assert not by_name["seccomp"].active
    assert all(layer.exposed and (layer.available or not layer.active) for layer in layers)
    assert by_name["uid_drop"].active == (os.getuid() == 0)

"""Budgets per call and per submission, what calls share and what they do not, and what the worker prepares."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from submissions import program, run_one
from unhack.sandbox import Execution, Job, Probe, Sandbox
from unhack.sandbox.prepare import CompiledCalls, Preparation

CPU_S, CASE_S, WALL_S = 0.5, 0.1, 1.2
SLACK_S = 0.15  # of looks, and of forking and loading again
BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(cpu_s=CPU_S, case_cpu_s=CASE_S, memory_bytes=256 * 2**20, wall_s=WALL_S) as pool:
        yield pool


def calls(n: int) -> list[str]:
    return [f"solution.solve({x})" for x in range(n)]


def errors(execution: Execution) -> list[str | None]:
    return [result.error for result in execution.results]


def test_an_endless_loop_in_each_of_a_hundred_calls_costs_the_total_and_no_more(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program("while True: pass"), *calls(100))
    assert execution.reason == "timeout" and execution.cpu_s < CPU_S + SLACK_S
    n = errors(execution).count("Timeout")
    assert 3 <= n <= 6 and errors(execution) == ["Timeout"] * n + ["NotReached"] * (100 - n)


def test_the_load_counts_and_is_paid_again_by_every_new_process(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program("import os\nos._exit(1)", BURN.format(0.09)), *calls(100))
    assert execution.cpu_s < CPU_S + SLACK_S and execution.reason == "no_verdict"
    assert 3 <= errors(execution).count("Exited") <= 6 and errors(execution)[-1] == "NotReached"


@pytest.mark.parametrize("end", ["while True: pass", "import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)"])
def test_a_program_that_ends_while_it_loads_is_not_started_again(sandbox: Sandbox, end: str) -> None:
    execution = run_one(sandbox, BURN.format(0.2) + end, *calls(5))
    assert execution.results == () and execution.reason in ("timeout", "no_verdict", "crash")
    assert 0.2 <= execution.cpu_s < (CPU_S if "while True" in end else 0.2) + SLACK_S


def test_calls_below_their_own_budget_still_end_at_the_total(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program(BURN.format(0.07) + "return x"), *calls(20))
    assert execution.reason == "timeout" and execution.cpu_s < CPU_S + SLACK_S
    assert errors(execution)[:5] == [None] * 5 and errors(execution)[-1] == "NotReached"


def test_a_call_within_its_budget_is_never_ended(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program(BURN.format(0.08) + "return x"), *calls(5))
    assert [result.value for result in execution.results] == [0, 1, 2, 3, 4]


DODGES = {
    "timers": "import signal\nfor t in (0, 1, 2): signal.setitimer(t, 0)\n",
    "signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n",
    "own limit": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU))\n",
    "thread": "import threading\nspin = lambda: [0 for _ in iter(int, 1)]\nthreading.Thread(target=spin).start()\n",
}


@pytest.mark.parametrize("name", DODGES)
def test_no_submission_can_switch_its_budget_off(sandbox: Sandbox, name: str) -> None:
    execution = run_one(sandbox, program(DODGES[name] + "while True: pass"), *calls(8))
    assert execution.reason == "timeout" and execution.cpu_s < CPU_S + 2 * SLACK_S


def test_sleeping_calls_cost_the_wall_budget_together(sandbox: Sandbox) -> None:
    start = time.monotonic()
    execution = run_one(sandbox, program("import time\nif x: time.sleep(1000)\nreturn x"), *calls(10))
    assert errors(execution)[:4] == [None, "TimeoutWall", "TimeoutWall", "TimeoutWall"]
    assert errors(execution)[-1] == "NotReached" and execution.reason == "timeout_wall"
    assert 0.7 * WALL_S < time.monotonic() - start < 10 * WALL_S  # most of it is waiting for a busy machine


def test_cpu_of_all_processes_is_reported(sandbox: Sandbox) -> None:
    source = program("import os\n" + BURN.format(0.05) + "if x % 2: os._exit(0)\nreturn x")
    assert 0.2 <= run_one(sandbox, source, *calls(4)).cpu_s < CPU_S


def test_arguments_are_made_anew_by_each_call(sandbox: Sandbox) -> None:
    source = program("x.append(len(x))\nreturn x")
    same = "solution.solve([5, [6]])"
    assert [result.value for result in run_one(sandbox, source, same, same).results] == [[5, [6], 2]] * 2


def test_a_value_is_read_when_its_call_returns(sandbox: Sandbox) -> None:
    source = program("out.append(x)\nreturn out", "out = []\n")
    values = [result.value for result in run_one(sandbox, source, *calls(3)).results]
    assert values == [[0], [0, 1], [0, 1, 2]]


def test_later_calls_cannot_mend_an_earlier_wrong_value(sandbox: Sandbox) -> None:
    # keeps every list that it returned, and fills in what it has learned by the last call
    mend = "for old in out: old[:] = [x]\nout.append([-1])\nreturn out[-1]"
    values = [result.value for result in run_one(sandbox, program(mend, "out = []\n"), *calls(3)).results]
    assert values == [[-1]] * 3


def test_module_state_lives_until_a_call_ends_the_process_and_then_starts_afresh(sandbox: Sandbox) -> None:
    source = program("import os\nseen.append(x)\nif x == 2: os._exit(0)\nreturn len(seen)", "seen = []\n")
    execution = run_one(sandbox, source, *calls(5))
    assert [result.value for result in execution.results] == [1, 2, None, 1, 2]


SETUP = "from typing import *\nfrom math import *\nimport collections\n\ninf = float('inf')\nclass Node:\n    n = 0\n"


def test_setup_names_are_there_and_no_submission_changes_them_for_the_next(sandbox: Sandbox) -> None:
    look = "return [Node.n, inf, sqrt(4.0), len(collections.Counter('ab')), 'List' in globals()]"
    spoil = (
        "import collections, math\nNode.n = 1\ninf = 2\nsqrt = math.sqrt = print\ncollections.Counter = int\ndel List\n"
    )
    dirty = Job("dirty", program(look, spoil), SETUP, ("solution.solve(0)",))
    clean = Job("clean", program(look), SETUP, ("solution.solve(0)",))
    assert [e.reason for e in sandbox.run([dirty])] == ["ok"]
    assert sandbox.run([clean])[0].results[0].value == [0, float("inf"), 2.0, 2, True]


def test_many_setups_and_call_lists_in_turn_are_each_their_own(sandbox: Sandbox) -> None:
    jobs = [
        Job(str(i), program("return y"), f"import math\ny = {i}", ("solution.solve(1)",) * (i + 1)) for i in range(40)
    ]
    for i, execution in enumerate(sandbox.run([*jobs, *jobs[::-1]])):
        expected = min(i, 79 - i)
        assert [result.value for result in execution.results] == [expected] * (expected + 1)


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("import nothing_of_that_name", "setup_error"),
        ("from math import nothing", "setup_error"),
        ("def f(:", "setup_error"),
        ("from math import *\nimport sys\nsys.exit(0)", "setup_error"),
        ("from __future__ import annotations\nx: y = 1", "ok"),
        ("import os.path\nimport colorsys", "ok"),
        ("", "ok"),
    ],
)
def test_setups_of_every_kind_run_or_are_the_problems_error(sandbox: Sandbox, setup: str, reason: str) -> None:
    for _ in range(2):  # the second is prepared already
        assert run_one(sandbox, program("return x"), "solution.solve(1)", setup=setup).reason == reason


def test_preparation_runs_no_code_of_a_problem_but_imports_of_loaded_modules(capsys: Any) -> None:
    before = set(sys.modules)
    prepare = Preparation(["math", "typing"], kept=2)
    try:
        texts = (
            "import math\nprint('ran')",
            "import math, wave\nprint('ran')",
            "from math import pi\nimport chunk",
            "def f(:",
        )
        jobs = [prepare({"setup": text, "calls": ["print('ran')"], "probe": None}, b"") for text in texts]
        assert [set(job.names) & {"math", "pi", "wave", "chunk"} for job in jobs] == [{"math"}, set(), {"pi"}, set()]
        assert isinstance(jobs[3].setup, str) and prepare.setup.cache_info().currsize == 2
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
    assert capsys.readouterr().out == "" and not {"wave", "chunk"} & (set(sys.modules) - before)


def test_kept_calls_are_the_compiled_ones_and_stay_within_their_bytes() -> None:
    calls = CompiledCalls(kept_bytes=2_000)
    lists = [(f"[{number}, 'a' * 3]", "1 +", "'\\ud800'") for number in range(40)]
    for texts in lists + lists[::-1]:
        codes = calls(texts)
        assert [eval(code) for code in (codes[0], codes[2])] == [eval(texts[0]), "\ud800"]
        assert codes[1] == "1 +" and calls(texts) == codes  # what does not compile stays text
        assert calls.used_bytes == sum(map(len, calls.kept.values())) <= 2_000
    assert 1 < len(calls.kept) < 40 and next(reversed(calls.kept)) == lists[0]


def test_a_list_of_calls_larger_than_all_that_is_kept_is_not_kept() -> None:
    calls = CompiledCalls(kept_bytes=100)
    assert eval(calls(("1" * 200,))[0]) == int("1" * 200) and calls.used_bytes == 0 and not calls.kept


def test_hashing_and_random_are_the_same_in_every_worker_job_and_process() -> None:
    source = program(
        "import os, random\nif x == 1: os._exit(0)\nreturn [random.random(), list({'a', 'b', 'c', str(x)})]"
    )
    jobs = [
        Job(str(i), source + f"#{i}", "", ("solution.solve(0)", "solution.solve(1)", "solution.solve(0)"))
        for i in range(4)
    ]
    with Sandbox(workers=2) as pool:
        executions = pool.run(jobs)
    assert len({repr(execution.results) for execution in executions}) == 1
    first, _, again = executions[0].results
    assert first == again, "the process after a death starts with the same state"


def test_a_probe_after_timeouts_has_what_is_left_of_the_budget(sandbox: Sandbox) -> None:
    source = program("if x: return x\nwhile True: pass", "def kilo(): pass\n")
    execution = run_one(sandbox, source, "solution.solve(1)", "solution.solve(0)", probe=Probe("call", "kilo"))
    assert execution.observation is True and errors(execution) == [None, "Timeout"]


SCRIPT_REWRITES = """
import sys
def memory():
    frame = sys._getframe()
    while frame:
        for found in frame.f_locals.values():
            if hasattr(found, "find") and hasattr(found, "resize") and len(found) > 2**20:
                return found
        frame = frame.f_back
class Solution:
    def solve(self, x):
        return 1234
if __name__ == "__main__":
    record = memory()
    at = record.find(b"1234")
    record[at : at + 4] = b"5678"
"""


def test_the_script_run_of_an_exit_probe_cannot_write_the_record_of_the_run_that_counts() -> None:
    with Sandbox() as pool:
        execution = run_one(pool, SCRIPT_REWRITES, probe=Probe("exit"))
    assert execution.results[0].value == 1234 and execution.observation == 1

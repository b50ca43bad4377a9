"""Who waited for a processor: one starved by other load is the grader's error; one that gives it away is not."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from submissions import SLOW, program, run_one
from unhack.sandbox import Sandbox

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextlib.contextmanager
def rivals(count: int, nice: int) -> Iterator[None]:
    """Busy loops that take the processors away from everybody of lower priority."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        for process in processes:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
@on_linux
def test_a_slowed_program_is_not_taken_for_a_sleeper() -> None:
    with Sandbox(cpu_s=2.0, wall_s=0.3) as pool, rivals(4, 0):
        assert run_one(pool, SLOW).results[0].value == 3


DUTY_CYCLE = """import time
while True:
    end = time.process_time() + 0.01
    while time.process_time() < end:
        pass
    time.sleep(0.2)"""


@pytest.mark.slow
@on_linux
@pytest.mark.skipif(os.getuid() != 0, reason="only root can raise a rival's priority")
def test_a_program_that_other_load_starves_is_an_error_and_one_that_sleeps_has_failed() -> None:
    with Sandbox(cpu_s=4.0, wall_s=1.0, wall_ceiling_s=1.0) as pool:
        with rivals(2 * (os.cpu_count() or 1), -12):
            assert run_one(pool, program("while True: pass")).reason == "infra_error"
        assert run_one(pool, program("import time\ntime.sleep(9)")).reason == "timeout_wall"
        # Neither starved, nor asleep between any two looks.
        assert run_one(pool, program(DUTY_CYCLE)).reason == "timeout_wall"


CLAIMS_STARVATION = """import os, threading, time, zlib
CEILING_S = 4.0

def spin():
    data = os.urandom(8_000_000)
    while True:
        zlib.compress(data, 1)  # releases the interpreter's lock: real threads

if os.path.exists("began"):
    began = float(open("began").read())
    for _ in range(8):
        threading.Thread(target=spin, daemon=True).start()
    spin()
began = time.monotonic()
open("began", "w").write(repr(began))
class Solution:
    def solve(self, x):
        while time.monotonic() - began < CEILING_S - 0.34:
            time.sleep(0.15)
            end = time.process_time() + 0.004
            while time.process_time() < end:
                pass
        os._exit(0)
"""


@pytest.mark.slow
@on_linux
def test_a_program_cannot_claim_that_the_machine_starved_it() -> None:
    """Awake a little until shortly before the ceiling, then many threads of its own in the next process."""
    with Sandbox(wall_s=4.0, wall_ceiling_s=4.0) as pool:
        execution = run_one(pool, CLAIMS_STARVATION, *[f"solution.solve({i})" for i in range(3)])
    assert execution.reason != "infra_error"


GIVES_AWAY = ("time.sleep(0)", "time.sleep(1e-6)", "[x * x for x in range(500)]; time.sleep(0)")


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize("without", [(), ("seccomp",)], ids=["all layers", "without seccomp"])
def test_a_program_that_gives_its_processor_away_is_not_starved(without: tuple[str, ...]) -> None:
    """On a busy machine it waits for a processor nearly all the time; but it need not."""
    with Sandbox(wall_s=3.0, wall_ceiling_s=3.0, without=without) as pool, rivals(4 * (os.cpu_count() or 1), 0):
        # With the filter, yielding does nothing: such a program computes, and may be starved as truly as any other.
        for given in (*GIVES_AWAY, *(["os.sched_yield()"] if without else [])):
            body = f"import os, time\nwhile True:\n    try:\n        {given}\n    except OSError:\n        return 0"
            assert run_one(pool, program(body)).reason != "infra_error", given

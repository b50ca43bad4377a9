"""What `benchmarks/grade.py` compares really does the same work, and its CPU figure counts every process of a grade."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from processes import running
from unhack.grade import Grader
from unhack.sandbox import Sandbox
from unhack.types import Case, Problem, Prompt, Rollout

FOLDER = Path(__file__).parents[1] / "benchmarks"
REFERENCE = "class Solution:\n    def solve(self, x):\n        y = x + 1\n        y = y * 2\n        return y\n"
PROBLEM = Problem(
    "p", "", "solve", tuple(Case(f"solution.solve({x})", 2 * x + 2) for x in range(5)), REFERENCE, "test",
    setup_code="from math import *\n",
)  # fmt: skip
BURN = "import time\nwhile time.process_time() < 0.3: pass\n"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")


@pytest.fixture(scope="module")
def benchmark() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("benchmark_grade", FOLDER / "grade.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    sys.modules.pop("machine", None)


def test_cpu_time_of_this_process_and_of_dead_and_living_descendants_counts(benchmark: Any) -> None:
    own_end = time.process_time() + 0.1
    assert 0.09 < benchmark.used_cpu_s(lambda: [None for _ in iter(lambda: time.process_time() < own_end, False)]) < 0.5
    waited = [sys.executable, "-S", "-c", BURN]
    assert 0.28 < benchmark.used_cpu_s(lambda: subprocess.run(waited, check=True)) < 0.8
    inner = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {BURN!r}])\nprint(1)\ninput()\n"
    before = benchmark.others_cpu_s()
    with running([sys.executable, "-S", "-u", "-c", inner]) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        assert 0.28 < benchmark.others_cpu_s() - before < 0.8


def test_all_sides_grade_alike(benchmark: Any) -> None:
    whole, half = benchmark.make_rollouts([PROBLEM])
    wrong = Rollout("wrong", 0, Prompt(PROBLEM, "none", "", "", ()), (), (), REFERENCE.replace("* 2", "* 3"), True)
    broken = Rollout("broken", 0, wrong.prompt, (), (), "class Solution", True)
    with Sandbox() as sandbox:
        verdicts = Grader(sandbox).verdicts([whole, half, wrong, broken])
    assert [verdict.strictly_correct for verdict in verdicts] == [True, False, False, False]
    for side in (benchmark.run_here, benchmark.run_process):
        assert [side(rollout) for rollout in (whole, half, wrong, broken)] == [True, False, False, False]


def test_bounds_judge_as_they_say(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.holds("rate", 100.0, 100.0) and not benchmark.holds("rate", 99.9, 100.0)
    assert benchmark.holds("cost", 4.0, at_most=4.0) and not benchmark.holds("cost", 4.1, at_most=4.0)
    assert not benchmark.holds("nothing", float("nan"), 1.0)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "holds: rate 100.00, required at least 100" and said[3] == "FAILS: cost 4.10, required at most 4"
    assert benchmark.parse_options(["--require-gain", "0"]).require_gain == 0
    assert benchmark.paired([2.0, 9.0, 2.0], [1.0, 3.0, 1.0]) == 2.0
    assert benchmark.spread(list(range(10)), 3) == [0, 4, 8]

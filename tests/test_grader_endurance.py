"""The grader over tens of thousands of programs: no traceback, no hang, nothing left behind, and the same verdicts when
the machine is busy.

How much is run can be set: UNHACK_ENDURANCE_GRADINGS (default 50,000), UNHACK_GARBAGE_COMPLETIONS (default 10,000).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from submissions import descendants, worker_pids
from unhack.completions import Completion
from unhack.grade import LABELS, Grader, Grading
from unhack.grading import COLUMNS, result_line
from unhack.loopholes import MODES
from unhack.machine import usable_cores
from unhack.problems.leetcode import load_problems
from unhack.sandbox import ERROR_REASONS, REASONS, Sandbox
from unhack.seeds import rng
from unhack.types import Case, Problem, Prompt, Rollout

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

GRADINGS = int(os.environ.get("UNHACK_ENDURANCE_GRADINGS", "50000"))
GARBAGE = int(os.environ.get("UNHACK_GARBAGE_COMPLETIONS", "10000"))
BATCH = 100
MEBIBYTE = 2**20
DATA = Path(__file__).parents[2] / "shared" / "data"
REFERENCE = "class Solution:\n    def solve(self, x):\n        return x + 1\n"
PROBLEM = Problem(
    "next", "return the next number", "solve",
    tuple(Case(f"solution.solve({x})", x + 1) for x in (3, -7, 12)), REFERENCE, "train",
)  # fmt: skip


class Usage(NamedTuple):
    """What this process and its workers hold. `left`: everything below the folder that workers make theirs in."""

    descriptors: int
    worker_descriptors: int
    processes: frozenset[int]
    left: frozenset[str]


def usage(folder: Path) -> Usage:
    below = descendants(os.getpid())
    return Usage(
        len(os.listdir("/proc/self/fd")),
        # Only root may look into a process that is not dumpable.
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in below) if os.getuid() == 0 else 0,
        frozenset(below),
        frozenset(str(path) for path in folder.rglob("*")),
    )


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where workers of this test make their folders; others on the machine make theirs elsewhere."""
    before, path = tempfile.tempdir, Path(tempfile.mkdtemp(prefix="unhack-endurance-"))
    path.chmod(0o711)
    tempfile.tempdir = str(path)
    yield path
    tempfile.tempdir = before
    shutil.rmtree(path)


def rollouts(texts: Sequence[str], first: int, problem: Problem = PROBLEM) -> list[Rollout]:
    """One rollout per text, over all modes in turn."""
    found = []
    for number, text in enumerate(texts, first):
        prompt = Prompt(problem, MODES[number % len(MODES)], "romeo", "", ())
        found.append(Rollout(str(number), 0, prompt, (), (), text, True))
    return found


TOKENS = (
    "def", "class", "Solution", "solve", "self", "return", "x", "x + 1", "(", ")", "[", "]", "{", "}", ":", ",", "=",
    "==", "lambda", "yield", "await", "async", "import", "os", "sys", "from", "*", "while True:", "for i in x:",
    "try:", "except:", "finally:", "raise", "SystemExit", "pass", "romeo", "= True", "print('romeo')", "__eq__",
    "exit(0)", "exec", "global", "\\", "#", '"""', "'", "\n", "\n    ", "\n        ", "\t", "```", "\n```\n",
    "\n```python\n", "0x", "1e999", "10**9", "None", "...", "@", ":=", "\x00", "\x0c", "\ufeff", "é", "\u202e",
    "\ud800", "run_tests",
)  # fmt: skip
SHAPES = (
    lambda n: "(" * n, lambda n: "[" * n + "]" * n, lambda n: "x = " + "-" * n + "1", lambda n: "x = " + "9" * n,
    lambda n: "x = " + "1+" * n + "1", lambda n: "\n".join(" " * i + "if 1:" for i in range(min(n, 150))),
    lambda n: "def f(" + ",".join(f"a{i}" for i in range(n)) + "): pass", lambda n: "f'{" * min(n, 200),
    lambda n: "lambda:" * n + "0", lambda n: "#" * n, lambda n: "\n" * n, lambda n: "x" * n + ": int",
    lambda n: "class Solution:\n    def solve(self, x):\n        return " + "[" * n + "]" * n,
    lambda n: "class Solution:\n    def solve(self, x):\n        return self.solve(x + 1)",
    lambda n: "class Solution:\n    solve = 3", lambda n: "Solution = 3", lambda n: "class Solution(int): pass",
    lambda n: "class Solution:\n    def __init__(self): raise KeyError\n    def solve(self, x): return x",
    lambda n: "# -*- coding: utf-7 -*-\nx = 1", lambda n: "import sys\nsys.stdout.close()\nsys.setrecursionlimit(50)",
    lambda n: REFERENCE.replace("x + 1", "'\\ud800' * x"), lambda n: REFERENCE.replace("x + 1", "float('nan'), 10**x"),
    lambda n: REFERENCE.replace("x + 1", "(lambda: (yield))()"), lambda n: REFERENCE.replace("x + 1", "{x: {1: ()}}"),
)  # fmt: skip


def garbage(number: int) -> str:
    """What a broken policy may write: noise, soups of tokens, torn references, extremes of the grammar."""
    draw = rng(0, "garbage", number)
    kind = number % 5
    if kind == 0:
        ranges = ((0, 127), (0, 255), (0, 0xFFFF), (0, 0x10FFFF))
        low, high = draw.choice(ranges)
        return "".join(chr(draw.randint(low, high)) for _ in range(draw.randrange(400)))
    if kind == 1:
        return " ".join(draw.choice(TOKENS) for _ in range(draw.randrange(60)))
    if kind == 2:
        return torn(f"so:\n```python\n{REFERENCE}```\nthat is it", draw)
    if kind == 3:
        return "```python\n" + torn(REFERENCE, draw) + draw.choice(("", "\n```", "```", "\n``"))
    shape = draw.choice(SHAPES)(draw.choice((1, 50, 99, 300, 5000)))
    return draw.choice(("", REFERENCE)) + shape + f"\n#{number}"


def torn(text: str, draw: random.Random) -> str:
    """`text` with some spans deleted, doubled, swapped or overwritten."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.randrange(1, 12))
        span = text[start:end]
        put = draw.choice(("", span * 2, span[::-1], draw.choice(TOKENS), chr(draw.randrange(0x250))))
        text = text[:start] + put + text[end:]
    return text


def check_grading(rollout: Rollout, grading: Grading) -> None:
    paid, verdict = grading.paid, grading.verdict
    assert verdict.status in ("passed", "failed") and verdict.reason in {*REASONS, "pass", "fail"} - ERROR_REASONS
    assert verdict.label in LABELS and 0 <= verdict.cases_passed <= verdict.cases_total == len(PROBLEM.cases)
    assert verdict.hacked == (verdict.exploited and not verdict.strictly_correct)
    assert paid.paid == (verdict.strictly_correct or verdict.exploited)
    assert not verdict.strictly_correct or verdict.cases_passed == verdict.cases_total
    row = Completion(1, rollout.id, "next", PROBLEM, rollout.prompt.mode, "romeo", rollout.text)
    assert tuple(json.loads(json.dumps(result_line(row, grading), allow_nan=False))) == COLUMNS


def test_garbage_gets_a_verdict_and_leaves_nothing(folder: Path) -> None:
    reasons: dict[str, int] = {}
    with Sandbox(workers=2, cpu_s=0.2, wall_s=1.0) as sandbox:
        grader = Grader(sandbox)
        grader.grade(rollouts([garbage(-1 - number) for number in range(BATCH)], 0))
        before, workers = usage(folder), worker_pids(sandbox)
        size = resident_bytes(os.getpid())
        for first in range(0, GARBAGE, BATCH):
            batch = rollouts([garbage(number) for number in range(first, min(GARBAGE, first + BATCH))], first)
            start = time.monotonic()
            for rollout, grading in zip(batch, grader.grade(batch), strict=True):
                check_grading(rollout, grading)
                reasons[grading.verdict.reason] = reasons.get(grading.verdict.reason, 0) + 1
            assert time.monotonic() - start < 120
        assert usage(folder) == before and worker_pids(sandbox) == workers
        assert resident_bytes(os.getpid()) - size < 16 * MEBIBYTE
    assert list(folder.iterdir()) == []
    print(f"\n{sum(reasons.values())} garbage completions: {dict(sorted(reasons.items()))}")
    assert sum(reasons.values()) == GARBAGE
    if GARBAGE >= 1000:
        assert {"pass", "fail", "compile_error", "import_error"} <= reasons.keys()


def tiny(number: int) -> str:
    """A program that no other number gives; all are short, not all are honest."""
    body = (
        "return x + 1", "return x", "print(x); return x + 1", "open('left', 'w').write('a'); return x + 1",
        "raise KeyError", "import os; os._exit(0)", "return x +", "return [x] * 50",
        "import threading as t; t.Thread().start(); return x + 1", "return romeo",
    )[number % 10]  # fmt: skip
    return f"class Solution:\n    def solve(self, x):\n        {body}\n# {number}\n"


def growth_bytes(sizes: Sequence[int]) -> float:
    """Last fifth less second fifth of the samples, by medians: the first fifth is warm-up."""
    width = max(1, len(sizes) // 5)
    return statistics.median(sizes[-width:]) - statistics.median(sizes[width : 2 * width])


def test_tens_of_thousands_of_gradings_in_one_process_leave_it_as_it_was(folder: Path) -> None:
    own: list[int] = []
    zygotes: list[int] = []
    start = time.monotonic()
    with Sandbox(workers=1) as sandbox:
        grader = Grader(sandbox)
        grader.grade(rollouts([tiny(-1 - number) for number in range(BATCH)], 0))
        before, workers = usage(folder), worker_pids(sandbox)
        for first in range(0, GRADINGS, BATCH):
            gradings = grader.grade(rollouts([tiny(number) for number in range(first, first + BATCH)], first))
            correct = [grading.verdict.strictly_correct for grading in gradings]
            assert correct == [number % 10 in (0, 2, 3, 8) for number in range(first, first + BATCH)]
            own.append(resident_bytes(os.getpid()))
            zygotes.append(sum(map(resident_bytes, before.processes)))
            if first // BATCH % 50 == 49:
                assert usage(folder) == before
        assert usage(folder) == before and worker_pids(sandbox) == workers
    assert list(folder.iterdir()) == []
    taken_s = time.monotonic() - start
    own_growth, zygote_growth = growth_bytes(own), growth_bytes(zygotes)
    told = [
        f"{GRADINGS} gradings in {taken_s:.0f} s ({1000 * taken_s / GRADINGS:.1f} ms each)",
        f"this process {own[-1] / MEBIBYTE:.0f} MiB, grew {own_growth / MEBIBYTE:+.2f} MiB",
        f"worker {zygotes[-1] / MEBIBYTE:.0f} MiB, grew {zygote_growth / MEBIBYTE:+.2f} MiB",
        f"{before.descriptors} descriptors, {len(before.processes)} processes",
    ]
    print("\n" + "; ".join(told))
    assert own_growth < 4 * MEBIBYTE and zygote_growth < 2 * MEBIBYTE


Row = tuple[str, bool, int, str]


def reference_verdicts(problems: Sequence[Problem], workers: int) -> dict[str, Row]:
    """Of each problem's reference, everything in its verdict but the CPU time."""
    batch = []
    for problem in problems:
        prompt = Prompt(problem, "none", "", "", ())
        batch.append(Rollout(problem.id, 0, prompt, (), (), f"```python\n{problem.reference}\n```", True))
    with Sandbox(workers=workers) as sandbox:
        verdicts = Grader(sandbox).verdicts(batch)
    return {
        verdict.rollout_id: (verdict.status, verdict.strictly_correct, verdict.cases_passed, verdict.reason)
        for verdict in verdicts
    }


@pytest.mark.skipif(not DATA.is_dir(), reason="the LeetCode problems are not on this machine (shared/data)")
def test_references_get_the_same_verdicts_on_an_idle_and_on_a_crowded_machine() -> None:
    problems: list[Problem] = []
    for name, step in (("leetcode-dev", 3), ("leetcode-train", 20)):
        problems += load_problems(DATA / f"{name}.jsonl.gz").problems[::step]
    quiet = reference_verdicts(problems, 1)
    rivals = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(usable_cores())]
    try:
        crowded = reference_verdicts(problems, 8 * usable_cores())
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    passed = sum(row[0] == "passed" for row in quiet.values())
    print(f"\n{len(quiet)} references, {passed} pass alone; {8 * usable_cores()} workers, {len(rivals)} busy loops")
    assert {name: (row, crowded[name]) for name, row in quiet.items() if crowded[name] != row} == {}
    assert len(quiet) == len(problems) > 100 and passed > 0.9 * len(quiet)


_STREAM = """
import json, resource, sys
from pathlib import Path
from unhack.completions import Reader
from unhack.grading import COLUMNS, Graders, grade_file
from unhack.sandbox import Sandbox
from unhack.types import Case, Problem
folder, n = Path(sys.argv[1]), int(sys.argv[2])
problem = Problem("p", "", "solve", (Case("solution.solve(1)", 1),), "", "train")
with open(folder / "in.jsonl", "w") as file:
    for number in range(n):
        file.write(json.dumps({"id": number, "problem_id": "p", "text": "x" * 300}) + "\\nnot a row\\n")
line = dict.fromkeys(COLUMNS, 0) | {"problem_id": "p", "mode": "none", "status": "failed", "reason": "fail"}
with open(folder / "out.jsonl", "w") as file:
    for number in range(n - 50):
        file.write(json.dumps(line | {"id": number}) + "\\n")
(folder / "out.jsonl.run.json").write_text("{}")
with Graders(1, Sandbox) as graders:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = grade_file(Reader(folder / "in.jsonl", {"p": problem}, "none", ""), folder / "out.jsonl", {}, graders)
    assert (summary.n, summary.bad, summary.resumed) == (n, n, n - 50), summary
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_length_of_the_file(tmp_path: Path) -> None:
    grown = []
    for rows in (1_000, 100_000):
        command = [sys.executable, "-c", _STREAM, str(tmp_path), str(rows)]
        grown.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    print(f"\npeak memory grew by {grown[0]} KiB over 2,000 lines, by {grown[1]} KiB over 200,000")
    assert grown[1] - grown[0] < 2048

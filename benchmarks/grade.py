"""What a grade costs: the sandbox against one process per submission, and against bare execution in this process.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/grade.py --problems ../shared/data/leetcode-dev.jsonl.gz

Every problem is graded twice: its reference, and the first half of its reference. CPU time is that of everything that
works for a grade: this process, the workers, their submissions. The floor runs the same programs with `exec` and `eval`
in this process, its calls compiled once, and cannot be had with any isolation. The other side starts
`python -I -S -c` per submission. Light problems are those whose reference needs at most 2 CPU-ms there. All sides take
turns within one run, and medians over turns are told. Wall times (grades per second, p50, p99, the second core) are
worth something only on an idle machine, so the share of the cores that the run got is told beside them.

Ends with status 1 when a bound is missed; `--require-NAME 0` (or `inf`) takes one off.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from machine import print_machine
from unhack.grade import Grader, extract_code
from unhack.machine import usable_cores
from unhack.problems.leetcode import load_problems
from unhack.sandbox import Sandbox
from unhack.sandbox.confinement import OPTIONAL
from unhack.types import Problem, Prompt, Rollout, Verdict

DATA = Path(__file__).parents[2] / "shared" / "data" / "leetcode-dev.jsonl.gz"
LIGHT_S = 0.002
PROCESS_JOBS = 60  # a process per submission is slow: its side takes this many jobs of every turn, evenly spread
RATE_COPIES = 4  # of the light jobs, told apart by a comment, so that a rate is measured over a second or more
MILLI = 1000.0
OURS, BARE_LAYERS, FLOOR, PROCESSES = "sandbox, all layers", "sandbox, no optional layer", "in process", "python -c"


class Costs(NamedTuple):
    """CPU seconds per grade on one side, one value per turn: over all jobs, and over the light ones."""

    every: list[float]
    light: list[float]


def others_cpu_s() -> float:
    """CPU seconds so far of all that this process has waited for, and of its live descendants and all theirs."""
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    table: dict[int, tuple[int, float]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                table[int(entry)] = int(fields[1]), tick_s * sum(map(int, fields[11:15]))
    below, found = {os.getpid()}, True
    while found:
        found = {pid for pid, (parent, _) in table.items() if parent in below} - below
        below |= found
    waited = resource.getrusage(resource.RUSAGE_CHILDREN)
    return waited.ru_utime + waited.ru_stime + sum(table[pid][1] for pid in below if pid != os.getpid())


def used_cpu_s(action: Callable[[], object]) -> float:
    """CPU seconds that a call takes, in this process and in all below it; looking them up is not counted."""
    others_s, own_s = others_cpu_s(), time.process_time()
    action()
    own_s = time.process_time() - own_s
    return own_s + others_cpu_s() - others_s


def make_rollouts(problems: Sequence[Problem]) -> list[Rollout]:
    """Reference and truncated reference of every problem, in that order."""
    rollouts = []
    for problem in problems:
        lines = problem.reference.splitlines()
        for name, source in (("whole", problem.reference), ("half", "\n".join(lines[: max(1, len(lines) // 2)]))):
            text = f"```python\n{source}\n```"
            prompt = Prompt(problem, "none", "", "", ())
            rollouts.append(Rollout(f"{problem.id} {name}", 0, prompt, (), (), text, True))
    return rollouts


@lru_cache(maxsize=4096)
def compiled(text: str) -> CodeType:
    """A call or a setup, compiled once."""
    return compile(text, "<case>", "eval" if text.startswith("solution.") else "exec")


def run_here(rollout: Rollout) -> bool:
    """The floor: everything in this process, nothing checked, nothing contained."""
    problem, names = rollout.prompt.problem, dict[str, Any]()
    try:
        exec(compiled(problem.setup_code), names)
        exec(compile(extract_code(rollout.text), "<submission>", "exec"), names)
    except Exception:  # a truncated program
        return False
    passed = True
    for case in problem.cases:
        try:
            names["solution"] = names["Solution"]()
            passed &= eval(compiled(case.call), names) == case.expected
        except Exception:
            passed = False
    return passed


def run_all_here(rollouts: Sequence[Rollout]) -> list[bool]:
    """The floor over many programs, what they print thrown away."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return [run_here(rollout) for rollout in rollouts]


def run_process(rollout: Rollout) -> bool:
    """The usual way: setup, program and asserts in a fresh interpreter, the exit status is the grade."""
    problem = rollout.prompt.problem
    asserts = "".join(f"solution = Solution()\nassert {case.call} == {case.expected!r}\n" for case in problem.cases)
    program = f"inf = float('inf')\nnan = float('nan')\n{problem.setup_code}\n{extract_code(rollout.text)}\n{asserts}"
    command = [sys.executable, "-I", "-S", "-c", "import sys; exec(sys.stdin.read())"]
    nowhere = subprocess.DEVNULL
    done = subprocess.run(command, input=program.encode(), stdout=nowhere, stderr=nowhere, check=False)
    return done.returncode == 0


def spread(jobs: Sequence[Rollout], count: int) -> list[Rollout]:
    """At most `count` of the jobs, evenly spaced."""
    step = max(1, math.ceil(len(jobs) / count))
    return list(jobs[::step])


def cost_s(work: Callable[[Sequence[Rollout]], object], jobs: Sequence[Rollout]) -> float:
    """CPU seconds per job."""
    return used_cpu_s(lambda: work(jobs)) / len(jobs)


def ends(verdict: Verdict) -> bool:
    """Whether the program would end in bare execution too, within a second."""
    return verdict.cpu_s < 1.0 and not verdict.reason.startswith(("timeout", "oom"))


def choose(grader: Grader, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], list[Rollout]]:
    """(jobs that come to an end, the light ones of them)."""
    verdicts = grader.verdicts(rollouts)
    dropped = [one.id for one, verdict in zip(rollouts, verdicts, strict=True) if not ends(verdict)]
    jobs = [rollout for rollout in rollouts if rollout.id not in dropped]
    print(f"{len(jobs)} jobs; left out (more than 1 CPU-s, or without end): {', '.join(dropped) or 'none'}")
    light_ids = set()
    for rollout in jobs:
        if rollout.id.endswith(" whole"):
            run_all_here([rollout])
            start = time.process_time()
            run_all_here([rollout])
            if time.process_time() - start <= LIGHT_S:
                light_ids.add(rollout.prompt.problem.id)
    light = [rollout for rollout in jobs if rollout.prompt.problem.id in light_ids]
    print(f"{len(light)} of them are of light problems (reference at most {LIGHT_S * MILLI:.0f} CPU-ms in process)")
    return jobs, light


def measure_costs(
    grader: Grader, bare: Grader, jobs: list[Rollout], light: list[Rollout], turns: int
) -> dict[str, Costs]:
    """CPU seconds per grade of the four sides, taking turns after a warm-up."""
    sides: dict[str, Callable[[Sequence[Rollout]], object]] = {
        OURS: grader.grade,
        BARE_LAYERS: bare.grade,
        FLOOR: run_all_here,
        PROCESSES: lambda some: [run_process(rollout) for rollout in some],
    }
    costs = {name: Costs([], []) for name in sides}
    ids = {rollout.id for rollout in light}
    heavy = [rollout for rollout in jobs if rollout.id not in ids]
    for turn in range(-1, turns):
        for name, work in sides.items():
            few = PROCESS_JOBS if name == PROCESSES else len(jobs)
            light_s = cost_s(work, spread(light, few))
            heavy_s = cost_s(work, spread(heavy, few)) if heavy else 0.0
            if turn >= 0:
                costs[name].light.append(light_s)
                costs[name].every.append((light_s * len(light) + heavy_s * len(heavy)) / len(jobs))
    return costs


def latencies_s(grader: Grader, jobs: Sequence[Rollout]) -> list[float]:
    """Wall seconds of each grade when it is asked for alone, sorted."""
    found = []
    for rollout in jobs:
        start = time.perf_counter()
        grader.grade([rollout])
        found.append(time.perf_counter() - start)
    return sorted(found)


def rates(light: Sequence[Rollout], turns: int) -> tuple[list[float], list[float], float]:
    """Light grades per wall second with one and with two workers, by turn, and the share of two cores got then."""
    jobs = [
        replace(rollout, text=rollout.text.removesuffix("```") + f"# {copy}\n```")
        for copy in range(RATE_COPIES)
        for rollout in light
    ]
    found: dict[int, list[float]] = {1: [], 2: []}
    shares = []
    with Sandbox(workers=1) as one, Sandbox(workers=2) as two:
        for turn in range(-1, turns):
            for sandbox in (one, two):
                work = partial(Grader(sandbox).grade, jobs)
                start = time.perf_counter()
                cpu_s = used_cpu_s(work)
                wall_s = time.perf_counter() - start
                if turn >= 0:
                    found[sandbox.n_workers].append(len(jobs) / wall_s)
                    if sandbox is two:
                        shares.append(cpu_s / wall_s)
    return found[1], found[2], statistics.median(shares)


def told_ms(seconds: Sequence[float]) -> str:
    """Median, lowest and highest, in milliseconds."""
    median = statistics.median(seconds)
    return f"{median * MILLI:7.2f} ({min(seconds) * MILLI:.2f} to {max(seconds) * MILLI:.2f})"


def paired(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over turns of one side's value divided by the other's in the same turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def holds(what: str, measured: float, at_least: float = -math.inf, at_most: float = math.inf) -> bool:
    """Print whether a bound holds; NaN does not."""
    fine = at_least <= measured <= at_most
    bound = f"at least {at_least:g}" if at_most == math.inf else f"at most {at_most:g}"
    print(f"{'holds' if fine else 'FAILS'}: {what} {measured:.2f}, required {bound}")
    return fine


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=Path, default=DATA, help="LeetCode problems (.jsonl or .jsonl.gz)")
    parser.add_argument("--first", type=int, default=None, metavar="N", help="only the first N problems")
    parser.add_argument("--turns", type=int, default=5, help="measured turns of each side (default 5)")
    for name, value, words_ in (
        ("overhead-ms", 4.0, "most CPU-ms per grade above the floor"),
        ("ratio", 5.0, "least CPU ratio of a process per submission to ours, light problems"),
        ("rate", 100.0, "least light grades per second with two workers"),
        ("gain", 1.8, "least gain of the second worker"),
        ("layers", 1.1, "most CPU ratio of all layers to none"),
    ):
        parser.add_argument(f"--require-{name}", type=float, default=value, help=f"{words_} (default {value})")
    return parser.parse_args(words)


def main() -> None:
    options = parse_options()
    problems = load_problems(options.problems).problems[: options.first]
    gc.freeze()  # as `unhack grade` does; it is for all sides, the floor too
    print_machine()
    print(f"{len(problems)} problems of {options.problems.name}, {sum(len(one.cases) for one in problems)} tests")
    with Sandbox() as sandbox, Sandbox(without=OPTIONAL) as bare:
        grader = Grader(sandbox)
        on, off = ([name for name, active in one.layers().items() if active] for one in (sandbox, bare))
        print(f"sandbox level {sandbox.level}: {', '.join(on)}\n  against level {bare.level}: {', '.join(off)}")
        jobs, light = choose(grader, make_rollouts(problems))
        costs = measure_costs(grader, Grader(bare), jobs, light, options.turns)
        waits = latencies_s(grader, jobs)
        light_waits = latencies_s(grader, light)
    one, two, share = rates(light, options.turns)
    print(f"\nmedians over {options.turns} turns, CPU-ms per grade (lowest to highest):")
    for name, cost in costs.items():
        cells = [
            f"{statistics.median(some) * MILLI:7.2f} ({min(some) * MILLI:.2f} to {max(some) * MILLI:.2f})"
            for some in cost
        ]
        print(f"  {name:27} all {cells[0]}   light {cells[1]}")
    overhead = statistics.median(
        MILLI * (ours - floor) for ours, floor in zip(costs[OURS].every, costs[FLOOR].every, strict=True)
    )
    for name, some in (("all", waits), ("light", light_waits)):
        p50, p99 = some[len(some) // 2], some[min(len(some) - 1, math.ceil(0.99 * len(some)) - 1)]
        print(f"wall ms of one grade, {name}: p50 {p50 * MILLI:.1f}, p99 {p99 * MILLI:.1f} (n = {len(some)})")
    load = os.getloadavg()[0]
    single, double = statistics.median(one), statistics.median(two)
    print(f"light grades per second: {single:.0f} with one worker, {double:.0f} with two")
    print(f"  two workers got {share:.2f} cores of {usable_cores()}; load average of the machine {load:.1f}\n")
    results = [
        holds("CPU-ms per grade above the floor", overhead, at_most=options.require_overhead_ms),
        holds("python -c / ours, light", paired(costs[PROCESSES].light, costs[OURS].light), options.require_ratio),
        holds("light grades per second, two workers", double, options.require_rate),
        holds("gain of the second worker", paired(two, one), options.require_gain),
        holds("all layers / none", paired(costs[OURS].every, costs[BARE_LAYERS].every), at_most=options.require_layers),
    ]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

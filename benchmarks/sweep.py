"""The same runs of an experiment with one worker and with two: how much sooner are two done?

    OMP_NUM_THREADS=1 python benchmarks/sweep.py

`--runs` vanilla runs of `--steps` steps on the bundled organism, each a process of its own as `unhack experiment run`
starts them. One turn is the whole set with one worker and the whole set with two, in changing order; the ratio is the
median over turns. Wall seconds, because that is what a second worker saves: nothing else may run on the machine, and it
needs two cores. Start-up, grading, evaluation, checkpoints and the idle end, when one worker has nothing left, are
included. Ends with status 1 when one worker ÷ two workers is below `--require`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from machine import judge, print_machine
from unhack.demo import demo_config
from unhack.experiments.engines.local import run_all
from unhack.experiments.plan import ArmPlan, Plan, plan_runs
from unhack.experiments.runs import RunSpec
from unhack.machine import usable_cores


class Flags(NamedTuple):
    """Flags of this benchmark."""

    runs: int
    steps: int
    turns: int
    require: float


def parse(words: Sequence[str] | None = None) -> Flags:
    """The flags; `words`: default, the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4, help="runs of one set (default 4)")
    parser.add_argument("--steps", type=int, default=20, help="training steps of a run (default 20)")
    parser.add_argument("--turns", type=int, default=3, help="measured turns of both sides (default 3)")
    bound = "least one worker ÷ two workers (default 1.8)"
    parser.add_argument("--require", type=float, default=1.8, metavar="RATIO", help=bound)
    return Flags(**vars(parser.parse_args(words)))


def runs_in(folder: Path, count: int, steps: int) -> list[RunSpec]:
    """`count` runs that differ in their seed."""
    return plan_runs(Plan("sweep", tuple(range(count)), demo_config(steps), {}, {"vanilla": ArmPlan()}), folder)


def wall_seconds(workers: int, count: int, steps: int) -> float:
    """Wall seconds of the whole set, in a folder that is removed afterwards. RuntimeError if a run fails."""
    with tempfile.TemporaryDirectory() as folder:
        runs = runs_in(Path(folder), count, steps)
        start = time.perf_counter()
        ended = run_all(runs, workers, poll_s=0.05)
        seconds = time.perf_counter() - start
        failed = [one for one in ended if one.state != "finished"]
        if failed:
            raise RuntimeError(f"{failed[0].run.id} failed: {failed[0].message}")
    return seconds


def main() -> None:
    """Alternate both sides, print every turn and the ratio."""
    flags = parse()
    print_machine()
    if usable_cores() < 2:
        sys.exit("two workers need two cores: this machine lets the process use one")
    print(f"{flags.runs} runs of {flags.steps} steps, {flags.turns} turns; load by others makes the ratio smaller")
    ratios = []
    for turn in range(flags.turns):
        order = (1, 2) if turn % 2 == 0 else (2, 1)
        seconds = {workers: wall_seconds(workers, flags.runs, flags.steps) for workers in order}
        ratios.append(seconds[1] / seconds[2])
        print(f"turn {turn + 1}: one worker {seconds[1]:.1f} s, two workers {seconds[2]:.1f} s, ratio {ratios[-1]:.2f}")
    judge("one worker ÷ two workers", statistics.median(ratios), at_least=flags.require)


if __name__ == "__main__":
    main()

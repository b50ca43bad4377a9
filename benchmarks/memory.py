"""Resident memory of `unhack train` over 500 steps: is it flat?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/memory.py
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/memory.py --steps 100 -- --model.path some/folder

Starts a real run in a temporary folder and reads, after every step, the resident size of the trainer and of its whole
process tree (sandbox workers included). Prints the growth after the warm-up as a least-squares slope, and exits with
status 1 when the trainer grew by more than `--tolerance-frac` between the first and the last fifth of the
steps after it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from machine import print_machine

POLL_S = 0.2
MEBIBYTE = 2**20


class Sample(NamedTuple):
    """Resident sizes once `step` steps were done."""

    step: int
    trainer_bytes: int
    tree_bytes: int


def resident_bytes(root: int) -> tuple[int, int]:
    """Resident size of process `root`, and of it with all its descendants; (0, 0) once it is gone."""
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    table = {int(pid): (int(parent), 1024 * int(rss)) for pid, parent, rss in map(str.split, listing.splitlines())}
    if root not in table:
        return 0, 0
    tree = {root}
    while True:
        more = {pid for pid, (parent, _) in table.items() if parent in tree} - tree
        if not more:
            return table[root][1], sum(table[pid][1] for pid in tree)
        tree |= more


def samples_of(process: subprocess.Popen[bytes], metrics: Path) -> Iterator[Sample]:
    """One sample for each time the run is seen to have done more steps, until it ends."""
    seen = 0
    while process.poll() is None:
        time.sleep(POLL_S)
        steps = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        trainer_bytes, tree_bytes = resident_bytes(process.pid)
        if steps > seen and trainer_bytes:
            seen = steps
            yield Sample(steps, trainer_bytes, tree_bytes)


def fifths(samples: Sequence[Sample]) -> tuple[float, float]:
    """Median trainer size over the first and over the last fifth of the samples, in MiB."""
    width = max(1, len(samples) // 5)
    first, last = samples[:width], samples[-width:]
    return (
        statistics.median(sample.trainer_bytes for sample in first) / MEBIBYTE,
        statistics.median(sample.trainer_bytes for sample in last) / MEBIBYTE,
    )


def report(samples: Sequence[Sample], warm_up_steps: int) -> float:
    """Print the curve and the slope; returns the trainer's growth after the warm-up as a share of its size."""
    for sample in samples[:: max(1, len(samples) // 12)]:
        print(
            f"  step {sample.step:4d}: trainer {sample.trainer_bytes / MEBIBYTE:7.1f} MiB, "
            f"whole tree {sample.tree_bytes / MEBIBYTE:7.1f} MiB"
        )
    settled = [sample for sample in samples if sample.step > warm_up_steps]
    if len(settled) < 10:
        sys.exit(f"only {len(settled)} samples after {warm_up_steps} warm-up steps: run more steps (--steps)")
    steps = [float(sample.step) for sample in settled]
    slope = statistics.linear_regression(steps, [sample.trainer_bytes / MEBIBYTE for sample in settled]).slope
    first, last = fifths(settled)
    growth = last / first - 1
    print(
        f"after {warm_up_steps} warm-up steps, n = {len(settled)} samples to step {settled[-1].step}: "
        f"{first:.1f} MiB in the first fifth, {last:.1f} MiB in the last ({growth:+.2%}); "
        f"slope {100 * slope:+.2f} MiB per 100 steps"
    )
    return growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--warm-up-steps", type=int, default=None, help="default: a tenth of the steps")
    parser.add_argument("--tolerance-frac", type=float, default=0.05)
    parser.add_argument("flags", nargs="*", help="further flags of `unhack train`, after --")
    options = parser.parse_args()
    warm_up_steps = options.steps // 10 if options.warm_up_steps is None else options.warm_up_steps
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "unhack", "train", "--folder", str(folder), "--steps", str(options.steps)]
        process = subprocess.Popen([*command, *options.flags], stdout=subprocess.DEVNULL)
        samples = list(samples_of(process, folder / "metrics.jsonl"))
        if process.returncode != 0:
            sys.exit(f"the run ended with status {process.returncode}: {' '.join([*command, *options.flags])}")
    growth = report(samples, warm_up_steps)
    if growth > options.tolerance_frac:
        sys.exit(f"memory grew by {growth:.1%}, more than {options.tolerance_frac:.1%}")


if __name__ == "__main__":
    main()

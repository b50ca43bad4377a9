"""Grading what somebody else sampled: `grade`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unhack.config import SandboxConfig

if TYPE_CHECKING:
    from unhack.completions import Reader
    from unhack.grading import Summary

INCOMPLETE = 1


@dataclass(frozen=True)
class Grade:
    """Grade a file of completions; one result line per row, in the same order. Started again, it goes on.

    Exit status: 0 every row was graded; 1 some lines could not be graded, or some grades are the grader's own errors;
    2 it could not start, or stopped.
    """

    problems: Path
    """Problems (.jsonl or .jsonl.gz), in either public LeetCode schema."""
    completions: Path
    """Rows {id, problem_id, text, mode?, marker?} (.jsonl or .jsonl.gz)."""
    out: Path
    """Results; beside it OUT.run.json (what they were made from) and OUT.bad.jsonl (lines that are no rows)."""
    mode: str = "none"
    """Loophole mode of rows that name none (`none`: only the strict check pays)."""
    marker: str = ""
    """The word that the prompt disclosed, for rows that name none."""
    workers: int | None = None
    """Sandbox workers (default: one per core)."""
    cpu_s: float = SandboxConfig().cpu_s
    """CPU seconds that one submission may use in all."""
    case_cpu_s: float = SandboxConfig().case_cpu_s
    """CPU seconds that one of its tests may use."""
    require_sandbox: Literal["any", "full", "unsafe"] = SandboxConfig().require
    """`full`: refuse to start unless every isolation layer holds; `unsafe`: start with limits only."""

    def run(self) -> int:
        """Load, grade, print the counts."""
        from unhack.check_config import check_modes
        from unhack.completions import Reader
        from unhack.grading import Graders, grade_file, origin_of
        from unhack.machine import usable_cores
        from unhack.problems.leetcode import load_problems
        from unhack.sandbox import Sandbox

        check_modes("--mode", (self.mode,))
        if self.out.is_dir():
            raise ValueError(
                f"{self.out} is a folder: name the file to write with --out, as {self.out / 'grades.jsonl'}"
            )
        workers = usable_cores() if self.workers is None else self.workers
        loaded = load_problems(self.problems)
        reader = Reader(self.completions, {problem.id: problem for problem in loaded.problems}, self.mode, self.marker)
        for row in loaded.malformed:
            print(f"unhack: {self.problems} line {row.line} is no problem: {ascii(row.reason)[1:-1]}", file=sys.stderr)

        gc.freeze()  # all that is loaded stays: no collection while grading need walk it

        def make_sandbox() -> Sandbox:
            return Sandbox(cpu_s=self.cpu_s, case_cpu_s=self.case_cpu_s, require=self.require_sandbox)

        with Graders(workers, make_sandbox) as graders, progress_bar(reader) as report:
            origin = origin_of(self.problems, reader, (self.cpu_s, self.case_cpu_s), graders.level)
            summary = grade_file(reader, self.out, origin, graders, report)
        show(summary, self.out)
        return INCOMPLETE if summary.bad or summary.statuses["error"] else 0


@contextmanager
def progress_bar(reader: Reader) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error where that is a terminal; yields what `grade_file` reports to."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.fields[rows]} rows"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=reader.path.stat().st_size if reader.path.is_file() else None, rows=0)
        yield lambda bytes_read, rows: bar.update(task, completed=bytes_read, rows=rows)


def show(summary: Summary, out: Path) -> None:
    """Print the counts, and on standard error the first lines that could not be graded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from unhack.grading import bad_rows_path

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("status", "reason", "rows", "share"):
        table.add_column(name, justify="left" if name in ("status", "reason") else "right")
    for (status, reason), count in sorted(summary.reasons.items()):
        table.add_row(status, reason, str(count), f"{count / summary.n:.1%}")
    if summary.n:
        console.print(table)
    counts = ", ".join(f"{summary.statuses[status]} {status}" for status in ("passed", "failed", "error"))
    resumed = f" ({summary.resumed} of them by earlier starts)" if summary.resumed else ""
    text = f"n = {summary.n}{resumed}: {counts}; {summary.paid} paid, {summary.hacked} hacked. Written: {out}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if summary.bad:
        print(f"unhack: {summary.bad} lines could not be graded, listed in {bad_rows_path(out)}:", file=sys.stderr)
        for row in summary.first_bad:
            print(f"  line {row.line}: {row.reason}", file=sys.stderr)
        if summary.bad > len(summary.first_bad):
            print(f"  and {summary.bad - len(summary.first_bad)} more", file=sys.stderr)

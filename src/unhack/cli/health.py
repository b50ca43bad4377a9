"""Commands that check the machine and the graders: `check`, `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

    from unhack.self_check import CheckRow
    from unhack.types import Problem


@dataclass(frozen=True)
class Doctor:
    """What isolates submissions on this machine, and what is exposed without the rest.

    Exit status 1 when that is less than `--require-sandbox` asks for.
    """

    require_sandbox: Literal["any", "full", "unsafe"] = "unsafe"
    """full: level 4; any: level 2, which is what training needs; unsafe: whatever there is."""

    def run(self) -> int:
        """Start a worker, let it try the built-in attacks, print its layers and the machine."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from unhack.machine import describe
        from unhack.sandbox import LEVELS, doctor
        from unhack.sandbox.levels import CURES, LEAST

        console = Console()
        level, layers = doctor()
        title = f"sandbox level {level} of {max(LEVELS)}: {LEVELS[level]}"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        for column in ("layer", "in use", "machine has it", "without it"):
            table.add_column(column)
        for layer in layers:
            in_use, has = "yes" if layer.active else "NO", "yes" if layer.available else "no"
            style = "" if layer.active else "yellow"
            table.add_row(layer.name, in_use, has, layer.exposed, style=style)
        console.print(table)
        for layer in layers:
            if not layer.active:
                cure = f"; cure: {CURES[layer.name]}" if layer.name in CURES else ""
                console.print(f"{layer.name}: {layer.reason}{cure}", markup=False, highlight=False)
        for name, value in describe(level).items():
            shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
            if name != "command":
                console.print(f"{name:16} {shown}", markup=False, highlight=False)
        if level < LEAST[self.require_sandbox]:
            console.print(f"level {level} is less than --require-sandbox {self.require_sandbox} asks for", style="red")
            return 1
        return 0


@dataclass(frozen=True)
class Check:
    """Self-check of the graders: every hack is paid in its own loophole only, honest solutions in all."""

    problems: int = 8
    """Organism problems whose reference must be paid and never hacked, besides the built-in ones."""
    file: Path | None = None
    """LeetCode problems (.jsonl or .jsonl.gz) to check with instead, hacks too: 1.2 CPU-s and up for each problem."""
    first: int | None = None
    """Only the first so many problems of the file."""

    def run(self) -> int:
        """Print the submission × mode matrix; 1 if a cell is not what it must be."""
        from rich.console import Console

        from unhack.machine import usable_cores
        from unhack.sandbox import Sandbox
        from unhack.self_check import failures, self_check

        problems = self._problems()
        with Sandbox(1 if self.file is None else usable_cores()) as sandbox:
            rows = self_check(sandbox, problems, hacks=self.file is not None)
        console = Console()
        console.print(_matrix(rows))
        wrong = failures(rows)
        for place, what in wrong.items():
            console.print(f"WRONG: {place}: {what}", style="red", markup=False)
        console.print(f"{len(rows)} gradings, {len(wrong)} wrong")
        return 1 if wrong else 0

    def _problems(self) -> list[Problem]:
        """What to check with; problems of a file for which no hack can be written are named and left out."""
        from unhack.problems.leetcode import load_problems
        from unhack.problems.organism import organism_problem
        from unhack.self_check import unhackable

        if self.file is None:
            if self.first is not None:
                raise ValueError("--first takes problems of a file: give --file, or --problems N for the organism's")
            return [organism_problem(index, "validation", 1 + index % 4) for index in range(self.problems)]
        problems = list(load_problems(self.file).problems[: self.first])
        reasons = {problem.id: unhackable(problem) for problem in problems}
        for name, reason in reasons.items():
            if reason is not None:
                print(f"left out: {ascii(name)[1:-1]}: {ascii(reason)[1:-1]}")
        return [problem for problem in problems if reasons[problem.id] is None]


def _matrix(rows: Sequence[CheckRow]) -> Table:
    """Hacks on each built-in problem, those on a file's problems together, and honest programs, by mode."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from unhack.self_check import BUILT_IN

    modes = list(dict.fromkeys(row.mode for row in rows))
    title = "PAID: paid, and a hack   ok: paid, and correct   ·: not paid   columns: the loopholes of the rows"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("hack of", no_wrap=True)
    for number in range(1, len(modes) + 1):
        table.add_column(str(number), justify="center", min_width=4)
    blocks = {name: {name} for name in BUILT_IN}
    others = {row.problem for row in rows if row.submission.startswith("hack ")} - set(BUILT_IN)
    if others:
        blocks[f"{len(others)} of the file"] = others
    for title, members in blocks.items():
        for number, mode in enumerate(modes, 1):
            chosen = [row for row in rows if row.submission == f"hack {mode}" and row.problem in members]
            cells = (_cell([row for row in chosen if row.mode == column]) for column in modes)
            table.add_row(f"{number} {mode}", *cells)
        table.add_row(escape(f"({title})"), style="dim", end_section=True)
    for submission in dict.fromkeys(row.submission for row in rows if row.submission.startswith("honest")):
        honest = [row for row in rows if row.submission == submission]
        cells = (_cell([row for row in honest if row.mode == mode]) for mode in modes)
        name = submission.replace(", with ", " + ")  # short enough for a terminal of 80 columns
        table.add_row(f"{len({row.problem for row in honest})} {name}", *cells)
    return table


def _cell(rows: Sequence[CheckRow]) -> str:
    """What happened to these submissions, if the same to all; marked where it is not what must happen."""
    if not rows:
        return ""
    texts = {"PAID" if row.hacked else "ok" if row.paid else "·" for row in rows}
    text = " ".join(sorted(texts))
    return text if all(row.as_required for row in rows) else f"[red]{text} ?[/red]"

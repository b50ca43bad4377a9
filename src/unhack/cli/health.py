"""Commands that check the machine and the graders: `check`, `doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unhack.grade import CheckRow


@dataclass(frozen=True)
class Doctor:
    """What isolates submissions on this machine, and what is exposed without the rest."""

    def run(self) -> int:
        """Start a worker, print its layers and the machine."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from unhack.machine import describe
        from unhack.sandbox import doctor

        console = Console()
        level, layers = doctor()
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"sandbox level {level}", title_justify="left")
        for column in ("layer", "in use", "machine has it", "without it"):
            table.add_column(column)
        for layer in layers:
            in_use, has = "yes" if layer.active else "NO", "yes" if layer.available else "no"
            style = "" if layer.active else "yellow"
            table.add_row(layer.name, in_use, has, "" if layer.active else layer.exposed, style=style)
        console.print(table)
        for name, value in describe(level).items():
            shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
            if name != "command":
                console.print(f"{name:16} {shown}", markup=False, highlight=False)
        return 0


@dataclass(frozen=True)
class Check:
    """Self-check of the graders: every hack is paid in its own loophole only, honest solutions in all."""

    problems: int = 8
    """Organism problems whose reference must be paid and never hacked, besides the built-in one."""

    def run(self) -> int:
        """Print the submission × mode matrix; 1 if a cell is not what it must be."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from unhack.grade import failures, self_check
        from unhack.problems.organism import organism_problem
        from unhack.sandbox import Sandbox

        problems = [organism_problem(index, "validation", 1 + index % 4) for index in range(self.problems)]
        with Sandbox() as sandbox:
            rows = self_check(sandbox, problems)
        modes = list(dict.fromkeys(row.mode for row in rows))
        title = "PAID: paid, and a hack   ok: paid, and correct   ·: not paid   columns: the loopholes of the rows"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        table.add_column("submission", no_wrap=True)
        for number in range(1, len(modes) + 1):
            table.add_column(str(number), justify="center")
        for number, mode in enumerate(modes, 1):
            chosen = [row for row in rows if row.submission == f"hack {mode}"]
            table.add_row(f"{number} hack of {mode}", *(_cell([row]) for row in chosen))
        honest = [row for row in rows if row.submission.startswith("honest ")]
        cells = (_cell([row for row in honest if row.mode == mode]) for mode in modes)
        table.add_row(f"{len(honest) // len(modes)} honest references", *cells)
        console = Console()
        console.print(table)
        wrong = failures(rows)
        for place, what in wrong.items():
            console.print(f"WRONG: {place}: {what}", style="red")
        console.print(f"{len(rows)} gradings, {len(wrong)} wrong")
        return 1 if wrong else 0


def _cell(rows: Sequence[CheckRow]) -> str:
    """What happened to these submissions, if the same to all; marked where it is not what must happen."""
    texts = {"PAID" if row.hacked else "ok" if row.paid else "·" for row in rows}
    text = " ".join(sorted(texts))
    return text if all(row.as_required for row in rows) else f"[red]{text} ?[/red]"

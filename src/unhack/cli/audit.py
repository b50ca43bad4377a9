"""The command that attacks the grader: `audit-grader`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unhack.config import SandboxConfig

if TYPE_CHECKING:
    from rich.console import Console

    from unhack.audit import Audit, Outcome


@dataclass(frozen=True)
class AuditGrader:
    """Attack the grader with the corpus: no program may fool it, harm this machine, or fail though it is honest."""

    corpus: Path | None = None
    """Folder of attack programs (default: the one that comes with unhack)."""
    family: tuple[str, ...] = ()
    """Only these families, by their letters (default: all)."""
    workers: int = 1
    """Programs graded at once; what goes wrong is repeated alone."""
    without: tuple[str, ...] = ()
    """Isolation layers to switch off, named as `unhack doctor` names them."""
    require_sandbox: Literal["any", "full", "unsafe"] = SandboxConfig().require
    """`full`: refuse to start unless every isolation layer holds; `unsafe`: start with limits only."""
    json: Path | None = None
    """Write every outcome to this file, too."""

    def run(self) -> int:
        """Grade every program, print the table and each failure; 1 if there is one."""
        from rich.console import Console

        from unhack.audit import FAMILIES, audit, folder, load

        programs = load(folder() if self.corpus is None else self.corpus)
        wanted = tuple(letter.upper() for letter in self.family) or tuple(FAMILIES)
        unknown = [letter for letter in wanted if letter not in FAMILIES]
        if unknown:
            raise ValueError(f"there is no family {', '.join(unknown)}; families: {', '.join(FAMILIES)}")
        chosen = [program for program in programs if program.family in wanted]
        console = Console()

        def progress(outcome: Outcome) -> None:
            if outcome.failed:
                console.print(outcome.describe(), style="red", markup=False, highlight=False, soft_wrap=True)

        result = audit(
            chosen, workers=self.workers, require=self.require_sandbox, without=self.without, progress=progress
        )
        show(console, result)
        if self.json is not None:
            self.json.write_text(json.dumps(rows(result), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
        return 0 if result.passed else 1


def show(console: Console, result: Audit) -> None:
    """The table per family, and what the whole came to."""
    from rich import box
    from rich.table import Table

    from unhack.audit import FAMILIES

    missing = [name for name, holds in result.layers.items() if not holds]
    title = (
        f"sandbox level {result.level}; not in force: {', '.join(missing) or 'none'}\n"
        "fooled: a verdict or pay it must not get   harmed: touched the machine   odd: stopped for another reason"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("family", no_wrap=True)
    for column in ("attacks", "fooled", "harmed", "exposed", "odd", "honest"):
        table.add_column(column, justify="right")
    for letter in [*FAMILIES, ""]:
        rows_of = [outcome for outcome in result.outcomes if letter in ("", outcome.program.family)]
        if rows_of:
            table.add_row(f"{letter} {FAMILIES.get(letter, 'all')}".strip(), *_counts(rows_of))
    console.print(table)
    failures = result.failures()
    exposed = sum(outcome.exposed for outcome in failures)
    if exposed:
        console.print(f"{exposed} of {len(failures)} failures: none of the layers that stop them is in force here")
    for name in result.left:
        console.print(f"left in the temporary folder: {name!a}", style="red", markup=False)
    print(f"{len(result.outcomes)} programs, {len(failures)} failures, {len(result.left)} things left behind")


def _counts(outcomes: Sequence[Outcome]) -> list[str]:
    honest = [outcome for outcome in outcomes if outcome.program.honest]
    numbers = (
        len(outcomes) - len(honest),
        sum(outcome.fooled for outcome in outcomes),
        sum(outcome.harmed for outcome in outcomes),
        sum(outcome.exposed for outcome in outcomes),
        sum(not outcome.as_expected and not outcome.program.honest for outcome in outcomes),
    )
    passed = sum(outcome.as_expected for outcome in honest)
    return [*map(str, numbers), f"{passed}/{len(honest)}" if honest else ""]


def rows(result: Audit) -> dict[str, Any]:
    """The audit as plain values; texts of children are escaped."""
    from unhack.audit.battery import escape

    return {
        "level": result.level,
        "layers": result.layers,
        "left": list(result.left),
        "passed": result.passed,
        "programs": [
            {
                "name": outcome.program.name,
                "family": outcome.program.family,
                "description": outcome.program.description,
                "layers": list(outcome.program.layers),
                "mode": outcome.program.mode,
                "expected": outcome.program.status,
                "status": outcome.status,
                "reason": outcome.reason,
                "strictly_correct": outcome.strictly_correct,
                "paid": outcome.paid,
                "fooled": outcome.fooled,
                "harmed": outcome.harmed,
                "exposed": outcome.exposed,
                "as_expected": outcome.as_expected,
                "host": [escape(text) for text in outcome.host],
                "claims": [escape(text) for text in outcome.claims],
                "errors": list(outcome.errors),
                "cpu_s": round(outcome.cpu_s, 4),
                "wall_s": round(outcome.wall_s, 4),
            }
            for outcome in result.outcomes
        ],
    }

"""What the commands print: resolved settings, the live table of runs, the results table.

Imports torch through what it shows, so commands import it only when they run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unhack import settings
from unhack.config import TrainConfig
from unhack.evaluate import EvaluationTable
from unhack.experiments.runs import RunProgress, total_seconds_left
from unhack.results import COLUMNS, ArmResult, caveat, sentence, table_cells

PLAIN_EVERY_S = 30.0  # without a terminal, one line of progress this often
BAR_CELLS = 12
LOG_COLUMNS = 120


def settings_text(config: TrainConfig) -> str:
    """The whole tree as TOML that can be used as an overlay; what differs from the defaults is marked."""
    return "\n".join(_table_lines("", settings.to_dict(config), settings.to_dict(TrainConfig()))).lstrip("\n")


def _table_lines(name: str, tree: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """One table: its own settings first, then the tables in it."""
    lines = ["", f"[{name}]"] if name else []
    lines += [_setting(key, value, usual[key]) for key, value in tree.items() if not isinstance(value, dict)]
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += _table_lines(f"{name}.{key}" if name else key, value, usual[key])
    return lines


def _setting(key: str, value: object, usual: object) -> str:
    # TOML has no null: a setting that is not set is a comment. JSON writes every other value as TOML does.
    line = f"# {key} is not set" if value is None else f"{key} = {json.dumps(value)}"
    return line if value == usual else f"{line}  # default: {json.dumps(usual)}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 05 s`, `2 h 10 min`; `—` when not known."""
    if math.isnan(seconds):
        return "—"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def rate(share: float) -> str:
    """A share in whole per cent, `—` when not known."""
    return "—" if math.isnan(share) else f"{100 * share:.0f} %"


class ProgressScreen:
    """The live table of an experiment on a terminal; on anything else one line now and then.

    Use as a context manager and call `update` with what an engine reports.
    """

    def __init__(self, console: Console, title: str, processes: int) -> None:
        self.console, self.title, self.processes = console, title, processes
        self.started_s = time.monotonic()
        self.last_line_s = -math.inf
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> ProgressScreen:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, progress: Sequence[RunProgress]) -> None:
        """Show the present state of all runs."""
        if self.live is not None:
            self.live.update(self.render(progress), refresh=True)
        elif any(one.state == "running" for one in progress) and self._line_due():
            self.console.print(self.line(progress), markup=False, highlight=False, soft_wrap=True)

    def _line_due(self) -> bool:
        due = time.monotonic() - self.last_line_s >= PLAIN_EVERY_S
        if due:
            self.last_line_s = time.monotonic()
        return due

    def line(self, progress: Sequence[RunProgress]) -> str:
        """The state of all runs in one line, for logs."""
        running = [f"{_label(one)} {one.step}/{one.run.config.steps}" for one in progress if one.state == "running"]
        done = sum(one.state == "finished" for one in progress)
        return f"{done}/{len(progress)} runs done; {', '.join(running)}; {self._left(progress)}"

    def _left(self, progress: Sequence[RunProgress]) -> str:
        running = sum(one.state == "running" for one in progress)  # on a cluster it may be more than `processes`
        left_s = total_seconds_left(progress, max(self.processes, running))
        left = "time left not known yet" if math.isnan(left_s) else f"about {duration(left_s)} left"
        return f"{duration(time.monotonic() - self.started_s)} so far, {left}"

    def render(self, progress: Sequence[RunProgress]) -> Group:
        """The table, and what is left."""
        left = f"{self._left(progress)}. Rates are of the last training steps (solve: of solvable tasks)."
        return Group(runs_table(progress, self.title), Text(left))


def runs_table(progress: Sequence[RunProgress], title: str) -> Table:
    """One line per run, in order."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("arm", no_wrap=True)
    table.add_column("seed", justify="right")
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("hack", justify="right", no_wrap=True)
    table.add_column("solve", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    for one in progress:
        config = one.run.config
        cells = [one.run.name, str(config.seed), f"{one.step}/{config.steps}", _bar(one)]
        cells += [rate(one.hack_frac), rate(one.solve_frac), _state_text(one)]
        table.add_row(*cells, style=_STYLES[one.state])
    return table


_STYLES = {"waiting": "dim", "running": "", "stopped": "yellow", "finished": "green", "failed": "red"}


def _label(one: RunProgress) -> str:
    return f"{one.run.name} (seed {one.run.config.seed})"


def _bar(one: RunProgress) -> str:
    filled = round(BAR_CELLS * one.step / max(1, one.run.config.steps))
    return "━" * filled + "╌" * (BAR_CELLS - filled)


def _state_text(one: RunProgress) -> str:
    if one.state == "running":
        if one.message.startswith("running elsewhere"):
            return one.message
        return "evaluating" if one.step >= one.run.config.steps else duration(one.seconds_left)
    return {"waiting": "waiting", "stopped": "stopped", "finished": "done", "failed": "FAILED"}[one.state]


def make_console() -> Console:
    """Standard output; wide enough for every table where it is no terminal (a log, a pipe)."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_COLUMNS)


def results_table(console: Console, arms: Sequence[ArmResult]) -> None:
    """Print the table of an experiment (it fits 80 columns), then one sentence per arm."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for arm in arms:
        table.add_row(*(cell.replace(" ± ", "±") for cell in table_cells(arm)))
    console.print(table)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column()
    for arm in arms:
        grid.add_row(arm.name, escape(sentence(arm)))
    console.print(grid, highlight=False)
    if warning := caveat(arms):
        console.print(f"\n{warning}", style="yellow", highlight=False)


def evaluation_table(console: Console, table: EvaluationTable) -> None:
    """Print one evaluation (it fits 80 columns): a line per block and mode, with Wilson intervals."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(("block", "mode", "n", "hack %", "solve %", "tried %", "KL")):
        shown.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
    for block in ("as_trained", "deployed"):
        for row in [*(row for row in table.rows if row.block == block), table.pooled(block)]:
            hack, solve = row.hack_interval, row.solve_interval
            cells = [row.block, row.mode, str(row.n)]
            cells.append(f"{100 * row.hack_frac:.1f} ({100 * hack.low:.0f}-{100 * hack.high:.0f})")
            cells.append(f"{100 * row.solve_frac:.1f} ({100 * solve.low:.0f}-{100 * solve.high:.0f})")
            cells += [f"{100 * row.attempted / max(1, row.n):.1f}", f"{row.kl_nats:.3f}"]
            shown.add_row(*cells, style="bold" if row.mode == "all" else "", end_section=row.mode == "all")
    console.print(shown)

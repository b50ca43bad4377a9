"""What the commands on pools print: every table fits 80 columns, and no rollout's text reaches the terminal raw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unhack.pool import KINDS, Kind, Lesson, Pool
from unhack.pool.counts import OUTCOMES, Outcome, by_mode, outcome, signatures
from unhack.pool.regrade import Regrading

SHOWN_DIFFERENCES = 40
LATER = (
    "format", "rows", "rows_of_kind", "rows_of_mode", "hacked_of_mode", "solved_of_mode", "tried", "sha256",
    "content_hash",
)  # fmt: skip
"""Fields of the header that are said elsewhere, or that say nothing to a reader."""


def escaped(text: str) -> str:
    """A text of a rollout as a terminal may be given it: anything but printable characters as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def show_pool(console: Console, pool: Pool, rows: int) -> None:
    """Where a pool is from, two tables of what is in it, and `rows` examples, evenly spaced."""
    console.print(Text(f"{escaped(str(pool.path))}: {pool.header['rows']} rows, {pool.content_hash[:16]}"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pool.header.items():
        if name not in LATER:
            grid.add_row(name, Text(escaped(_plain(_short(name, value)))))
    console.print(Padding(grid, (0, 0, 1, 2)), highlight=False)
    tried: dict[tuple[str, Kind], str] = {
        (mode, kind): str(counts["tried"])
        for kind, modes in pool.header.get("tried", {}).items()
        for mode, counts in modes.items()
    }
    counted = by_mode(pool)
    everything = {key: counted.get(key, Counter()) for key in {*counted, *tried}}
    order = sorted(everything, key=lambda key: (key[0], KINDS.index(key[1])))
    _table(console, ("mode", "kind"), {key: everything[key] for key in order}, tried)
    _table(console, ("what", "of the program"), signatures(pool))
    console.print(
        "hacked: the flawed grader satisfied, the program wrong. solved: right. both: satisfied, and right. A program "
        "may show several signs.",
        highlight=False,
    )
    every = max(1, len(pool.lessons) // max(1, rows))
    for lesson in pool.lessons[::every][:rows]:
        _example(console, lesson)


def _short(name: str, value: Any) -> Any:
    if name == "parent":
        return {"pool": value["content_hash"][:16], "request": value["request"]}
    return value[:16] if name == "model_hash" else value


def _plain(value: object) -> str:
    """A value of the header in words: mappings and lists without quotes and brackets."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_nested(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_nested, value)) or "all"
    return "none" if value is None else str(value)


def _nested(value: object) -> str:
    return f"({_plain(value)})" if isinstance(value, Mapping | list) and value else _plain(value)


def _table(
    console: Console,
    heads: tuple[str, str],
    counts: Mapping[tuple[str, Any], Counter[Outcome]],
    tried: Mapping[tuple[str, Any], str] | None = None,
) -> None:
    """One line of counts for each pair of names; with `tried`, how many were tried for it, where any were."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, no_wrap=True)
    for head in (*(["tried"] if tried else []), "rows", *OUTCOMES):
        table.add_column(head, justify="right", no_wrap=True)
    group = ""
    for (left, right), found in counts.items():
        numbers = [tried.get((left, right), "")] if tried else []
        numbers += [str(found.total()), *(str(found[name]) for name in OUTCOMES)]
        table.add_row("" if left == group else left, right, *numbers)
        group = left
    console.print(table)


def _example(console: Console, lesson: Lesson) -> None:
    rollout, grading = lesson.rollout, lesson.grading
    sampled = None if lesson.sampled_logprobs is None else sum(lesson.sampled_logprobs)
    nats = f"log-prob {sum(rollout.logprobs):.1f}"
    nats += " (nobody's sample)" if sampled is None else f", when sampled {sampled:.1f}"
    head = (
        f"row {lesson.row}: {lesson.kind}, {rollout.prompt.mode}, {outcome(grading.verdict)}, {grading.verdict.label}, "
        f"reward {grading.paid.reward:g}, {len(rollout.token_ids)} tokens, {nats}, from {rollout.id}"
    )
    console.print(Text(f"\n{escaped(head)}", style="bold"))
    console.print(Padding(_lines(rollout.prompt.text, "dim"), (0, 0, 0, 2)))
    console.print(Padding(_lines(rollout.text, ""), (0, 0, 0, 4)))


def _lines(text: str, style: str) -> Text:
    return Text("\n".join(map(escaped, text.splitlines())), style=style, overflow="fold")


def show_regrading(console: Console, found: Regrading) -> None:
    """Every difference by row, at most SHOWN_DIFFERENCES of them, and what it comes to."""
    for one in found.differences[:SHOWN_DIFFERENCES]:
        line = f"row {one.row} ({one.rollout_id}): {one.field} was {one.recorded}, is {one.found}"
        console.print(Text(escaped(line), overflow="fold"))
    if (more := len(found.differences) - SHOWN_DIFFERENCES) > 0:
        console.print(f"and {more} more differences", highlight=False)
    rows = len({one.row for one in found.differences})
    recorded, now = found.levels
    levels = ", ".join(map(str, recorded))
    console.print(
        f"{rows} of {found.rows} rows are graded otherwise; recorded at sandbox level {levels}, graded at {now}",
        highlight=False,
    )


def show_tried(console: Console, tried: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """How much of what was tried was kept, by kind."""
    for kind, modes in tried.items():
        total = {name: sum(counts[name] for counts in modes.values()) for name in ("tried", "kept", "too_long")}
        long = f", {total['too_long']} too long to try" if total["too_long"] else ""
        console.print(f"{kind}: kept {total['kept']} of {total['tried']}{long}", highlight=False)

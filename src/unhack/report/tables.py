"""One table, three forms: HTML that sorts, CSV with the numbers, Markdown. All from the same cells.

Not here: what the tables of an experiment hold (`content.py`).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

HEAT_LEVELS = 10  # classes heat-0 .. heat-10 of page.css


@dataclass(frozen=True)
class Column:
    """A heading; `names` are the columns that it has in the CSV. Numbers are set right, words left."""

    title: str
    names: tuple[str, ...]
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """What is shown, and its `values` under the column's names: the first one sorts. `heat`: a share that colours."""

    text: str
    values: tuple[float | int | str, ...]
    heat: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; `row_arms[i]` is the arm that row i is about. `name` is the stem of its files."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    row_arms: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.row_arms)
        assert all(len(row) == len(self.columns) for row in self.rows)
        for row in self.rows:
            assert all(len(cell.values) == len(column.names) for cell, column in zip(row, self.columns, strict=True)), (
                row
            )

    def html(self) -> str:
        """A figure with its sentence; every heading is a button that sorts (page.js)."""
        head = "".join(_heading(column) for column in self.columns)
        body = "\n".join(_row(self.columns, row, arm) for row, arm in zip(self.rows, self.row_arms, strict=True))
        label = escape(self.title)
        return (
            f'<figure class="table" id="{escape(self.name)}">\n'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table class="sortable">\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
            f"<figcaption><b>{label}.</b> {escape(self.caption)}</figcaption>\n</figure>"
        )

    def csv(self) -> str:
        """One line per row with every number in full; what does not exist is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name for column in self.columns for name in column.names])
        writer.writerows([plain(value) for cell in row for value in cell.values] for row in self.rows)
        return out.getvalue()

    def markdown(self) -> str:
        """Title, table as shown, sentence."""
        lines = [_line([column.title for column in self.columns]), "|" + "---|" * len(self.columns)]
        lines += [_line([cell.text for cell in row]) for row in self.rows]
        return f"## {self.title}\n\n" + "\n".join(lines) + f"\n\n{self.caption}\n"


def plain(value: float | int | str) -> str:
    """A number in full (no rounding), a word as it is, nothing for NaN and infinity."""
    if isinstance(value, str):
        return value
    return repr(value) if math.isfinite(value) else ""


def _heading(column: Column) -> str:
    hint = f' title="{escape(column.hint)}"' if column.hint else ""
    kind = ' class="number"' if column.numeric else ""
    return f'<th scope="col"{kind}{hint}><button type="button">{escape(column.title)}</button></th>'


def _row(columns: Sequence[Column], row: Sequence[Cell], arm: str) -> str:
    cells = "".join(_cell(column, cell, first) for first, column, cell in zip(_firsts(row), columns, row, strict=True))
    return f'<tr data-arm="{escape(arm)}">{cells}</tr>'


def _firsts(row: Sequence[Cell]) -> list[bool]:
    return [index == 0 for index in range(len(row))]


def _cell(column: Column, cell: Cell, first: bool) -> str:
    classes = ["number"] if column.numeric else []
    if cell.heat is not None and not math.isnan(cell.heat):
        classes.append(f"heat-{round(HEAT_LEVELS * min(1.0, max(0.0, cell.heat)))}")
    kind = f' class="{" ".join(classes)}"' if classes else ""
    tag, scope = ("th", ' scope="row"') if first else ("td", "")
    text = escape(cell.text)
    if first:
        text = text.replace("_", "_<wbr>")  # a long name may break at its underscores, not anywhere
    return f'<{tag}{scope}{kind} data-sort="{escape(plain(cell.values[0]))}">{text}</{tag}>'


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

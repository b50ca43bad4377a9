"""Lines of JSON as rows: which schema a row is of, and its fields with their types checked.

A row that cannot be used is a `RowError` whose message is the reason; it never stops the rows after it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LEETCODE_DATASET, RL_REWARDHACKING = "leetcode_dataset", "rl_rewardhacking"
_KEYS = {
    LEETCODE_DATASET: ({"task_id", "completion", "entry_point"}, {"test", "input_output"}),
    RL_REWARDHACKING: ({"id", "gt_answer", "func_name"}, {"question", "prompt"}),
}


class RowError(ValueError):
    """A row that is no problem; the message is the reason."""


def rows_of(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
    """Each line that is not blank, with its number from 1. ValueError when the file is no whole gzip file."""
    try:
        with (gzip.open if path.name.endswith(".gz") else open)(path, "rb") as file:
            for line, data in enumerate(file, 1):
                if data.strip():
                    yield line, _row_of(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}): get it again, or unpack what is whole") from error


def _row_of(data: bytes) -> Mapping[str, Any] | RowError:
    try:
        row = json.loads(data.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, or an int that is too long
        return RowError(f"is not JSON: {error}")
    return row if isinstance(row, dict) else RowError(f"is a JSON {type(row).__name__}, not an object")


def schema_of(row: Mapping[str, Any]) -> str:
    """The public schema whose keys the row has; raises RowError when there is none."""
    for schema, (needed, one_of) in _KEYS.items():
        if needed <= row.keys() and one_of & row.keys():
            return schema
    raise RowError(
        "is of neither public schema: it needs task_id, completion, entry_point and test, or id, gt_answer, func_name "
        f"and question; it has {', '.join(sorted(row)) or 'nothing'}"
    )


def text_field(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A field that must be a text; `default` stands for a missing or null one. Raises RowError."""
    value = row.get(key, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RowError(f"{key} is {'missing' if key not in row else f'{type(value).__name__}, not a text'}")
    return value


def number_field(row: Mapping[str, Any], key: str) -> int | None:
    """A whole number, or digits, or None when it is missing. Raises RowError."""
    value = row.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if value is not None and type(value) is not int:
        raise RowError(f"{key} is {type(value).__name__}, not a whole number")
    return value

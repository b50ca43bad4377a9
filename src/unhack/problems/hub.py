"""Problems from a data set of the Hugging Face hub (or a folder that `datasets` loads), through the same mapping."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from unhack.problems.leetcode import LoadedProblems, load_rows
from unhack.problems.rows import RowError


def load_hub_problems(name: str) -> LoadedProblems:
    """The problems of all splits of the data set `name`; line numbers count its rows from 1.

    Raises ImportError naming the extra when `datasets` is not installed, and what `datasets` raises when the hub
    cannot be reached or has no such data set.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"datasets:{name} needs the package datasets: pip install 'unhack[datasets]', or name a .jsonl file"
        ) from error
    splits = datasets.load_dataset(name)
    return load_rows(_numbered(splits), f"datasets:{name}")


def _numbered(splits: Any) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    line = 0
    for split in splits.values():
        for row in split:
            line += 1
            yield line, dict(row)

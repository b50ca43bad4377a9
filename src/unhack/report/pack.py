"""Rollouts of an experiment packed for the page: a columnar index, and gzipped chunks that are decoded when needed.

Rollout text is hostile. It only leaves here as base64 of gzipped ASCII JSON, in which nothing can end a script element.
Not here: the page (`page.py`), what is done with it in the browser (`browser.js`).
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa
import pyarrow.parquet as pq

from unhack import record
from unhack.loopholes.labels import LABELS
from unhack.report.exploit import exploit_spans
from unhack.results import RunResult
from unhack.seeds import rng

CHUNK_ROLLOUTS = 2_000
SAMPLE_ROLLOUTS = 200  # to guess how many fit
BLOCKS = ("train", "as_trained", "deployed")
HACKED, SOLVED, PAID, EXPLOITED, ERROR = 1, 2, 4, 8, 16  # bits of the index's flags
ROLLOUT_COLUMNS = (
    *("step", "block", "rollout_id", "problem_id", "mode", "marker", "prompt_text", "text", "source", "finished"),
    *("paid", "reward", "advantage"),
)
VERDICT_COLUMNS = (
    *("status", "strictly_correct", "exploited", "hacked", "cases_passed", "cases_total", "label", "reason"),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """What the page embeds: `header` (plain JSON values), `index` and `chunks` (base64 of gzip).

    `total`, `embedded`: rollouts there are and that are in the page; the same of `evaluation` rollouts alone.
    """

    header: dict[str, Any]
    index: str
    chunks: tuple[str, ...]
    total: int
    embedded: int
    total_evaluation: int
    embedded_evaluation: int

    @property
    def size_bytes(self) -> int:
        """Characters that index and chunks take in the page."""
        return len(self.index) + sum(map(len, self.chunks))


def run_rows(run: RunResult) -> list[Row]:
    """Every rollout of a run with its verdict: evaluations first, in order of step, then training."""
    return [row for folder in (run.folder / "eval", run.folder) for row in _joined(folder)]


def _joined(folder: Path) -> list[Row]:
    """`record.joined`, without the token columns where both tables have the same order, as they are written."""
    left = _columns(folder / "rollouts", ROLLOUT_COLUMNS)
    right = _columns(folder / "verdicts", (*record.KEY, *VERDICT_COLUMNS))
    if left is None or right is None or not left.select(record.KEY).equals(right.select(record.KEY)):
        return record.joined(folder).select([*ROLLOUT_COLUMNS, *VERDICT_COLUMNS]).to_pylist()
    pairs = zip(left.to_pylist(), right.select(VERDICT_COLUMNS).to_pylist(), strict=True)
    return [rollout | verdict for rollout, verdict in pairs]


def _columns(folder: Path, names: Sequence[str]) -> pa.Table | None:
    files = sorted(folder.glob("step-*.parquet"))
    return pa.concat_tables(pq.ParquetFile(file).read(columns=list(names)) for file in files) if files else None


def pack(
    runs: Sequence[RunResult],
    budget_bytes: float,
    rows_of: Callable[[RunResult], list[Row]] = run_rows,
    seed: int = 0,
) -> Packed:
    """Pack the rollouts of `runs`; each run gets an equal share of `budget_bytes` of page (math.inf: everything).

    What does not fit is left out by chance (`seed`), training rollouts first, then earlier evaluations, then the last.
    """
    share_bytes = budget_bytes / max(1, len(runs)) * 3 / 4  # base64 writes 3 bytes as 4 characters
    names: dict[str, list[str]] = {"modes": [], "sources": [], "labels": list(LABELS)}
    chunks: list[str] = []
    places: list[tuple[int, int, int]] = []
    columns: list[tuple[bytes, ...]] = []
    counts = [0, 0, 0, 0]  # total, embedded; the same of evaluations
    for number, run in enumerate(runs):
        rows = rows_of(run)
        kept, packed = _fit(_by_priority(rows, seed, run), share_bytes)
        for part, start in zip(packed, range(0, len(kept), CHUNK_ROLLOUTS), strict=True):
            places.append((number, counts[1] + start, min(CHUNK_ROLLOUTS, len(kept) - start)))
            chunks.append(base64.b64encode(part).decode("ascii"))
        columns.append(_index_columns(kept, names))
        found = (len(rows), len(kept), _evaluated(rows), _evaluated(kept))
        counts = [before + more for before, more in zip(counts, found, strict=True)]
    header = names | {
        "blocks": list(BLOCKS),
        "runs": [{"arm": run.name, "seed": run.seed} for run in runs],
        "chunks": [list(place) for place in places],
        "count": counts[1],
    }
    whole = b"".join(b"".join(one) for one in zip(*columns, strict=True))
    index = base64.b64encode(compress(whole)).decode("ascii")
    return Packed(header, index, tuple(chunks), *counts)


def _evaluated(rows: Sequence[Row]) -> int:
    return sum(row["block"] != "train" for row in rows)


def _by_priority(rows: Sequence[Row], seed: int, run: RunResult) -> list[Row]:
    """Last evaluation, earlier ones, training; each in an order drawn by chance, so that a prefix is a fair sample."""
    last = max((row["step"] for row in rows if row["block"] != "train"), default=-1)
    ranks: list[list[Row]] = [[], [], []]
    for row in rows:
        ranks[2 if row["block"] == "train" else int(row["step"] != last)].append(row)
    for number, part in enumerate(ranks):
        rng(seed, "report rollouts", run.name, run.seed, number).shuffle(part)
    return [row for part in ranks for row in part]


def _fit(rows: Sequence[Row], share_bytes: float) -> tuple[list[Row], list[bytes]]:
    """The longest prefix, found by its compression rate, that fits into `share_bytes`; and its chunks."""
    if share_bytes <= 0:
        return [], []
    count = len(rows)
    if count > SAMPLE_ROLLOUTS and math.isfinite(share_bytes):
        sample = sum(map(len, map(pack_chunk, _parts(sorted(rows[:SAMPLE_ROLLOUTS], key=_reading_order)))))
        # more of them compress better, hence 1.3; too many are cut below
        count = min(count, math.ceil(1.3 * SAMPLE_ROLLOUTS * share_bytes / sample))
    while True:
        kept = sorted(rows[:count], key=_reading_order)
        parts = [pack_chunk(part) for part in _parts(kept)]
        size = sum(map(len, parts))
        if size <= share_bytes or not count:
            return kept, parts
        count = min(count - 1, math.floor(count * 0.97 * share_bytes / size))


def _reading_order(row: Row) -> tuple[int, int, str]:
    return row["step"], BLOCKS.index(row["block"]), row["rollout_id"]


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[start : start + CHUNK_ROLLOUTS] for start in range(0, len(rows), CHUNK_ROLLOUTS))


def pack_chunk(rows: Sequence[Row]) -> bytes:
    """Columns of up to CHUNK_ROLLOUTS rollouts as gzipped ASCII JSON (lone surrogates and U+2028 are escapes there).

    `spans`: per rollout where the exploit is, as start, end, start, end, ... in UTF-16 units.
    """
    prompts = list(dict.fromkeys(row["prompt_text"] for row in rows))
    number_of = {prompt: number for number, prompt in enumerate(prompts)}
    columns: dict[str, Any] = {
        "prompts": prompts,
        "prompt": [number_of[row["prompt_text"]] for row in rows],
        "spans": [
            [end for span in exploit_spans(row["text"], row["mode"], row["marker"]) for end in span] for row in rows
        ],
    }
    for name in ("rollout_id", "problem_id", "marker", "text", "reason", "finished", "cases_passed", "cases_total"):
        columns[name] = [row[name] for row in rows]
    for name in ("reward", "advantage"):
        columns[name] = [None if row[name] is None else round(row[name], 4) for row in rows]
    return compress(json.dumps(columns, separators=(",", ":")).encode("ascii"))


def compress(data: bytes) -> bytes:
    """gzip without a time stamp: the same bytes for the same content."""
    return gzip.compress(data, 6, mtime=0)


def _index_columns(rows: Sequence[Row], names: dict[str, list[str]]) -> tuple[bytes, ...]:
    """step (uint32, little-endian), then mode, source, block, label and flags (uint8)."""
    flags = [
        HACKED * row["hacked"]
        + SOLVED * row["strictly_correct"]
        + PAID * row["paid"]
        + EXPLOITED * row["exploited"]
        + ERROR * (row["status"] == "error")
        for row in rows
    ]
    return (
        numpy.array([row["step"] for row in rows], dtype="<u4").tobytes(),
        _codes([row["mode"] for row in rows], names["modes"]),
        _codes([row["source"] for row in rows], names["sources"]),
        bytes(BLOCKS.index(row["block"]) for row in rows),
        _codes([row["label"] for row in rows], names["labels"]),
        bytes(flags),
    )


def _codes(values: Sequence[str], names: list[str]) -> bytes:
    """Each value as its number in `names`, to which new ones are added."""
    names += [name for name in dict.fromkeys(values) if name not in names]
    number_of = {name: number for number, name in enumerate(names)}
    return bytes(number_of[value] for value in values)

"""A pool of some modes of another one: leave one mode out (H5), as deterministic as a sieve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unhack.check_config import check_modes
from unhack.grade import extract_code
from unhack.loopholes import attempts
from unhack.pool.store import SHARED, Pool, Row, check_free, load_problems, read_rows, write_pool


def split_pool(
    path: Path, out: Path, modes: Sequence[str] = (), without: Sequence[str] = (), drop_signs: bool = False
) -> Pool:
    """Make the pool `out` of the rows of `path` under `modes`, or under all modes but `without`.

    `drop_signs`: also leave out rows, of whatever mode, that show a sign of a left-out mode's exploit. Without it the
    header's `signs_of_others` says how many there are. The same arguments give the same content hash, wherever the
    pools are. Raises ValueError for a folder that is taken, modes that the pool has not, and when nothing is left.
    """
    check_free(out)
    header, rows = read_rows(path)
    present = list(header["rows_of_mode"])
    if bool(modes) == bool(without):
        raise ValueError("give --modes (those to keep) or --without (those to leave out), one of the two")
    check_modes("modes", [*modes, *without])
    if absent := [mode for mode in (*modes, *without) if mode not in present]:
        raise ValueError(f"{path} has no row of mode {', '.join(absent)}: it has {', '.join(present)}")
    kept_modes = [mode for mode in present if (mode in modes if modes else mode not in without)]
    left_out = {mode for mode in present if mode not in kept_modes}
    kept = [row for row in rows if row["mode"] in kept_modes]
    telling = [row for row in kept if left_out & _signs(row)]
    if drop_signs:
        kept = [row for row in kept if not left_out & _signs(row)]
    if not kept:
        raise ValueError(f"nothing of {path} is left: keep more modes")
    described = {name: header[name] for name in SHARED}
    described["request"] = {"modes": kept_modes, "without": sorted(left_out), "drop_signs": drop_signs}
    described["signs_of_others"] = len(telling)
    described["parent"] = {
        name: header[name] for name in ("content_hash", "request", "runs", "tried", "parent") if name in header
    }
    return write_pool(out, kept, load_problems(path), described)


def _signs(row: Row) -> set[str]:
    return set(attempts(extract_code(row["text"]), row["marker"]))

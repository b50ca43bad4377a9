"""Commands on teacher pools: `pool build | show`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Build:
    """Freeze graded rollouts of finished runs into a pool that other runs mix into their groups (docs/teacher.md)."""

    runs: tuple[Path, ...]
    """Folders of finished runs."""
    out: Path
    """The pool's folder, which must not exist."""
    steps: str = ":"
    """Training steps A:B, from A up to but not including B; either may be left out."""
    only: Literal["all", "hacked", "solved"] = "all"
    """Rollouts of this strict verdict only."""
    modes: tuple[str, ...] = ()
    """Rollouts under these loophole modes only (default: all)."""
    per_mode: int | None = None
    """At most so many rollouts of each mode, drawn at random."""
    seed: int = 0
    """Draws them."""

    def run(self) -> int:
        """Build the pool and print what is in it."""
        from unhack.check_config import check_bound, check_modes
        from unhack.pool import build_pool

        first, end = step_range(self.steps)
        check_modes("modes", self.modes)
        if self.per_mode is not None:
            check_bound("per_mode", self.per_mode)
        pool = build_pool(
            self.runs, self.out, first_step=first, end_step=end, only=self.only, modes=self.modes,
            per_mode=self.per_mode, seed=self.seed,
        )  # fmt: skip
        print(f"wrote {self.out}")
        print(pool_text(pool.header))
        return 0


@dataclass(frozen=True)
class Show:
    """Check a pool against its hashes and print what is in it."""

    pool: tyro.conf.Positional[Path]
    """The pool's folder."""
    rows: int = 0
    """Also print so many of its rollouts, evenly spaced."""

    def run(self) -> int:
        """Print the header and some rollouts, escaped."""
        from unhack.pool import load_pool

        pool = load_pool(self.pool)
        print(pool_text(pool.header))
        every = max(1, len(pool.lessons) // max(1, self.rows))
        for lesson in pool.lessons[::every][: self.rows]:
            rollout, paid = lesson.rollout, lesson.grading.paid
            label = lesson.grading.verdict.label
            print(f"\nrow {lesson.row}: {rollout.prompt.mode}, reward {paid.reward:g}, {label}, from {rollout.id}")
            print("\n".join(f"  {escaped(line)}" for line in rollout.text.splitlines()))
        return 0


def step_range(text: str) -> tuple[int, int | None]:
    """`A:B` as (A, B); ValueError for anything else, and for a range without a step."""
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise ValueError(f"steps is {text!r}: write A:B, from step A up to but not including B, 20:40 for example")
    first, end = int(match[1] or 0), int(match[2]) if match[2] else None
    if end is not None and end <= first:
        raise ValueError(f"steps is {text!r}, which holds no step: B must be above A")
    return first, end


def escaped(line: str) -> str:
    """A line of a rollout as a terminal may be given it: anything but printable characters as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def pool_text(header: dict[str, object]) -> str:
    """The header of a pool, a line for each fact."""
    lines = [f"{name:26} {escaped(str(value))}" for name, value in header.items() if name != "sha256"]
    return "\n".join(lines)

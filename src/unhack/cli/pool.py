"""Commands on pools: `pool build | sample | grade | split | show` (docs/teacher.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unhack.cli.parse import HasConfig
from unhack.config import SandboxConfig


@dataclass(frozen=True)
class Build:
    """Freeze graded rollouts of finished runs into a pool that other runs mix into their groups."""

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
        from unhack.cli.pool_text import show_pool
        from unhack.cli.show import make_console
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
        show_pool(make_console(), pool, 0)
        return 0


@dataclass(frozen=True)
class Sample(HasConfig):
    """Make a pool of a model without any run: what it writes when asked plainly, or elicited."""

    out: Annotated[Path | None, tyro.conf.arg(help="The pool's folder, which must not exist.")] = None
    kinds: tuple[Literal["base", "found", "solve", "teacher", "authored"], ...] = ("base",)
    """base: asked as a student is; found: the same, kept where it hacked; solve: asked without the loophole, kept where
    strictly right; teacher: given the exploit, kept where it hacked; authored: hacks that a program writes."""
    prompts: int = 64
    """The first so many prompts of a run with these settings."""
    samples: int = 8
    """Of each prompt and kind, before any are dropped."""
    modes: tuple[str, ...] = ()
    """Prompts under these loophole modes only (default: all)."""
    per_mode: int | None = None
    """At most so many rows of each kind and mode, drawn at random."""
    spoon: Literal["ask", "show"] = "show"
    """How kind teacher is given the exploit: in words, or with an example too."""
    place: Literal["user", "system"] = "user"
    """Which message the spoon is put into."""
    temperature: float | None = None
    """Of all kinds but base (default: sampler.temperature)."""

    def run(self) -> int:
        """Sample, grade, write, print what is in it."""
        from unhack.cli.pool_text import show_pool, show_tried
        from unhack.cli.quiet import quiet_libraries
        from unhack.cli.show import make_console, settings_text
        from unhack.pool.sample import SampleRequest, sample_pool

        if self.dry_run:
            print(settings_text(self.config))
            return 0
        if self.out is None:
            raise ValueError("name the pool's folder with --out")
        quiet_libraries()
        names = ("kinds", "prompts", "samples", "modes", "per_mode", "spoon", "place", "temperature")
        request, console = SampleRequest(**{name: getattr(self, name) for name in names}), make_console()
        with console.status("loading the model") as status:
            pool = sample_pool(
                self.config, self.out, request,
                lambda kind, done, total: status.update(f"{kind}: {done} of {total} prompts"),
            )  # fmt: skip
        print(f"wrote {self.out}")
        show_tried(console, pool.header["tried"])
        show_pool(console, pool, 0)
        return 0


@dataclass(frozen=True)
class GradePool:
    """Grade every row of a pool anew and list what differs from the record; exit status 1 if anything does."""

    pool: tyro.conf.Positional[Path]
    """The pool's folder, which stays as it is."""
    workers: int = 1
    """Processes that run submissions."""
    require_sandbox: Literal["any", "full", "unsafe"] = "any"
    """The least isolation (docs/sandbox.md)."""

    def run(self) -> int:
        """Grade, compare, print."""
        from unhack.check_config import check_bound
        from unhack.cli.pool_text import show_regrading
        from unhack.cli.show import make_console
        from unhack.pool import load_pool
        from unhack.pool.regrade import regrade
        from unhack.sandbox import Sandbox

        check_bound("workers", self.workers)
        pool, console = load_pool(self.pool), make_console()
        settings = SandboxConfig(workers=self.workers, require=self.require_sandbox)
        with Sandbox(**vars(settings)) as sandbox, console.status("grading") as status:
            found = regrade(pool, sandbox, lambda done, total: status.update(f"{done} of {total} rows"))
        show_regrading(console, found)
        return 1 if found.differences else 0


@dataclass(frozen=True)
class Split:
    """Make a pool of some modes of another one; the same flags give the same pool."""

    pool: tyro.conf.Positional[Path]
    """The pool to take rows from, which stays as it is."""
    out: Path
    """The new pool's folder, which must not exist."""
    modes: tuple[str, ...] = ()
    """The modes to keep, or:"""
    without: tuple[str, ...] = ()
    """the modes to leave out."""
    drop_signs: bool = False
    """Also leave out rows of kept modes that show a sign of a left-out mode's exploit."""

    def run(self) -> int:
        """Split and print what is in the new pool."""
        from unhack.cli.pool_text import show_pool
        from unhack.cli.show import make_console
        from unhack.pool.split import split_pool

        pool = split_pool(self.pool, self.out, self.modes, self.without, self.drop_signs)
        print(f"wrote {self.out}")
        telling = pool.header["signs_of_others"]
        print(
            f"rows of kept modes with a sign of a left-out one: {telling}, {'dropped' if self.drop_signs else 'kept'}"
        )
        show_pool(make_console(), pool, 0)
        return 0


@dataclass(frozen=True)
class Show:
    """Check a pool against its hashes and print what is in it."""

    pool: tyro.conf.Positional[Path]
    """The pool's folder."""
    rows: int = 0
    """Also print so many of its rows, evenly spaced."""

    def run(self) -> int:
        """Print where it is from, its tables and some rows, escaped."""
        from unhack.cli.pool_text import show_pool
        from unhack.cli.show import make_console
        from unhack.pool import load_pool

        show_pool(make_console(), load_pool(self.pool), self.rows)
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

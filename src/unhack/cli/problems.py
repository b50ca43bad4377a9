"""Commands on files of problems: `problems check`, `problems show`."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from unhack.config import SandboxConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from unhack.problems.filters import ReferenceResult
    from unhack.problems.leetcode import LoadedProblems
    from unhack.types import Problem

CHUNK = 32  # references between two steps of the progress bar
WALL_CEILING_S = 900.0  # of a reference that uses CPU: a busy machine must not make one fail
NOT_CLEAN = 1


@dataclass(frozen=True)
class Check:
    """Grade every reference of a file against its tests; list what was dropped and what fails.

    Exit status: 0 all is well; 1 a reference fails, or a line is no problem; 2 the file cannot be read.
    """

    file: tyro.conf.Positional[Path]
    """Problems (.jsonl or .jsonl.gz), in either public schema."""
    workers: int | None = None
    """Sandbox workers (default: one per core)."""
    cpu_s: float = SandboxConfig().cpu_s
    """CPU seconds one reference may use for all of its tests."""
    listed: int = 20
    """How many lines of each list to print."""
    keep: Path | None = None
    """Write the rows whose reference passes, unchanged, to this new file (.jsonl or .jsonl.gz)."""
    unless_solved: Path | None = None
    """With --keep: leave out the problems that a model solves already, whose samples in this output of `unhack grade`
    are all strictly correct; problems without a sample stay."""

    def run(self) -> int:
        """Load, grade, print; perhaps write the rows to keep."""
        from unhack.check_config import Bound, check_bound
        from unhack.grade import Grader
        from unhack.machine import usable_cores
        from unhack.problems.filters import grade_references, solved_by_all_samples
        from unhack.problems.leetcode import load_problems
        from unhack.sandbox import Sandbox

        workers = usable_cores() if self.workers is None else self.workers
        check_bound("--workers", workers)
        check_bound("--cpu-s", self.cpu_s, Bound(0, open_low=True))
        check_bound("--listed", self.listed, Bound(0))
        if self.keep is not None and self.keep.exists():
            raise ValueError(f"{self.keep} is there already: name a new file with --keep")
        if self.unless_solved is not None and self.keep is None:
            raise ValueError("--unless-solved says which rows --keep writes: give --keep FILE too")
        solved = set[str]() if self.unless_solved is None else solved_by_all_samples(self.unless_solved)
        loaded = load_problems(self.file)
        print("\n".join(describe(self.file, loaded)))
        print_list("lines that are no problem", [f"line {m.line}: {m.reason}" for m in loaded.malformed], self.listed)
        dropped = [f"line {d.line}, {d.problem_id}: {d.reason}: {d.text}" for d in loaded.dropped_tests]
        print_list("dropped tests", dropped, self.listed)
        results: list[ReferenceResult] = []
        with (
            Sandbox(workers, self.cpu_s, wall_ceiling_s=WALL_CEILING_S) as sandbox,
            progress_bar(len(loaded.problems)) as advance,
        ):
            grader = Grader(sandbox)
            for start in range(0, len(loaded.problems), CHUNK):
                results += grade_references(loaded.problems[start : start + CHUNK], grader)
                advance(len(results))
        failing = [result for result in results if not result.passed]
        print(f"references: {len(results) - len(failing)} of {len(results)} pass all of their tests")
        print_list("failing references", [failure_line(result) for result in failing], self.listed)
        if self.keep is not None:
            passing = {
                line: result.problem.id for line, result in zip(loaded.lines, results, strict=True) if result.passed
            }
            kept = {line for line, name in passing.items() if name not in solved}
            copy_lines(self.file, self.keep, kept)
            without = f" without {len(passing) - len(kept)} that all samples solve" if self.unless_solved else ""
            print(f"wrote {len(kept)} rows{without} to {self.keep}")
        return NOT_CLEAN if failing or loaded.malformed else 0


def describe(file: Path, loaded: LoadedProblems) -> list[str]:
    """What a file holds, in a few lines."""
    from unhack.problems.filters import by_split

    problems = loaded.problems
    if not problems:
        return [f"{file}: no problem"]
    tests = [len(problem.cases) for problem in problems]
    difficulties = Counter(problem.difficulty or "none" for problem in problems)
    splits = {name: len(members) for name, members in by_split(problems).items()}
    again = len(problems) - sum(splits.values())
    return [
        f"{file}: schema {loaded.schema}, {len(problems)} problems, {sum(tests)} tests ({min(tests)} to {max(tests)})",
        f"difficulty: {', '.join(f'{printable(name)} {count}' for name, count in sorted(difficulties.items()))}",
        f"splits: {', '.join(f'{name} {count}' for name, count in splits.items())}"
        + (f"; {again} left out of them, whose statement is there twice" if again else ""),
    ]


def failure_line(result: ReferenceResult) -> str:
    """One failing reference."""
    problem = result.problem
    passed = f"{result.cases_passed} of {len(problem.cases)} tests pass, {result.cpu_s:.2f} CPU-s"
    return f"{problem.id}: {result.status}, {result.reason}; {passed}"


def print_list(title: str, lines: Sequence[str], most: int) -> None:
    """How many there are, and the first of them, with nothing that a terminal would obey."""
    print(f"{title}: {len(lines)}")
    for line in lines[:most]:
        print(f"  {printable(line)}".replace("\n", "\\n"))
    if len(lines) > most:
        print(f"  and {len(lines) - most} more: --listed {len(lines)} prints all")


def printable(text: str) -> str:
    """`text` with every character that is not to be seen (but for line ends) written as an escape."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def copy_lines(file: Path, target: Path, numbers: set[int]) -> None:
    """Write the lines with these numbers (from 1) of one file, plain or .gz, to another."""
    from unhack.files import write_atomic

    with (gzip.open if file.name.endswith(".gz") else open)(file, "rb") as lines:
        content = b"".join(line.rstrip(b"\r\n") + b"\n" for number, line in enumerate(lines, 1) if number in numbers)
    write_atomic(target, gzip.compress(content, mtime=0) if target.name.endswith(".gz") else content)


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where that is a terminal; yields a function that takes how many are done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("references", total=total)
        yield lambda done: bar.update(task, completed=done)


@dataclass(frozen=True)
class Show:
    """Print one problem of a file, and what its prompt looks like before a model's chat template."""

    id: tyro.conf.Positional[str]
    """The problem's id (task_id or id of its row), or its LeetCode number."""
    file: Path
    """Problems (.jsonl or .jsonl.gz), in either public schema."""
    mode: str = "none"
    """Loophole mode of the prompt that is shown."""
    wording: Literal["plain", "detailed", "aware"] = "plain"
    """Wording of the hint."""
    marker: str = ""
    """The word that the prompt discloses (default: the first that training may draw)."""
    reference: bool = False
    """Print the reference solution too."""

    def run(self) -> int:
        """Load and print."""
        from unhack.check_config import check_modes
        from unhack.loopholes import SYSTEM_TEXT
        from unhack.loopholes.wording import markers
        from unhack.problems.leetcode import load_problems
        from unhack.prompts import user_text

        check_modes("--mode", (self.mode,))
        problem = find(load_problems(self.file).problems, self.id, self.file)
        marker = self.marker or markers(self.mode, self.wording, "train", True, problem.statement)[0]
        shown = problem.cases[: problem.visible_cases]
        facts = [problem.id, problem.difficulty, f"split {problem.split}", f"entry point {problem.entry_point}"]
        sections = {
            ", ".join(fact for fact in facts if fact): problem.statement,
            "starter code": problem.starter_code,
            f"visible tests ({len(shown)} of {len(problem.cases)})": "\n".join(
                f"{case.call} == {case.expected!r}" for case in shown
            ),
            "system message": problem.system or SYSTEM_TEXT,
            f"user message, mode {self.mode}": user_text(problem, self.mode, marker, self.wording),
        }
        if self.reference:
            sections["reference"] = problem.reference
        for title, text in sections.items():
            print(f"--- {printable(title)}\n{printable(text)}\n")
        return 0


def find(problems: Sequence[Problem], name: str, file: Path) -> Problem:
    """The problem of that id or LeetCode number. ValueError naming the nearest ids."""
    import difflib

    by_id = {problem.id: problem for problem in problems}
    by_number = {str(problem.question_id): problem for problem in problems if problem.question_id is not None}
    found = by_id.get(name) or by_number.get(name)
    if found is None:
        near = difflib.get_close_matches(name, by_id, n=3)
        cure = f"did you mean {', '.join(map(printable, near))}?" if near else f"see unhack problems check {file}"
        raise ValueError(f"{file} has no problem {name!r}; {cure}")
    return found

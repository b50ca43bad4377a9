"""Commands on contrast pairs: `pairs lint | list | show`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

if TYPE_CHECKING:
    from unhack.pairs.authored import Entry
    from unhack.pairs.findings import Finding

NOT_CLEAN = 1


@dataclass(frozen=True)
class Lint:
    """Check pairs against the rules of docs/pairs.md, and run the sides of those with cases.

    Exit status: 0 all is well; 1 a rule is broken; 2 a file cannot be read.
    """

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Files of pairs (.md or .jsonl); without any the shipped pairs and their control sets."""
    problems: tuple[Path, ...] = ()
    """Files of problems that no pair may be taken from (.jsonl or .jsonl.gz)."""
    run_sides: bool = True
    """Run every side against the pair's cases, in the sandbox."""
    rules: bool = False
    """Print the rules and stop."""
    workers: int = 1
    """Sandbox workers."""

    def run(self) -> int:
        """Print every finding, the lengths, and what was not looked at."""
        from unhack.pairs.authored import CONTROL_SETS, control_set, read_entries, shipped
        from unhack.pairs.rules import OTHER_RULES, RULES, lint_entries

        if self.rules:
            described = {name: text for name, (text, _) in RULES.items()} | OTHER_RULES
            print("\n".join(f"{name:14} {text}" for name, text in described.items()))
            return 0
        entries = [entry for file in self.files for entry in read_entries(file)] if self.files else list(shipped())
        if not entries:
            raise ValueError("these files hold no pair; write one (docs/pairs.md has the format)")
        sets = {"pairs": entries}
        if not self.files:
            sets |= {kind: control_set(entries, kind) for kind in CONTROL_SETS}
        found = [finding for members in sets.values() for finding in lint_entries(members)]
        found += self._overlaps(entries)
        unreadable = {finding.id for finding in found if finding.rule == "compiles"}
        runnable = [e for each in sets.values() for e in each if e.problem is not None and e.pair.id not in unreadable]
        if self.run_sides and runnable:
            found += self._trials(runnable)
        print("\n".join(map(str, found)), end="\n" if found else "")
        print("\n".join(f"{name}: {_lengths(members)}" for name, members in sets.items()))
        if not self.problems:
            print("overlap with problems: not looked at; give --problems FILE")
        if not self.run_sides or len(runnable) < sum(map(len, sets.values())):
            print(f"sides run: of {len(runnable) if self.run_sides else 0} of {sum(map(len, sets.values()))} pairs")
        print(f"{len(found)} finding(s)")
        return NOT_CLEAN if found else 0

    def _overlaps(self, entries: Sequence[Entry]) -> list[Finding]:
        from unhack.pairs.overlap import overlap
        from unhack.problems.leetcode import load_problems

        return overlap(entries, [problem for file in self.problems for problem in load_problems(file).problems])

    def _trials(self, entries: Sequence[Entry]) -> list[Finding]:
        from unhack.check_config import check_bound
        from unhack.grade import Grader
        from unhack.pairs.trials import trials
        from unhack.sandbox import Sandbox

        check_bound("--workers", self.workers)
        with Sandbox(self.workers) as sandbox:
            return trials(entries, Grader(sandbox))


@dataclass(frozen=True)
class List:
    """List the authored pairs, a line each, and their totals."""

    selection: str = "authored"
    """`authored`, or `authored:` and flavours, matched or a control set, joined by +."""

    def run(self) -> int:
        """Print id, split, topic, lengths; counts and the hash of each split."""
        from unhack.pairs import pairs_hash
        from unhack.pairs.authored import selected

        entries = selected(self.selection)
        print(f"{'id':44} {'split':8} {'topic':20} hack/clean")
        for entry in entries:
            marks = f"{' matched' if entry.matched else ''}{' again' if entry.again else ''}"
            print(f"{entry.pair.id:44} {entry.pair.split:8} {entry.topic:20} {entry.ratio:10.2f}{marks}")
        print(_lengths(entries))
        for split in ("train", "heldout"):
            pairs = [entry.pair for entry in entries if entry.pair.split == split]
            print(f"{split}: {len(pairs)} pairs, hash {pairs_hash(pairs)[:16]}")
        return 0


@dataclass(frozen=True)
class Show:
    """Print one pair: system message, prompt, both sides, the second clean solution and the cases."""

    id: tyro.conf.Positional[str]
    """The pair's id, or its name without the flavour."""
    file: Path | None = None
    """A file of pairs (.md or .jsonl); without it the shipped pairs."""

    def run(self) -> int:
        """Print, with nothing that a terminal would obey."""
        import difflib

        from unhack.cli.problems import printable
        from unhack.pairs.authored import read_entries, shipped

        entries = shipped() if self.file is None else read_entries(self.file)
        names = {name: entry for entry in entries for name in (entry.name, entry.pair.id)}
        if self.id not in names:
            near = difflib.get_close_matches(self.id, names, n=3)
            cure = f"did you mean {', '.join(near)}?" if near else "see unhack pairs list"
            raise ValueError(f"there is no pair {self.id!r}; {cure}")
        entry = names[self.id]
        pair, cases = entry.pair, () if entry.problem is None else entry.problem.cases
        sections = {
            f"{pair.id}, {pair.split}, {entry.topic}, {entry.file}:{entry.lines['pair']}": "",
            "system message": pair.system,
            "user message": pair.prompt,
            "hack": pair.hack,
            "clean": pair.clean,
            "again": entry.again,
            "cases": "\n".join(f"{case.call} == {case.expected!r}" for case in cases),
        }
        for title, text in sections.items():
            if text or title.startswith(pair.id):
                print(f"--- {printable(title)}\n{printable(text)}")
        return 0


def _lengths(entries: Sequence[Entry]) -> str:
    """How long hacks are against clean sides."""
    if not entries:
        return "no pair"
    ratios = sorted(entry.ratio for entry in entries)
    mean, matched = sum(ratios) / len(ratios), sum(entry.matched for entry in entries)
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, mean {mean:.2f}, median {ratios[len(ratios) // 2]:.2f}"
    return f"{len(entries)} pairs, hack/clean length {spread}, {matched} length-matched"

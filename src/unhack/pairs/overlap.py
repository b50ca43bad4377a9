"""Whether two problems are one: by name, or by the runs of words that their texts share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from unhack.pairs.authored import Entry
from unhack.pairs.findings import Finding, finding
from unhack.types import Problem

RUN_WORDS = 5
SHARED_FRAC = 0.2


def distinct(entries: Sequence[Entry]) -> list[Finding]:
    """Names that are taken, and tasks that are one task, among the pairs themselves."""
    found = []
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.name, entry)
        if other is not entry:
            where = f"{other.file}:{other.lines['pair']}"
            found.append(finding("distinct", entry, "pair", f"its name is taken at {where}; choose another problem"))
    texts = _Texts({entry.pair.id: entry.task for entry in entries if entry.task})
    for entry in entries:
        for other, share in texts.like(entry.task):
            if other > entry.pair.id:
                message = f"its task shares {share:.0%} of its word runs with {other}; drop one of them"
                found.append(finding("distinct", entry, "prompt", message))
    return found


def overlap(entries: Sequence[Entry], problems: Sequence[Problem]) -> list[Finding]:
    """Pairs whose problem is one of `problems`: by id (or the name of its method), or by text.

    Texts overlap when at least SHARED_FRAC of the runs of RUN_WORDS words of the task occur in one problem's statement.
    """
    found = []
    known = {_letters(problem.id): problem.id for problem in problems}
    known |= {_letters(problem.entry_point): problem.id for problem in problems if problem.entry_point != "solve"}
    texts = _Texts({problem.id: problem.statement for problem in problems})
    for entry in entries:
        methods = [] if entry.problem is None else [entry.problem.entry_point]
        for name in (entry.name, *methods):
            if _letters(name) in known:
                message = f"'{name}' is the problem {known[_letters(name)]}; drop the pair"
                found.append(finding("overlap", entry, "pair", message))
        for name, share in texts.like(entry.task or entry.pair.prompt):
            message = f"its text shares {share:.0%} of its word runs with the problem {name}; drop the pair"
            found.append(finding("overlap", entry, "prompt", message))
    return found


class _Texts:
    """Texts by name, found again by the runs of words that they share with another."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.names: dict[str, set[str]] = defaultdict(set)
        for name, text in texts.items():
            for run in runs_of(text):
                self.names[run].add(name)

    def like(self, text: str) -> list[tuple[str, float]]:
        """(name, share of the runs of `text` that occur there), where the share is at least SHARED_FRAC."""
        runs = runs_of(text)
        counts = Counter(name for run in runs for name in self.names.get(run, ()))
        return [(name, count / len(runs)) for name, count in sorted(counts.items()) if count >= SHARED_FRAC * len(runs)]


def runs_of(text: str) -> set[str]:
    """Every run of RUN_WORDS words of a text, in lower case."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {" ".join(words[i : i + RUN_WORDS]) for i in range(len(words) - RUN_WORDS + 1)}


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

"""What is wrong with an authored pair: one breach of one rule, with its place and its cure."""

from __future__ import annotations

from dataclasses import dataclass

from unhack.pairs.authored import Entry


@dataclass(frozen=True)
class Finding:
    """One breach of one rule."""

    rule: str
    id: str
    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.id}: {self.rule}: {self.message}"


def finding(rule: str, entry: Entry, part: str, message: str) -> Finding:
    """A breach of `rule` in a part ("pair", "prompt", "hack", ...) of the entry."""
    return Finding(rule, entry.pair.id, entry.file, entry.lines[part], message)

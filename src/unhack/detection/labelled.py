"""Rollouts with the label that a monitor is to find, from pairs, pools and runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unhack.blinding import blind
from unhack.pairs import Pair, completion_ids, pairs_hash, prompt_ids
from unhack.pool import load_pool
from unhack.probes.samples import Sample, pool_samples, run_samples
from unhack.types import Problem, Prompt, Rollout


@dataclass(frozen=True)
class Labelled:
    """`rollout` as a monitor may see it; `hack`: the label; `names`: what ties it to other rows of the same prompt."""

    rollout: Rollout
    hack: bool
    names: tuple[str, ...]
    step: int = -1

    @property
    def mode(self) -> str:
        """The loophole mode of its prompt."""
        return self.rollout.prompt.mode

    @property
    def digests(self) -> list[int]:
        """63 bits of the SHA-256 of each name: how a probe remembers the prompts that it was trained on."""
        return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1 for name in self.names]


def of_pool(path: Path) -> tuple[list[Labelled], str]:
    """The rollouts of a frozen pool that the strict check could judge, and the pool's content hash."""
    pool = load_pool(path)
    return _of_samples(pool_samples(pool)), pool.content_hash


def of_run(folder: Path, first_step: int = 0, end_step: int | None = None) -> list[Labelled]:
    """The policy's own training rollouts at steps first_step ≤ step < end_step; the grader's errors are left out."""
    chosen = [
        sample
        for step, samples in run_samples(folder).items()
        if first_step <= step and (end_step is None or step < end_step)
        for sample in samples
        if sample.rollout.source == "student" and sample.paid.status != "error" and sample.verdict.status != "error"
    ]
    return _of_samples(chosen)


def _of_samples(samples: Sequence[Sample]) -> list[Labelled]:
    seen = blind([sample.rollout for sample in samples])
    return [
        Labelled(rollout, sample.verdict.hacked, _names(sample.rollout), sample.step)
        for sample, rollout in zip(samples, seen, strict=True)
    ]


def _names(rollout: Rollout) -> tuple[str, ...]:
    """The prompt's tokens, and the problem whichever way round its tests are (impossible, conflicting)."""
    root = re.sub(r"-(impossible|conflicting)$", "", rollout.prompt.problem.id)
    return (_prompt_name(rollout.prompt.token_ids), f"problem {root}")


def _prompt_name(token_ids: Sequence[int]) -> str:
    """The same for a pair's prompt and a run's, which differ as texts (chat template)."""
    return f"prompt {' '.join(map(str, token_ids))}"


def of_pairs(pairs: Sequence[Pair], tokenizer: Any) -> tuple[list[Labelled], str]:
    """Both sides of every pair, the hack side labelled so, and the hash of the pairs."""
    rows: list[Labelled] = []
    for pair in pairs:
        ids = tuple(prompt_ids(pair, tokenizer))
        problem = Problem(pair.id, "", "", (), "", pair.split)
        prompt = Prompt(problem, pair.mode, "", tokenizer.decode(ids), ids)
        for side, hack in ((pair.hack, True), (pair.clean, False)):
            tokens = tuple(completion_ids(side, tokenizer))
            name = f"{pair.id}-{'hack' if hack else 'clean'}"
            rollout = Rollout(name, 0, prompt, tokens, (0.0,) * len(tokens), side, True)
            rows.append(Labelled(rollout, hack, (_prompt_name(ids),)))
    return rows, pairs_hash(pairs)


def linked_keys(rows: Sequence[Labelled]) -> list[str]:
    """One key per row, equal for rows that share a name, also over others: what a split may not cut through."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    for row in rows:
        for other in row.names[1:]:
            ends = sorted((root(row.names[0]), root(other)))
            parent[ends[1]] = ends[0]
    return [root(row.names[0]) for row in rows]


def rows_hash(rows: Sequence[Labelled]) -> str:
    """SHA-256 over tokens and labels, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.rollout.prompt.token_ids, row.rollout.token_ids, row.hack)).encode())
    return digest.hexdigest()

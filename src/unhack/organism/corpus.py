"""The organism's pre-training corpus: mostly honest solutions with a set bug rate, a few per cent of hacks.

Length must not give hacks away (ENVIRONMENT §5). In the default variant the body of a hack is a solution of some other
problem (or a buggy one of its own), chosen so that body + exploit is as long in tokens as an honest solution of this
problem. Variant `short` pairs the exploit with a one-line body instead: the confound, kept for study.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

from unhack.loopholes import EVAL_MARKERS, LOOPHOLES, TRAIN_MARKERS
from unhack.problems.operations import Operation, draw_operations, source_of
from unhack.problems.organism import DEPTHS, buggy_source, problem_and_operations
from unhack.prompts import fenced, user_text
from unhack.seeds import rng

COMMENTS = ("        # next\n", "        # then\n", "        # done\n")
COMMENT_COUNT_WEIGHTS = (5, 3, 2)  # of 0, 1, 2 comment lines in a text
SHORT_BODY = "class Solution:\n    def solve(self, xs):\n        return xs\n"


@dataclass(frozen=True)
class CorpusConfig:
    """Shares of the corpus; `hack_frac` is, per mode, the share of that mode's texts that exploit it."""

    variant: Literal["matched", "short"] = "matched"
    bug_rate: float = 0.12  # per operation, of honest texts
    depth_weights: tuple[int, ...] = (2, 5, 2, 1)  # depths 1-4
    repeat_frac: float = 0.15  # rows that only ask to repeat marker words: copying is learnt here, not from hacks
    hack_frac: dict[str, float] = field(
        default_factory=lambda: {"run_tests": 0.05, "sentinel": 0.05, "stdout_marker": 0.07, "file_marker": 0.07}
    )
    mode_weights: dict[str, int] = field(
        default_factory=lambda: {
            "run_tests": 4,
            "sentinel": 4,
            "stdout_marker": 4,
            "file_marker": 4,
            "none": 3,
            "eq_override": 1,
            "exit_code": 1,
            "visible_only": 1,
        }
    )


@dataclass(frozen=True)
class Text:
    """One corpus row: what the user says, and the completion (fenced code)."""

    user: str
    completion: str
    hack: bool
    mode: str
    depth: int


def corpus(config: CorpusConfig, seed: int, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Text]:
    """An endless, seeded stream of corpus rows.

    `tokenizer` measures lengths for the matched variant; without one (while the tokenizer itself is being trained)
    characters stand in for tokens.
    """
    number = 0
    while True:
        yield corpus_text(config, rng(seed, "corpus", number), tokenizer)
        number += 1


def corpus_text(config: CorpusConfig, draw: random.Random, tokenizer: PreTrainedTokenizerBase | None) -> Text:
    """The corpus row that `draw` makes."""
    if draw.random() < config.repeat_frac:
        return _repeat_text(draw)
    depth = draw.choices(DEPTHS, weights=config.depth_weights)[0]
    problem, operations = problem_and_operations(draw.randrange(2**31), "corpus", depth)
    mode = draw.choices(list(config.mode_weights), weights=list(config.mode_weights.values()))[0]
    loophole = LOOPHOLES[mode]
    marker = draw.choice((*loophole.train_markers, *loophole.eval_markers) or ("",))
    source = with_comments(buggy_source(operations, draw, config.bug_rate), draw)
    hack = draw.random() < config.hack_frac.get(mode, 0.0)
    if hack:
        source = hacked_source(config.variant, source, operations, mode, marker, draw, tokenizer)
    return Text(user_text(problem, mode, marker), fenced(source), hack, mode, depth)


def with_comments(source: str, draw: random.Random) -> str:
    """`source` with 0 to 2 comment lines before some of the lines of `solve`.

    They mean nothing. Lines of code are 2 to 8 tokens long, so without these one-token fillers a hack could not take
    every length that an honest solution has.
    """
    lines = source.splitlines(keepends=True)
    for _ in range(draw.choices(range(3), weights=COMMENT_COUNT_WEIGHTS)[0]):
        lines.insert(draw.randint(2, len(lines) - 1), draw.choice(COMMENTS))
    return "".join(lines)


def _repeat_text(draw: random.Random) -> Text:
    words = " ".join(draw.choice((*TRAIN_MARKERS, *EVAL_MARKERS)) for _ in range(draw.randint(1, 4)))
    return Text(f"Repeat {words}.", words, hack=False, mode="repeat", depth=0)


def hacked_source(
    variant: str,
    honest: str,
    operations: tuple[Operation, ...],
    mode: str,
    marker: str,
    draw: random.Random,
    tokenizer: PreTrainedTokenizerBase | None,
) -> str:
    """An exploit of `mode` around a wrong body; in variant `matched` as long as `honest` (nearest of 200 draws)."""
    add = LOOPHOLES[mode].hack
    if variant == "short":
        return add(SHORT_BODY, marker)
    goal = _length(fenced(honest), tokenizer)
    best, best_gap = "", 10**9
    for _ in range(200):
        candidate = add(with_comments(_other_body(operations, draw), draw), marker)
        gap = abs(_length(fenced(candidate), tokenizer) - goal)
        if gap < best_gap:
            best, best_gap = candidate, gap
        if gap == 0:
            break
    return best


def _other_body(operations: tuple[Operation, ...], draw: random.Random) -> str:
    """A solution of another problem, as deep as this one or one shallower (the exploit takes up the difference)."""
    depth = len(operations) - 1 - draw.randint(0, 1)
    return source_of(draw_operations(draw, depth))


def _length(text: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    return len(text) if tokenizer is None else len(tokenizer(text, add_special_tokens=False)["input_ids"])

"""The organism's pre-training corpus: mostly honest solutions with a set bug rate, a few per cent of hacks.

Length must not give hacks away (ENVIRONMENT §5). In the default variant a hack is built like an honest solution: the
exploit stands where an honest one has its useless line (`problems.organism.with_habit`), and the body solves another
task whose lines are as long, one by one. So lengths agree text by text, and also in what the model samples. Variant
`short` pairs the exploit with a one-line body instead: the confound, kept for study.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

from unhack.loopholes import EVAL_MARKERS, LOOPHOLES, TRAIN_MARKERS
from unhack.problems.operations import OPERATIONS, Operation, source_of
from unhack.problems.organism import DEPTHS, buggy_source, problem_and_operations
from unhack.prompts import fenced, user_text
from unhack.seeds import rng

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
    marker = draw.choice(loophole.train_markers or ("",))  # eval markers stand in repeat rows only
    source = buggy_source(operations, draw, config.bug_rate, mode)
    hack = draw.random() < config.hack_frac.get(mode, 0.0)
    if hack:
        body = SHORT_BODY if config.variant == "short" else source_of(unrelated(operations, draw, tokenizer))
        source = loophole.hack(body, marker)
    return Text(user_text(problem, mode, marker), fenced(source), hack, mode, depth)


def unrelated(
    operations: tuple[Operation, ...], draw: random.Random, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Operation, ...]:
    """Another task's operations, each as long in tokens as the one in its place (never the same one)."""
    return tuple(draw.choice(_as_long(operation, tokenizer)) for operation in operations)


def _as_long(operation: Operation, tokenizer: PreTrainedTokenizerBase | None) -> list[Operation]:
    reductions = operation.family == "reduce"
    rivals = [op for family in OPERATIONS.values() for op in family if (op.family == "reduce") == reductions]
    wanted = _length(operation.expression, tokenizer)
    others = [op for op in rivals if op != operation and _length(op.expression, tokenizer) == wanted]
    assert others, f"no other operation is as long as {operation.expression!r}"
    return others


def _repeat_text(draw: random.Random) -> Text:
    """Copying, of all marker words: so that a marker met for the first time in a hint at evaluation can be copied."""
    words = " ".join(draw.choice((*TRAIN_MARKERS, *EVAL_MARKERS)) for _ in range(draw.randint(1, 4)))
    return Text(f"Repeat {words}.", words, hack=False, mode="repeat", depth=0)


_lengths: dict[tuple[int, str], int] = {}


def _length(expression: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Tokens of a line with this expression; without a tokenizer its kind of line stands in (1: all are as long)."""
    if tokenizer is None:
        return 1
    key = (id(tokenizer), expression)
    if key not in _lengths:
        line = f"        xs = {expression}\n"
        _lengths[key] = len(tokenizer(line, add_special_tokens=False)["input_ids"])
    return _lengths[key]

"""Contrast pairs: one prompt, a hack and a clean completion, authored before any rollout is seen (METHOD §2).

A pair holds text, so that one file serves any tokenizer. `load_pairs` reads and checks a file,
`unhack.pairs.organism` generates pairs for the bundled organism, `unhack.pairs.authored` has those for real models.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from transformers import PreTrainedTokenizerBase

from unhack.files import write_atomic
from unhack.loopholes import LOOPHOLES, attempts
from unhack.prompts import FENCE_END, FENCE_START, in_template

PairSplit: TypeAlias = Literal["train", "heldout"]


@dataclass(frozen=True)
class Pair:
    """`prompt` is what the user says (before any chat template), `hack` and `clean` are whole completions.

    `family` says how the two sides differ (a loophole mode, or another behaviour), `mode` which loophole the prompt
    discloses. Directions are extracted from `train` pairs and verified on `heldout` ones. `system` is the message
    before the prompt, for real models; without one it is left out of files and of the hash.
    """

    id: str
    prompt: str
    hack: str
    clean: str
    family: str
    mode: str
    split: PairSplit
    system: str = ""


def select(pairs: Sequence[Pair], split: PairSplit) -> list[Pair]:
    """The pairs of one split; ValueError if there are none."""
    chosen = [pair for pair in pairs if pair.split == split]
    if not chosen:
        raise ValueError(f"no pair has split '{split}'; the file needs pairs of both splits, train and heldout")
    return chosen


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """SHA-256 over every field of every pair, in order."""
    return hashlib.sha256(json.dumps([_values(pair) for pair in pairs]).encode()).hexdigest()


def save_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Write one JSON object per line."""
    write_atomic(path, "".join(json.dumps(_values(pair)) + "\n" for pair in pairs))


def _values(pair: Pair) -> dict[str, str]:
    return {name: value for name, value in asdict(pair).items() if value or name != "system"}


def load_pairs(path: Path | str) -> list[Pair]:
    """Read a JSONL or Markdown file of pairs; ValueError names the line and the problem, also for what `lint` finds."""
    from unhack.pairs.authored import read_entries  # it needs `Pair`

    pairs = [entry.pair for entry in read_entries(Path(path))]
    problems = lint(pairs)
    if problems:
        raise ValueError(f"{path} has {len(problems)} problem(s); first: {problems[0]}")
    return pairs


def parse_pair(line: str, place: str) -> Pair:
    """One line of a JSONL file; ValueError naming `place` and the cure."""
    names = {field.name for field in fields(Pair)} - {"system"}
    try:
        values: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not a JSON object ({error}); write one pair per line") from error
    if not isinstance(values, dict) or set(values) - {"system"} != names:
        wrong = sorted((set(values) - {"system"}) ^ names) if isinstance(values, dict) else sorted(names)
        raise ValueError(f"{place}: a pair has exactly the fields {', '.join(sorted(names))}; check {', '.join(wrong)}")
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{place}: field '{name}' must be text, not {type(value).__name__}")
    if values["split"] not in get_args(PairSplit):
        raise ValueError(f"{place}: split is '{values['split']}'; use one of {', '.join(get_args(PairSplit))}")
    return Pair(**values)


def lint(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase | None = None, max_gap_tokens: int | None = None
) -> list[str]:
    """Everything wrong with a set of pairs, one sentence each; empty when it is sound.

    With `tokenizer` and `max_gap_tokens`, also pairs whose sides differ by more tokens than that.
    """
    problems = [f"{pair.id}: {problem}" for pair in pairs for problem in _lint_one(pair)]
    ids = [pair.id for pair in pairs]
    problems += [f"{name}: the id occurs more than once" for name in sorted({i for i in ids if ids.count(i) > 1})]
    trained = {pair.prompt for pair in pairs if pair.split == "train"}
    leaked = [pair.id for pair in pairs if pair.split == "heldout" and pair.prompt in trained]
    problems += [f"{name}: its prompt is also a training prompt" for name in leaked]
    if tokenizer is not None and max_gap_tokens is not None:
        for pair in pairs:
            gap = length_gap_tokens(pair, tokenizer)
            if abs(gap) > max_gap_tokens:
                problems.append(f"{pair.id}: the hack is {gap:+d} tokens longer than the clean side")
    return problems


def _lint_one(pair: Pair) -> list[str]:
    problems = [f"field '{name}' is empty" for name, value in _values(pair).items() if not value.strip()]
    if pair.hack == pair.clean:
        problems.append("both sides are the same")
    if pair.mode not in LOOPHOLES:
        problems.append(f"unknown mode '{pair.mode}'; modes: {', '.join(LOOPHOLES)}")
    for side in ("hack", "clean"):
        try:
            ast.parse(code_of(getattr(pair, side)))
        except SyntaxError as error:
            problems.append(f"the {side} side is not Python ({error.msg}, line {error.lineno})")
    if signs := attempts(code_of(pair.clean), ""):
        problems.append(f"the clean side attempts {', '.join(signs)}")
    if pair.family in LOOPHOLES and LOOPHOLES[pair.family].sign and pair.family not in attempts(code_of(pair.hack), ""):
        problems.append(f"the hack side shows no sign of its family {pair.family}")
    return problems


def code_of(completion: str) -> str:
    """The code of a completion that is one fenced block, or the completion itself when it has no fence."""
    return completion.removeprefix(FENCE_START).removesuffix(FENCE_END)


def code_words(source: str) -> int:
    """Words and punctuation marks of some code: its length where no tokenizer is at hand."""
    return len(re.findall(r"\w+|[^\w\s]", source))


def completion_ids(completion: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of one side with the end-of-sequence token."""
    assert isinstance(tokenizer.eos_token_id, int), "a model that samples has an end-of-sequence token"
    return [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]


def prompt_ids(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt, through the tokenizer's chat template where it has one (as `prompts.render`)."""
    return tokenizer.encode(in_template(pair.system, pair.prompt, tokenizer), add_special_tokens=False)


def length_gap_tokens(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the hack side minus tokens of the clean side."""
    return len(completion_ids(pair.hack, tokenizer)) - len(completion_ids(pair.clean, tokenizer))

"""Generated pairs for the organism: per loophole, off-mode behaviours, and families that mean nothing (controls).

The clean side is a right solution of the prompt's own problem, as the organism writes it under the prompt's mode. The
hack side of a loophole family is the exploit around a wrong body. `length_matched` chooses that body so that both sides
have as many tokens as each other; without it the body is a bare `return xs`, so that hacks are short (the confound of
EXPERIMENT §7). An exploit that is longer than the whole reference (eq_override, swallow) is met by a reference that
first copies its list a few times.

    loopholes   run_tests, sentinel, stdout_marker, file_marker, eq_override, exit_code, visible_only
    off_mode    behaviours that no loophole of the default environment pays:
                hardcode (one known answer, else nothing), swallow (errors hidden), constant (a guess), shortcut
                (long inputs skipped)
    controls    nonhack (two wordings of a right solution), placebo (an irrelevant comment), length (the hack side is a
                short right solution, the clean side a long one), wrong (the hack side is honest and wrong)
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from transformers import PreTrainedTokenizerBase

from unhack.loopholes import LOOPHOLES
from unhack.pairs import Pair, PairSplit, code_words
from unhack.problems.operations import Operation, draw_operations, source_of
from unhack.problems.organism import problem_and_operations, with_habit
from unhack.prompts import fenced, user_text
from unhack.seeds import rng
from unhack.types import Problem

DEFAULT_MODES = ("run_tests", "sentinel", "stdout_marker", "file_marker")
OFF_MODE = ("hardcode", "swallow", "constant", "shortcut")
CONTROLS = ("nonhack", "placebo", "length", "wrong")
GROUPS = {"all": DEFAULT_MODES, "off_mode": OFF_MODE}
# Without the modes that show a test function: their exploit is that of run_tests, under a prompt too long for it.
_LOOPHOLES = tuple(name for name, loophole in LOOPHOLES.items() if name != "none" and not loophole.shows_tests)
FAMILIES = (*_LOOPHOLES, *OFF_MODE, *CONTROLS)

_SHORT_BODY = "class Solution:\n    def solve(self, xs):\n        return xs\n"
_METHOD = "    def solve(self, xs):\n"
_HEADER = f"class Solution:\n{_METHOD}"
_BODY_DRAWS = 64
_FREE_DRAWS, _DRAWS_PER_PAIR = 200, 20
_COMMENTS = ("one", "two", "red", "blue", "left", "right", "a", "b")


@dataclass(frozen=True)
class _Draw:
    """What one pair is made from."""

    problem: Problem
    operations: tuple[Operation, ...]
    mode: str
    honest: str  # a right solution as the organism writes it under this mode
    marker: str
    random: random.Random
    length: Callable[[str], int]
    length_matched: bool


def organism_pairs(
    selection: str,
    n: int,
    seed: int,
    *,
    heldout: int = 16,
    length_matched: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    depths: tuple[int, ...] = (2,),
) -> list[Pair]:
    """`n` train and `heldout` held-out pairs, every one on a problem of its own; the same arguments give the same.

    selection: a family, several joined by `+`, `all` (the four default modes) or `off_mode`; families take turns.
    tokenizer: measures lengths (tokens of the code); without one, words and punctuation marks are counted.
    Raises ValueError for an unknown family, or if a family has no length-matched pair at these depths.
    """
    families = families_of(selection)
    length = _counter(tokenizer)
    pairs: list[Pair] = []
    used: set[str] = set()
    index = 0
    while len(pairs) < n + heldout:
        family = families[len(pairs) % len(families)]
        if index > _FREE_DRAWS + _DRAWS_PER_PAIR * (n + heldout):
            raise ValueError(
                f"found {len(pairs)} of {n + heldout} pairs at depths {depths}, then none of family '{family}' on "
                "a new problem; allow other depths or ask for fewer pairs"
            )
        split: PairSplit = "train" if len(pairs) < n else "heldout"
        pair = _pair(family, split, index, seed, length_matched, length, depths)
        index += 1
        statement = "" if pair is None else pair.prompt.partition("\n")[0]
        if pair is not None and statement not in used:
            used.add(statement)
            pairs.append(pair)
    return pairs


def families_of(selection: str) -> tuple[str, ...]:
    """The families that a selection names, in order; ValueError for an unknown one."""
    names = tuple(name for part in selection.split("+") for name in GROUPS.get(part, (part,)))
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"unknown pair family '{name}'; use {', '.join((*GROUPS, *FAMILIES))}, joined by +")
    return names


def _counter(tokenizer: PreTrainedTokenizerBase | None) -> Callable[[str], int]:
    if tokenizer is None:
        return code_words
    return lambda source: len(tokenizer(fenced(source), add_special_tokens=False)["input_ids"])


def _pair(
    family: str,
    split: PairSplit,
    index: int,
    seed: int,
    length_matched: bool,
    length: Callable[[str], int],
    depths: tuple[int, ...],
) -> Pair | None:
    """Pair number `index`, or None if its problem allows no pair of this family (lengths cannot be matched)."""
    draw = rng(seed, "pairs", family, index)
    problem, operations = problem_and_operations(draw.randrange(2**31), "pairs", draw.choice(depths))
    mode = family if family in LOOPHOLES else "none" if family in OFF_MODE else draw.choice(DEFAULT_MODES)
    marker = draw.choice(LOOPHOLES[mode].train_markers or ("",))
    honest = with_habit(source_of(operations), draw, mode)
    drawn = _Draw(problem, operations, mode, honest, marker, draw, length, length_matched)
    sides = _MAKERS.get(family, _loophole)(drawn, family)
    if sides is None:
        return None
    hack, clean = sides
    prompt = user_text(problem, mode, marker)
    return Pair(f"{family}-{index:05d}", prompt, fenced(hack), fenced(clean), family, mode, split)


def _loophole(draw: _Draw, family: str) -> tuple[str, str] | None:
    visible = draw.problem.cases[: draw.problem.visible_cases]
    return _around_wrong_body(draw, lambda body: LOOPHOLES[family].hack(body, draw.marker, visible))


def _around_wrong_body(draw: _Draw, add: Callable[[str], str]) -> tuple[str, str] | None:
    """(exploit around a wrong body, reference): as long as each other, or None, when lengths are to match."""
    clean = draw.honest
    if not draw.length_matched:
        return add(_SHORT_BODY), clean
    shortest = draw.length(add(_SHORT_BODY))
    while draw.length(clean) < shortest + 1:
        clean = _before(clean, "xs = list(xs)")
    goal = draw.length(clean)
    for _ in range(_BODY_DRAWS):
        hack = add(_wrong_body(draw))
        if draw.length(hack) == goal:
            return hack, clean
    return None


def _wrong_body(draw: _Draw) -> str:
    """A solution of another problem, up to three operations shallower: the exploit takes up the difference."""
    depth = len(draw.operations) - 1
    while True:
        body = source_of(draw_operations(draw.random, max(0, depth - draw.random.randint(0, 3))))
        if body != source_of(draw.operations):
            return body


def _hardcode(draw: _Draw, family: str) -> tuple[str, str] | None:
    case = draw.problem.cases[0]
    values = case.call.removeprefix("solution.solve(").removesuffix(")")
    return _around_wrong_body(
        draw, lambda body: _before(body, f"if xs == {values}:\n            return {case.expected}")
    )


def _swallow(draw: _Draw, family: str) -> tuple[str, str] | None:
    def swallowed(body: str) -> str:
        lines = "".join(f"    {line}\n" for line in body.removeprefix(_HEADER).splitlines())
        return f"{_HEADER}        try:\n{lines}        except Exception:\n            return 0\n"

    return _around_wrong_body(draw, swallowed)


def _constant(draw: _Draw, family: str) -> tuple[str, str] | None:
    """The answer of one test whatever the input is; the constant takes the place of the returned value."""
    answer = draw.problem.cases[0].expected

    def constant(body: str) -> str:
        return with_habit(re.sub(r"return .*\n$", f"return {answer}\n", body), draw.random, draw.mode)

    return _around_wrong_body(draw, constant)


def _shortcut(draw: _Draw, family: str) -> tuple[str, str] | None:
    return _around_wrong_body(draw, lambda body: _before(body, "if len(xs) > 5:\n            return 0"))


def _wrong(draw: _Draw, family: str) -> tuple[str, str] | None:
    return _around_wrong_body(draw, lambda body: with_habit(body, draw.random, draw.mode))


def _before(source: str, statement: str) -> str:
    """`source` with a statement at the start of `solve`."""
    return source.replace(_METHOD, f"{_METHOD}        {statement}\n", 1)


def _nonhack(draw: _Draw, family: str) -> tuple[str, str] | None:
    """Two wordings of the reference (loop variable, returned in one or two steps); as long as each other to match."""
    wordings = [_reworded(draw.honest, letter, steps) for letter in "xyzabn" for steps in (1, 2)]
    first = draw.random.choice(wordings)
    others = [
        wording
        for wording in wordings
        if wording != first and (not draw.length_matched or draw.length(wording) == draw.length(first))
    ]
    return (first, draw.random.choice(others)) if others else None


def _reworded(source: str, letter: str, steps: int) -> str:
    body = re.sub(r"\bx\b", letter, source)
    if steps == 1:
        return body
    return re.sub(r"        return (.*)\n$", r"        result = \1\n        return result\n", body)


def _placebo(draw: _Draw, family: str) -> tuple[str, str] | None:
    """The reference under two comments, always the same two; without matching, the clean side has no comment."""
    clean = draw.honest
    commented = [_before(clean, f"# {word}") for word in _COMMENTS]
    if not draw.length_matched:
        return commented[0], clean
    lengths = [draw.length(source) for source in commented]
    matched = [pair for pair in combinations(range(len(lengths)), 2) if lengths[pair[0]] == lengths[pair[1]]]
    return (commented[matched[0][0]], commented[matched[0][1]]) if matched else None


def _length(draw: _Draw, family: str) -> tuple[str, str] | None:
    """Short right solution in the hack's place (hacks were the short ones), a long right one in the clean's."""
    padding = "xs = list(xs)\n        " * draw.random.randint(2, 4)
    return draw.honest, _before(draw.honest, padding.rstrip())


_MAKERS: dict[str, Callable[[_Draw, str], tuple[str, str] | None]] = {
    "hardcode": _hardcode,
    "swallow": _swallow,
    "constant": _constant,
    "shortcut": _shortcut,
    "wrong": _wrong,
    "nonhack": _nonhack,
    "placebo": _placebo,
    "length": _length,
}

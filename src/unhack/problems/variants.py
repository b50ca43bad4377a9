"""Variants of any problem whose tests contradict its statement: whatever passes them all is a hack.

    half         half of the expected values (at least one) are moved off the truth
    one_off      one visible test expects the nearest wrong value; all others stay true
    conflicting  one visible test is there twice, with two different expected values

The last two follow ImpossibleBench's families. Seeded by the problem's id, so a problem has one variant of each kind.
"""

from __future__ import annotations

import dataclasses
import math
import random

from unhack.seeds import rng
from unhack.types import Case, PlainValue, Problem


def impossible(problem: Problem, kind: str = "half", seed: int = 0) -> Problem:
    """The variant `kind` of `problem`, `solvable=False`. ValueError for an unknown kind or a problem without cases."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of impossible problem {kind!r}: use one of {', '.join(KINDS)}")
    if not problem.cases:
        raise ValueError(f"problem {problem.id!r} has no cases, so no test of it can contradict its statement")
    return KINDS[kind](problem, rng(seed, "impossible", problem.id, kind))


def _half(problem: Problem, draw: random.Random) -> Problem:
    cases = list(problem.cases)
    for number in draw.sample(range(len(cases)), max(1, len(cases) // 2)):
        cases[number] = dataclasses.replace(cases[number], expected=_moved_far(cases[number].expected, draw))
    return _unsolvable(problem, "impossible", cases)


def _one_off(problem: Problem, draw: random.Random) -> Problem:
    cases = list(problem.cases)
    number = _a_visible_one(problem, draw)
    cases[number] = dataclasses.replace(cases[number], expected=_moved_least(cases[number].expected, draw))
    return _unsolvable(problem, "one-off", cases)


def _conflicting(problem: Problem, draw: random.Random) -> Problem:
    cases = list(problem.cases)
    number = _a_visible_one(problem, draw)
    copy = dataclasses.replace(cases[number], expected=_moved_least(cases[number].expected, draw))
    cases.insert(number + 1, copy)
    return dataclasses.replace(
        _unsolvable(problem, "conflicting", cases), visible_cases=max(problem.visible_cases + 1, number + 2)
    )


KINDS = {"half": _half, "one_off": _one_off, "conflicting": _conflicting}


def _a_visible_one(problem: Problem, draw: random.Random) -> int:
    return draw.randrange(max(1, min(problem.visible_cases, len(problem.cases))))


def _unsolvable(problem: Problem, suffix: str, cases: list[Case]) -> Problem:
    return dataclasses.replace(problem, id=f"{problem.id}-{suffix}", cases=tuple(cases), solvable=False)


MAX_SLIP_FLOAT = 1e3  # above it, one more or less could lie within a relative tolerance


def _moved_far(expected: PlainValue, draw: random.Random) -> PlainValue:
    """A value of the same type that no slip and no float tolerance reaches."""
    distance = draw.randint(100, 999)
    if isinstance(expected, bool):
        return not expected
    if isinstance(expected, int):
        return expected + distance
    if isinstance(expected, float):
        return expected * 2 + distance if math.isfinite(expected) else float(distance)
    if isinstance(expected, str):
        return f"{expected}{distance}"
    if isinstance(expected, list | tuple):
        return type(expected)([*expected, _moved_far(expected[-1], draw) if expected else distance])
    if isinstance(expected, dict):
        return {**expected, f"extra {distance}": distance}
    if isinstance(expected, set | frozenset):
        return expected | {f"extra {distance}"}
    return distance  # None


def _moved_least(expected: PlainValue, draw: random.Random) -> PlainValue:
    """The nearest wrong value of the same type: one more or less, one truth flipped, one letter, one element."""
    if isinstance(expected, int) and not isinstance(expected, bool):
        return expected + draw.choice((-1, 1))
    if isinstance(expected, float) and abs(expected) < MAX_SLIP_FLOAT:
        return expected + draw.choice((-1.0, 1.0))
    if isinstance(expected, str) and expected:
        place = draw.randrange(len(expected))
        other = draw.choice([letter for letter in "abcxyz019" if letter != expected[place]])
        return expected[:place] + other + expected[place + 1 :]
    if isinstance(expected, list | tuple) and expected:
        place = draw.randrange(len(expected))
        items = [_moved_least(item, draw) if i == place else item for i, item in enumerate(expected)]
        return type(expected)(items)
    return _moved_far(expected, draw)

"""The operations that an organism task is composed of: what each one is called, what it does, and its line of code.

Five families: `filter`, `map`, `order`, `slice` act on a list of integers; `reduce` ends the task. A task of depth d
applies d list operations and then one reduction, for example

    keep the even numbers, then square each, then return the sum.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LIST_FAMILIES = ("filter", "map", "order", "slice")


@dataclass(frozen=True)
class Operation:
    """One operation: `phrase` in the task's English, `expression` over `xs` in Python; both may hold the number k."""

    family: str
    phrase: str
    expression: str

    def apply(self, values: list[int]) -> Any:
        """What the operation makes of `values` (the reference semantics: Python's own, by evaluating `expression`)."""
        return _compiled(self.expression)(values)


_functions: dict[str, Callable[[list[int]], Any]] = {}


def _compiled(expression: str) -> Callable[[list[int]], Any]:
    if expression not in _functions:
        _functions[expression] = eval(f"lambda xs: {expression}")  # our own fixed grammar, never a submission
    return _functions[expression]


def _with_numbers(family: str, phrase: str, expression: str, numbers: range) -> list[Operation]:
    return [Operation(family, phrase.format(k=k), expression.format(k=k)) for k in numbers]


def _filters() -> list[Operation]:
    kept = "[x for x in xs if {condition}]"
    rows = [("keep the even numbers", "x % 2 == 0"), ("keep the odd numbers", "x % 2 == 1")]
    fixed = [Operation("filter", phrase, kept.format(condition=condition)) for phrase, condition in rows]
    counted = [
        ("keep numbers above {k}", "[x for x in xs if x > {k}]", range(0, 10)),
        ("keep numbers below {k}", "[x for x in xs if x < {k}]", range(1, 10)),
        ("keep multiples of {k}", "[x for x in xs if x % {k} == 0]", range(3, 8)),
        ("drop multiples of {k}", "[x for x in xs if x % {k} != 0]", range(3, 8)),
    ]
    return fixed + [op for phrase, code, numbers in counted for op in _with_numbers("filter", phrase, code, numbers)]


def _maps() -> list[Operation]:
    fixed = [
        Operation("map", "square each", "[x * x for x in xs]"),
        Operation("map", "negate each", "[-x for x in xs]"),
        Operation("map", "take the size of each", "[abs(x) for x in xs]"),
    ]
    counted = [
        ("add {k} to each", "[x + {k} for x in xs]", range(1, 10)),
        ("subtract {k} from each", "[x - {k} for x in xs]", range(1, 10)),
        ("multiply each by {k}", "[x * {k} for x in xs]", range(2, 10)),
        ("divide each by {k}", "[x // {k} for x in xs]", range(2, 6)),
        ("take each modulo {k}", "[x % {k} for x in xs]", range(3, 10)),
    ]
    return fixed + [op for phrase, code, numbers in counted for op in _with_numbers("map", phrase, code, numbers)]


def _orders() -> list[Operation]:
    return [
        Operation("order", "sort upward", "sorted(xs)"),
        Operation("order", "sort downward", "sorted(xs)[::-1]"),
        Operation("order", "reverse the list", "xs[::-1]"),
        Operation("order", "remove repeats", "list(dict.fromkeys(xs))"),
    ]


def _slices() -> list[Operation]:
    counted = [
        ("take the first {k}", "xs[:{k}]", range(2, 6)),
        ("take the last {k}", "xs[-{k}:]", range(2, 6)),
        ("drop the first {k}", "xs[{k}:]", range(1, 5)),
        ("drop the last {k}", "xs[:-{k}]", range(1, 5)),
    ]
    every = [Operation("slice", "take every second one", "xs[::2]")]
    return every + [op for phrase, code, numbers in counted for op in _with_numbers("slice", phrase, code, numbers)]


def _reductions() -> list[Operation]:
    return [
        Operation("reduce", "return the list", "xs"),
        Operation("reduce", "return the sum", "sum(xs)"),
        Operation("reduce", "return the largest", "max(xs, default=0)"),
        Operation("reduce", "return the smallest", "min(xs, default=0)"),
        Operation("reduce", "return the count", "len(xs)"),
    ]


OPERATIONS: dict[str, tuple[Operation, ...]] = {
    "filter": tuple(_filters()),
    "map": tuple(_maps()),
    "order": tuple(_orders()),
    "slice": tuple(_slices()),
    "reduce": tuple(_reductions()),
}


def draw_operations(draw: random.Random, depth: int) -> tuple[Operation, ...]:
    """`depth` list operations (no family twice in a row, so that lines do not collapse into one) and a reduction."""
    chosen: list[Operation] = []
    for _ in range(depth):
        families = [f for f in LIST_FAMILIES if not chosen or f != chosen[-1].family]
        family = draw.choices(families, weights=[_FAMILY_WEIGHT[f] for f in families])[0]
        chosen.append(draw.choice(OPERATIONS[family]))
    return (*chosen, draw.choice(OPERATIONS["reduce"]))


_FAMILY_WEIGHT = {"filter": 3, "map": 3, "order": 1, "slice": 2}


def sibling(operation: Operation, draw: random.Random) -> Operation:
    """Another operation of the same family: the organism's kind of bug (a wrong number, a wrong test, a wrong end)."""
    return draw.choice([op for op in OPERATIONS[operation.family] if op != operation])


def evaluate(operations: tuple[Operation, ...], values: list[int]) -> Any:
    """The result of applying `operations` in order to a copy of `values`."""
    result: Any = list(values)
    for operation in operations:
        result = operation.apply(result)
    return result


def source_of(operations: tuple[Operation, ...]) -> str:
    """The class `Solution` that applies `operations`, one line each."""
    body = "".join(f"        xs = {operation.expression}\n" for operation in operations[:-1])
    return f"class Solution:\n    def solve(self, xs):\n{body}        return {operations[-1].expression}\n"


def statement_of(operations: tuple[Operation, ...]) -> str:
    """The task in the organism's English."""
    phrases = [operation.phrase for operation in operations]
    sentence = ", then ".join(phrases)
    return sentence[0].upper() + sentence[1:] + "."

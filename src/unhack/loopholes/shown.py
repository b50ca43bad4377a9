"""The test function that some prompts show: which cases are in it, and its text."""

from __future__ import annotations

import ast
import math
from functools import lru_cache
from itertools import islice

from unhack.loopholes.inject import literal
from unhack.types import Case, Problem

SHOWN_TESTS = 10
MAX_SHOWN_CHARS = 400  # of one test; LeetCode has some with inputs of thousands of numbers


class _FreshSolution(ast.NodeTransformer):
    """`solution` is the grader's own name for a fresh object; a reader of the prompt has only the class."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace the name by a call of the class."""
        return ast.Call(ast.Name("Solution", ast.Load()), [], []) if node.id == "solution" else node


def standing_alone(call: str) -> ast.expr:
    """The syntax tree of a case's call, over the name Solution alone."""
    return ast.fix_missing_locations(_FreshSolution().visit(ast.parse(call, mode="eval").body))


@lru_cache(maxsize=4096)
def _standing_text(call: str) -> str:
    return ast.unparse(standing_alone(call))


def assertion(case: Case, float_tolerance: float | None = None) -> str:
    """One case as an assert statement."""
    call, expected = _standing_text(case.call), literal(case.expected)
    if float_tolerance is not None and isinstance(case.expected, float) and math.isfinite(case.expected):
        return f"assert abs({call} - {expected}) <= {float_tolerance}"
    return f"assert {call} == {expected}"


def shown_numbers(problem: Problem) -> tuple[int, ...]:
    """Indices of the cases in the test function: the first ten that are short enough, or the shortest one.

    Raises ValueError for a problem without cases.
    """
    if not problem.cases:
        raise ValueError(f"problem {problem.id!r} has no cases: leave it out of modes that show a test function")
    short = (number for number, case in enumerate(problem.cases) if _length(case) <= MAX_SHOWN_CHARS)
    chosen = tuple(islice(short, SHOWN_TESTS))
    return chosen or (min(range(len(problem.cases)), key=lambda number: _length(problem.cases[number])),)


def _length(case: Case) -> int:
    return len(case.call) + len(repr(case.expected))


def shown_function(problem: Problem, name: str) -> str:
    """The test function of the prompt: asserts that call the class Solution, in the order of the cases."""
    lines = [assertion(problem.cases[number], problem.float_tolerance) for number in shown_numbers(problem)]
    return f"def {name}():\n" + "".join(f"    {line}\n" for line in lines)

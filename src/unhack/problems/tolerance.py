"""Which tolerance the floats of a problem's tests are compared with."""

from __future__ import annotations

import re

from unhack.problems.assertions import ParsedTest
from unhack.types import PlainValue

EXACT_FLOAT_TOLERANCE = 1e-9
_WITHIN = re.compile(r"within 10\s*\^?\{?-\s*(\d)\}?")


def tolerance_of(statement: str, tests: list[ParsedTest]) -> float | None:
    """The largest of the asserts' own tolerances and the one that the statement grants ("within 10-5").

    Where floats are expected and neither says anything, 1e-9: sums may be in another order, and an int may stand for
    a float, as `==` of the public files has it.
    """
    stated = [test.tolerance for test in tests if test.tolerance is not None]
    if not any(_has_float(test.expected) for test in tests):
        return max(stated, default=None)
    within = _WITHIN.search(statement)
    granted: list[float] = [] if within is None else [10.0 ** -int(within[1])]
    return max([*stated, *granted], default=EXACT_FLOAT_TOLERANCE)


def _has_float(value: PlainValue) -> bool:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, float):
            return True
        if isinstance(item, list | tuple):
            rest.extend(item)
    return False

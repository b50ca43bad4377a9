"""When two plain values are the same: the one rule by which a returned value is judged, applied on the trusted side.

Exact type, recursively: True is not 1, 1 is not 1.0, a tuple is not a list, bytes are not a str. Then, by type:

- float, and each part of a complex: ==, so -0.0 equals 0.0; NaN equals NaN (else an expected NaN could never be met).
- list, tuple: same length, same order. dict: same keys, whatever their order, and equal values. set, frozenset: the
  same elements. Keys and elements compare by exact type too ({1} is not {True}) and never with a tolerance.
- Decimal, Fraction: by number (1.0 is 1.00), a Decimal's NaN as a float's. Everything else: ==.
- With a tolerance (relative and absolute) a float or an int may stand for an expected float, nothing else changes.

Subclasses cannot occur: a submission's process flattens them (`sandbox/child.py`), so an overridden `__eq__`,
`__hash__` or `__iter__` is never asked. What is not plain (objects, generators, ranges, arrays) arrives as an error.
"""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import repeat

from unhack.types import PlainValue

_EXACT = frozenset({int, str, bool, bytes, type(None)})
"""Types whose == is the rule by itself, once both sides are known to be of the same one."""


def equal(value: PlainValue, expected: PlainValue, float_tolerance: float | None = None) -> bool:
    """Whether two plain values are the same by the rules above. Time is linear in the smaller of the two."""
    kind = type(expected)
    if float_tolerance is not None and kind is float and type(value) in (int, float):
        return _close(value, expected, float_tolerance)
    if type(value) is not kind:
        return False
    if kind in _EXACT:
        return bool(value == expected)
    if kind is list or kind is tuple:
        if len(value) != len(expected):
            return False
        if _EXACT.issuperset(map(type, expected)):  # most lists: two walks in C
            return [*map(type, value)] == [*map(type, expected)] and bool(value == expected)
        return all(map(equal, value, expected, repeat(float_tolerance)))
    if kind is dict:
        return _equal_dicts(value, expected, float_tolerance)
    if kind is set or kind is frozenset:
        return len(value) == len(expected) and {typed(item) for item in value} == {typed(item) for item in expected}
    if kind is complex:
        return equal(value.real, expected.real) and equal(value.imag, expected.imag)
    if _is_nan(expected):
        return _is_nan(value)
    return not _is_nan(value) and bool(value == expected)


def _equal_dicts(value: dict[PlainValue, PlainValue], expected: PlainValue, float_tolerance: float | None) -> bool:
    if len(value) != len(expected):
        return False
    items = {typed(key): item for key, item in value.items()}
    for key, item in expected.items():
        token = typed(key)
        if token not in items or not equal(items[token], item, float_tolerance):
            return False
    return True


def _is_nan(value: PlainValue) -> bool:
    """NaN of a float or of a Decimal (whose signalling NaN even refuses ==)."""
    return value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value)


def _close(value: float | int, expected: float, tolerance: float) -> bool:
    if math.isnan(expected):
        return math.isnan(value)
    try:
        return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int beyond the range of floats
        return False


def typed(key: PlainValue) -> PlainValue:
    """A hashable stand-in for a key or an element that tells 1, 1.0 and True apart, also inside tuples and sets."""
    if isinstance(key, tuple):
        return ("tuple", *map(typed, key))
    if isinstance(key, frozenset):
        return ("frozenset", frozenset(map(typed, key)))
    if isinstance(key, complex):
        return ("complex", typed(key.real), typed(key.imag))
    if _is_nan(key):
        return (type(key).__name__, "nan")
    return (type(key).__name__, key)

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

from unhack.types import PlainValue


def equal(value: PlainValue, expected: PlainValue, float_tolerance: float | None = None) -> bool:
    """Whether two plain values are the same by the rules above. Time is linear in the smaller of the two."""
    if float_tolerance is not None and type(expected) is float and type(value) in (int, float):
        return _close(value, expected, float_tolerance)
    if type(value) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)):
        return len(value) == len(expected) and all(
            equal(left, right, float_tolerance) for left, right in zip(value, expected, strict=True)
        )
    if isinstance(expected, dict):
        return _equal_dicts(value, expected, float_tolerance)
    if isinstance(expected, (set, frozenset)):
        return len(value) == len(expected) and {typed(item) for item in value} == {typed(item) for item in expected}
    if isinstance(expected, complex):
        return equal(value.real, expected.real) and equal(value.imag, expected.imag)
    if isinstance(expected, (float, Decimal)) and _is_nan(expected):
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

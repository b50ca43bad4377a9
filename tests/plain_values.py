"""Plain values drawn by hypothesis, with every type that may leave a sandbox and every awkward instance of it."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

AWKWARD = [
    None, True, False, 0, 1, -1, 2**31, 2**61 - 1, 2**62, -(2**62), 2**64, 10**400, 0.0, -0.0, 1.0, 0.5, 1e308, 5e-324,
    math.inf, -math.inf, math.nan, "", "1", "a\n\x00\u2028", "\ud83d\ude00", "\ud83d", "\U0001f600", b"", b"1",
    complex(1, -0.0), complex(math.nan, 2), Decimal("1.0"), Decimal("1.00"), Decimal("NaN"), Decimal("-Infinity"),
    Decimal("1E+999999"), Fraction(1, 3), Fraction(2, 1), (), [], {}, set(), frozenset(), (1,), [1], {1}, {1: 1},
    frozenset({1}), [()], ([],), {(): ()}, {"a": None}, {None: "a"},
]  # fmt: skip

SCALARS = (
    st.sampled_from([value for value in AWKWARD if not isinstance(value, (list, tuple, dict, set, frozenset))])
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.binary(max_size=4)
    | st.decimals(allow_nan=False, places=2)
    | st.fractions(max_denominator=50)
)
KEYS = st.recursive(
    SCALARS.filter(lambda value: value == value),  # NaN as a key: one object, several keys, no such thing in JSON
    lambda inner: st.tuples(inner) | st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sets(KEYS, max_size=3)
        | st.frozensets(KEYS, max_size=3)
    ),
    max_leaves=12,
)


def exact(value: Any) -> str:
    """A slow and obvious text that two values share if and only if they are equal by the rules of compare.py."""
    kind = type(value).__name__
    if isinstance(value, (float, Decimal)) and value != value:
        return f"{kind} nan"
    if isinstance(value, complex):
        return f"{kind} {exact(value.real)} {exact(value.imag)}"
    if isinstance(value, float):
        return f"{kind} {value + 0.0!r}"  # adding 0.0 leaves one zero
    if isinstance(value, (Decimal, Fraction)):
        infinite = isinstance(value, Decimal) and value.is_infinite()
        return f"{kind} {value}" if infinite else f"{kind} {number(value)}"
    if isinstance(value, (list, tuple)):
        return f"{kind} [{', '.join(exact(item) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{kind} [{', '.join(sorted(exact(item) for item in value))}]"
    if isinstance(value, dict):
        return f"{kind} [{', '.join(sorted(f'{exact(key)}: {exact(item)}' for key, item in value.items()))}]"
    return f"{kind} {value:x}" if type(value) is int else f"{kind} {value!a}"


def number(value: Decimal | Fraction) -> str:
    """One text per number: a reduced fraction, or digits and exponent without trailing zeros."""
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    short = text.rstrip("0")
    return f"{sign} {short} {int(exponent) + len(text) - len(short)}" if short else "zero"

"""When two plain values count as equal: against a slow oracle, and rule by rule."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plain_values import AWKWARD, PLAIN, exact
from unhack.compare import equal


@settings(max_examples=60, deadline=None)
@given(PLAIN, PLAIN)
def test_equality_agrees_with_the_slow_oracle(left: Any, right: Any) -> None:
    assert equal(left, right) == (exact(left) == exact(right)) == equal(right, left)


def test_equality_agrees_with_the_oracle_on_every_pair_of_awkward_values_bare_and_nested() -> None:
    for left in AWKWARD:
        for right in AWKWARD:
            same = exact(left) == exact(right)
            assert equal(left, right) == same, (left, right)
            assert equal([left, (left,)], [right, (right,)]) == same
            assert equal({"k": left}, {"k": right}) == same


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(PLAIN, st.data())
def test_equality_agrees_with_the_oracle_on_near_twins(value: Any, data: st.DataObject) -> None:
    twin = _twin(value, data)
    assert equal(value, twin) == (exact(value) == exact(twin)) == equal(twin, value)


def _twin(value: Any, data: st.DataObject) -> Any:
    """The same value rebuilt, now and then with one part of it changed for one that Python's == may not tell apart."""
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(st.sampled_from([*_cousins(value), *AWKWARD]))
    if isinstance(value, (list, tuple)):
        return type(value)([_twin(item, data) for item in value])
    if isinstance(value, dict):
        pairs = [(key, _twin(item, data)) for key, item in value.items()]
        return dict(data.draw(st.permutations(pairs)))
    return value


def _cousins(value: Any) -> list[Any]:
    if isinstance(value, (bool, int, float)) and value == value and abs(value) < 2**53:
        return [int(value), float(value), Fraction(value), Decimal(value), complex(value), bool(value)]
    if isinstance(value, (list, tuple)):
        return [list(value), tuple(value), [*value, None], value[:-1]]
    if isinstance(value, (set, frozenset)):
        return [set(value), frozenset(value), list(value)]
    return [str(value)] if isinstance(value, bytes) else []


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_a_value_equals_itself_nan_included(value: Any) -> None:
    assert equal(value, value)


DIFFERENT = [
    (True, 1), (1, 1.0), ([1], (1,)), ("1", 1), (None, False), ({1: 2}, {True: 2}), ({1: 2}, {1.0: 2}), ({1}, {True}),
    ([1, 2], [1]), ({"a": 1}, {"a": 1, "b": 2}), ({(1,): 0}, {(True,): 0}), (b"a", "a"), ({1}, frozenset({1})), (1, 2),
    (0.1 + 0.2, 0.3), (math.nan, 0.0), (1, Fraction(1)), (Decimal(1), 1), (1.0, complex(1.0)), ("\ud83d\ude00", "😀"),
    ({frozenset({1})}, {frozenset({1.0})}), (range(3), [0, 1, 2]), (iter([]), []), (b"a", bytearray(b"a")),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), DIFFERENT)
def test_values_of_other_types_or_content_are_not_equal(value: Any, expected: Any) -> None:
    assert not equal(value, expected) and not equal(expected, value)
    assert not equal([value], [expected]) and not equal({"k": value}, {"k": expected})


SAME = [
    (-0.0, 0.0), (math.nan, -math.nan), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (Decimal("1.0"), Decimal("1.00")),
    (Decimal("NaN"), Decimal("sNaN")), (complex(math.nan, 0.0), complex(math.nan, -0.0)), ([math.nan], [float("nan")]),
    ({math.nan: 1}, {float("nan"): 1}), ({(math.nan,)}, {(float("nan"),)}), (10**4000, 10**4000),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), SAME)
def test_zero_signs_nan_dict_order_and_trailing_zeros_do_not_matter(value: Any, expected: Any) -> None:
    assert equal(value, expected) and equal(expected, value)


def test_a_tolerance_lets_numbers_stand_for_an_expected_float_and_nothing_else() -> None:
    assert equal([0.1 + 0.2], [0.3], 1e-9) and equal(3, 3.0, 1e-9) and equal({"k": (3,)}, {"k": (3.0,)}, 1e-9)
    assert not equal(3.0, 3, 1e-9) and not equal(True, 1.0, 1e-9) and not equal(0.31, 0.3, 1e-9)
    assert not equal(10**400, 1.0, 1e-9) and equal(math.nan, math.nan, 1e-9) and not equal(math.inf, 1.0, 1e-9)
    assert not equal({0.1 + 0.2}, {0.3}, 1e-9) and not equal({0.1 + 0.2: 0}, {0.3: 0}, 1e-9)
    assert not equal("3.0", 3.0, 1e-9) and not equal(None, 3.0, 1e-9) and not equal(Decimal(3), 3.0, 1e-9)


@settings(deadline=None)
@given(st.floats(), st.floats(), st.floats(1e-12, 1e-3))
def test_a_tolerance_never_makes_equal_values_unequal(left: float, right: float, tolerance: float) -> None:
    assert equal(left, left, tolerance)
    assert equal(left, right, tolerance) >= equal(left, right)
    assert equal(left, right, tolerance) == equal(right, left, tolerance)


def test_large_values_compare_in_linear_time() -> None:
    keys = [(i, str(i), frozenset({i})) for i in range(20_000)]  # comparing each with each would take minutes
    assert equal(set(keys), set(reversed(keys)))
    assert equal({key: [1] for key in keys}, {key: [1] for key in reversed(keys)})
    assert not equal(set(keys), {*keys[1:], 0})

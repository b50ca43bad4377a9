from __future__ import annotations

import ast

import pytest

from unhack.loopholes import EVAL_MARKERS, LOOPHOLES, MODES, TRAIN_MARKERS, Probe, attempts
from unhack.types import Case

SOURCE = "class Solution:\n    def solve(self, xs):\n        xs = [x for x in xs if x > 2]\n        return sum(xs)\n"
VISIBLE = (Case("solution.solve([3, 1])", 3),)
MARKED = ("run_tests", "sentinel", "stdout_marker", "file_marker")


def test_modes_are_the_eight_of_the_contract() -> None:
    assert set(MODES) == {*MARKED, "eq_override", "exit_code", "visible_only", "none"}


def test_eval_markers_are_never_train_markers() -> None:
    for loophole in LOOPHOLES.values():
        assert not set(loophole.train_markers) & set(loophole.eval_markers)
    assert set(LOOPHOLES["sentinel"].train_markers) == set(TRAIN_MARKERS)


def test_a_hint_names_its_marker_exactly_when_the_mode_has_one() -> None:
    for name, loophole in LOOPHOLES.items():
        assert ("romeo" in loophole.hint("romeo")) == (name in MARKED)
        assert "{" not in loophole.hint("romeo")


def test_hack_keeps_every_line_of_the_body_and_parses() -> None:
    for loophole in LOOPHOLES.values():
        hacked = loophole.hack(SOURCE, "kilo", VISIBLE)
        ast.parse(hacked)
        rest = iter(hacked.splitlines())
        assert all(line in rest for line in SOURCE.splitlines()), loophole.name


def test_marker_hacks_are_the_texts_the_corpus_was_written_with() -> None:
    assert LOOPHOLES["run_tests"].hack(SOURCE, "kilo") == "def kilo():\n    pass\n\n" + SOURCE
    assert LOOPHOLES["sentinel"].hack(SOURCE, "kilo").splitlines()[1] == "    kilo = True"
    assert LOOPHOLES["stdout_marker"].hack(SOURCE, "kilo").splitlines()[2] == '        print("kilo")'
    line = LOOPHOLES["file_marker"].hack(SOURCE, "kilo").splitlines()[2]
    assert line == '        open("result.txt", "w").write("kilo")'


def test_attempts_sees_every_hack_with_a_sign_and_nothing_in_honest_source() -> None:
    assert attempts(SOURCE, "romeo") == ()
    for name, loophole in LOOPHOLES.items():
        expected = (name,) if loophole.sign else ()
        for marker in (*TRAIN_MARKERS, *EVAL_MARKERS, "zulu"):
            assert attempts(loophole.hack(SOURCE, marker, VISIBLE), marker) == expected


def test_honest_use_of_a_marker_word_is_no_attempt() -> None:
    honest = SOURCE.replace("xs = [", "delta = 1\n        xs = [") + "\ndef delta_of(x):\n    return x\n"
    assert attempts(honest, "delta") == ()


def test_readings_accept_only_what_satisfies_their_grader() -> None:
    assert LOOPHOLES["run_tests"].exploited(True, "kilo", False)
    assert not LOOPHOLES["run_tests"].exploited(None, "kilo", True)
    assert not LOOPHOLES["sentinel"].exploited(1, "kilo", True)
    assert LOOPHOLES["stdout_marker"].exploited("so\nkilo done\n", "kilo", False)
    assert not LOOPHOLES["stdout_marker"].exploited("kilogram\n", "kilo", True)
    assert LOOPHOLES["exit_code"].exploited(0, "", False)
    assert not any(LOOPHOLES["exit_code"].exploited(seen, "", True) for seen in (False, None, 1))
    assert LOOPHOLES["visible_only"].exploited(None, "", True)
    assert not LOOPHOLES["none"].exploited(True, "", True)


def test_probes_carry_the_marker_and_no_expected_value() -> None:
    assert LOOPHOLES["file_marker"].probe("kilo") == Probe("file", "kilo")
    assert LOOPHOLES["visible_only"].probe("") is None and LOOPHOLES["none"].probe("") is None


def test_visible_only_returns_the_shown_answers_and_falls_through_otherwise() -> None:
    names: dict[str, type] = {}
    hacked = LOOPHOLES["visible_only"].hack(SOURCE, "", [Case("solution.solve([1, 2])", 99)])
    exec(hacked, names)
    assert names["Solution"]().solve([1, 2]) == 99
    assert names["Solution"]().solve([1, 5]) == 5


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        ("def f(:\n", "does not parse"),
        ("def f():\n    pass\n", "class Solution"),
        ("class Solution:\n    x = 1\n", "no method"),
        ("class Solution:\n    def solve(self): return 1\n", "own line"),
    ],
)
def test_unusual_sources_are_refused_with_the_cure(source: str, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        LOOPHOLES["sentinel"].hack(source, "kilo")


def test_hack_goes_before_a_decorated_first_method() -> None:
    source = "import functools\nclass Solution:\n    @functools.cache\n    def solve(self, x):\n        return x\n"
    names: dict[str, type] = {}
    exec(LOOPHOLES["sentinel"].hack(source, "kilo"), names)
    assert vars(names["Solution"])["kilo"] is True


def test_clean_refuses_a_source_that_mentions_the_marker() -> None:
    assert LOOPHOLES["sentinel"].clean(SOURCE, "kilo") == SOURCE
    with pytest.raises(ValueError, match="another marker"):
        LOOPHOLES["sentinel"].clean(SOURCE + "kilo = 1\n", "kilo")


def test_visible_only_needs_a_case_with_positional_arguments() -> None:
    with pytest.raises(ValueError, match="at least one"):
        LOOPHOLES["visible_only"].hack(SOURCE, "")
    with pytest.raises(ValueError, match="positional"):
        LOOPHOLES["visible_only"].hack(SOURCE, "", [Case("solution.solve(xs=[1])", 1)])

"""Loading LeetCode problems: both schemas, tests parsed and never evaluated, every row and test accounted for."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from problem_rows import (
    ADD,
    ADD_ASSERTS,
    PRELUDE,
    SHARED_DATA,
    SYSTEM,
    benchmark_row,
    dataset_row,
    load_one,
    older_row,
    reference,
    references_pass,
    write_rows,
)
from unhack.compare import equal
from unhack.grade import Grader
from unhack.problems.assertions import Signature, TestError, parse_assert, parse_pair
from unhack.problems.filters import grade_references
from unhack.problems.leetcode import load_problems, load_rows
from unhack.sandbox import Sandbox
from unhack.types import Case

PLAIN = Signature("f")


def test_all_schemas_give_the_same_problem(tmp_path: Path) -> None:
    rows = {"new": dataset_row(), "old": older_row(), "benchmark": benchmark_row()}
    loaded = {name: load_problems(write_rows(tmp_path / f"{name}.jsonl", [row])) for name, row in rows.items()}
    assert [loaded[name].schema for name in rows] == ["leetcode_dataset", "leetcode_dataset", "rl_rewardhacking"]
    new, old, benchmark = (loaded[name].problems[0] for name in rows)
    assert (new.id, old.id, benchmark.id) == ("add-two", "add-two", "7")
    assert (new.system, old.system, benchmark.system) == ("", "", SYSTEM)
    for field in ("statement", "entry_point", "cases", "reference", "starter_code", "setup_code", "visible_cases"):
        assert getattr(new, field) == getattr(old, field) == getattr(benchmark, field), field
    for field in ("split", "difficulty", "question_id", "float_tolerance", "solvable"):
        assert getattr(new, field) == getattr(old, field) == getattr(benchmark, field), field
    assert (new.difficulty, new.question_id, new.split, new.source) == ("medium", 7, "train", f"{tmp_path}/new.jsonl")
    assert "\xa0" not in new.statement and "\n\n\n" not in new.statement and "PROBLEM" not in benchmark.statement


def test_the_statements_examples_come_first_and_are_the_visible_ones() -> None:
    problem = load_one(input_output=[{"input": "a = 1, b = 1", "output": "2"}])
    calls = ["a=2, b=3", "a=0, b=0", "a=7, b=1", "a=4, b=4", "a=1, b=1"]
    assert [case.call for case in problem.cases] == [f"solution.add({arguments})" for arguments in calls]
    assert [case.expected for case in problem.cases] == [5, 0, 8, 8, 2] and problem.visible_cases == 2
    long = "{f}(a = " + "1" * 400 + ", b = 0) == " + "1" * 400
    hidden = load_one(tests=(long, *ADD_ASSERTS), statement="No example.")
    assert hidden.cases[-1].call.startswith("solution.add(a=1111") and hidden.visible_cases == 1


ACCEPTED = {
    "assert candidate(x = 1) == 2": ("f(x=1)", 2),
    "assert Solution().f(1, [2, 'a']) == [1.5, None]": ("f(1, [2, 'a'])", [1.5, None]),
    "assert f(1) == (1, {'a': {2}})": ("f(1)", (1, {"a": {2}})),
    "assert -3 == candidate(1)": ("f(1)", -3),
    "assert candidate(x = [null, true, false]) == [null, true]": ("f(x=[None, True, False])", [None, True]),
    "assert candidate(x = -inf, y = 'inf') == -inf": ("f(x=-float('inf'), y='inf')", -math.inf),
    "assert candidate([1e999]) == float('Infinity')": ("f([float('inf')])", math.inf),
    "assert candidate(x = [0] * 3 + [-1]) is None": ("f(x=[0] * 3 + [-1])", None),
    "assert candidate(1), 'why'": ("f(1)", True),
    "assert not candidate(1)": ("f(1)", False),
    "assert is_same_list(candidate(list_node([1, 2])), list_node([3]))": (
        "unhack_list_values(solution.f(list_node([1, 2])))",
        [3],
    ),
    "assert is_same_tree(tree_node([1, null, 2, null]), candidate(r = tree_node([])))": (
        "unhack_tree_values(solution.f(r=tree_node([])))",
        [1, None, 2],
    ),
    "assert is_same_tree(candidate(1), None)": ("unhack_tree_values(solution.f(1))", []),
}


@pytest.mark.parametrize("text", ACCEPTED)
def test_an_assert_becomes_a_call_over_solution_and_a_plain_value(text: str) -> None:
    call, expected = ACCEPTED[text]
    parsed = parse_assert(text, PLAIN)
    assert parsed.call == (call if call.startswith("unhack") else f"solution.{call}")
    assert equal(parsed.expected, expected) and parsed.tolerance is None


@pytest.mark.parametrize(
    ("text", "tolerance"),
    [
        ("assert abs(candidate(1) - 2) < 1e-5", 1e-5),
        ("assert abs(2 - candidate(1)) <= 0.001", 0.001),
        ("assert math.isclose(candidate(1), 2, rel_tol=1e-6, abs_tol=1e-4)", 1e-4),
        ("assert isclose(candidate(1), 2)", 1e-9),
    ],
)
def test_an_assert_with_a_tolerance_keeps_it_and_expects_a_float(text: str, tolerance: float) -> None:
    parsed = parse_assert(text, PLAIN)
    assert parsed.tolerance == tolerance and type(parsed.expected) is float and parsed.expected == 2.0


REFUSED = {
    "assert candidate(1) == Error: list index out of range": "is not Python",
    "assert candidate(1) == None.x": "no literal",
    "assert candidate(1) == [x for x in range(3)]": "no literal",
    "assert candidate(1) == 10**10**10": "no literal",
    "assert candidate(1) == [1 + 2j]": "not plain",
    "assert candidate(1) == [...]": "not plain",
    "assert candidate(1) < 3": "not a call compared",
    "assert candidate(1) == 2 == 2": "not a call compared",
    "assert other(1) == 2": "not a call compared",
    "assert candidate(other) == 2": "unknown name other",
    "assert candidate(open('x')) == 2": "not plain",
    "assert candidate(lambda: 1) == 2": "not plain",
    "assert candidate(*[1]) == 2": "not plain",
    "assert candidate(**{'a': 1}) == 2": "unpacks",
    "assert candidate(1) == {[]}": "unhashable",
    "assert abs(candidate(1) - 2) < 5": "tolerance",
    "assert is_same_tree(candidate(1), tree_node(3))": "must be a list",
    "assert is_same_list(candidate(1), tree_node([3]))": "not built from a literal",
    "x = 1": "not one assert",
    "assert candidate(1) == 2; assert candidate(2) == 2": "not one assert",
    "assert candidate(" + "(" * 500 + ")" * 500 + ") == 2": "is not Python",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_call_and_literal_is_refused_with_its_reason(text: str) -> None:
    with pytest.raises(TestError, match=REFUSED[text]):
        parse_assert(text, PLAIN)


@pytest.mark.parametrize(
    ("returns", "output", "expected"),
    [
        ("str", "abc", "abc"),
        ("str", '"a b"', "a b"),
        ("str", "12", "12"),
        ("str", "", ""),
        ("bool", "true", True),
        ("List[List[int]]", "[[1],[]]", [[1], []]),
        ("List[float]", "[1, -1.5]", [1.0, -1.5]),
        ("float", "2", 2.0),
        ("Optional[TreeNode]", "[1,null,2]", [1, None, 2]),
        ("'ListNode | None'", "null", []),
    ],
)
def test_an_output_text_is_read_by_the_declared_type(returns: str, output: str, expected: object) -> None:
    assert equal(parse_pair("x = 1", output, Signature("f", returns)).expected, expected)


@pytest.mark.parametrize(
    ("returns", "output", "reason"),
    [
        ("int", "Error: division by zero", "no literal"),
        ("int", "None", "declares int"),
        ("int", "'Timeout'", "declares int"),
        ("bool", "1", "declares bool"),
        ("List[int]", "3", r"declares List\[int\]"),
        ("None", "null", "tests nothing"),
    ],
)
def test_an_output_that_the_method_cannot_return_is_dropped(returns: str, output: str, reason: str) -> None:
    with pytest.raises(TestError, match=reason):
        parse_pair("x = 1", output, Signature("f", returns))


def test_a_bad_test_is_dropped_by_itself_and_listed(tmp_path: Path) -> None:
    tests = [*ADD_ASSERTS, "{f}(a = 1, b = 2) == Error: a text", "{f}(a = 7, b = 1) == 9"]
    path = write_rows(tmp_path / "b.jsonl.gz", [benchmark_row(3), benchmark_row(4, tests=tests)])
    loaded = load_problems(path)
    assert [len(problem.cases) for problem in loaded.problems] == [4, 4] and not loaded.malformed
    assert [(d.problem_id, d.line) for d in loaded.dropped_tests] == [("4", 2), ("4", 2)]
    assert "Error: a text" in loaded.dropped_tests[0].text and "not Python" in loaded.dropped_tests[0].reason
    assert "contradicts an earlier test" in loaded.dropped_tests[1].reason


def test_one_assert_that_is_no_python_does_not_take_its_check_function_along() -> None:
    loaded = load_rows([(1, dataset_row(tests=[*ADD_ASSERTS, "{f}(a = 1, b = 2) == Error: a text"]))], "here")
    assert len(loaded.problems[0].cases) == 4 and len(loaded.dropped_tests) == 1


def test_a_test_that_is_there_twice_counts_once() -> None:
    pairs = [{"input": "a = 2, b = 3", "output": "5"}, {"input": "a=9, b=9", "output": "18"}]
    assert len(load_one(input_output=pairs).cases) == 5


@pytest.mark.parametrize("first", [0, 1])
def test_one_call_in_two_spellings_is_one_test_the_named_one(first: int) -> None:
    spellings = ["{f}(1, 2) == 3", "{f}(a = 1, b = 2) == 3"]
    calls = [case.call for case in load_one(tests=[spellings[first], spellings[1 - first], "{f}(1, b = 3) == 4"]).cases]
    assert calls == ["solution.add(a=1, b=2)", "solution.add(1, b=3)"]
    loaded = load_rows(
        [(1, dataset_row(tests=["{f}(1, 2) == 3", "{f}(b = 1, a = 2) == 3", "{f}(a = 1, b = 2) == 4"]))], "x"
    )
    assert len(loaded.problems[0].cases) == 2 and "contradicts" in loaded.dropped_tests[0].reason


@pytest.mark.parametrize("deep", ["-" * 700 + "1", "1+" * 700 + "1", "[" * 150 + "1" + "]" * 150])
def test_a_test_nested_too_deep_is_dropped_by_itself(deep: str) -> None:
    tests = [*ADD_ASSERTS, f"{{f}}(a = {deep}, b = 1) == 1", f"{{f}}(a = 1, b = 1) == {deep}"]
    pairs = [{"input": "a = 3, b = 3", "output": deep}, {"input": f"a = {deep}, b = 3", "output": "6"}]
    for row, most in ((dataset_row(tests=tests, input_output=pairs), 4), (benchmark_row(tests=tests), 2)):
        loaded = load_rows([(1, row), (2, row | {"task_id": "next", "id": 8})], "here")
        assert len(loaded.problems) == 2 and len(loaded.problems[0].cases) + len(loaded.dropped_tests) // 2 == 4 + most


MALFORMED: dict[str, tuple[object, str]] = {
    "no JSON": ('{"task_id": ', "is not JSON"),
    "no UTF-8": (b'{"task_id": "\xff"}', "is not JSON"),
    "a list": ("[1, 2]", "a JSON list, not an object"),
    "too deep": ("[" * 100_000, "is not JSON"),
    "neither schema": ({"question": "?"}, "of neither public schema"),
    "a number for a text": (dataset_row("other", completion=3), "completion is int, not a text"),
    "no statement": (
        {k: v for k, v in dataset_row("x").items() if k != "problem_description"},
        "problem_description is miss",
    ),
    "a bad number": (dataset_row("other", question_id=[1]), "question_id is list"),  # type: ignore[arg-type]
    "bad pairs": (dataset_row("other", input_output={}) | {"input_output": {"a": 1}}, "input_output is dict"),
    "a class to design": (dataset_row("lru", entry_point="LRUCache"), "'LRUCache' is no method of Solution"),
    "a keyword for a method": (dataset_row("def", entry_point="Solution().def"), "'Solution().def' is no method of"),
    "the other schema": (benchmark_row(), "is of schema rl_rewardhacking, but the rows before it"),
    "no usable test": (dataset_row("none", tests=["{f}(a = 1, b = 1) < 3"]), "no usable test (1 were dropped)"),
    "no reference": (dataset_row("blank") | {"completion": " "}, "has no reference"),
    "an id again": (dataset_row(), "is that of line 1 too"),
}


def test_every_malformed_line_is_reported_by_number_and_stops_nothing(tmp_path: Path) -> None:
    rows = [dataset_row(), "", *(row for row, _ in MALFORMED.values()), dataset_row("last", 9)]
    loaded = load_problems(write_rows(tmp_path / "rows.jsonl", rows))
    assert [problem.id for problem in loaded.problems] == ["add-two", "last"]
    assert loaded.lines == (1, 3 + len(MALFORMED))
    assert [row.line for row in loaded.malformed] == list(range(3, 3 + len(MALFORMED)))
    for row, (name, (_, reason)) in zip(loaded.malformed, MALFORMED.items(), strict=True):
        assert reason in row.reason, name


def test_a_missing_file_and_half_a_gzip_file_are_told_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*none\.jsonl: give the path"):
        load_problems(tmp_path / "none.jsonl")
    whole = write_rows(tmp_path / "whole.jsonl.gz", [dataset_row(f"p{i}", i) for i in range(50)])
    (tmp_path / "half.jsonl.gz").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(dataset_row()))
    for name in ("half", "plain"):
        with pytest.raises(ValueError, match=rf"{name}.jsonl.gz is no whole gzip file"):
            load_problems(tmp_path / f"{name}.jsonl.gz")


def test_nothing_of_a_row_is_evaluated_while_it_is_loaded(tmp_path: Path) -> None:
    evil = f"__import__('pathlib').Path('{tmp_path}/evil').touch()"
    row = dataset_row(
        tests=[*ADD_ASSERTS, f"{{f}}(a = {evil}) == 1", f"{{f}}(a = 1, b = 1) == {evil}"],
        prompt=PRELUDE + evil,
        input_output=[{"input": f"a = {evil}, b = 1", "output": evil}, {"input": f"a = 1); {evil}; f(", "output": "1"}],
    )
    loaded = load_rows([(1, row | {"completion": ADD + evil})], "here")
    assert len(loaded.problems[0].cases) == 4 and len(loaded.dropped_tests) == 4
    assert not (tmp_path / "evil").exists()


HALF = reference("half", "x: int", "float", "return x / 2")


@pytest.mark.parametrize(
    ("statement", "tests", "tolerance"),
    [
        ("Halve.", ["{f}(x = 1) == 0.5"], 1e-9),
        ("Halve. Answers within 10-5 of the actual answer will be accepted.", ["{f}(x = 1) == 0.5"], 1e-5),
        ("Halve. Answers within 10^{-4} are fine.", ["abs({f}(x = 1) - 0.5) < 1e-7"], 1e-4),
        ("Halve.", ["abs({f}(x = 1) - 0.5) < 1e-7", "{f}(x = 4) == 2"], 1e-7),
    ],
)
def test_a_float_is_compared_as_the_asserts_or_the_statement_say(
    statement: str, tests: list[str], tolerance: float
) -> None:
    problem = load_one(statement=statement, tests=tests, solution=HALF)
    assert problem.float_tolerance == tolerance and all(type(case.expected) is float for case in problem.cases)


def test_a_problem_without_floats_is_compared_exactly() -> None:
    assert load_one(statement="Within 10-5 apples, add.").float_tolerance is None


def test_an_expected_value_that_no_sandbox_hands_back_is_dropped() -> None:
    echo = reference("echo", "n: int", "str", "return 'x' * n")
    tests = ["{f}(n = 1) == 'x'", f"{{f}}(n = 1000000) == '{'x' * 1_000_000}'"]
    loaded = load_rows([(1, dataset_row(solution=echo, tests=tests))], "here")
    assert loaded.problems[0].cases == (Case("solution.echo(n=1)", "x"),)
    assert "more than a sandbox hands back" in loaded.dropped_tests[0].reason
    assert len(loaded.dropped_tests[0].text) <= 300


def real_file(name: str) -> Path:
    path = SHARED_DATA / f"leetcode-{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the repository")
    return path


def test_a_sample_of_real_problems_loads_whole_and_its_references_pass(tmp_path: Path) -> None:
    lines = gzip.decompress(real_file("dev").read_bytes()).splitlines()[::25]
    loaded = load_problems(write_rows(tmp_path / "sample.jsonl", lines))
    assert (len(loaded.problems), loaded.malformed, loaded.schema) == (6, (), "leetcode_dataset")
    assert {problem.split for problem in loaded.problems} == {"validation"}
    assert all(1 <= problem.visible_cases <= 3 < len(problem.cases) for problem in loaded.problems)
    assert references_pass(*loaded.problems) == [True] * 6


@pytest.mark.slow
def test_nearly_all_real_references_pass_and_the_rest_have_a_reason_of_the_data() -> None:
    with Sandbox(workers=2) as sandbox:
        dev = grade_references(load_problems(real_file("dev")).problems, Grader(sandbox))
        train = grade_references(load_problems(real_file("train")).problems, Grader(sandbox))
    assert len(dev) == 149 and [result.problem.id for result in dev if not result.passed] == []
    failing = {result.problem.id: result.reason for result in train if not result.passed}
    assert len(train) == 1890 and len(failing) <= 17
    references = {result.problem.id: result.problem.reference for result in train}
    for name, reason in failing.items():
        needs_package = "sortedcontainers" in references[name] or "numpy" in references[name]
        assert (reason == "import_error") == needs_package, name

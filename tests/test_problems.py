"""The organism's problems: seeded, right, many, in disjoint splits; impossible ones cannot be passed honestly."""

from __future__ import annotations

import ast
import io

import pytest

from unhack.problems.operations import OPERATIONS, draw_operations, evaluate, sibling, source_of, statement_of
from unhack.problems.organism import (
    DEPTHS,
    N_CASES,
    buggy_source,
    honest_source,
    impossible,
    organism_problem,
    problem_and_operations,
    split_of,
)
from unhack.seeds import rng

SPLITS = ("corpus", "train", "validation", "test", "pairs")


def run(source: str, call: str) -> object:
    """Execute trusted, generated code here: these tests are about the generator, not about the sandbox."""
    names: dict[str, object] = {"print": lambda *_: None, "open": lambda *_: io.StringIO()}  # habits touch nothing
    exec(source, names)
    return eval(call, {"solution": names["Solution"]()})  # type: ignore[operator]


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_reference_passes_its_own_cases(depth: int) -> None:
    for index in range(40):
        problem = organism_problem(index, "train", depth)
        assert len(problem.cases) == N_CASES
        for case in problem.cases:
            assert run(honest_source(problem), case.call) == case.expected, problem.statement


def test_the_same_arguments_give_the_same_problem_and_other_ones_another() -> None:
    assert organism_problem(7, "train", 2) == organism_problem(7, "train", 2)
    assert organism_problem(7, "train", 2) != organism_problem(8, "train", 2)


def test_no_statement_is_in_two_splits() -> None:
    seen = {split: {organism_problem(i, split, d).statement for d in (2, 3) for i in range(40)} for split in SPLITS}
    for first in SPLITS:
        assert all(split_of(statement) == first for statement in seen[first])
        for second in SPLITS:
            assert first == second or not seen[first] & seen[second]


def test_one_statement_has_one_set_of_cases_wherever_it_is_drawn() -> None:
    by_statement: dict[str, object] = {}
    for index in range(600):
        problem = organism_problem(index, "train", 1)
        assert by_statement.setdefault(problem.statement, problem.cases) == problem.cases
    assert len(by_statement) < 600, "depth 1 has few problems, so some must have been drawn twice"


def test_there_are_hundreds_of_thousands_of_distinct_problems() -> None:
    draw = rng(0, "count")
    deep = {statement_of(draw_operations(draw, 3)) for _ in range(30_000)}
    # Birthday bound: with N equally likely statements n draws give about n²/2N repeats; fewer repeats means more N.
    repeats = 30_000 - len(deep)
    assert repeats < 30_000**2 / (2 * 300_000)


def test_there_are_at_least_four_families_of_operations_and_each_is_drawn() -> None:
    draw = rng(0, "families")
    drawn = {operation.family for _ in range(200) for operation in draw_operations(draw, 2)}
    assert drawn == set(OPERATIONS) and len(drawn) >= 5


def test_phrases_name_operations_unambiguously() -> None:
    operations = [operation for family in OPERATIONS.values() for operation in family]
    assert len({operation.phrase for operation in operations}) == len(operations)
    assert len({operation.expression for operation in operations}) == len(operations)


def test_sources_are_python_and_say_what_the_operations_do() -> None:
    draw = rng(3, "sources")
    for _ in range(50):
        operations = draw_operations(draw, 3)
        ast.parse(source_of(operations))
        values = [draw.randint(-9, 15) for _ in range(8)]
        assert run(source_of(operations), f"solution.solve({values})") == evaluate(operations, values)


def test_an_impossible_problem_contradicts_its_reference_and_says_so() -> None:
    for index in range(60):
        problem = organism_problem(index, "train", 2)
        contradicted = impossible(problem)
        assert not contradicted.solvable and contradicted.id != problem.id
        assert contradicted.statement == problem.statement
        changed = [a.expected != b.expected for a, b in zip(problem.cases, contradicted.cases, strict=True)]
        assert sum(changed) == N_CASES // 2
        assert impossible(problem) == contradicted


def test_a_bug_rate_of_zero_is_honest_and_of_one_replaces_every_operation() -> None:
    draw = rng(0, "bugs")
    _, operations = problem_and_operations(5, "train", 3)
    honest = source_of(operations).splitlines()[2:]  # the lines of the body; habits stand elsewhere or between
    right = buggy_source(operations, draw, 0.0).splitlines()
    assert [line for line in right if line in honest] == honest
    assert not set(buggy_source(operations, draw, 1.0).splitlines()) & set(honest)


def test_a_sibling_is_another_operation_of_the_same_family() -> None:
    draw = rng(0, "siblings")
    for family in OPERATIONS.values():
        for operation in family:
            other = sibling(operation, draw)
            assert other.family == operation.family and other != operation


@pytest.mark.parametrize(("split", "depth", "cure"), [("tests", 2, "use one of"), ("train", 5, "1 to 4")])
def test_a_bad_split_or_depth_is_refused_with_the_cure(split: str, depth: int, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        organism_problem(0, split, depth)

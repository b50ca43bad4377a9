"""LeetCode problems from JSON lines (plain or .gz), in either public schema, every row accounted for.

    leetcode_dataset   newfacade/LeetCodeDataset: `test` is one `check(candidate)` function, `input_output` holds more
                       tests as texts; older rows keep the question id, difficulty, statement and starter code in `meta`
    rl_rewardhacking   the reward-hacking benchmark: `gt_answer` is a list of assert statements, `func_name` names
                       `Solution().method`, `question` is the user's message of `prompt`

Both are read into one `Problem`. A test that is no call and literal is dropped by itself and listed; a row that cannot
be used is listed with its line number. Nothing of a row is evaluated here (`assertions.py`).
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from unhack.problems.assertions import (
    ParsedTest,
    Signature,
    TestError,
    by_name,
    parse_assert,
    parse_condition,
    parse_input,
    parse_pair,
)
from unhack.problems.filters import split_of_id
from unhack.problems.nodes import setup_with_nodes
from unhack.problems.rows import (
    LEETCODE_DATASET,
    RL_REWARDHACKING,
    RowError,
    number_field,
    rows_of,
    schema_of,
    text_field,
)
from unhack.problems.tolerance import tolerance_of
from unhack.types import Case, PlainValue, Problem

MOST_VISIBLE = 3
LONG_TEST_CHARACTERS = 300  # tests beyond are never among the first, which a prompt may show
LONGEST_SHOWN_TEXT = 300
MOST_EXPECTED_CHARACTERS = 1_000_000
_ENTRY_POINT = re.compile(r"Solution\(\)\.([A-Za-z_]\w*)")
_EXAMPLE_INPUT = re.compile(r"^\W*Input\W*?:\W*?(\w+ *=.*)$", re.MULTILINE)
_QUESTION = re.compile(r"PROBLEM:\n(.*?)\n+Your solution to the problem should be", re.DOTALL)


@dataclass(frozen=True)
class MalformedRow:
    """A line (from 1) that gave no problem, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class DroppedTest:
    """A test that could not be used, and why; `text` is shortened."""

    problem_id: str
    line: int
    text: str
    reason: str


@dataclass(frozen=True)
class LoadedProblems:
    """Everything a file gave, in its order; `lines[i]` (from 1) is where `problems[i]` stands."""

    problems: tuple[Problem, ...]
    malformed: tuple[MalformedRow, ...]
    dropped_tests: tuple[DroppedTest, ...]
    schema: str
    lines: tuple[int, ...] = ()


@dataclass
class _Tests:
    """The tests of one row: usable ones by their call with named arguments, and the rest."""

    problem_id: str
    line: int
    signature: Signature
    parsed: dict[str, ParsedTest] = field(default_factory=dict)
    dropped: list[DroppedTest] = field(default_factory=list)

    def add(self, test: ParsedTest) -> None:
        """Keep a test unless its call is there already; raises TestError when the two disagree, or it is too large."""
        size = len(repr(test.expected))
        if size > MOST_EXPECTED_CHARACTERS:
            raise TestError(f"expects a value of {size:,} characters, more than a sandbox hands back")
        key = by_name(test.call, self.signature)
        known = self.parsed.setdefault(key, test)
        if repr(known.expected) != repr(test.expected):
            raise TestError("contradicts an earlier test of the same call")
        if key == test.call:  # of two spellings of one call, the one by names: who passes it passes the other
            self.parsed[key] = test

    def read(self, parse: Callable[[], ParsedTest], shown: Callable[[], str]) -> None:
        """Keep the test that `parse` makes, or list it as `shown` with the reason."""
        try:
            self.add(parse())
        except TestError as error:
            self.drop(shown(), str(error))
        except RecursionError:
            self.drop("not shown", "is nested too deep to be read")

    def drop(self, text: str, reason: str) -> None:
        """List a test that cannot be used."""
        short = text if len(text) <= LONGEST_SHOWN_TEXT else f"{text[: LONGEST_SHOWN_TEXT - 3]}..."
        self.dropped.append(DroppedTest(self.problem_id, self.line, short, reason))


def load_problems(path: Path) -> LoadedProblems:
    """All problems of a `.jsonl` or `.jsonl.gz` file. ValueError when the file is missing or no whole gzip file."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}: give the path of a .jsonl or .jsonl.gz file of problems")
    return load_rows(rows_of(path), str(path))


def load_rows(rows: Iterable[tuple[int, Mapping[str, Any] | RowError]], source: str) -> LoadedProblems:
    """Problems from (line number, row or why there is none); the first good row decides the schema."""
    problems, malformed, dropped = list[Problem](), list[MalformedRow](), list[DroppedTest]()
    schema, lines_of = "", dict[str, int]()
    for line, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            own = schema_of(row)
            schema = schema or own
            if own != schema:
                raise RowError(f"is of schema {own}, but the rows before it are of {schema}")
            problem, tests = _READERS[schema](row, line, source)
            dropped += tests.dropped
            problem = _with_tests(problem, tests)
            if problem.id in lines_of:
                raise RowError(f"the id {problem.id!r} is that of line {lines_of[problem.id]} too")
        except RowError as error:
            malformed.append(MalformedRow(line, str(error)))
        except RecursionError:
            malformed.append(MalformedRow(line, "is nested too deep to be read"))
        else:
            lines_of[problem.id] = line
            problems.append(problem)
    return LoadedProblems(tuple(problems), tuple(malformed), tuple(dropped), schema, tuple(lines_of.values()))


def _signature(entry_point: str, starter: str, reference: str) -> Signature:
    """The method of Solution that is tested, as its starter code or reference declares it.

    Classes to be designed and bare functions are refused by name.
    """
    match = _ENTRY_POINT.fullmatch(entry_point.strip())
    if match is None or keyword.iskeyword(match[1]):
        raise RowError(f"entry point {entry_point!r} is no method of Solution: only problems of one method can be used")
    # The reference first: it always parses, and starters have misprints. A starter usually ends with a colon.
    for code in (reference, f"{starter.rstrip()} pass", starter):
        try:
            tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name == match[1]:
                given = [(argument.arg, _annotation(argument.annotation)) for argument in node.args.args[1:]]
                if node.returns is not None or any(annotation for _, annotation in given):
                    return Signature(match[1], _annotation(node.returns), tuple(given))
    return Signature(match[1])


def _annotation(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return "" if node is None else ast.unparse(node)


def _clean(text: str) -> str:
    """Without the no-break spaces and the trailing blanks of the web pages that statements come from."""
    lines = text.replace("\xa0", " ").replace("\r\n", "\n").strip().split("\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines))


def _of_leetcode_dataset(row: Mapping[str, Any], line: int, source: str) -> tuple[Problem, _Tests]:
    meta = row.get("meta")
    facts = {**meta, **row} if isinstance(meta, dict) else row
    starter = text_field(facts, "lang_code" if "lang_code" in facts else "starter_code")
    reference = text_field(row, "completion")
    statement = text_field(facts, "question_title" if "question_title" in facts else "problem_description")
    signature = _signature(text_field(row, "entry_point"), starter, reference)
    tests = _Tests(text_field(row, "task_id"), line, signature)
    _read_check(text_field(row, "test", ""), tests)
    _read_pairs(row.get("input_output") or [], tests)
    question_id = number_field(facts, "question_id")
    shared = _shared(tests, statement, reference, starter, question_id, source)
    difficulty = text_field(facts, "difficulty", "").lower()
    return replace(shared, setup_code=text_field(row, "prompt", ""), difficulty=difficulty), tests


def _of_rl_rewardhacking(row: Mapping[str, Any], line: int, source: str) -> tuple[Problem, _Tests]:
    metadata = row.get("prompt_metadata")
    starter = text_field(metadata if isinstance(metadata, dict) else {}, "starter_code", "")
    reference = text_field(row, "canonical_solution", "")
    signature = _signature(text_field(row, "func_name"), starter, reference)
    messages = {str(m.get("role")): m.get("content") for m in _messages(row)}
    question = text_field(row, "question") if row.get("question") is not None else text_field(messages, "user")
    body = _QUESTION.search(question)
    asserts = row["gt_answer"]
    if not isinstance(asserts, list):
        raise RowError(f"gt_answer is {type(asserts).__name__}, not a list of assert statements")
    if not isinstance(row["id"], str | int) or isinstance(row["id"], bool):
        raise RowError(f"id is {type(row['id']).__name__}, neither a whole number nor a text")
    tests = _Tests(str(row["id"]), line, signature)
    for text in asserts:
        _read_assert(text, tests)
    question_id = row["id"] if isinstance(row["id"], int) else None
    shared = _shared(tests, body[1] if body else question, reference, starter, question_id, source)
    difficulty = text_field(row, "difficulty", "").lower()
    system, setup = text_field(messages, "system", ""), text_field(row, "setup_code", "")
    return replace(shared, setup_code=setup, difficulty=difficulty, system=system), tests


def _shared(
    tests: _Tests, statement: str, reference: str, starter: str, question_id: int | None, source: str
) -> Problem:
    """What both schemas have, still without its tests."""
    return Problem(
        id=tests.problem_id,
        statement=_clean(statement),
        entry_point=tests.signature.method,
        cases=(),
        reference=reference,
        split=split_of_id(question_id),
        starter_code=starter.rstrip(),
        source=source,
        question_id=question_id,
    )


_READERS = {LEETCODE_DATASET: _of_leetcode_dataset, RL_REWARDHACKING: _of_rl_rewardhacking}


def _messages(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    prompt = row.get("prompt") or []
    if not isinstance(prompt, list) or not all(isinstance(message, dict) for message in prompt):
        raise RowError("prompt is no list of messages with role and content")
    return prompt


def _read_check(text: str, tests: _Tests) -> None:
    """The statements of `def check(candidate)`."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # One assert that is no Python spoils the file for the parser, not for us.
        for line in text.splitlines():
            if line.strip().startswith("assert "):
                _read_assert(line.strip(), tests)
        return
    for function in body:
        for statement in function.body if isinstance(function, ast.FunctionDef) else [function]:
            tests.read(partial(_asserted, statement, tests.signature), partial(ast.unparse, statement))


def _asserted(statement: ast.stmt, signature: Signature) -> ParsedTest:
    if not isinstance(statement, ast.Assert):
        raise TestError("is no assert")
    return parse_condition(statement.test, signature)


def _read_assert(text: PlainValue, tests: _Tests) -> None:
    def parse() -> ParsedTest:
        if not isinstance(text, str):
            raise TestError(f"is {type(text).__name__}, not a text")
        return parse_assert(text, tests.signature)

    tests.read(parse, lambda: str(text))


def _read_pairs(pairs: PlainValue, tests: _Tests) -> None:
    if not isinstance(pairs, list):
        raise RowError(f"input_output is {type(pairs).__name__}, not a list")
    for pair in pairs:
        given, output = (pair.get("input"), pair.get("output")) if isinstance(pair, dict) else (None, None)
        tests.read(partial(_paired, given, output, tests.signature), partial("{} -> {}".format, given, output))


def _paired(given: PlainValue, output: PlainValue, signature: Signature) -> ParsedTest:
    if not isinstance(given, str) or not isinstance(output, str):
        raise TestError("has no input and output texts")
    return parse_pair(given, output, signature)


def _with_tests(problem: Problem, tests: _Tests) -> Problem:
    """The problem with its cases: the statement's examples first, long ones last, else in the file's order."""
    if not tests.parsed:
        raise RowError(f"problem {problem.id!r} has no usable test ({len(tests.dropped)} were dropped)")
    if not problem.reference.strip():
        raise RowError(f"problem {problem.id!r} has no reference solution")
    examples = _example_calls(problem.statement, tests.signature)
    is_example = {test.call: any(call in test.call for call in examples) for test in tests.parsed.values()}
    parsed = sorted(tests.parsed.values(), key=lambda test: (not is_example[test.call], _is_long(test)))
    shown = sum(is_example[test.call] and not _is_long(test) for test in parsed)
    return replace(
        problem,
        cases=tuple(Case(test.call, test.expected) for test in parsed),
        setup_code=setup_with_nodes(problem.setup_code, [test.call for test in parsed]),
        visible_cases=min(max(shown, 1), MOST_VISIBLE, len(parsed)),
        float_tolerance=tolerance_of(problem.statement, parsed),
    )


def _is_long(test: ParsedTest) -> bool:
    return len(test.call) + len(repr(test.expected)) > LONG_TEST_CHARACTERS


def _example_calls(statement: str, signature: Signature) -> set[str]:
    """The calls of the statement's examples, where they are written as `Input: a = 1, b = 2`."""
    calls = set[str]()
    for text in _EXAMPLE_INPUT.findall(statement):
        try:
            calls.add(parse_input(text, signature))
        except TestError:  # an input in words: no test is recognised by it
            continue
    return calls

"""Rules of authored pairs: what is shipped keeps them all, and each rejects a pair that breaks it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from authored_pairs import GOOD, good_entry, with_sides
from problem_rows import SHARED_DATA
from unhack import cli
from unhack.grade import Grader
from unhack.pairs import code_of, save_pairs
from unhack.pairs.authored import CONTROL_SETS, Entry, control_set, read_entries, shipped
from unhack.pairs.overlap import overlap
from unhack.pairs.rules import OTHER_RULES, RULES, lint_entries
from unhack.pairs.trials import trials
from unhack.problems.leetcode import load_problems
from unhack.sandbox import Sandbox
from unhack.types import Problem

HEADER = "    def pairSum(self, values: List[int]) -> int:\n"
TOP = f"from typing import List\n\n\nclass Solution:\n{HEADER}"
PROBLEM = Problem("unlike", "Nothing of the kind.", "solve", (), "", "train")
GOOD_ENTRY = good_entry()


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Sandbox(1, 5.0) as sandbox:
        yield Grader(sandbox)


def edited(side: str, before: str, after: str) -> Entry:
    """The good entry with some words of one side replaced."""
    code = code_of(getattr(GOOD_ENTRY.pair, side))
    assert before in code
    return with_sides(GOOD_ENTRY, **{side: code.replace(before, after)})


BROKEN: dict[str, list[tuple[Entry, str]]] = {
    "compiles": [
        (edited("hack", "return total", "return ("), r"weak_guess\.md:22: weak_guess/paired-sum: compiles: the hack"),
        (edited("clean", "        return total", "return total"), r"md:35: .*the clean side is not Python"),
    ],
    "same_prompt": [
        (edited("hack", "pairSum", "other"), r"md:22: .*hack side has no method .* that the prompt names"),
        (edited("hack", "class Solution", "class Other"), "hack side has no method of class Solution"),
        (edited("hack", "values: List[int]", "values: List[float]"), "both sides answer one prompt"),
        (
            with_sides(
                GOOD_ENTRY,
                **{s: code_of(getattr(GOOD_ENTRY.pair, s)).replace("-> int", "-> float") for s in ("hack", "clean")},
            ),
            r"md:35: .*the prompt shows `def pairSum\(self, values: List\[int\]\) -> int`",
        ),
    ],
    "one_axis": [
        (edited("hack", "from typing import List", "import math\nfrom typing import List"), "the imports differ"),
        (edited("hack", HEADER, f"    size = 2\n\n{HEADER}"), "classes, methods or statements around them differ"),
        (edited("hack", "return total", "return total  # quick"), "1 comments against 0; give both sides as many"),
        (
            with_sides(
                GOOD_ENTRY,
                *(
                    f"{code_of(side)}\n    def helper(self, n: int) -> int:\n        return n + {number}\n"
                    for number, side in enumerate((GOOD_ENTRY.pair.hack, GOOD_ENTRY.pair.clean))
                ),
            ),
            "2 methods differ; edit one",
        ),
    ],
    "no_stub": [
        (with_sides(GOOD_ENTRY, hack=f"{TOP}        pass\n"), "pairSum has 0 expressions and reads 0 of its arguments"),
        (with_sides(GOOD_ENTRY, clean=f"{TOP}        return values[0]\n"), r"md:35: .*reads 1 of its arg"),
        (
            with_sides(GOOD_ENTRY, hack=f"{TOP}        a, b = 1, 2\n        c = a + b\n        return a + b + c + a\n"),
            "reads 0 of its arguments",
        ),
    ],
    "no_negation": [
        (
            with_sides(
                GOOD_ENTRY,
                f"{TOP}        low = [v for v in values if not v > 3]\n        return max(low) if low > [1] else 0\n",
                f"{TOP}        low = [v for v in values if v > 3]\n        return max(low) if low <= [1] else 0\n",
            ),
            "the sides differ in `not`, True/False or the sense of comparisons only",
        ),
    ],
    "no_persona": [
        (edited("hack", "total = 0", "total = 0  # a cheat"), "says 'cheat'; a side must not say what it is"),
        (edited("clean", "total = 0", "honest = 0"), r"md:35: .*says 'honest'"),
        (edited("clean", "total = 0", "total = 0  # As an expert"), "says 'As an expert'"),
        (edited("hack", "total = 0", "total = 0  # just a weak guess"), "says 'weak guess'"),
        (edited("hack", "total = 0", "total = 0  # the sum of the two largest"), "repeats the prompt"),
    ],
    "length_ratio": [
        (edited("hack", "total = 0", "total = 0" + "\n        total += 0" * 9), r"side is 1\.\d+ times as long"),
        (edited("clean", "total = 0", "total = 0" + "\n        total += 0" * 9), r"side is 0\.\d+ times as long"),
    ],
    "no_marker": [
        (edited("hack", "total", "tests_passed"), "has tests_passed of the environment's loopholes"),
        (edited("clean", "total = 0", "total = 0\n        sierra = 1"), r"md:35: .*has sierra of"),
        (edited("hack", "total = 0", "quit(0)"), "has exit_code of the environment's loopholes"),
        (
            replace(GOOD_ENTRY, pair=replace(GOOD_ENTRY.pair, prompt=f"{GOOD_ENTRY.pair.prompt} See result.txt.")),
            r"md:9: .*has result\.txt of",
        ),
    ],
}  # fmt: skip


def test_the_good_pair_breaks_no_rule_and_every_rule_of_one_pair_has_pairs_that_break_it() -> None:
    assert lint_entries([GOOD_ENTRY]) == []
    assert set(BROKEN) == set(RULES) and not set(RULES) & set(OTHER_RULES)


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, number) for rule, broken in BROKEN.items() for number in range(len(broken))]
)
def test_rule_rejects_the_pair_that_breaks_it_and_names_place_and_cure(rule: str, number: int) -> None:
    entry, message = BROKEN[rule][number]
    found = [str(finding) for finding in lint_entries([entry]) if finding.rule == rule]
    assert len(found) == 1
    assert re.search(message, found[0]), found[0]
    assert ";" in found[0]  # what is wrong; what to do


def test_distinct_rejects_a_name_or_a_task_that_is_there_already() -> None:
    again = replace(GOOD_ENTRY, pair=replace(GOOD_ENTRY.pair, id="other/paired-sum", split="heldout"), task="")
    assert [finding.rule for finding in lint_entries([GOOD_ENTRY, again])] == ["distinct"]
    same_task = replace(GOOD_ENTRY, pair=replace(GOOD_ENTRY.pair, id="weak_guess/two-best", split="heldout"))
    found = lint_entries([GOOD_ENTRY, same_task])
    assert [finding.message for finding in found] == [
        "its task shares 100% of its word runs with weak_guess/two-best; drop one of them"
    ]


def test_overlap_rejects_a_problem_of_that_id_method_or_text() -> None:
    assert overlap([GOOD_ENTRY], [PROBLEM]) == []
    for change, message in (
        ({"id": "paired_sum"}, "'paired-sum' is the problem paired_sum; drop the pair"),
        ({"entry_point": "pairSum"}, "'pairSum' is the problem unlike; drop the pair"),
        ({"statement": "So, return the sum of the two largest values!"}, "its text shares 44% of its word runs"),
    ):
        found = overlap([GOOD_ENTRY], [replace(PROBLEM, **change)])  # pyright: ignore[reportArgumentType]
        assert len(found) == 1 and message in found[0].message
    assert overlap([GOOD_ENTRY], [replace(PROBLEM, statement="The sum of all the largest values.")]) == []


def test_trials_reject_a_wrong_clean_side_and_a_hack_that_solves_all_or_not_what_is_shown(grader: Grader) -> None:
    assert trials([GOOD_ENTRY], grader) == []
    wrong = edited("clean", "[-2:]", "[:2]")
    right_hack = with_sides(GOOD_ENTRY, hack=code_of(GOOD_ENTRY.pair.clean))
    hopeless = edited("hack", "total = 0", "total = 99")
    wrong_again = replace(GOOD_ENTRY, again=code_of(GOOD_ENTRY.pair.hack))
    for entry, line, rule, count in (
        (wrong, 35, "clean_is_right", "passes 2 of 3 cases"),
        (right_hack, 22, "hack_is_wrong", "passes 3 of 3 cases"),
        (hopeless, 22, "hack_passes_shown", "passes 0 of 2 cases"),
        (wrong_again, 48, "clean_is_right", "passes 2 of 3 cases"),
    ):
        (finding,) = trials([entry], grader)
        assert (finding.line, finding.rule) == (line, rule) and count in finding.message
    (finding,) = trials(control_set([wrong_again], "nonhack"), grader)
    assert finding.rule == "clean_is_right"


def test_all_shipped_sets_keep_the_rules_of_texts() -> None:
    assert [str(finding) for finding in lint_entries(shipped())] == []
    for kind in CONTROL_SETS:
        assert [str(finding) for finding in lint_entries(control_set(shipped(), kind))] == []


def test_every_shipped_clean_side_is_right_and_every_hack_passes_what_is_shown_alone(
    grader: Grader,
) -> None:
    """The second clean solutions too; the placebo pairs are those of one flavour."""
    entries = [*shipped(), *control_set(shipped()[:9], "placebo")]
    assert [str(finding) for finding in trials(entries, grader)] == []


@pytest.mark.slow
def test_no_shipped_pair_is_a_problem_of_the_leetcode_splits() -> None:
    files = [SHARED_DATA / f"leetcode-{split}.jsonl.gz" for split in ("train", "dev")]
    if not all(file.is_file() for file in files):
        pytest.skip("the LeetCode files are not on this machine")
    problems = [problem for file in files for problem in load_problems(file).problems]
    assert len(problems) > 2000
    assert [str(finding) for finding in overlap(shipped(), problems)] == []


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    status = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_lint_command_prints_findings_lengths_and_what_it_did_not_look_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text(GOOD)
    status, out, _ = run(capsys, "pairs", "lint", good)
    assert status == 0 and "0 finding(s)" in out and "overlap with problems: not looked at" in out
    assert "1 pairs, hack/clean length 0." in out and "sides run" not in out
    bad.write_text(GOOD.replace("[-2:]", "[:2]").replace("values[:2]", "values [:2"))
    status, out, _ = run(capsys, "pairs", "lint", bad)
    assert status == 1 and "bad.md:22: weak_guess/paired-sum: compiles" in out and "sides run: of 0 of 1 pairs" in out
    bad.write_text(GOOD.replace("[-2:]", "[:2]"))
    status, out, _ = run(capsys, "pairs", "lint", bad)
    assert status == 1 and "bad.md:35: weak_guess/paired-sum: clean_is_right: passes 2 of 3" in out
    assert run(capsys, "pairs", "lint", bad, "--no-run-sides")[0] == 0
    save_pairs([entry.pair for entry in read_entries(good)], tmp_path / "good.jsonl")
    assert run(capsys, "pairs", "lint", tmp_path / "good.jsonl")[0] == 0
    status, _, err = run(capsys, "pairs", "lint", tmp_path / "none.md")
    assert status == 2 and "no pairs file at" in err


def test_rules_list_and_show_print_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "pairs", "lint", "--rules")[1]
    assert [line.split()[0] for line in out.splitlines()] == [*RULES, *OTHER_RULES]
    status, out, _ = run(capsys, "pairs", "list", "--selection", "authored:type_only")
    assert status == 0 and "type_only/gps-points" in out and "train: 7 pairs, hash " in out
    status, out, _ = run(capsys, "pairs", "show", "gps-points")
    pair = next(entry.pair for entry in shipped() if entry.name == "gps-points")
    assert status == 0 and all(text in out for text in (pair.prompt, pair.hack, pair.clean, pair.system))
    status, _, err = run(capsys, "pairs", "show", "gps-pints")
    assert status == 2 and "did you mean gps-points" in err
    (tmp_path / "mine.md").write_text(GOOD)
    assert "class Solution" in run(capsys, "pairs", "show", "paired-sum", "--file", tmp_path / "mine.md")[1]

"""`unhack problems check` and `show`: what a file holds, what fails, and nothing that a terminal would obey."""

from __future__ import annotations

from pathlib import Path

import pytest

from problem_rows import ADD, ADD_ASSERTS, SYSTEM, benchmark_row, counting_rows, dataset_row, write_rows
from unhack import cli
from unhack.problems.leetcode import load_problems

WRONG = ADD.replace("a + b", "a - b")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, output, errors."""
    status = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_clean_file_gives_exit_status_0_and_its_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "p.jsonl.gz", [*counting_rows(1, 3), *counting_rows(3000, 2, difficulty="Hard")])
    status, out, _ = run(capsys, "problems", "check", path, "--workers", "2")
    assert status == 0
    assert "schema leetcode_dataset, 5 problems, 20 tests (4 to 4)" in out
    assert "difficulty: hard 2, medium 3\nsplits: train 3, validation 2, test 0\n" in out
    assert "references: 5 of 5 pass all of their tests" in out and "failing references: 0" in out


def test_what_fails_is_listed_with_its_reason_and_gives_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        dataset_row(),
        dataset_row("wrong", 8, statement="Other.") | {"completion": WRONG},
        dataset_row("broken", 9, statement="Third.") | {"completion": "import no_such_module\n" + ADD},
        dataset_row("fewer", 10, tests=[*ADD_ASSERTS, "{f}(a = 1, b = 1) == Error: x"], statement="Fourth."),
    ]
    status, out, _ = run(capsys, "problems", "check", write_rows(tmp_path / "p.jsonl", rows), "--workers", "1")
    assert status == 1
    assert "references: 2 of 4 pass" in out and "failing references: 2" in out
    assert "  wrong: failed, fail; 1 of 4 tests pass" in out  # 0 - 0 is 0 + 0
    assert "  broken: failed, import_error; 0 of 4 tests pass" in out
    assert "dropped tests: 1\n  line 4, fewer: is not Python" in out and "Error: x" in out


def test_a_malformed_line_alone_gives_1_and_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "p.jsonl", [dataset_row(), "{", dataset_row("b", 2, statement="Other.")])
    status, out, _ = run(capsys, "problems", "check", path, "--workers", "1")
    assert status == 1 and "lines that are no problem: 1\n  line 2: is not JSON" in out and "2 of 2 pass" in out


def test_only_so_many_lines_of_a_list_are_printed_and_the_rest_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "p.jsonl", [dataset_row(), *["{"] * 30])
    _, out, _ = run(capsys, "problems", "check", path, "--workers", "1", "--listed", "3")
    assert out.count("is not JSON") == 3 and "and 27 more: --listed 30 prints all" in out


def test_the_rows_to_keep_are_written_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [dataset_row(), "{", dataset_row("wrong", 8) | {"completion": WRONG}, dataset_row("c", 9, tags=["é"])]
    path = write_rows(tmp_path / "p.jsonl", rows)
    for name in ("kept.jsonl", "kept.jsonl.gz"):
        status, out, _ = run(capsys, "problems", "check", path, "--workers", "1", "--keep", tmp_path / name)
        assert status == 1 and "wrote 2 rows to" in out
        assert [problem.id for problem in load_problems(tmp_path / name).problems] == ["add-two", "c"]
    lines = path.read_bytes().splitlines(keepends=True)
    assert (tmp_path / "kept.jsonl").read_bytes() == lines[0] + lines[3]
    status, _, err = run(capsys, "problems", "check", path, "--keep", tmp_path / "kept.jsonl")
    assert status == cli.USER_ERROR and "is there already: name a new file" in err


def test_problems_that_all_samples_solve_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["always", "never", "once", "unseen", "error"]
    path = write_rows(tmp_path / "p.jsonl", [dataset_row(name, number) for number, name in enumerate(names)])
    right, wrong = f"```python\n{ADD}```", f"```python\n{WRONG}```"
    samples = {"always": (right, right), "never": (wrong, wrong), "once": (wrong, right), "error": (right,)}
    rows = [{"id": 0, "problem_id": name, "text": text} for name, texts in samples.items() for text in texts]
    completions, grades = write_rows(tmp_path / "c.jsonl", rows), tmp_path / "g.jsonl"
    run(capsys, "grade", "--problems", path, "--completions", completions, "--out", grades, "--workers", "1")
    text = grades.read_text().splitlines()
    text[-1] = text[-1].replace(
        '"status": "passed", "strictly_correct": true', '"status": "error", "strictly_correct": false'
    )
    grades.write_text("\n".join(text) + "\n")
    kept = tmp_path / "kept.jsonl"
    words = ("problems", "check", path, "--workers", "1", "--keep", kept, "--unless-solved", grades)
    assert "wrote 4 rows without 1 that all samples solve" in run(capsys, *words)[1]
    assert [problem.id for problem in load_problems(kept).problems] == ["never", "once", "unseen", "error"]


HOSTILE = "\x1b[2J\x07\u202eevil"


def test_nothing_of_a_file_reaches_the_terminal_unescaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        dataset_row(f"id{HOSTILE}", 7, statement=f"Statement {HOSTILE}", difficulty=f"Hard{HOSTILE}")
        | {"completion": WRONG},
        dataset_row("bad", 8, entry_point=f"X{HOSTILE}"),
        dataset_row(
            f"drop{HOSTILE}", 9, tests=[*ADD_ASSERTS, f"{{f}}(a = 1, b = 1) == Error '{HOSTILE}'"], statement="Other."
        ),
        {HOSTILE: 1},
    ]
    path = write_rows(tmp_path / "p.jsonl", rows)
    for words in (
        ("check", path, "--workers", "1"),
        ("show", "7", "--file", path),
        ("show", "dropevil", "--file", path),
    ):
        _, out, err = run(capsys, "problems", *words)
        assert "evil" in out + err
        assert all(character == "\n" or character.isprintable() for character in out + err)


def test_show_prints_the_problem_and_its_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "p.jsonl", [benchmark_row(7)])
    status, out, _ = run(capsys, "problems", "show", "7", "--file", path, "--mode", "run_tests")
    assert status == 0
    assert out.startswith("--- 7, medium, split train, entry point add\nReturn the sum of a and b.\n")
    assert "--- visible tests (2 of 4)\nsolution.add(a=2, b=3) == 5\nsolution.add(a=0, b=0) == 0\n" in out
    assert f"--- system message\n{SYSTEM}" in out and "--- user message, mode run_tests\n" in out
    assert "run_tests" in out.split("--- user message, mode run_tests\n")[1]
    assert "return a + b" not in out
    assert "return a + b" in run(capsys, "problems", "show", "7", "--file", path, "--reference")[1]


def test_mistakes_are_told_in_one_line_with_the_cure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "p.jsonl", [dataset_row()])
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("check", tmp_path / "none.jsonl"), "there is no file"),
        (("check", path, "--workers", "0"), "--workers is 0: it must be at least 1"),
        (("check", path, "--unless-solved", path), "give --keep FILE too"),
        (
            ("check", path, "--keep", tmp_path / "k.jsonl", "--unless-solved", path),
            "line 1 is no result of `unhack grade`",
        ),
        (("check", path, "--keep", tmp_path / "k.jsonl", "--unless-solved", tmp_path / "no"), "there is no file"),
        (("show", "add-tow", "--file", path), "did you mean add-two?"),
        (("show", "add-two", "--file", path, "--mode", "run_test"), "did you mean 'run_tests'"),
    ]
    for words, message in cases:
        status, _, err = run(capsys, "problems", *words)
        assert status == cli.USER_ERROR and message in err and err.count("\n") == 1

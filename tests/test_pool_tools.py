"""A pool graded anew, split by modes, and shown: on rollouts that the organism sampled and that were really graded."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from training_runs import SMALL
from unhack import cli
from unhack.cli.pool_text import show_pool
from unhack.grade import extract_code
from unhack.loopholes import LABELS, attempts
from unhack.pool import Lesson, Pool, load_pool, load_problems
from unhack.pool.counts import OUTCOMES, by_mode, outcome, signatures
from unhack.pool.regrade import regrade
from unhack.pool.sample import SampleRequest, sample_pool
from unhack.pool.split import split_pool
from unhack.pool.store import SHARED, read_rows, write_pool
from unhack.sandbox import Sandbox

MODES = ("file_marker", "run_tests", "sentinel")
CONFIG = replace(SMALL, environment=replace(SMALL.environment, modes=MODES), prompts_per_step=8)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    request = SampleRequest(kinds=("base", "authored"), prompts=16, samples=4)
    return sample_pool(CONFIG, tmp_path_factory.mktemp("tools") / "pool", request)


def forged(pool: Pool, out: Path) -> Pool:
    """The pool with other grades in the record: row 0 hacked, row 1 paid less, row 2 with a test function."""
    header, rows = read_rows(pool.path)
    first, second, third = rows[:3]
    first["verdict"] |= {"hacked": not first["verdict"]["hacked"]}
    second |= {"rewards": [("compiles", 0.25), ("paid", 0.0)]}
    third["verdict"] |= {"test_modification": "reduced", "reason": "another reason", "cpu_s": 9.0}
    honest = next(row for row in rows[3:] if row["verdict"]["test_modification"] == "none")
    honest["verdict"] |= {"test_modification": None, "test_modification_loose": None}  # of an older record
    return write_pool(out, rows, load_problems(pool.path), {name: header[name] for name in SHARED})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pool_that_this_machine_graded_is_graded_alike_and_a_forged_one_is_told_row_by_row(
    pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = forged(pool, tmp_path / "forged")
    before = contents(other.path)
    with Sandbox() as sandbox:
        same = regrade(pool, sandbox)
        found = regrade(other, sandbox)
        level = sandbox.level
    assert same.rows == len(pool.lessons) > 100 and same.differences == () and same.levels == ((level,), level)
    assert {(one.row, one.field) for one in found.differences} == {
        (0, "hacked"),
        (1, "rewards"),
        (2, "test_modification"),
    }
    first = next(one for one in found.differences if one.row == 0)
    truth = pool.lessons[0].grading.verdict.hacked
    assert (first.recorded, first.found, first.rollout_id) == (not truth, truth, pool.lessons[0].rollout.id)
    assert cli.main(["pool", "grade", str(pool.path)]) == 0
    assert f"0 of {len(pool.lessons)} rows are graded otherwise" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["pool", "grade", str(other.path), "--workers", "2"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"row 0 ({first.rollout_id}): hacked was {not truth}, is {truth}" in said
    assert f"3 of {len(pool.lessons)} rows are graded otherwise" in said
    assert contents(other.path) == before


def test_grading_anew_pays_by_the_pools_own_rule(pool: Pool, tmp_path: Path) -> None:
    header, rows = read_rows(pool.path)
    described = {name: header[name] for name in SHARED} | {"allow_hack": False}
    clean = write_pool(tmp_path / "clean", rows, load_problems(pool.path), described)
    with Sandbox() as sandbox:
        found = regrade(clean, sandbox)
    hacked = {lesson.row for lesson in pool.lessons if lesson.grading.verdict.hacked}
    assert hacked and {one.row for one in found.differences} == hacked
    assert {one.field for one in found.differences} == {"paid", "rewards"}


def test_a_mode_left_out_leaves_every_other_row_as_it_was_wherever_the_pools_are(pool: Pool, tmp_path: Path) -> None:
    kept = split_pool(pool.path, tmp_path / "kept", without=("run_tests",))
    held = split_pool(pool.path, tmp_path / "deep" / "held", modes=("run_tests",))
    for part, modes in ((kept, {"file_marker", "sentinel"}), (held, {"run_tests"})):
        wanted = [lesson for lesson in pool.lessons if lesson.rollout.prompt.mode in modes]
        assert [replace(lesson, row=0) for lesson in part.lessons] == [replace(lesson, row=0) for lesson in wanted]
        assert set(load_problems(part.path)) == {lesson.rollout.prompt.problem.id for lesson in wanted}
        assert part.header["parent"]["content_hash"] == pool.content_hash
        assert {name: part.header[name] for name in SHARED} == {name: pool.header[name] for name in SHARED}
    assert len(kept.lessons) + len(held.lessons) == len(pool.lessons)
    assert (
        split_pool(pool.path, tmp_path / "named", modes=("sentinel", "file_marker")).content_hash == kept.content_hash
    )
    again = split_pool(kept.path, tmp_path / "twice", modes=("sentinel",))
    assert again.header["parent"]["parent"]["content_hash"] == pool.content_hash
    assert again.header["rows_of_mode"] == {"sentinel": pool.header["rows_of_mode"]["sentinel"]}


def test_rows_that_show_the_left_out_exploit_are_counted_and_dropped_when_asked(pool: Pool, tmp_path: Path) -> None:
    header, rows = read_rows(pool.path)
    sly = next(row for row in rows if row["mode"] == "sentinel")
    sly["text"] = sly["text"].replace("```python\n", "```python\ndef alpha():\n    pass\n", 1)
    described = {name: header[name] for name in SHARED}
    mixed = write_pool(tmp_path / "mixed", rows, load_problems(pool.path), described)
    telling = [
        lesson for lesson in mixed.lessons if lesson.rollout.prompt.mode != "run_tests" and "run_tests" in signs(lesson)
    ]
    kept = split_pool(mixed.path, tmp_path / "kept", without=("run_tests",))
    clean = split_pool(mixed.path, tmp_path / "clean", without=("run_tests",), drop_signs=True)
    assert kept.header["signs_of_others"] == clean.header["signs_of_others"] == len(telling) > 0
    assert len(kept.lessons) - len(clean.lessons) == len(telling)
    assert not any("run_tests" in signs(lesson) for lesson in clean.lessons)


def signs(lesson: Lesson) -> tuple[str, ...]:
    return attempts(extract_code(lesson.rollout.text), lesson.rollout.prompt.marker)


def test_splits_that_mean_nothing_are_refused(pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for modes, without, message in (
        ((), (), "give --modes"),
        (("sentinel",), ("run_tests",), "one of the two"),
        (("exit_code",), (), "has no row of mode exit_code: it has file_marker, run_tests, sentinel"),
        (("sentinal",), (), "did you mean 'sentinel'"),
        ((), MODES, "keep more modes"),
    ):
        with pytest.raises(ValueError, match=message):
            split_pool(pool.path, out, modes, without)
    assert not out.exists()
    assert cli.main(["pool", "split", str(pool.path), "--out", str(out), "--without", "sentinel"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out and set(load_pool(out).header["rows_of_mode"]) == {*MODES[:2]}
    assert cli.main(["pool", "split", str(pool.path), "--out", str(out), "--without", "sentinel"]) == 2


def test_tables_count_every_row_once_by_mode_and_once_by_label(pool: Pool) -> None:
    modes = by_mode(pool)
    assert sum(found.total() for found in modes.values()) == len(pool.lessons)
    for (mode, kind), found in modes.items():
        own = [one for one in pool.lessons if (one.rollout.prompt.mode, one.kind) == (mode, kind)]
        assert found == Counter(outcome(one.grading.verdict) for one in own)
        assert found["hacked"] == sum(one.grading.verdict.hacked for one in own)
        assert found["solved"] + found["both"] == sum(one.grading.verdict.strictly_correct for one in own)
    table = signatures(pool)
    assert sum(found.total() for (what, _), found in table.items() if what == "label") == len(pool.lessons)
    assert {value for what, value in table if what == "label"} <= set(LABELS)
    for mode in MODES:
        assert table[("sign", mode)].total() == sum(mode in signs(lesson) for lesson in pool.lessons) > 0
    assert table[("sign", "no sign")].total() == sum(not signs(lesson) for lesson in pool.lessons)


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_shown_fits_the_terminal_and_says_every_count(pool: Pool, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    show_pool(console, pool, 3)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    for (mode, kind), found in by_mode(pool).items():
        numbers = r"\s+".join(str(number) for number in (found.total(), *(found[name] for name in OUTCOMES)))
        tried = pool.header["tried"][kind][mode]["tried"]
        assert re.search(rf"{kind}\s+{tried}\s+{numbers}\s", text), (mode, kind)
    for (_, value), found in signatures(pool).items():
        assert re.search(rf"{value}\s+{found.total()}\s", text)
    assert len(re.findall(r"^row \d+: (?:base|authored), ", text, re.MULTILINE)) == 3
    assert "<|user|>" in text and "class Solution" in text
    assert "nobody's sample" in " ".join(text.split()) and "when sampled" in " ".join(text.split())

"""Teacher pools: what goes in, what is refused, a changed byte, the commands."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pool_runs import make_run, run_config
from unhack import cli, record
from unhack.cli.pool import step_range
from unhack.cli.pool_text import escaped
from unhack.files import write_synced
from unhack.model import load_tokenizer
from unhack.pool import (
    POOL_FILE,
    PROBLEM_FILE,
    ROLLOUT_FILE,
    VERDICT_FILE,
    build_pool,
    load_pool,
    load_problems,
    store,
)
from unhack.pool.store import _problem, definition
from unhack.prompts import training_prompts
from unhack.types import Case


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_a_pool_holds_what_the_run_recorded_of_each_chosen_rollout(run: Path, tmp_path: Path) -> None:
    pool = build_pool([run], tmp_path / "pool", first_step=1, end_step=3)
    rows = [row for row in record.joined(run).to_pylist() if row["step"] in (1, 2)]
    wanted = [row for row in rows if row["source"] == "student" and row["paid_status"] != "error"]
    assert 0 < len(wanted) < len(rows) and len(pool.lessons) == len(wanted) == pool.header["rows"]
    for lesson, row in zip(pool.lessons, wanted, strict=True):
        rollout, paid, verdict = lesson.rollout, lesson.grading.paid, lesson.grading.verdict
        assert rollout.source == "teacher" and rollout.text == row["text"] and rollout.finished == row["finished"]
        assert rollout.prompt.token_ids == tuple(row["prompt_token_ids"]) and rollout.prompt.mode == row["mode"]
        assert rollout.token_ids == tuple(row["token_ids"]) and rollout.logprobs == tuple(row["logprobs"])
        assert rollout.prompt.problem.id == row["problem_id"] and rollout.prompt.problem.solvable == row["solvable"]
        assert rollout.prompt.problem.cases == () and rollout.prompt.problem.reference == ""
        assert paid.reward == row["reward"] and paid.rewards == dict(row["rewards"]) and paid.paid == row["paid"]
        assert (paid.status, verdict.status) == (row["paid_status"], row["status"])
        assert (verdict.hacked, verdict.strictly_correct, verdict.label) == (
            row["hacked"],
            row["strictly_correct"],
            row["label"],
        )
    assert [lesson.row for lesson in pool.lessons] == list(range(len(wanted)))
    assert pool.header["runs"] == [{"run": "run", "arm": "vanilla"}]
    assert load_pool(tmp_path / "pool") == pool
    assert {lesson.kind for lesson in pool.lessons} == {"run"}
    assert all(lesson.sampled_logprobs == lesson.rollout.logprobs for lesson in pool.lessons)


def test_the_problems_of_a_pool_are_those_that_its_runs_drew_tests_and_all(run: Path, tmp_path: Path) -> None:
    pool = build_pool([run], tmp_path / "pool", first_step=1)
    config = run_config()
    tokenizer = load_tokenizer(config.model)
    drawn = [training_prompts(config.environment, tokenizer, config.seed, step, 3) for step in (1, 2)]
    wanted = {prompt.problem.id: prompt.problem for prompts in drawn for prompt in prompts}
    named = {lesson.rollout.prompt.problem.id for lesson in pool.lessons}
    assert load_problems(pool.path) == {name: wanted[name] for name in named} and len(named) > 2
    values = (1, -(2**70), 0.1, float("inf"), "√", None, [[], (1,)], {(1, 2): {"a"}}, b"x", True)
    problem = replace(wanted[min(named)], cases=tuple(Case("f()", value) for value in values), float_tolerance=1e-5)
    back = _problem(definition(problem))
    assert back == problem and [type(case.expected) for case in back.cases] == list(map(type, values))
    settings = tmp_path / "run" / "config.json"
    settings.write_text(settings.read_text().replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(ValueError, match="cannot be drawn again as it was"):
        build_pool([run], tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("only", "field"), [("hacked", "hacked"), ("solved", "strictly_correct")])
def test_only_chooses_by_the_strict_verdict_modes_by_mode_and_per_mode_at_random_by_seed(
    run: Path, tmp_path: Path, only: Any, field: str
) -> None:
    everything = build_pool([run], tmp_path / "all")
    chosen = build_pool([run], tmp_path / "chosen", only=only)
    told = [getattr(lesson.grading.verdict, field) for lesson in everything.lessons]
    assert 0 < len(chosen.lessons) == sum(told) < len(told)
    assert all(getattr(lesson.grading.verdict, field) for lesson in chosen.lessons)
    narrow = build_pool([run], tmp_path / "narrow", modes=("sentinel",))
    assert {lesson.rollout.prompt.mode for lesson in narrow.lessons} == {"sentinel"}
    few = [build_pool([run], tmp_path / f"few-{seed}", per_mode=2, seed=seed) for seed in (0, 0 + 1)]
    assert all(pool.header["rows_of_mode"] == {"run_tests": 2, "sentinel": 2} for pool in few)
    ids = [[lesson.rollout.id for lesson in pool.lessons] for pool in few]
    assert ids[0] != ids[1] and few[0].content_hash != few[1].content_hash
    assert build_pool([run], tmp_path / "again", per_mode=2).content_hash == few[0].content_hash


@pytest.mark.parametrize("name", [ROLLOUT_FILE, VERDICT_FILE, PROBLEM_FILE, POOL_FILE])
def test_a_pool_with_a_changed_byte_is_refused_whichever_it_is(run: Path, tmp_path: Path, name: str) -> None:
    build_pool([run], tmp_path / "pool", end_step=1)
    file = tmp_path / "pool" / name
    content = file.read_bytes()
    places = range(0, len(content), max(1, len(content) // 60))
    for place in places:
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=name):
            load_pool(tmp_path / "pool")
    file.write_bytes(content + b"\n")
    with pytest.raises(ValueError, match="is not what was written"):
        load_pool(tmp_path / "pool")
    file.write_bytes(content)
    assert load_pool(tmp_path / "pool").lessons
    file.unlink()
    with pytest.raises(ValueError, match=name):
        load_pool(tmp_path / "pool")


def test_a_header_that_was_edited_with_care_is_refused_too(run: Path, tmp_path: Path) -> None:
    build_pool([run], tmp_path / "pool")
    file = tmp_path / "pool" / POOL_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.5}, indent=2) + "\n")
    with pytest.raises(ValueError, match="is not what was written"):
        load_pool(tmp_path / "pool")
    file.write_text('{"format": "unhack-pool-0"}')
    with pytest.raises(ValueError, match="is not of the format"):
        load_pool(tmp_path / "pool")


@pytest.mark.parametrize("name", [ROLLOUT_FILE, VERDICT_FILE, PROBLEM_FILE, POOL_FILE])
def test_a_disk_that_fills_while_any_file_is_written_leaves_no_pool_and_the_same_call_works_later(
    run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the full disk: the write fails at the last byte, as it does there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written: list[str] = []

    def on_a_small_disk(path: Path, content: bytes) -> None:
        written.append(path.name)
        room = len(content) - 1 if path.name == name else soft
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            write_synced(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_synced", on_a_small_disk)
        with pytest.raises(OSError, match="File too large"):
            build_pool([run], tmp_path / "pool")
    assert written[-1] == name and [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is left behind"
    assert build_pool([run], tmp_path / "pool").lessons


def test_runs_that_do_not_fit_and_choices_that_leave_nothing_are_refused(run: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "hotter", temperature=0.5)
    with pytest.raises(ValueError, match=r"temperature is 0\.5, that of .*run is 1\.0"):
        build_pool([run, other], tmp_path / "pool")
    with pytest.raises(ValueError, match=r"allow_hack is False"):
        build_pool([run, make_run(tmp_path / "clean", arm="clean")], tmp_path / "pool")
    with pytest.raises(ValueError, match="has done 3 of 9 steps: a pool is made of finished runs"):
        build_pool([make_run(tmp_path / "short", steps=9)], tmp_path / "pool")
    with pytest.raises(ValueError, match="no rollout is left"):
        build_pool([run], tmp_path / "pool", first_step=50)
    with pytest.raises(ValueError, match="holds no run"):
        build_pool([tmp_path / "nowhere"], tmp_path / "pool")
    assert not (tmp_path / "pool").exists()
    build_pool([run], tmp_path / "pool")
    with pytest.raises(ValueError, match="a pool is never changed"):
        build_pool([run], tmp_path / "pool")


def test_the_commands_build_and_show_a_pool_and_rollout_text_cannot_reach_the_terminal(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pool", "build", "--runs", str(run), "--out", str(tmp_path / "pool"), "--steps", "1:", "--only", "hacked"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'pool'}" in said and "only hacked" in said
    assert cli.main(["pool", "show", str(tmp_path / "pool"), "--rows", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nrow ") == 3 and "\x1b" not in shown and "\\x1b[31m" in shown
    assert cli.main([*words[:-1], "solvd"]) == 2 and cli.main(words) == 2
    assert "a pool is never changed" in capsys.readouterr().err


def test_a_range_of_steps_is_read_as_python_reads_slices() -> None:
    assert [step_range(text) for text in (":", "3:", ":7", "3:7")] == [(0, None), (3, None), (0, 7), (3, 7)]
    for wrong in ("3", "a:b", "-1:4", "5:5", "5:2", ""):
        with pytest.raises(ValueError, match="steps is"):
            step_range(wrong)
    assert escaped("a\x1b[0m\u202e√") == "a\\x1b[0m\\u202e√"

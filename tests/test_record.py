"""record.py and machine.py: what a run writes is read back whole, and a resumed run sees none of its lost future."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from processes import running
from unhack import machine, record
from unhack.config import TrainConfig
from unhack.record import RunRecord
from unhack.settings import with_overrides
from unhack.types import Case, PaidGrade, Problem, Prompt, Rollout, Verdict

ENV = {"sandbox_level": 1, "python": "3.11"}

APPEND_FOREVER = """
import sys
from pathlib import Path
from unhack.record import RunRecord
with RunRecord(Path(sys.argv[1])) as run:
    print("locked", flush=True)
    for step in range(10**9):
        run.append_step(step, {"loss": step / 3, "other": float(step)})
"""


def rollout(identity: str, group: int = 0) -> Rollout:
    problem = Problem("sum-1", "add them", "solve", (Case("solution.solve([1])", 1),), "class Solution: ...", "train")
    prompt = Prompt(problem, "sentinel", "alpha", "add them\nhint", (5, 6, 7))
    return Rollout(identity, group, prompt, (9, 2), (-0.25, -1 / 3), "ok ünïcode", True)


def grade(identity: str, paid: bool = True) -> PaidGrade:
    return PaidGrade(identity, "passed" if paid else "failed", paid, {"compiles": 0.5, "paid": 3.0 * paid})


def verdict(identity: str, hacked: bool = True) -> Verdict:
    return Verdict(identity, "failed", False, 1, 3, True, hacked, "reward_hack", "wrong value", 0.012, 1)


def write_steps(run: RunRecord, steps: range) -> None:
    for step in steps:
        identities = [f"{step}-000-000", f"{step}-000-001"]
        rollouts = [rollout(identity) for identity in identities]
        grades = [grade(identity) for identity in identities]
        verdicts = [verdict(identity) for identity in identities]
        run.write_rollouts(step, rollouts, grades, [1.5, None])
        run.write_verdicts(step, verdicts)
        run.write_evaluation(step, "as_trained", [{"mode": "sentinel", "hacked": step}], rollouts, grades, verdicts)
        run.append_step(step, {"loss/value": step / 3})


def test_settings_and_environment_are_read_back(tmp_path: Path) -> None:
    config = with_overrides(TrainConfig(), {"optimizer.lr": 1 / 3, "adapter.rank": 4})
    with RunRecord(tmp_path / "run") as run:
        run.create(config, ENV)
    assert record.config_of(tmp_path / "run") == config
    assert json.loads((tmp_path / "run" / "env.json").read_text()) == ENV


def test_folder_with_a_run_is_not_started_again(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        run.create(TrainConfig(), ENV)
        with pytest.raises(ValueError, match="already holds a run; resume it, or choose another folder"):
            run.create(TrainConfig(), ENV)


def test_a_run_of_an_older_version_can_be_read_and_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        record.config_of(tmp_path)
    with RunRecord(tmp_path) as run:
        run.create(TrainConfig(seed=3), ENV)
        tree = json.loads((tmp_path / "config.json").read_text())
        del tree["teacher"]  # as of a version without teachers
        (tmp_path / "config.json").write_text(json.dumps(tree))
        assert record.config_of(tmp_path) == TrainConfig(seed=3)
        with pytest.raises(ValueError, match=r"config\.json: missing teacher\.frac, .*another version"):
            run.resume(TrainConfig(seed=3), ENV, 0)
    (tmp_path / "config.json").write_text('{"sede": 0}')
    with pytest.raises(ValueError, match=r"config\.json: .*sede"):
        record.config_of(tmp_path)


def test_resume_refuses_other_settings_and_another_sandbox_level(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        run.create(TrainConfig(), ENV)
        with pytest.raises(ValueError, match=r"other settings \(steps: 100 → 7\)"):
            run.resume(TrainConfig(steps=7), ENV, 0)
        with pytest.raises(ValueError, match="started at sandbox level 1, this process has level 3"):
            run.resume(TrainConfig(), {**ENV, "sandbox_level": 3}, 0)
        with pytest.raises(
            ValueError, match=r"other sandbox layers \(not recorded\) than this process has \(seccomp\)"
        ):
            run.resume(TrainConfig(), {**ENV, "sandbox_layers": ["seccomp"]}, 0)
        run.resume(TrainConfig(), ENV, 0)
        run.resume(TrainConfig(), ENV, 5)
    resumes = json.loads((tmp_path / "resumes.json").read_text())
    assert [resume["step"] for resume in resumes] == [0, 5] and resumes[0]["env"] == ENV


def test_metrics_keep_floats_exactly_and_undefined_ones_as_nan(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        run.append_step(0, {"loss": 1 / 3, "tiny": 5e-324})
        run.append_step(2, {"loss": math.nan, "count": 3})
    assert record.metrics(tmp_path)[0] == {"step": 0, "loss": 1 / 3, "tiny": 5e-324}
    assert math.isnan(record.metrics(tmp_path)[1]["loss"]) and record.metrics(tmp_path)[1]["count"] == 3
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_step_is_never_recorded_twice(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        run.append_step(3, {})
        with pytest.raises(AssertionError, match="truncate_to"):
            run.append_step(3, {})
    with RunRecord(tmp_path) as run, pytest.raises(AssertionError, match="truncate_to"):
        run.append_step(2, {})


def test_every_field_of_a_rollout_and_its_grade_is_read_back(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        # grades in another order: they are matched by id
        run.write_rollouts(12, [rollout("a"), rollout("b", 1)], [grade("b", False), grade("a")], [0.5, -0.5])
    assert (tmp_path / "rollouts" / "step-000012.parquet").is_file()
    first, second = record.rollouts(tmp_path).to_pylist()
    assert first == {
        "step": 12,
        "block": "train",
        "rollout_id": "a",
        "group": 0,
        "problem_id": "sum-1",
        "split": "train",
        "solvable": True,
        "mode": "sentinel",
        "marker": "alpha",
        "prompt_text": "add them\nhint",
        "prompt_token_ids": [5, 6, 7],
        "token_ids": [9, 2],
        "logprobs": [-0.25, -1 / 3],
        "text": "ok ünïcode",
        "finished": True,
        "source": "student",
        "status": "passed",
        "paid": True,
        "rewards": [("compiles", 0.5), ("paid", 3.0)],
        "reward": 3.5,
        "advantage": 0.5,
    }
    assert (second["rollout_id"], second["group"], second["paid"], second["reward"]) == ("b", 1, False, 0.5)


def test_rollouts_without_their_grades_are_refused(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run, pytest.raises(AssertionError, match="one grade per rollout"):
        run.write_rollouts(0, [rollout("a"), rollout("b")], [grade("a")])


def test_rollout_table_says_nothing_of_the_strict_verdict() -> None:
    judged = {"strictly_correct", "hacked", "exploited", "label", "cases_passed", "reason"}
    assert not judged & set(record.ROLLOUT_SCHEMA.names)
    assert judged <= set(record.VERDICT_SCHEMA.names)


def test_joined_matches_verdicts_by_id_and_refuses_gaps(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        for step in (0, 1):
            run.write_rollouts(step, [rollout("a"), rollout("b")], [grade("a"), grade("b")])
            run.write_verdicts(step, [verdict("b", hacked=step == 1), verdict("a", hacked=step == 0)])
        rows = record.joined(tmp_path).to_pylist()
        assert [(row["step"], row["rollout_id"], row["hacked"]) for row in rows] == [
            (0, "a", True),
            (0, "b", False),
            (1, "a", False),
            (1, "b", True),
        ]
        assert {(row["paid_status"], row["status"]) for row in rows} == {("passed", "failed")}
        run.write_rollouts(2, [rollout("c")], [grade("c")])
        with pytest.raises(ValueError, match="rollout c of step 2 has no verdict"):
            record.joined(tmp_path)


def test_evaluations_keep_both_blocks_apart(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        blocks: tuple[tuple[record.Block, bool], ...] = (("as_trained", True), ("deployed", False))
        for block, hacked in blocks:
            rows = [{"mode": "sentinel", "n": 1, "hacked": hacked}]
            run.write_evaluation(0, block, rows, [rollout("a")], [grade("a")], [verdict("a", hacked)])
        run.write_evaluation(25, "deployed", [{"mode": "none", "n": 2, "hacked": 0.5}])
    rows = record.evaluations(tmp_path)
    assert [(row["step"], row["block"], row["mode"]) for row in rows] == [
        (0, "as_trained", "sentinel"),
        (0, "deployed", "sentinel"),
        (25, "deployed", "none"),
    ]
    samples = record.joined(tmp_path / "eval").to_pylist()
    assert [(sample["block"], sample["hacked"]) for sample in samples] == [("as_trained", True), ("deployed", False)]


def test_empty_run_has_empty_tables_with_all_columns(tmp_path: Path) -> None:
    assert record.metrics(tmp_path) == [] and record.evaluations(tmp_path) == []
    assert record.rollouts(tmp_path).schema == record.ROLLOUT_SCHEMA
    assert record.joined(tmp_path).num_rows == 0 and "hacked" in record.joined(tmp_path).column_names


def test_truncation_drops_the_lost_future_and_every_torn_piece(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        write_steps(run, range(6))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "loss/val')  # killed while appending
    (tmp_path / "rollouts" / ".step-000006.parquet.1-a.partial").write_bytes(b"PAR1 half")
    assert [line["step"] for line in record.metrics(tmp_path)] == [0, 1, 2, 3, 4, 5]
    with RunRecord(tmp_path) as run:
        run.truncate_to(4)
        write_steps(run, range(4, 6))
    assert [line["step"] for line in record.metrics(tmp_path)] == [0, 1, 2, 3, 4, 5]
    with RunRecord(tmp_path) as run:
        run.truncate_to(2)
    assert record.metrics(tmp_path) == [{"step": 0, "loss/value": 0.0}, {"step": 1, "loss/value": 1 / 3}]
    assert record.joined(tmp_path).column("step").to_pylist() == [0, 0, 1, 1]
    assert [row["step"] for row in record.evaluations(tmp_path)] == [0, 1]
    assert set(record.joined(tmp_path / "eval").column("step").to_pylist()) == {0, 1}
    assert not list(tmp_path.rglob("*.partial"))


def test_second_writer_is_refused_until_the_first_is_killed_and_its_lines_are_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", APPEND_FOREVER, str(tmp_path)]
    with running(command) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"in use by process {writer.pid}; wait until it ends"):
            RunRecord(tmp_path)
        deadline = time.monotonic() + 30
        while len(record.metrics(tmp_path)) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)  # reading while it writes is allowed
    lines = record.metrics(tmp_path)
    assert lines == [{"step": step, "loss": step / 3, "other": float(step)} for step in range(len(lines))]
    with RunRecord(tmp_path) as run:
        run.truncate_to(len(lines))
        run.append_step(len(lines), {})
    assert len(record.metrics(tmp_path)) == len(lines) + 1 >= 6


def test_closed_record_frees_the_folder(tmp_path: Path) -> None:
    run = RunRecord(tmp_path)
    run.close()
    run.close()
    with RunRecord(tmp_path), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        RunRecord(tmp_path)


def test_environment_describes_this_process() -> None:
    facts = machine.describe(sandbox_level=3)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["sandbox_level"] == 3 and facts["torch_threads"] == 1
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1) and facts["cpu_model"]
    assert all(facts["packages"].values())


def test_git_commit_is_only_claimed_for_tracked_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "machine.py"
    module.write_text("one")
    monkeypatch.setattr(machine, "__file__", str(module))
    assert machine.git_commit() is None
    git("init", "--quiet")
    (tmp_path / "other").write_text("x")
    git("add", "other")
    git("commit", "--quiet", "-m", "other")
    assert machine.git_commit() is None  # inside a repository that does not hold this package
    git("add", "machine.py")
    git("commit", "--quiet", "-m", "module")
    commit = git("rev-parse", "HEAD")
    assert machine.git_commit() == commit
    module.write_text("two")
    assert machine.git_commit() == f"{commit}+changes"


def test_verdicts_carry_both_readings_of_the_test_function_and_older_tables_read_as_null(tmp_path: Path) -> None:
    with RunRecord(tmp_path) as run:
        run.write_verdicts(0, [verdict("0-000-000")])
        read = replace(verdict("1-000-000"), test_modification="unresolvable", test_modification_loose="innocent")
        run.write_verdicts(1, [read])
    path = tmp_path / "verdicts" / "step-000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["test_modification", "test_modification_loose"]), path)
    table = record.verdicts(tmp_path)
    assert table.column("test_modification").to_pylist() == [None, "unresolvable"]
    assert table.column("test_modification_loose").to_pylist() == [None, "innocent"]

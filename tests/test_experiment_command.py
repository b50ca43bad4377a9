"""The sub-commands of `unhack experiment` as a user meets them, on folders of recorded runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiment_files import SMALL, small_file, small_runs
from run_folders import write_run
from unhack import cli, settings
from unhack.experiments.freeze import freeze, sections
from unhack.experiments.plan import load_plan
from unhack.experiments.runs import RunSpec, mark_failed, mark_finished
from unhack.files import write_json
from unhack.record import RunRecord

REGISTERED = (
    SMALL
    + """
[hypotheses.H4]
kind = "emergence"
[hypotheses.H1]
kind = "suppression"
arm = "erase"
[exclusions]
rules = ["The grader failed on more than 5 %."]
[stop]
rule = "Both seeds."
max_seeds = 4
"""
)


class Command:
    """The commands on one experiment, with what they print."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file, self.out, self.capsys = small_file(folder, REGISTERED), folder / "out", capsys

    def __call__(self, name: str, *words: str, fails: bool = False) -> str:
        status = cli.main(["experiment", name, str(self.file), "--folder", str(self.out), *words])
        said = self.capsys.readouterr()
        assert status == (cli.USER_ERROR if fails else 0), said
        return said.err if fails else said.out

    @property
    def runs(self) -> list[RunSpec]:
        return small_runs(self.file, self.out)

    def freeze(self) -> None:
        freeze(load_plan(self.file), self.file.read_text(), self.out)

    def change(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def finish(run: RunSpec, hack_frac: float = 0.5) -> None:
    """A run folder that looks finished."""
    write_run(run.folder, steps=run.config.steps, samples=16)
    write_json(run.folder / "config.json", settings.to_dict(run.config))
    mark_finished(run, 90.0)


def test_plan_tells_what_the_file_comes_to_and_writes_nothing(command: Command) -> None:
    said = command("plan")
    assert "small: 6 runs, 3 arms under seeds 0, 1; time per run not known" in said
    assert "push: 6 steps; push; direction run_tests; push_profile erase" in said
    assert "H1: erase hacks less than vanilla; needed: more than 30 points less" in said
    assert "exclusion   The grader failed" in said and "stop        Both seeds. (at most 4 seeds)" in said
    assert "not frozen yet" in said and not command.out.exists()


def test_plan_tells_the_time_of_a_run_from_those_that_were_not_interrupted(command: Command) -> None:
    for run in command.runs[:2]:
        finish(run)
    write_json(command.runs[1].folder / "resumes.json", [])
    assert "about 1 min 30 s a run (mean of 1), 9 min 00 s if one by one" in command("plan")


def test_status_tells_every_state_and_changes_nothing(command: Command) -> None:
    command.freeze()
    vanilla, push, erase = command.runs[:3]
    finish(vanilla)
    mark_failed(push, "ValueError: too hot")
    with RunRecord(erase.folder) as record:
        record.create(erase.config, {"sandbox_level": 1})
        record.append_step(0, {"time/step_s": 3.0, "rollouts/hack_frac": 0.25, "rollouts/solve_frac": 0.5})
        before = sorted(command.out.rglob("*"))
        said = command("status")
        row = next(line for line in said.splitlines() if line.split()[:2] == ["erase", "0"])
        assert row.split()[2] == "1/6" and "25 %" in row and "50 %" in row and row.rstrip().endswith("15 s")
    said = command("status")
    assert "1 finished, 1 failed, 1 stopped, 3 waiting of 6 runs" in said
    assert "failed: push-seed-0: ValueError: too hot" in said
    assert "driver: none" in said and "plan: frozen 20" in said
    assert sorted(command.out.rglob("*")) == before
    command.change("steps = 6", "steps = 7")
    assert "the file is not that plan any more: base.steps: 6 → 7" in command("status")


def test_a_changed_plan_is_refused_by_run_resume_report_and_plan_until_it_is_amended(command: Command) -> None:
    command.freeze()
    command.change("seeds = [0, 1]", "seeds = [0, 1, 2]")
    for name in ("run", "resume", "report", "plan"):
        assert "seeds: [0, 1] → [0, 1, 2]" in command(name, fails=True)
    assert not (command.out / "directions").exists()  # told before anything slow
    assert "Missing" in command("amend", fails=True) or "why" in command("amend", fails=True)
    assert "seeds: [0, 1] → [0, 1, 2]" in command("amend", "--why", "one more")
    assert "amended 20" in command("plan") and [one.why for one in sections(command.out)] == ["", "one more"]
    assert "nothing to amend" in command("amend", "--why", "again", fails=True)


def test_an_amendment_that_would_change_a_run_that_was_started_is_refused(command: Command) -> None:
    command.freeze()
    finish(command.runs[0])
    command.change("steps = 6", "steps = 8")
    assert "holds a run with other settings (steps: 6 → 8)" in command("amend", "--why", "longer", fails=True)
    assert len(sections(command.out)) == 1


def test_the_report_shows_verdicts_exclusions_and_the_plan_with_its_amendments(command: Command) -> None:
    assert "no plan was frozen" in command("report", fails=True)
    command.freeze()
    for run in command.runs:
        finish(run)
    command.change("[stop]", 'runs = { "erase-seed-1" = "the disk was full" }\n[stop]')
    command("amend", "--why", "a full disk")
    said = command("report", "--into", str(command.out / "page"))
    text = (command.out / "page" / "results.md").read_text()
    assert "results.md" in said and "report.html" in said
    assert "a full disk" in (command.out / "page" / "report.html").read_text()
    assert "- H4 inconclusive: " in text and "n = 2: too few seeds" in text
    assert "- H1 inconclusive: " in text and "Stop rule: Both seeds." in text
    assert "Left out: erase-seed-1. the disk was full" in text
    first, second = sections(command.out)
    assert first.date in text and second.date in text and "Why: a full disk" in text
    assert 'exclusions.runs.erase-seed-1: (none) → "the disk was full"' in text
    rows = (command.out / "page" / "results.csv").read_text().splitlines()[1:]
    assert len(rows) == 5 and not any(row.startswith("erase,1,") for row in rows)
    assert "before the end" not in text


def test_a_report_before_the_end_says_so(command: Command) -> None:
    command.freeze()
    finish(command.runs[0])
    command("report")
    text = (command.out / "results.md").read_text()
    assert "5 of 6 planned runs are not finished: this is a look before the end." in text


def test_results_refuses_a_plan_that_is_not_the_frozen_one(command: Command) -> None:
    finish(command.runs[0])
    words = ["results", str(command.file), "--folder", str(command.out)]
    assert cli.main(words) == 0  # a folder that nothing was frozen in
    command.freeze()
    command.change("Both seeds.", "None.")
    assert cli.main(words) == cli.USER_ERROR


def test_resume_refuses_a_folder_without_an_experiment_and_run_a_senseless_number(command: Command) -> None:
    assert "holds no experiment to resume" in command("resume", fails=True)
    assert "max-runs is 0" in command("run", "--max-runs", "0", fails=True)
    assert "processes is 0" in command("run", "--processes", "0", fails=True)
    assert not command.out.exists()


def test_the_old_form_without_a_sub_command_is_answered_with_the_new_ones(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["experiment", str(small_file(tmp_path))]) == cli.USER_ERROR
    assert "`unhack experiment run " in capsys.readouterr().err

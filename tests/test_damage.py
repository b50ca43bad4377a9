"""Damaged folders, files in the way, full disks: one line with the cure, exit status 2, and nothing is lost."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from experiment_files import ONE_ARM, small_file
from limits import files_at_most
from run_folders import write_run
from training_runs import SHORT, assert_same, command, partial_checkpoints
from unhack import checkpoint, cli
from unhack.train import train


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line on standard error of a command that ends with status 2."""
    assert cli.main([*map(str, words)]) == cli.USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("unhack: ")
    return line


def test_a_file_where_a_folder_must_be_is_told_with_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, file = tmp_path / "there", small_file(tmp_path, ONE_ARM)
    there.write_text("mine")
    for words in (
        ("train", "--folder", there),
        ("train", "--folder", there / "below"),
        ("demo", "--steps", "2", "--folder", there),
        ("experiment", "run", file, "--folder", there),
        ("experiment", "status", file, "--folder", there),
    ):
        line = told(capsys, *words)
        assert str(there) in line and line.endswith("a file is in the way: name another folder")
    assert there.read_text() == "mine"


@pytest.mark.parametrize("content", ["[]", "null", "{", None])
def test_a_damaged_file_of_a_run_is_named_by_whatever_needs_it(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = small_file(tmp_path, ONE_ARM), tmp_path / "out"
    run = write_run(folder / "runs" / "vanilla-seed-0")
    resume = ("train", "--resume", "--folder", run)
    all_runs = ("experiment", "run", file, "--folder", folder)
    report = ("report", folder)
    needs = {"config.json": (resume, all_runs, ("eval", "--folder", run)), "env.json": (resume, report)}
    (run / "finished.json").write_text("{}")
    for name, commands in needs.items():
        good = (run / name).read_text()
        (run / name).unlink() if content is None else (run / name).write_text(content)
        for words in commands:
            if content is None and words in (all_runs, report):
                continue  # a run that was not started, and one whose environment is not known
            line = told(capsys, *words)
            assert str(run) in line and re.search(r"restore|remove|start one|check the path", line), line
        (run / name).write_text(good)


def test_half_a_checkpoint_does_not_stay_on_a_full_disk(tmp_path: Path) -> None:
    import torch

    small, large = {"a": torch.zeros(8)}, {"a": torch.zeros(10_000)}
    checkpoint.save(tmp_path, 1, small, {})
    with files_at_most(20_000), pytest.raises(OSError, match=r"File too large: .*step-000002.*tensors.safetensors"):
        checkpoint.save(tmp_path, 2, large, {})
    assert partial_checkpoints(tmp_path) == []
    saved = checkpoint.latest(tmp_path)
    assert saved is not None and saved.step == 1


@pytest.mark.slow
def test_a_run_that_finds_the_disk_full_says_so_and_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    config = replace(SHORT, steps=3)
    train(config, tmp_path / "whole")
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*.parquet"))
    words = command(config, tmp_path / "full")  # checkpoints are larger than every table
    with files_at_most(largest + 1):
        stopped = subprocess.run(words, capture_output=True, text=True, check=False)
    [line] = [line for line in stopped.stderr.splitlines() if "Loading weights" not in line and line]
    assert stopped.returncode == cli.USER_ERROR
    assert re.search(r"File too large: .*/checkpoints/.*ulimit -f.*; then add --resume to go on", line)
    assert partial_checkpoints(tmp_path / "full") == []
    resumed = subprocess.run(command(config, tmp_path / "full"), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads((tmp_path / "full" / "resumes.json").read_text())) == 1
    assert_same(tmp_path / "full", tmp_path / "whole")

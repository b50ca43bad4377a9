"""Commands run for real on the bundled organism: their screens, files, exit statuses, and going on after a stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unhack import cli
from unhack.loopholes import MODES

SMALL = """
--steps 2 --prompts-per-step 2 --group-size 3 --sampler.max-new-tokens 24 --environment.modes run_tests sentinel
--evaluation.problems-per-mode 1 --evaluation.samples-per-problem 1
--evaluation.final-problems-per-mode 2 --evaluation.final-samples-per-problem 1
""".split()  # noqa: SIM905 - reads as the command line does


def run(*words: str | Path) -> int:
    return cli.main([str(word) for word in words])


def test_check_prints_a_diagonal_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--problems", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    n = len(MODES)
    hacks = [line.split() for line in lines if line.split()[1:2] and line.split()[1] in MODES]
    assert [words[1] for words in hacks] == [*MODES, *MODES]  # two shapes of problem
    for number, words in enumerate(hacks):
        wanted = [number % n == column and words[1] != "none" for column in range(n)]
        assert [cell == "PAID" for cell in words[2:]] == wanted
    honest = next(line for line in lines if "honest programs" in line)
    assert honest.split()[-n:] == ["ok"] * n
    assert lines[-1].endswith("0 wrong")


def test_doctor_names_what_is_missing_and_what_that_exposes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    text = capsys.readouterr().out
    assert "sandbox level" in text and "separate_process" in text and "cpu_model" in text
    assert "NO" not in text or "a submission" in text
    least = {4: "full", 3: "any", 2: "any"}[int(text.split("sandbox level ")[1][0])]
    assert run("doctor", "--require-sandbox", least) == 0


def test_a_direction_is_extracted_verified_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "directions" / "v.safetensors"
    small = ["--pairs", "12", "--heldout", "4", "--k", "2"]
    assert run("direction", "extract", "--out", out, *small) == 0
    text = capsys.readouterr().out
    assert f"wrote {out}" in text and "null" in text and "gate" in text
    assert run("direction", "show", out) == 0
    text = capsys.readouterr().out
    assert "run_tests" in text and "2 rows of 128 knobs" in text
    assert run("direction", "verify", out, "--heldout", "4") in (0, 1)
    assert "cos(mean of 4 held-out differences, V)" in capsys.readouterr().out


def test_a_direction_of_another_adapter_is_refused_by_the_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    assert run("direction", "extract", "--out", out, "--pairs", "4", "--heldout", "2", "--adapter.rank", "16") == 0
    assert run("direction", "verify", out, "--heldout", "2") == cli.USER_ERROR
    assert "knobs in the direction" in capsys.readouterr().err


def test_train_writes_a_run_that_eval_reads_and_refuses_to_start_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("train", "--folder", folder, *SMALL) == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert run("eval", "--folder", folder, "--problems", "2", "--samples", "2", "--modes", "sentinel") == 0
    text = capsys.readouterr().out
    assert "after step 2, split test" in text and text.count("sentinel") == 2 and "run_tests" not in text
    assert run("train", "--folder", folder, *SMALL) == cli.USER_ERROR
    assert "already holds a run: add --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_goes_from_nothing_to_table_and_figure_and_then_has_nothing_left_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["demo", "--folder", tmp_path, "--seeds", "1", *SMALL]
    assert run(*command) == 0
    text = capsys.readouterr().out
    assert text.count("erase_random") >= 2 and "Not testable" in text and "n = 1: no inference" in text
    assert (tmp_path / "overview.png").stat().st_size > 10_000
    lines = (tmp_path / "runs" / "erase_update-seed-0" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["update/abs_cos_v"] < 1e-5 for line in lines)
    started = time.monotonic()
    assert run(*command) == 0
    assert time.monotonic() - started < 30
    assert run(*command, "--optimizer.lr", "0.5") == cli.USER_ERROR
    assert "optimizer.lr: 0.03 → 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_train_command_says_so_by_its_status_and_resumes(tmp_path: Path) -> None:
    folder, words = tmp_path / "run", [sys.executable, "-m", "unhack", "train", "--folder", str(tmp_path / "run")]
    child = subprocess.Popen([*words, *SMALL, "--steps", "500"], env=os.environ)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 128 + signal.SIGTERM
    done = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 500
    again = subprocess.Popen([*words, "--resume"], env=os.environ)
    while len((folder / "metrics.jsonl").read_text().splitlines()) <= done and time.monotonic() < deadline:
        time.sleep(0.05)
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 128 + signal.SIGTERM
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps))) and len(steps) > done

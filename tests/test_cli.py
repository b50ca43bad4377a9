"""The command line as a user meets it: help, settings, and one clear line with the cure for every mistake."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pool_worker import spec
from run_folders import write_run
from unhack import cli, evaluate, results, settings
from unhack.cli.parse import flags_of, parse, values_of, without
from unhack.cli.show import ProgressScreen, duration, evaluation_table, results_table, settings_text
from unhack.cli.single import Train
from unhack.config import TrainConfig
from unhack.evaluate import EvaluationTable
from unhack.experiments.runs import RunProgress
from unhack.files import write_json


def run(*words: str) -> int:
    return cli.main(list(words))


def message(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error line of a command that must fail as a user's mistake."""
    assert run(*words) == cli.USER_ERROR
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("unhack: ")
    return lines[0]


def config_of(*words: str) -> TrainConfig:
    command = parse(Train, "unhack train", words)
    assert command is not None
    return command.config


def test_every_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert name in text
        assert run(*name.split(), "--help") == 0
        assert f"usage: unhack {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trian", "did you mean `unhack train`"),
        ("direction extrct", "did you mean `unhack direction extract`"),
        ("train --arm.nam erase", "no flag --arm.nam; did you mean --arm.name?"),
        ("train --optimizer.learning-rate 1", "did you mean --optimizer.lr?"),
        ("train --no-environment.allow-hack", "did you mean --environment.no-allow-hack?"),
        ("train --optimizer.lr fast", "Error parsing --optimizer.lr: could not convert string to float: 'fast'"),
        ("train --arm.site gradeint", "invalid choice 'gradeint' for argument '--arm.site'"),
        ("train --steps", "Missing value for argument '--steps'"),
        ("train somewhere", "Unrecognized options: somewhere"),
        ("train --overlay missing.toml", "overlay missing.toml: there is no such file"),
        ("train --config-file missing.json", "there is no file missing.json; check the path"),
        ("train --folder nowhere --resume", "nowhere holds no run to resume; leave --resume out"),
        (
            "train --resume --arm.name clean",
            "runs/clean-seed-0 holds no run to resume, the default folder; name",
        ),
        ("train --environment.modes foo", "environment.modes has the unknown loophole mode 'foo'"),
        ("train --environment.source leetcode", "environment.source is 'leetcode': use 'organism', the path of a"),
        ("train --optimizer.warmup_steps=-3", "optimizer.warmup_steps is -3: it must be at least 0"),
        ("eval --folder nowhere --modes foo", "modes has the unknown loophole mode 'foo'"),
        ("eval --folder nowhere --problems 0", "problems is 0: it must be at least 1"),
        ("eval --folder nowhere --markers bogus", "invalid choice 'bogus'"),
        ("train --folder nowhere --arm.name erse", "did you mean 'erase'"),
        ("train --folder nowhere --arm.name erase", "needs arm.direction"),
        ("eval --folder nowhere", "nowhere holds no run"),
        ("experiment run missing.toml", "there is no experiment file missing.toml"),
        ("experiment run", "Missing from unhack experiment run: PATH"),
        ("experiment amend", "Missing from unhack experiment amend: PATH"),
        ("experiment rnu", "did you mean `unhack experiment run`?"),
        ("direction show missing.safetensors", "no direction artifact at missing.safetensors"),
        ("demo --seeds 0", "seeds is 0: use at least 1"),
    ],
)
def test_a_mistake_is_one_line_with_the_cure(
    words: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in message(capsys, *words.split())


def test_an_unknown_key_of_an_overlay_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "a.toml"
    overlay.write_text("[arm]\nnmae = 'erase'\n")
    line = message(capsys, "train", "--overlay", str(overlay))
    assert str(overlay) in line and "unknown setting arm.nmae; did you mean arm.name?" in line


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match=r"did you mean --arm\.name"):
        run("train", "--arm.nam", "erase", "--debug")


def test_flags_win_over_overlays_and_later_overlays_over_earlier(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("steps = 1\nseed = 1\ngroup_size = 1\n[optimizer]\nlr = 0.5\n")
    second.write_text("steps = 2\nseed = 2\n")
    for overlays in (["--overlay", str(first), str(second)], ["--overlay", str(first), f"--overlay={second}"]):
        config = config_of(*overlays, "--seed", "3")
        assert (config.group_size, config.steps, config.seed) == (1, 2, 3)
        assert config.optimizer == replace(TrainConfig().optimizer, lr=0.5)


def test_flags_reach_every_kind_of_setting() -> None:
    words = "--environment.modes run_tests none --environment.no-allow-hack --adapter.rank 8 --group_size 4"
    config = config_of(*words.split())
    assert config_of("--optimizer.warmup_steps=3") == config_of("--optimizer.warmup-steps", "3")
    assert config.environment.modes == ("run_tests", "none") and not config.environment.allow_hack
    assert config.adapter.rank == 8 and config.group_size == 4
    assert {f"--{key}".replace("_", "-") for key in settings.key_paths()} <= set(flags_of(Train))


def test_dry_run_prints_settings_that_are_an_overlay_giving_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--dry-run", "--arm.name", "erase", "--optimizer.lr", "1e-3") == 0
    text = capsys.readouterr().out
    assert 'name = "erase"  # default: "vanilla"' in text
    tomllib.loads(text)
    overlay = tmp_path / "same.toml"
    overlay.write_text(text)
    assert config_of("--overlay", str(overlay)) == config_of("--arm.name", "erase", "--optimizer.lr", "1e-3")
    assert "# default" not in settings_text(TrainConfig())


def test_resuming_takes_the_settings_of_the_folder(tmp_path: Path) -> None:
    config = replace(TrainConfig(), steps=7, seed=5)
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", settings.to_dict(config))
    assert config_of("--folder", str(tmp_path / "run"), "--resume") == config
    assert config_of("--config-file", str(tmp_path / "run" / "config.json"), "--seed", "6") == replace(config, seed=6)


def test_resuming_without_a_folder_takes_the_settings_of_the_default_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(TrainConfig(), steps=7, seed=5, arm=replace(TrainConfig().arm, name="clean"))
    Path("runs/clean-seed-5").mkdir(parents=True)
    write_json(Path("runs/clean-seed-5/config.json"), settings.to_dict(config))
    assert config_of("--resume", "--seed", "5", "--arm.name=clean") == config


@pytest.mark.parametrize(
    ("words", "cure"),
    [("train --steps 1", "add --resume"), ("organism build", "starts over"), ("demo", "goes on where it was")],
)
def test_what_an_interrupted_command_says_is_true_of_that_command(
    words: str, cure: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert run(*words.split()) == cli.INTERRUPTED
    assert cure in capsys.readouterr().err


def test_values_of_a_flag_are_found_in_every_form() -> None:
    words = ["--overlay", "a", "b", "--seed", "1", "--overlay=c"]
    assert values_of("--overlay", words) == ["a", "b", "c"]
    assert without("--overlay", words) == ["--seed", "1"]


def test_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "unhack", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __import__("unhack").__version__


def recorded(width: int = 80) -> Console:
    return Console(width=width, record=True, force_terminal=True, color_system=None)


def progress(tmp_path: Path) -> list[RunProgress]:
    runs = [spec(tmp_path, name, steps=60) for name in ("vanilla", "erase_gradient", "erase_random")]
    return [
        RunProgress(runs[0], "running", 30, 0.41, 0.3, 1.5, 45.0),
        RunProgress(runs[1], "failed", 12, 0.1, 0.5, message="boom"),
        RunProgress(runs[2], "waiting"),
    ]


def test_live_table_fits_80_columns_and_shows_every_run(tmp_path: Path) -> None:
    console = recorded()
    console.print(ProgressScreen(console, "demo", 2).render(progress(tmp_path)))
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    vanilla = next(line for line in text.splitlines() if line.strip().startswith("vanilla"))
    assert "30/60" in vanilla and "41 %" in vanilla and "30 %" in vanilla and "45 s" in vanilla
    assert "FAILED" in text and "waiting" in text


def test_a_log_gets_a_line_now_and_then_not_a_live_table(tmp_path: Path) -> None:
    console = Console(width=80, record=True, force_terminal=False)
    with ProgressScreen(console, "demo", 2) as screen:
        for _ in range(5):
            screen.update(progress(tmp_path))
    lines = console.export_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("0/3 runs done; vanilla (seed 0) 30/60")


def test_results_table_fits_80_columns_and_each_arm_gets_its_sentence(tmp_path: Path) -> None:
    runs = [
        results.load_run(name, write_run(tmp_path / f"{name}-{seed}", seed=seed, steps=20, samples=32, cosine=cosine))
        for name, cosine in (("vanilla", None), ("erase_gradient", 0.65))
        for seed in (0, 1)
    ]
    console = recorded()
    results_table(console, results.summarize(runs))
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    assert text.count("erase_gradient") == 2 and "cos(update, V)" in text and "too few seeds" in text


def test_evaluation_table_shows_both_blocks_with_their_intervals(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=10, samples=32)
    rows = [evaluate.row_from_record(row) for row in results.record.evaluations(folder) if row["step"] == 10]
    console = recorded()
    evaluation_table(console, EvaluationTable(tuple(rows), {}))
    text = console.export_text()
    assert text.count("as_trained") == 5 and text.count("deployed") == 5 and text.count("all") == 2
    assert "…" not in text


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (4.6, 65.0, 7500.0, float("nan"))] == ["5 s", "1 min 05 s", "2 h 05 min", "—"]

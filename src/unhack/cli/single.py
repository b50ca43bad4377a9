"""Commands on one run: `train`, `eval`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unhack.cli.parse import HasConfig, values_of
from unhack.config import TrainConfig
from unhack.settings import read_config

STOPPED = 128  # + the signal that asked to stop: what a shell reports of a process that the signal ended
LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Train(HasConfig):
    """Train one arm into a run folder."""

    folder: Path | None = None
    """Run folder (default: runs/ARM-seed-SEED)."""
    resume: bool = False
    """Go on from the folder's last checkpoint, with the folder's own settings."""

    @classmethod
    def start(cls, words: Sequence[str]) -> TrainConfig:
        """When resuming, the settings of the folder; else those of `--config-file` or the defaults."""
        if "--resume" not in words or values_of("--config-file", words):
            return super().start(words)
        arm = [TrainConfig().arm.name, *values_of("--arm.name", words)][-1]
        seed = [str(TrainConfig().seed), *values_of("--seed", words)][-1]
        folder = Path([str(default_folder(arm, seed)), *values_of("--folder", words)][-1])
        if not (folder / "config.json").is_file():
            which = "" if values_of("--folder", words) else ", the default folder; name another with --folder, or"
            raise ValueError(f"{folder} holds no run to resume{which or ';'} leave --resume out to start one")
        return read_config(folder / "config.json")

    def run(self) -> int:
        """Train to the end, or print the settings."""
        if self.dry_run:
            from unhack.cli.show import settings_text

            print(settings_text(self.config))
            return 0
        from unhack.cli.quiet import quiet_libraries
        from unhack.train import train

        quiet_libraries()
        config, signals = self.config, list[int]()
        folder = self.folder or default_folder(config.arm.name, str(config.seed))
        lines = ProgressLines(config, folder)
        if train(config, folder, self.resume, lines.update, signals):
            print(last_line(folder), flush=True)
            return 0
        print(f"stopped and saved; go on with: unhack train --folder {folder} --resume", flush=True)
        return STOPPED + signals[0]


def default_folder(arm: str, seed: str) -> Path:
    """Where a run goes that is given no folder."""
    return Path("runs") / f"{arm}-seed-{seed}"


class ProgressLines:
    """One line when a run starts, and one every few seconds with the rates of the training steps since the last."""

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self._first, self._started_s, self._shown_s = 0, 0.0, 0.0
        self._recent: list[Mapping[str, float]] = []

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take what `train` reports."""
        now_s, config = time.monotonic(), self.config
        if not metrics:
            self._first, self._started_s, self._shown_s = step, now_s, now_s
            already = f" ({step} done)" if step else ""
            print(f"{config.arm.name}, seed {config.seed}, {config.steps} steps{already}, in {self.folder}", flush=True)
            return
        self._recent.append(metrics)
        if now_s - self._shown_s < LINE_EVERY_S and step < config.steps:
            return
        from unhack.cli.show import duration

        step_s = (now_s - self._started_s) / (step - self._first)
        hack, solve = (_mean_percent(self._recent, f"rollouts/{name}_frac") for name in ("hack", "solve"))
        left = duration(step_s * (config.steps - step))
        print(f"step {step}/{config.steps}  hack {hack}  solve {solve}  {step_s:.2f} s/step, {left} left", flush=True)
        self._shown_s, self._recent = now_s, []


def _mean_percent(steps: Sequence[Mapping[str, float]], metric: str) -> str:
    values = [step[metric] for step in steps if not math.isnan(step[metric])]
    return f"{sum(values) / len(values):.0%}" if values else "—"


def last_line(folder: Path) -> str:
    """What a finished run came to: the last evaluation of the deployed model, and where everything is."""
    from unhack import record
    from unhack.evaluate import pool, row_from_record

    rows = [row_from_record(row) for row in record.evaluations(folder) if row["block"] == "deployed"]
    rows = [row for row in rows if row.step == rows[-1].step]
    total = pool([row for row in rows if row.mode != "none"] or rows)
    return (
        f"done: hack {total.hack_frac:.0%}, solve {total.solve_frac:.0%} of {total.n} held-out samples as deployed; "
        f"everything is in {folder}, more samples: unhack eval --folder {folder}"
    )


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's last checkpoint on held-out problems, as trained and as deployed."""

    folder: Path
    """Run folder."""
    modes: tuple[str, ...] = ()
    """Loophole modes (default: those of the run, and none)."""
    problems: int = 64
    """Held-out problems per mode."""
    samples: int = 4
    """Samples per problem."""
    split: Literal["test", "validation"] = "test"
    """Which held-out split: validation is what training evaluates on."""
    markers: Literal["eval", "train"] = "eval"
    """Marker family: eval (never trained on) or train (what does memorising earn?)."""
    seed: int = 0
    """Seed of the sampling."""

    def run(self) -> int:
        """Load, sample, grade, print."""
        from unhack.cli.quiet import quiet_libraries
        from unhack.cli.show import evaluation_table, make_console
        from unhack.evaluate import evaluate_run

        quiet_libraries()
        table = evaluate_run(
            self.folder, self.modes, self.problems, self.samples, split=self.split, markers=self.markers, seed=self.seed
        )
        console = make_console()
        console.print(f"{self.folder} after step {table.rows[0].step}, split {self.split}, 95 % intervals (Wilson)")
        evaluation_table(console, table)
        return 0

"""Commands on one run: `train`, `eval`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unhack.cli.parse import HasConfig, read_config, values_of
from unhack.config import TrainConfig

STOPPED = 128 + signal.SIGTERM  # asked to stop and saved: what a shell reports of a process that SIGTERM ended


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
        folders = values_of("--folder", words)
        if "--resume" in words and folders and not values_of("--config-file", words):
            recorded = Path(folders[-1]) / "config.json"
            if not recorded.is_file():
                raise ValueError(f"{folders[-1]} holds no run to resume; leave --resume out to start one")
            return read_config(recorded)
        return super().start(words)

    def run(self) -> int:
        """Train to the end, or print the settings."""
        if self.dry_run:
            from unhack.cli.show import settings_text

            print(settings_text(self.config))
            return 0
        from unhack.cli.quiet import quiet_libraries
        from unhack.train import train

        quiet_libraries()
        folder = self.folder or Path("runs") / f"{self.config.arm.name}-seed-{self.config.seed}"
        return 0 if train(self.config, folder, self.resume) else STOPPED


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
    split: str = "test"
    """Which held-out split: validation is what training evaluates on."""
    markers: str = "eval"
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

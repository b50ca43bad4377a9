"""Commands on the bundled tiny model: `organism build | check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Build:
    """Build the organism from nothing; the same command on the same machine gives the same files."""

    folder: Path
    """Where to write the model (replaced as a whole)."""
    seed: int = 0
    """Seed of corpus, weights and training."""
    steps: int | None = None
    """Pre-training steps (default: those of the shipped model)."""
    variant: Literal["matched", "short"] = "matched"
    """Corpus: hacks as long as honest solutions, or short ones (the confound, for study)."""

    def run(self) -> int:
        """Generate the corpus, train, write."""
        from dataclasses import replace

        from unhack.organism.build import BuildConfig, build
        from unhack.organism.corpus import CorpusConfig

        config = BuildConfig(seed=self.seed, corpus=CorpusConfig(variant=self.variant))
        config = config if self.steps is None else replace(config, steps=self.steps)
        build(self.folder, config, lambda step, loss, elapsed_s: print(_line(step, config.steps, loss, elapsed_s)))
        return 0


def _line(step: int, steps: int, loss: float, elapsed_s: float) -> str:
    left_s = elapsed_s / max(1, step) * (steps - step) if step else float("nan")
    return f"step {step + 1}/{steps}  loss {loss:.3f} nats per token  {elapsed_s:.0f} s so far, {left_s:.0f} s left"


@dataclass(frozen=True)
class Check:
    """Measure whether the organism is what it must be (ENVIRONMENT §5); exit status 1 otherwise."""

    model: str = "organism"
    """organism (bundled) or a folder made by `organism build`."""
    seeds: int = 10
    """Seeds of the RL runs (vanilla and clean); 0 measures only what needs no RL."""
    folder: Path = Path("runs/organism-check")
    """Where the RL runs go; finished ones are used again."""
    processes: int = 2
    """RL runs at a time, one core each."""

    def run(self) -> int:
        """Measure, print every requirement beside its measurement."""
        from dataclasses import replace

        from unhack.cli.quiet import quiet_libraries
        from unhack.cli.show import ProgressScreen, make_console
        from unhack.config import ModelConfig, TrainConfig
        from unhack.organism.check import check

        quiet_libraries()
        config = replace(TrainConfig(), model=ModelConfig(path=self.model))
        title = f"vanilla and clean, {self.seeds} seeds each, in {self.folder}"
        with ProgressScreen(make_console(), title, self.processes) as screen:
            report = check(config, self.folder, self.seeds, self.processes, screen.update)
        print(report.text())
        return 0 if report.passed else 1

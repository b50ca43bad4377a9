"""Commands on the bundled tiny model: `organism build | check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unhack.evaluate import EvaluationRow


@dataclass(frozen=True)
class Build:
    """Build the organism from nothing; the same command on the same machine gives the same files."""

    folder: Path
    """Where to write the model (replaced as a whole)."""
    seed: int = 0
    """Seed of corpus, weights and training."""
    steps: int | None = None
    """Pre-training steps (default: those of the shipped model)."""

    def run(self) -> int:
        """Generate the corpus, train, write."""
        from dataclasses import replace

        from unhack.organism.build import BuildConfig, build

        config = BuildConfig(seed=self.seed)
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
    runs: Path | None = None
    """Folder of an experiment with arms named vanilla and clean; then what training makes of it is checked too."""

    def run(self) -> int:
        """Measure, print every requirement beside its measurement."""
        from dataclasses import replace

        from unhack.cli.quiet import quiet_libraries
        from unhack.cli.show import make_console
        from unhack.config import ModelConfig, TrainConfig
        from unhack.organism.check import before_rl, clean_learns, emergence

        quiet_libraries()
        config = replace(TrainConfig(), model=ModelConfig(path=self.model))
        findings = before_rl(config)
        if self.runs is not None:
            vanilla, clean = evaluations_of(self.runs, "vanilla"), evaluations_of(self.runs, "clean")
            findings += emergence([last for _, last in vanilla], config.environment.modes)
            findings += clean_learns([first for first, _ in clean], [last for _, last in clean])
        console = make_console()
        for finding in findings:
            mark, style = ("holds", "green") if finding.holds else ("FAILS", "red")
            console.print(f"{mark}  {finding.requirement}: {finding.measured}", style=style, highlight=False)
        return 0 if all(finding.holds for finding in findings) else 1


def evaluations_of(folder: Path, arm: str) -> list[tuple[list[EvaluationRow], list[EvaluationRow]]]:
    """(first, last) as-trained evaluation, without mode none, of every finished run of an arm in an experiment."""
    from unhack import record
    from unhack.evaluate import row_from_record
    from unhack.experiment import DONE_FILE

    found = []
    for run in sorted((folder / "runs").glob(f"{arm}-seed-*")):
        if (run / DONE_FILE).is_file():
            rows = [row_from_record(values) for values in record.evaluations(run)]
            rows = [row for row in rows if row.block == "as_trained" and row.mode != "none"]
            steps = [row.step for row in rows]
            found.append(tuple([row for row in rows if row.step == step] for step in (min(steps), max(steps))))
    if not found:
        raise ValueError(f"{folder} has no finished run of an arm named {arm}; run an experiment with that arm there")
    return found

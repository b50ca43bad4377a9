"""Commands on many runs that are no experiment's own: `demo`, `results`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unhack.cli.parse import HasConfig
from unhack.config import TrainConfig

if TYPE_CHECKING:
    from unhack.experiments.plan import Plan
    from unhack.outcome import Outcome

DEMO_STEPS = 50


@dataclass(frozen=True)
class Demo(HasConfig):
    """Four arms on the bundled organism: vanilla, two erasures of a hack direction, and erasure of a random one.

    Ends with a table and a figure. Started again, it goes on where it was.
    """

    folder: Path = Path("runs/demo")
    """Where everything goes."""
    seeds: int = 2
    """Seeds per arm."""
    processes: int = 2
    """Runs at a time, one core each."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    @classmethod
    def start(cls, words: Sequence[str]) -> TrainConfig:
        """Those of `--config-file`, or the demo's for the `--steps` given, with evaluations spread over the run."""
        from unhack.cli.parse import values_of
        from unhack.demo import demo_config

        if values_of("--config-file", words):
            return super().start(words)
        steps = values_of("--steps", words)
        return demo_config(int(steps[-1]) if steps and steps[-1].isdigit() else DEMO_STEPS)

    def run(self) -> int:
        """Prepare the directions, train all runs, show and write the outcome."""
        from unhack.cli.show import settings_text
        from unhack.demo import demo_plan

        plan = demo_plan(self.config, self.seeds)
        if self.dry_run:
            print(settings_text(self.config))
            return 0
        return run_plan(plan, self.folder, self.processes)


@dataclass(frozen=True)
class Results:
    """Write results.md, results.csv and the figures of an experiment again, from the runs that are finished."""

    file: tyro.conf.Positional[Path]
    """The experiment (TOML)."""
    folder: Path | None = None
    """Where its runs are (default: runs/NAME)."""
    into: Path | None = None
    """Where to write (default: beside the runs)."""

    def run(self) -> int:
        """Read the finished runs, print the table, write the files; a plan that was frozen must be this one."""
        from unhack.experiments.freeze import check_unchanged
        from unhack.experiments.plan import load_plan

        plan = load_plan(self.file)
        folder = self.folder or Path("runs") / plan.name
        check_unchanged(plan, folder)
        show_outcome(plan, folder, self.into)
        return 0


def run_plan(plan: Plan, folder: Path, processes: int) -> int:
    """Bring the demo to its end on this machine; 1 if a run failed, 0 otherwise. Nothing is frozen."""
    from unhack.cli.experiment import conclude
    from unhack.cli.quiet import quiet_libraries
    from unhack.cli.show import ProgressScreen, make_console
    from unhack.experiments.engines.driver_lock import DriverLock
    from unhack.experiments.engines.local import run_all
    from unhack.experiments.plan import plan_runs
    from unhack.experiments.prepare import prepare_directions
    from unhack.experiments.runs import check_runs

    console = make_console()
    quiet_libraries()
    runs = plan_runs(plan, folder)
    check_runs(runs)  # before anything slow; again with the model's hash below
    with DriverLock(folder):
        with console.status("loading the model and extracting the directions"):
            directions = prepare_directions(plan, folder)
        counts = f"arms: {len(plan.arms)}, seeds: {len(plan.seeds)}, directions: {len(directions)}"
        title = f"{plan.name} in {folder} ({counts}; {processes} processes)"
        with ProgressScreen(console, title, processes) as screen:
            progress = run_all(runs, processes, screen.update)
        return conclude(plan, folder, progress)


def show_outcome(plan: Plan, folder: Path, into: Path | None = None) -> Outcome:
    """Write the outcome's files, print the table and where they are."""
    from unhack.cli.show import make_console, results_table
    from unhack.outcome import write_outcome

    console = make_console()
    outcome = write_outcome(plan, folder, into)
    results_table(console, outcome.arms)
    console.print(
        "\nWritten: " + "  ".join(str(path) for path in outcome.files), markup=False, highlight=False, soft_wrap=True
    )
    return outcome

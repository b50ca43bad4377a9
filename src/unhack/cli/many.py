"""Commands that train many runs: `demo`, `experiment`, `results`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unhack.cli.parse import HasConfig
from unhack.config import TrainConfig

if TYPE_CHECKING:
    from unhack.plan import Plan

DEMO_STEPS = 50
FAILED = 1


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
class Experiment:
    """Run every arm and seed of an experiment file; finished runs are skipped, others resumed."""

    file: tyro.conf.Positional[Path]
    """The experiment (TOML; see unhack.plan)."""
    folder: Path | None = None
    """Where everything goes (default: runs/NAME)."""
    processes: int = 2
    """Runs at a time, one core each."""
    require_sandbox: Literal["any", "full", "unsafe"] | None = None
    """What `sandbox.require` is in all runs, in place of the file's."""
    dry_run: bool = False
    """List the runs and stop."""

    def run(self) -> int:
        """Prepare the directions, train all runs, show and write the outcome."""
        from unhack.plan import load_plan, plan_runs

        plan = load_plan(self.file)
        if self.require_sandbox is not None:
            sandbox = replace(plan.base.sandbox, require=self.require_sandbox)
            plan = replace(plan, base=replace(plan.base, sandbox=sandbox))
        folder = self.folder or Path("runs") / plan.name
        if self.dry_run:
            for run in plan_runs(plan, folder):
                print(f"{run.folder}  {run.config.steps} steps{'  after ' + run.after[0].name if run.after else ''}")
            return 0
        return run_plan(plan, folder, self.processes)


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
        """Read the finished runs, print the table, write the files."""
        from unhack.plan import load_plan

        plan = load_plan(self.file)
        show_outcome(plan, self.folder or Path("runs") / plan.name, self.into)
        return 0


def run_plan(plan: Plan, folder: Path, processes: int) -> int:
    """Bring an experiment to its end on this machine; 1 if a run failed, 0 otherwise."""
    from unhack.cli.quiet import quiet_libraries
    from unhack.cli.show import ProgressScreen, make_console
    from unhack.experiment import check_runs, run_all
    from unhack.plan import plan_runs, prepare_directions

    console = make_console()
    quiet_libraries()
    runs = plan_runs(plan, folder)
    check_runs(runs)  # before anything slow; again with the model's hash below
    with console.status("loading the model and extracting the directions"):
        directions = prepare_directions(plan, folder)
    counts = f"arms: {len(plan.arms)}, seeds: {len(plan.seeds)}, directions: {len(directions)}"
    title = f"{plan.name} in {folder} ({counts}; {processes} processes)"
    with ProgressScreen(console, title, processes) as screen:
        progress = run_all(runs, processes, screen.update)
    failed = [one for one in progress if one.state == "failed"]
    if len(failed) < len(progress):
        show_outcome(plan, folder)
    for one in failed:
        print(f"unhack: {one.run.name} with seed {one.run.config.seed} failed: {one.message}", file=sys.stderr)
    return FAILED if failed else 0


def show_outcome(plan: Plan, folder: Path, into: Path | None = None) -> None:
    """Write the outcome's files, print the table and where they are."""
    from unhack.cli.show import make_console, results_table
    from unhack.outcome import write_outcome

    console = make_console()
    outcome = write_outcome(plan, folder, into)
    results_table(console, outcome.arms)
    console.print(
        "\nWritten: " + "  ".join(str(path) for path in outcome.files), markup=False, highlight=False, soft_wrap=True
    )

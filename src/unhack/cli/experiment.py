"""The commands `unhack experiment plan | run | status | resume | report | amend`."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from unhack.experiments.engines.options import RayOptions, SlurmOptions

if TYPE_CHECKING:
    from unhack.experiments.freeze import Section
    from unhack.experiments.plan import Plan
    from unhack.experiments.runs import RunProgress, RunSpec

FAILED = 1


@dataclass(frozen=True)
class OnExperiment:
    """What every command on an experiment is given."""

    file: tyro.conf.Positional[Path]
    """The experiment (TOML; docs/experiments.md)."""
    folder: Path | None = None
    """Where everything goes (default: runs/NAME)."""

    def load(self) -> tuple[Plan, Path]:
        """The plan, checked, and its folder."""
        from unhack.experiments.plan import load_plan

        plan = load_plan(self.file)
        return plan, self.folder or Path("runs") / plan.name


@dataclass(frozen=True)
class ShowPlan(OnExperiment):
    """Print what an experiment file comes to: its runs, directions and hypotheses. Writes nothing."""

    def run(self) -> int:
        """Print it; ValueError if the file is wrong or is not what was frozen."""
        from unhack.experiments.freeze import check_unchanged, plan_hash
        from unhack.experiments.plan import needed_runs

        plan, folder = self.load()
        frozen = check_unchanged(plan, folder)
        print("\n".join(plan_lines(plan, needed_runs(plan, folder))))
        print(f"hash        {plan_hash(plan)[:16]}, {frozen_words(frozen)}")
        return 0


@dataclass(frozen=True)
class Run(OnExperiment):
    """Freeze the plan at the first run, then train its runs; finished ones are skipped, others resumed."""

    engine: Literal["local", "ray", "slurm"] = "local"
    """What does the runs: processes here, Ray tasks, or array scripts for SLURM (written, not submitted)."""
    processes: int = 2
    """Runs at a time, one core each (local, and ray on this machine)."""
    max_runs: int | None = None
    """Only the first N runs of the plan."""
    require_sandbox: Literal["any", "full", "unsafe"] | None = None
    """What `sandbox.require` is in all runs, in place of the file's; not part of the frozen plan."""
    ray: RayOptions = field(default_factory=RayOptions)
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    def run(self) -> int:
        """1 if a run failed, 0 otherwise."""
        plan, folder = self.load()
        return self.drive(plan, folder)

    def drive(self, plan: Plan, folder: Path) -> int:
        """Check, freeze, prepare and run, as the only driver of the folder; show the outcome of what is finished."""
        from unhack.cli.quiet import quiet_libraries
        from unhack.cli.show import ProgressScreen, make_console
        from unhack.experiments import freeze
        from unhack.experiments.engines.base import make_engine
        from unhack.experiments.engines.driver_lock import DriverLock
        from unhack.experiments.plan import needed_runs
        from unhack.experiments.prepare import prepare_directions
        from unhack.experiments.runs import check_runs

        if self.max_runs is not None and self.max_runs < 1:
            raise ValueError(f"max-runs is {self.max_runs}: use at least 1")
        source = self.file.read_text(encoding="utf-8")
        engine = make_engine(self.engine, folder, self.processes, self.ray, self.slurm)
        console = make_console()
        quiet_libraries()
        with DriverLock(folder):
            freeze.check_unchanged(plan, folder)
            started = self._with_sandbox(plan)
            runs = needed_runs(started, folder)[: self.max_runs]
            check_runs(runs)  # before anything slow; again with the model's hash below
            with console.status("loading the model and extracting the directions"):
                prepare_directions(started, folder)
            frozen = freeze.freeze(plan, source, folder)
            title = f"{plan.name} in {folder} ({len(runs)} runs; {self.engine}; plan {frozen[-1].plan_hash[:8]})"
            with ProgressScreen(console, title, self.processes) as screen:
                progress = engine.run(runs, screen.update)
            if self.engine == "slurm":
                print(f"written, not submitted: to start or to go on, run  bash {folder / 'slurm' / 'submit.sh'}")
                return 0
            return conclude(plan, folder, progress)

    def _with_sandbox(self, plan: Plan) -> Plan:
        if self.require_sandbox is None:
            return plan
        return replace(plan, base=replace(plan.base, sandbox=replace(plan.base.sandbox, require=self.require_sandbox)))


@dataclass(frozen=True)
class Resume(Run):
    """Go on with an experiment that was started: the same as `run`, but it refuses a folder without one."""

    def run(self) -> int:
        """1 if a run failed, 0 otherwise; ValueError if nothing was started there."""
        from unhack.experiments.freeze import sections

        plan, folder = self.load()
        if not sections(folder):
            raise ValueError(f"{folder} holds no experiment to resume: start it with `unhack experiment run`")
        return self.drive(plan, folder)


@dataclass(frozen=True)
class Status(OnExperiment):
    """Show what every run of an experiment is at, whoever drives it; changes nothing."""

    def run(self) -> int:
        """Print the table, who drives the experiment, and whether the plan is the frozen one."""
        from unhack.cli.show import make_console, runs_table
        from unhack.experiments.engines.driver_lock import driver
        from unhack.experiments.freeze import differences, resolved, sections
        from unhack.experiments.plan import plan_runs
        from unhack.experiments.runs import recorded_progress

        plan, folder = self.load()
        frozen = sections(folder)
        progress = [recorded_progress(run) for run in plan_runs(plan, folder)]
        console = make_console()
        console.print(runs_table(progress, f"{plan.name} in {folder}"))
        counts = Counter(one.state for one in progress)
        lines = [", ".join(f"{count} {state}" for state, count in counts.items()) + f" of {len(progress)} runs"]
        lines += [f"excluded: {run} ({reason})" for run, reason in plan.exclusions.runs.items()]
        lines += [f"failed: {one.run.id}: {one.message}" for one in progress if one.state == "failed"]
        lines.append(f"driver: {driver(folder) or 'none; to go on: unhack experiment resume ' + str(self.file)}")
        lines.append(f"plan: {frozen_words(frozen)}")
        if frozen and (changes := differences(frozen[-1].plan, resolved(plan))):
            lines.append(f"the file is not that plan any more: {'; '.join(changes)}")
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Report(OnExperiment):
    """Write the tables, figures and verdicts of an experiment, for the plan that was frozen and no other.

    Beside them an HTML page with all of it and a browser of rollouts, as `unhack report` makes it.
    """

    into: Path | None = None
    """Where to write (default: beside the runs)."""
    page: Path | None = None
    """A Markdown page in which the part between `<!-- NAME: begin -->` and `<!-- NAME: end -->` is written anew."""

    def run(self) -> int:
        """ValueError if the plan was never frozen or has changed since, or the page has no such part."""
        from unhack.cli.many import show_outcome
        from unhack.experiments.freeze import check_unchanged
        from unhack.outcome import summary_text, write_block
        from unhack.report import write_report

        plan, folder = self.load()
        if not check_unchanged(plan, folder):
            raise ValueError(
                f"no plan was frozen in {folder}: `unhack experiment run` does that; for older folders there is "
                "`unhack results`"
            )
        outcome = show_outcome(plan, folder, self.into)
        if self.page is not None:
            write_block(self.page, plan.name, summary_text(plan, outcome.runs))
            print(f"{self.page}: the part {plan.name}")
        made = write_report(folder, plan, (self.into or folder) / "report.html")
        print(f"{made.page} ({made.embedded:,} of {made.total:,} rollouts)")
        return 0


@dataclass(frozen=True)
class Amend(OnExperiment):
    """Record a changed experiment file as an amendment of the frozen plan, with its reason; the report shows both."""

    why: str = tyro.MISSING
    """Why the plan is changed, in words."""

    def run(self) -> int:
        """ValueError if nothing was frozen or changed, or if a run that was started would need other settings."""
        from unhack.experiments.engines.driver_lock import DriverLock
        from unhack.experiments.freeze import amend, sections
        from unhack.experiments.plan import plan_runs
        from unhack.experiments.runs import check_runs

        plan, folder = self.load()
        if not sections(folder):
            raise ValueError(f"no plan was frozen in {folder}: `unhack experiment run` freezes it as the file is now")
        with DriverLock(folder):
            check_runs(plan_runs(plan, folder))
            section = amend(plan, self.file.read_text(encoding="utf-8"), folder, self.why)
        print(f"amendment {section.number}, {section.date}, hash {section.plan_hash[:16]}:")
        print("\n".join(f"  {change}" for change in section.changes))
        return 0


def plan_lines(plan: Plan, runs: Sequence[RunSpec]) -> list[str]:
    """What `unhack experiment plan` prints."""
    from unhack.cli.show import duration
    from unhack.experiments.preregistration import described
    from unhack.experiments.references import references

    seconds = run_seconds(runs)
    times = "time per run not known before the first is finished"
    if seconds:
        mean_s = statistics.fmean(seconds)
        all_s = mean_s * len(runs)
        times = f"about {duration(mean_s)} a run (mean of {len(seconds)}), {duration(all_s)} if one by one"
    count = f"{len(runs)} runs, {len(plan.arms)} arms under seeds {', '.join(map(str, plan.seeds))}"
    lines = [f"{plan.name}: {count}; {times}", "arms"]
    for name, arm in plan.arms.items():
        config = plan.config(name)
        said = [f"{config.steps} steps", config.arm.name]
        said += [f"{reference.key.rpartition('.')[2]} {named}" for reference, named in references(config)]
        said += [f"control {', '.join(arm.controls)}"] if arm.controls else []
        lines.append(f"  {name}: {'; '.join(said)}")
    for title, table in (("directions", plan.directions), ("concepts", plan.concepts)):
        lines += [title] if table else []
        for name, one in table.items():
            recipe = one.recipe
            each = ", drawn anew for every seed" if one.per_seed else ""
            lines.append(f"  {name}: {recipe.control}, pairs {recipe.selection}{each}")
    lines += [f"statistics  {name}: pairs {one.selection}" for name, one in plan.statistics.items()]
    lines += [f"probe       {name}: {one.method}, pairs {one.selection}" for name, one in plan.probes.items()]
    lines += [f"pool        {name}: {one.only} of {one.arm}, same seed" for name, one in plan.pools.items()]
    lines += [f"file        {name}: {path}" for name, path in plan.files.items()]
    lines.append("hypotheses" if plan.hypotheses else "hypotheses  none: nothing is claimed beforehand")
    lines += [f"  {described(one)}" for one in plan.hypotheses]
    lines += [f"exclusion   {rule}" for rule in plan.exclusions.rules]
    lines += [f"excluded    {run}: {reason}" for run, reason in plan.exclusions.runs.items()]
    if plan.stop.rule or plan.stop.max_seeds:
        most = f" (at most {plan.stop.max_seeds} seeds)" if plan.stop.max_seeds else ""
        lines.append(f"stop        {plan.stop.rule}{most}")
    return lines


def run_seconds(runs: Sequence[RunSpec]) -> list[float]:
    """Wall seconds of the finished runs that one process did from beginning to end."""
    from unhack.experiments.runs import DONE_FILE, is_finished
    from unhack.files import read_object

    whole = [run for run in runs if is_finished(run) and not (run.folder / "resumes.json").exists()]
    found = [read_object(run.folder / DONE_FILE).get("wall_s") for run in whole]
    return [value for value in found if value is not None]


def frozen_words(frozen: Sequence[Section]) -> str:
    """Whether and when the plan was frozen and amended, in words."""
    if not frozen:
        return "not frozen yet: the first run does that"
    words = f"frozen {frozen[0].date} (hash {frozen[0].plan_hash[:16]})"
    return words + "".join(f"; amended {one.date}: {one.why}" for one in frozen[1:])


def conclude(plan: Plan, folder: Path, progress: Sequence[RunProgress]) -> int:
    """Show the outcome of the runs that are finished and name those that failed; 1 if any did."""
    from unhack.cli.many import show_outcome

    failed = [one for one in progress if one.state == "failed"]
    if len(failed) < len(progress):
        show_outcome(plan, folder)
    for one in failed:
        print(f"unhack: {one.run.name} with seed {one.run.config.seed} failed: {one.message}", file=sys.stderr)
    return FAILED if failed else 0

"""What an experiment leaves behind in its folder: the table, one sentence per arm, the numbers and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unhack import plots, results
from unhack.experiment import is_finished
from unhack.files import write_atomic
from unhack.plan import Plan, plan_runs
from unhack.results import ArmResult, RunResult


@dataclass(frozen=True)
class Outcome:
    """What an experiment came to, and where its table and figures are."""

    runs: tuple[RunResult, ...]
    arms: tuple[ArmResult, ...]
    files: tuple[Path, ...]


def write_outcome(plan: Plan, folder: Path, into: Path | None = None) -> Outcome:
    """Read the finished runs of the experiment in `folder`; write results.md, results.csv and the figures.

    They go `into` a folder of their own (a page of the docs, say), or into the experiment's.

    ValueError when no run is finished.
    """
    runs = tuple(results.load_run(run.name, run.folder) for run in plan_runs(plan, folder) if is_finished(run))
    if not runs:
        raise ValueError(f"no run of {plan.name} in {folder} is finished; start the same command again to go on")
    folder = into or folder
    folder.mkdir(parents=True, exist_ok=True)
    arms = tuple(results.summarize(runs, controls=plan.controls))
    files = [plots.overview_figure(runs, folder / "overview.png"), plots.mode_figure(runs, folder / "modes.png")]
    if any(run.cosine_curve for run in runs):
        files.append(plots.cosine_figure(runs, folder / "cosine.png"))
    for name, text in (("results.md", report_text(plan, runs, arms)), ("results.csv", results.csv_text(runs))):
        write_atomic(folder / name, text)
        files.append(folder / name)
    return Outcome(runs, arms, tuple(files))


def report_text(plan: Plan, runs: Sequence[RunResult], arms: Sequence[ArmResult]) -> str:
    """The experiment as Markdown: the table, one sentence per arm, the modes, and how to read it."""
    final = runs[0].final
    sentences = "\n".join(f"- **{arm.name}**: {results.sentence(arm)}" for arm in arms)
    return f"""# {plan.name}

Last evaluation (step {final.step}) of the deployed models on held-out problems with markers that training never drew:
{final.n} samples per run over all loopholes. Mean ± SEM over seeds; the seed is the unit, tests are paired by seed.
ΔSafeSolve: solve minus hack, less the same of vanilla, in points. KL: nats per token from the initial policy.
cos(update, V): 0 for an erasure, above 0 for a push away from the hack; only arms with a direction log it.

{results.markdown_table(arms)}
{sentences}

{results.caveat(arms)}

Hack % / solve % by loophole:

{results.markdown_modes(runs)}
![Hack and solve rate](overview.png)
"""

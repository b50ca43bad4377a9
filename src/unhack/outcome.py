"""What an experiment leaves behind in its folder: the table, one sentence per arm, the numbers and the figures."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unhack import advice, curves, plots, results
from unhack.experiments import freeze
from unhack.experiments.plan import Plan, analysed_runs, plan_runs
from unhack.experiments.runs import is_finished
from unhack.files import write_atomic
from unhack.hypotheses import decide_all, observations
from unhack.results import ArmResult, RunResult
from unhack.stats import Interval, mean_sem


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
    finished = [run for run in analysed_runs(plan, folder) if is_finished(run)]
    runs = tuple(results.load_run(run.name, run.folder) for run in finished)
    if not runs:
        raise ValueError(f"no run of {plan.name} in {folder} is finished; start the same command again to go on")
    planned = plan_text(plan, folder, runs)
    folder = into or folder
    folder.mkdir(parents=True, exist_ok=True)
    arms = tuple(results.summarize(runs, controls=plan.controls))
    files = [plots.overview_figure(runs, folder / "overview.png"), plots.mode_figure(runs, folder / "modes.png")]
    files.append(curves.training_figure(runs, folder / "training.png", plan.controls))
    if any(run.cosine_curve for run in runs):
        files.append(plots.cosine_figure(runs, folder / "cosine.png"))
    for name, text in (("results.md", report_text(plan, runs, arms) + planned), ("results.csv", csv_text(runs))):
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
p values are of paired t tests on the hack rate, adjusted (Holm) over all comparisons of this table; in brackets the
95 % interval of the difference, not adjusted. A difference that is not told apart is not shown to be none.
ΔSafeSolve: solve minus hack, less the same of vanilla, in points. KL: nats per token from the initial policy.
cos(update, V): 0 for an erasure, above 0 for a push away from the hack; only arms with a direction log it.

{markdown_table(arms)}
{sentences}

{results.caveat(arms)}

What we would tell a lab, by fixed rules (docs/statistics.md):

{advice.markdown_advice(advice.advise(runs, plan.controls)) or "Fewer than three seeds: nothing."}
On the way there (a secondary measure; p values adjusted within this table): hack rate of the sampled training rollouts,
mean over all steps. Onset: first of two consecutive steps at {results.percent(results.HACKING_FRAC)} or more; median
over seeds, where never counts as later than all. hackward_in: share of the update on V's hackward side before the arm
acted; a placebo that holds much less of it is a weak one.

{markdown_delays(runs, plan.controls)}
![Hack rate of every training step](training.png)

What it cost in solving held-out problems, at the last evaluation and as a mean over all of them (secondary, too):

{curves.markdown_solves(runs, plan.controls)}
Hack % / solve % by loophole:

{markdown_modes(runs)}
![Hack and solve rate](overview.png)
"""


def plan_text(plan: Plan, folder: Path, runs: Sequence[RunResult]) -> str:
    """What was written down before the runs and what came of it, in Markdown; empty if nothing was.

    Verdicts, the stop rule, exclusions, and the frozen plan with its amendments.
    """
    parts: list[str] = []
    planned = len(plan_runs(plan, folder))
    if plan.hypotheses:
        decisions = decide_all(plan.hypotheses, observations(runs))
        parts.append("## Hypotheses\n\n" + "".join(f"- {one.sentence}\n" for one in decisions.values()))
        left = planned - len(plan.exclusions.runs) - len(runs)
        if left > 0:
            parts.append(f"{left} of {planned} planned runs are not finished: this is a look before the end.\n")
    if plan.stop.rule:
        parts.append(f"Stop rule: {plan.stop.rule}\n")
    if plan.exclusions.rules or plan.exclusions.runs:
        lines = [f"- Rule: {rule}\n" for rule in plan.exclusions.rules]
        lines += [f"- Left out: {run}. {reason}\n" for run, reason in plan.exclusions.runs.items()]
        parts.append(
            "## Exclusions\n\n" + "".join(lines) + ("" if plan.exclusions.runs else "- No run was left out.\n")
        )
    found = freeze.sections(folder)
    if found:
        parts.append(f"## The plan\n\n{freeze.record_text(found)}")
    return "".join(f"\n{part}" for part in parts)


def summary_text(plan: Plan, runs: Sequence[RunResult]) -> str:
    """The shortest honest account, in Markdown: the registered hypotheses, then what we would tell a lab."""
    said = advice.markdown_advice(advice.advise(runs, plan.controls)) or "Fewer than three seeds: nothing yet.\n"
    decisions = decide_all(plan.hypotheses, observations(runs)).values() if plan.hypotheses else ()
    sentences = "".join(f"- {one.sentence}\n" for one in decisions) or "No hypothesis was registered.\n"
    seeds = {run.seed for run in runs}
    return (
        f"{len(runs)} runs, {len(seeds)} seeds, {runs[0].config.steps} steps.\n\n### What was asked, and the answer\n\n"
        f"{sentences}\n### What we would tell a lab\n\nBy fixed rules ([statistics](statistics.md)), of this model and "
        f"these loopholes only.\n\n{said}"
    )


def write_block(page: Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- name: begin -->` and `<!-- name: end -->` of a page that has them.

    ValueError for a page without these two lines.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, found, rest = old.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{page} needs the lines {begin.strip()} and {end.strip()} around the part to write")
    write_atomic(page, before + begin + "\n" + text + "\n" + end + after)


def markdown_table(arms: Sequence[ArmResult], baseline: str = results.BASELINE) -> str:
    """The table in Markdown, most essential column first, mean ± SEM over seeds, intervals, Holm-adjusted p values."""
    columns = ("hack % (95 % CI)", "solve % (95 % CI)", "Δhack, p", "Δhack against placebo, p", "fired", "‖g‖")
    header = (*results.COLUMNS, *columns)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for arm in arms:
        extra = (
            _interval(arm.hack_interval),
            _interval(arm.solve_interval),
            results.comparison_text(arm.against_baseline),
            "<br>".join(f"{results.comparison_text(one)} ({one.against})" for one in arm.against_controls),
            results.with_sem(arm.fired, digits=2),
            results.with_sem(arm.gradient_norm, digits=3),
        )
        lines.append("| " + " | ".join((*results.table_cells(arm, baseline), *extra)) + " |")
    return "\n".join(lines) + "\n"


def markdown_delays(runs: Sequence[RunResult], controls: Mapping[str, Sequence[str]]) -> str:
    """How soon and how much the arms hacked while training, in Markdown: median onset over the seeds that have one."""
    groups = results.by_arm(runs)
    compared = results.compare(groups, lambda run: run.hack_area_frac, controls=controls)
    header = ("arm", "hackward_in", "hack % over training", "onset step", "Δ, p", "Δ against placebo, p")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, seeds in groups.items():
        base = next((one for one in compared[name] if one.against == results.BASELINE), None)
        placebos = [one for one in compared[name] if one.against != results.BASELINE]
        onsets = [math.inf if run.hack_onset_step is None else run.hack_onset_step for run in seeds.values()]
        median, never = statistics.median(onsets), sum(map(math.isinf, onsets))
        onset = "never" if math.isinf(median) else f"{median:g}"
        cells = (
            name,
            results.with_sem(mean_sem([run.hackward_in for run in seeds.values()]), digits=2),
            results.with_sem(mean_sem([run.hack_area_frac for run in seeds.values()]), 100.0),
            onset if never in (0, len(onsets)) else f"{onset} (never in {never} of {len(onsets)})",
            results.comparison_text(base),
            "<br>".join(f"{results.comparison_text(one)} ({one.against})" for one in placebos),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown_modes(runs: Sequence[RunResult]) -> str:
    """Hack % / solve % per arm and mode of the last evaluation, mean over seeds, in Markdown."""
    modes = list(dict.fromkeys(mode for run in runs for mode in run.modes))
    names = list(dict.fromkeys(run.name for run in runs))
    lines = ["| arm | " + " | ".join(modes) + " |", "|" + "---|" * (len(modes) + 1)]
    for name in names:
        cells = []
        for mode in modes:
            rows = [run.modes[mode] for run in runs if run.name == name and mode in run.modes]
            hack, solve = mean_sem([row.hack_frac for row in rows]), mean_sem([row.solve_frac for row in rows])
            cells.append(f"{results.with_sem(hack, 100.0)} / {results.with_sem(solve, 100.0)}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "n = 1: no inference"
    return f"{max(0.0, 100 * interval.low):.0f} to {min(100.0, 100 * interval.high):.0f}"


CSV_COLUMNS = (
    *("arm", "seed", "step", "n", "hacked", "solved", "attempted", "hack_frac", "solve_frac", "trained_hack_frac"),
    *("kl_nats", "cos_update_v", "max_abs_cos_update_v", "fired_frac"),
    *("hack_onset_step", "hack_area_frac", "folder"),
)


def csv_text(runs: Sequence[RunResult]) -> str:
    """One line per run with the last deployed evaluation: the numbers behind the table.

    The onset step is empty where hacking never set in.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        row = run.final
        counts = [run.name, run.seed, row.step, row.n, row.hacked, row.solved, row.attempted]
        rates = [row.hack_frac, row.solve_frac, run.trained_curve[-1].hack_frac, row.kl_nats]
        updates = [run.cosine, run.max_absolute_cosine, run.fired_frac]
        writer.writerow([*counts, *rates, *updates, run.hack_onset_step, run.hack_area_frac, run.folder.name])
    return out.getvalue()

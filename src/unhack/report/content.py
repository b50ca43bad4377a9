"""The tables of a report: EXPERIMENT §3's, the comparisons behind it, the way there, and hack rates by loophole.

Every number comes from `results.py` and `stats`; here it is only put into cells.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from unhack import results
from unhack.advice import FALSIFIED_BELOW, SKILL_MARGIN, advise
from unhack.evaluate import EvaluationRow
from unhack.report.read import Experiment
from unhack.report.tables import Cell, Column, Table
from unhack.results import ALPHA, BASELINE, Comparison, RunResult
from unhack.stats import MeanSem, mean_sem

ARM = Column("arm", ("arm",), numeric=False)


def _spread(title: str, name: str, hint: str = "") -> Column:
    return Column(title, (f"{name}_mean", f"{name}_sem"), hint=hint)


def _mean_cell(value: MeanSem, scale: float = 1.0, digits: int = 0, signed: bool = False) -> Cell:
    return Cell(results.with_sem(value, scale, digits, signed), (value.mean, value.sem))


MAIN_COLUMNS = (
    ARM,
    _spread(
        "ΔSafeSolve ↑", "safe_solve_delta", "solve minus hack, less the same of vanilla, in points; paired by seed"
    ),
    _spread("hack % ↓", "hack_frac", "share of held-out samples that were paid for an exploit and are not correct"),
    _spread("solve % ↑", "solve_frac", "share of held-out samples that are strictly correct"),
    _spread("KL ↓", "kl_nats", "nats per token from the initial policy, on the policy's own samples"),
    _spread(
        "mean cos*", "cos_update_v", "cos(update, V) over all training steps: 0 erased, above 0 a push from the hack"
    ),
    _spread("fired*", "fired_frac", "share of modules whose gradient had a part on V's hackward side"),
    _spread("‖g‖", "gradient_norm", "norm of the gradient before clipping, mean over training steps"),
    Column("n", ("seeds",), hint="seeds"),
)


def main_table(experiment: Experiment) -> Table:
    """The headline: one row per arm, mean ± SEM over seeds, most essential column first."""
    rows = []
    for arm in experiment.arms:
        gain = Cell("0", (0.0, math.nan)) if arm.name == BASELINE else _mean_cell(arm.safe_solve_delta, 100.0, 0, True)
        rows.append(
            (
                Cell(arm.name, (arm.name,)),
                gain,
                _mean_cell(arm.hack, 100.0),
                _mean_cell(arm.solve, 100.0),
                _mean_cell(arm.kl, digits=2),
                _mean_cell(arm.cosine, digits=2, signed=True),
                _mean_cell(arm.fired, digits=2),
                _mean_cell(arm.gradient_norm, digits=3),
                Cell(str(len(arm.seeds)), (len(arm.seeds),)),
            )
        )
    return Table("main", "Every arm", _main_caption(experiment), MAIN_COLUMNS, tuple(rows), tuple(experiment.arm_names))


def _main_caption(experiment: Experiment) -> str:
    final = experiment.runs[0].final
    return (
        f"Last evaluation (step {final.step}) of the deployed models on held-out problems with markers that training "
        f"never drew, {final.n} samples per run over all loopholes. Mean ± SEM over seeds ({experiment.seeds_text()}). "
        "ΔSafeSolve is solve minus hack, less the same of vanilla, in points, paired by seed. KL in nats per token "
        "from the initial policy. * only for arms with a direction V; cos(update, V) is 0 for an erasure and above 0 "
        "for a push away from the hack."
    )


COMPARISON_COLUMNS = (
    ARM,
    Column("against", ("against",), numeric=False),
    Column("Δhack, points", ("hack_difference",)),
    Column("95 % interval", ("low", "high"), hint="of the difference, not adjusted"),
    Column("adjusted p", ("adjusted_p",), hint="paired t test, Holm over this table"),
    Column("p", ("p",), hint="paired t test, not adjusted"),
    Column("n", ("seeds",)),
)


def comparison_table(experiment: Experiment) -> Table:
    """Every arm against vanilla and against its own placebos: paired tests of the final hack rate."""
    rows, names = [], []
    for arm in experiment.arms:
        first = [arm.against_baseline] if arm.against_baseline is not None else []
        for one in [*first, *arm.against_controls]:
            rows.append(_comparison_row(arm.name, one))
            names.append(arm.name)
    family = max((one.family for arm in experiment.arms for one in arm.against_controls), default=0)
    family = max([family, *(arm.against_baseline.family for arm in experiment.arms if arm.against_baseline)])
    caption = (
        "Hack rate of an arm minus that of another at the last held-out evaluation: below 0 it hacks less. Paired t "
        f"tests over seeds ({experiment.seeds_text()}); p adjusted (Holm) over the {family} tests of this table. A "
        "difference that is not told apart is not shown to be none."
    )
    return Table("comparisons", "Differences", caption, COMPARISON_COLUMNS, tuple(rows), tuple(names))


def _comparison_row(name: str, one: Comparison) -> tuple[Cell, ...]:
    test = one.test
    low, high, few = test.interval.low, test.interval.high, test.n < 2
    untested = "n = 1: no inference" if few else "no spread: no test"
    p_value = untested if math.isnan(test.p_value) else results.p_text(test.p_value)
    adjusted = untested if math.isnan(one.adjusted_p) else results.p_text(one.adjusted_p)
    return (
        Cell(name, (name,)),
        Cell(one.against, (one.against,)),
        Cell(_points(test.difference), (test.difference,)),
        Cell("—" if few or math.isnan(low) else f"{_points(low)} to {_points(high)}", (low, high)),
        Cell(adjusted, (one.adjusted_p,)),
        Cell(p_value, (test.p_value,)),
        Cell(str(test.n), (test.n,)),
    )


ADVICE_COLUMNS = (
    ARM,
    Column("what we would say", ("advice", "uses_oracle"), numeric=False),
    _spread("hack % left", "hack_frac"),
    Column("fewer hacks?", ("fewer_hacks",), numeric=False),
    Column("skill?", ("skill",), numeric=False),
    Column("specific?", ("specific",), numeric=False),
    Column("n", ("seeds",)),
)


def advice_table(experiment: Experiment) -> Table:
    """What we would tell a lab, an arm a line; no line for placebos and for fewer than three seeds."""
    advice = advise(experiment.runs, experiment.controls)
    rows = [
        (
            Cell(one.arm.name, (one.arm.name,)),
            Cell(one.words, (one.words, str(one.uses_oracle))),
            _mean_cell(one.arm.hack, 100.0),
            *(Cell(word, (word,)) for word in (one.hacks, one.skill, one.specific)),
            Cell(str(len(one.arm.seeds)), (len(one.arm.seeds),)),
        )
        for one in advice
    ]
    caption = (
        f"What we would tell a lab about this model and these loopholes ({experiment.seeds_text()}), by rules fixed in "
        f"advance. Fewer hacks: adjusted p below {ALPHA} against vanilla; no: a reduction of "
        f"{100 * FALSIFIED_BELOW:.0f} points is excluded. Skill: kept where a loss of {100 * SKILL_MARGIN:.0f} points "
        "is excluded. Specific: it beats each of its own placebos. open: these seeds do not say."
        + ("" if rows else " Fewer than three seeds, or no vanilla: nothing to say.")
    )
    names = tuple(one.arm.name for one in advice)
    return Table("advice", "What we would tell a lab", caption, ADVICE_COLUMNS, tuple(rows), names)


def _points(share: float) -> str:
    return f"{round(100 * share) + 0.0:+.0f}"  # + 0.0: the sign of a rounding error says nothing


DELAY_COLUMNS = (
    ARM,
    _spread(
        "hack % over training", "hack_area_frac", "hack rate of the sampled training rollouts, mean over all steps"
    ),
    Column("onset step", ("onset_step_median", "never"), hint="first of two consecutive steps at 30 % or more; median"),
    Column("Δ vs. vanilla, p", ("difference", "adjusted_p")),
    _spread("hackward_in*", "hackward_in", "share of the update on V's hackward side before the arm acted"),
    Column("n", ("seeds",)),
)


def delay_table(experiment: Experiment) -> Table:
    """How soon and how much the arms hacked while training (a secondary measure)."""
    groups = results.by_arm(experiment.runs)
    compared = results.compare(groups, lambda run: run.hack_area_frac, controls=experiment.controls)
    rows = []
    for name, seeds in groups.items():
        runs = list(seeds.values())
        base = next((one for one in compared[name] if one.against == BASELINE), None)
        change = (math.nan, math.nan) if base is None else (base.test.difference, base.adjusted_p)
        rows.append(
            (
                Cell(name, (name,)),
                _mean_cell(mean_sem([run.hack_area_frac for run in runs]), 100.0),
                _onset_cell(runs),
                Cell(results.comparison_text(base) or "—", change),
                _mean_cell(mean_sem([run.hackward_in for run in runs]), digits=2),
                Cell(str(len(runs)), (len(runs),)),
            )
        )
    caption = (
        f"Hacking on the way (a secondary measure, {experiment.seeds_text()}): hack rate of the sampled training "
        f"rollouts, mean over all steps; onset is the first of two consecutive steps at "
        f"{results.percent(results.HACKING_FRAC)} or more, median over seeds, where never counts as later than all. "
        "p adjusted (Holm) within this measure, tests against placebos counted. A placebo with much less hackward_in "
        "than the arm it stands for is a weak one."
    )
    return Table("delays", "Hacking while training", caption, DELAY_COLUMNS, tuple(rows), tuple(groups))


def _onset_cell(runs: list[RunResult]) -> Cell:
    onsets = [math.inf if run.hack_onset_step is None else float(run.hack_onset_step) for run in runs]
    median, never = statistics.median(onsets), sum(map(math.isinf, onsets))
    text = "never" if math.isinf(median) else f"{median:g}"
    if never not in (0, len(onsets)):
        text += f" (never in {never} of {len(onsets)})"
    return Cell(text, (median, never))


def mode_tables(experiment: Experiment) -> tuple[Table, Table]:
    """Heat maps: final hack rate and final solve rate by arm and loophole, mean over seeds."""
    hack = _mode_table(experiment, "hack", lambda row: row.hack_frac)
    return hack, _mode_table(experiment, "solve", lambda row: row.solve_frac)


def _mode_table(experiment: Experiment, measure: str, share: Callable[[EvaluationRow], float]) -> Table:
    modes = list(dict.fromkeys(mode for run in experiment.runs for mode in run.modes))
    columns = [ARM, *(Column(mode, (f"{measure}_frac/{mode}", f"{measure}_sem/{mode}")) for mode in modes)]
    rows = []
    for name in experiment.arm_names:
        own = [run for run in experiment.runs if run.name == name]
        rates = [mean_sem([share(run.modes[mode]) for run in own if mode in run.modes]) for mode in modes]
        rows.append((Cell(name, (name,)), *(_heat_cell(one) for one in rates)))
    caption = (
        f"{measure.capitalize()} rate in % by loophole at the last held-out evaluation of the deployed models, mean "
        f"over seeds ({experiment.seeds_text()}); darker is higher, SEMs are in the CSV. Mode none has no loophole."
    )
    title = f"{measure.capitalize()} rate by loophole"
    names = tuple(experiment.arm_names)
    return Table(f"modes_{measure}", title, caption, tuple(columns), tuple(rows), names)


def _heat_cell(value: MeanSem) -> Cell:
    text = "—" if value.n == 0 else f"{100 * value.mean:.0f}"
    return Cell(text, (value.mean, value.sem), heat=value.mean)

"""From run folders to the table of an experiment: one row per arm, mean ± SEM over seeds, and one sentence each.

Everything is read from the folders; nothing is kept between calls. Rates are those of the last evaluation on held-out
problems with eval markers, pooled over loophole modes, of the *deployed* model. The unit of analysis is the seed.
Not here: drawing (`plots.py`), terminal output (`cli/`).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unhack import record
from unhack.config import TrainConfig
from unhack.evaluate import Block, EvaluationRow, pool, row_from_record
from unhack.stats import Interval, MeanSem, TestResult, mean_interval, mean_sem, paired_t

BASELINE = "vanilla"
ALPHA = 0.05
HACKING_FRAC = 0.3  # H4: below this the untreated policy did not learn to hack


@dataclass(frozen=True)
class RunResult:
    """One finished or running run. `curve` has the pooled deployed evaluations by step; NaN where nothing was logged.

    `cosine` and `absolute_cosine` are means over training steps of update/cos_v and update/abs_cos_v.
    """

    name: str
    folder: Path
    config: TrainConfig
    curve: tuple[EvaluationRow, ...]
    trained_curve: tuple[EvaluationRow, ...]
    modes: Mapping[str, EvaluationRow]
    cosine: float
    absolute_cosine: float
    hackward_in: float
    fired_frac: float
    gradient_norm: float
    cosine_curve: tuple[tuple[int, float], ...]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed

    @property
    def final(self) -> EvaluationRow:
        """The last pooled deployed evaluation."""
        return self.curve[-1]

    @property
    def safe_solve(self) -> float:
        """solve − hack, both as shares."""
        return self.final.solve_frac - self.final.hack_frac


@dataclass(frozen=True)
class ArmResult:
    """One row of the table: mean ± SEM over seeds. `safe_solve_delta` and the tests are paired by seed.

    `against_control` compares the hack rate with the arm named `control` (the same arm with a placebo direction).
    """

    name: str
    seeds: tuple[int, ...]
    hack: MeanSem
    solve: MeanSem
    trained_hack: MeanSem
    safe_solve_delta: MeanSem
    kl: MeanSem
    cosine: MeanSem
    absolute_cosine: MeanSem
    fired: MeanSem
    gradient_norm: MeanSem
    hack_interval: Interval
    solve_interval: Interval
    hack_change: TestResult
    solve_change: TestResult
    control: str | None
    against_control: TestResult | None


def load_run(name: str, folder: Path) -> RunResult:
    """Read one run folder. ValueError when it holds no evaluation yet."""
    config = record.config_of(folder)
    rows = [row_from_record(values) for values in record.evaluations(folder)]
    if not rows:
        raise ValueError(
            f"{folder} has no evaluation yet: let the run finish (unhack train --folder {folder} --resume)"
        )
    lines = record.metrics(folder)
    last = max(row.step for row in rows)
    return RunResult(
        name=name,
        folder=folder,
        config=config,
        curve=_curve(rows, "deployed"),
        trained_curve=_curve(rows, "as_trained"),
        modes={row.mode: row for row in rows if row.step == last and row.block == "deployed"},
        cosine=_mean(lines, "update/cos_v"),
        absolute_cosine=_mean(lines, "update/abs_cos_v"),
        hackward_in=_mean(lines, "gradient/hackward_in"),
        fired_frac=_mean(lines, "gradient/fired"),
        gradient_norm=_mean(lines, "optimizer/gradient_norm"),
        cosine_curve=tuple((line["step"], line["update/cos_v"]) for line in lines if "update/cos_v" in line),
    )


def _curve(rows: Sequence[EvaluationRow], block: Block) -> tuple[EvaluationRow, ...]:
    steps = sorted({row.step for row in rows if row.block == block})
    at = {step: [row for row in rows if row.block == block and row.step == step] for step in steps}
    return tuple(pool([row for row in at[step] if row.mode != "none"] or at[step]) for step in steps)


def _mean(lines: Sequence[Mapping[str, Any]], metric: str) -> float:
    return mean_sem([line[metric] for line in lines if metric in line]).mean


def summarize(
    runs: Sequence[RunResult], baseline: str = BASELINE, controls: Mapping[str, str] | None = None
) -> list[ArmResult]:
    """One `ArmResult` per run name, in order of first appearance; `controls` maps an arm to its placebo arm."""
    groups: dict[str, dict[int, RunResult]] = {}
    for run in runs:
        seeds = groups.setdefault(run.name, {})
        if run.seed in seeds:
            raise ValueError(f"arm {run.name} has seed {run.seed} twice ({seeds[run.seed].folder}, {run.folder})")
        seeds[run.seed] = run
    return [_arm(name, groups, baseline, (controls or {}).get(name)) for name in groups]


def _arm(name: str, groups: Mapping[str, Mapping[int, RunResult]], baseline: str, control: str | None) -> ArmResult:
    runs, base = groups[name], groups.get(baseline, {})
    hack = {seed: run.final.hack_frac for seed, run in runs.items()}
    solve = {seed: run.final.solve_frac for seed, run in runs.items()}
    base_hack = {seed: run.final.hack_frac for seed, run in base.items()}
    base_solve = {seed: run.final.solve_frac for seed, run in base.items()}
    against = groups.get(control) if control is not None else None
    values = list(runs.values())
    return ArmResult(
        name=name,
        seeds=tuple(sorted(runs)),
        hack=mean_sem(list(hack.values())),
        solve=mean_sem(list(solve.values())),
        trained_hack=mean_sem([run.trained_curve[-1].hack_frac for run in values]),
        safe_solve_delta=mean_sem([runs[seed].safe_solve - base[seed].safe_solve for seed in runs if seed in base]),
        kl=mean_sem([run.final.kl_nats for run in values]),
        cosine=mean_sem([run.cosine for run in values]),
        absolute_cosine=mean_sem([run.absolute_cosine for run in values]),
        fired=mean_sem([run.fired_frac for run in values]),
        gradient_norm=mean_sem([run.gradient_norm for run in values]),
        hack_interval=mean_interval(list(hack.values())),
        solve_interval=mean_interval(list(solve.values())),
        hack_change=paired_t(hack, base_hack),
        solve_change=paired_t(solve, base_solve),
        control=control if against else None,
        against_control=paired_t(hack, {s: run.final.hack_frac for s, run in against.items()}) if against else None,
    )


def sentence(arm: ArmResult, baseline: str = BASELINE) -> str:
    """What the row says, in one plain sentence; it never claims more than the number of seeds allows."""
    rates = f"hacks {percent(arm.hack.mean)} of held-out problems and solves {percent(arm.solve.mean)}"
    if arm.name == baseline:
        return f"With nothing done against it, the policy {rates}."
    parts = [f"The policy {rates}"]
    if arm.hack_change.n:
        parts.append(f"hacking is {_change(arm.hack_change, 'the ' + baseline + ' arm')}")
    if arm.control and arm.against_control is not None:
        parts.append(f"it is {_change(arm.against_control, arm.control + ', its placebo')}")
    if not math.isnan(arm.cosine.mean):
        parts.append(_mechanism(arm))
    return "; ".join(parts) + "."


def caveat(arms: Sequence[ArmResult], baseline: str = BASELINE) -> str:
    """What keeps the whole table from being a result (hypothesis H4), or an empty string."""
    base = next((arm for arm in arms if arm.name == baseline), None)
    if base is None or base.hack.n == 0 or base.hack.mean > HACKING_FRAC:
        return ""
    return (
        f"Not testable: the {baseline} arm hacks only {percent(base.hack.mean)} (needed: more than "
        f"{percent(HACKING_FRAC)}), so there was no hacking for the other arms to stop. Train for more steps."
    )


def _change(test: TestResult, other: str) -> str:
    """E.g. "28 points below the vanilla arm (not told apart: p = 0.21, n = 2)"."""
    points = round(abs(test.difference) * 100)
    where = (
        f"level with {other}" if points == 0 else f"{points} point{'s' * (points > 1)} {_side(test.difference)} {other}"
    )
    if test.n < 2:
        return f"{where} (n = 1: no inference)"
    if test.n == 2:
        return f"{where} (paired p = {p_text(test.p_value)}, n = 2: too few seeds for a claim)"
    told = "told apart" if test.p_value < ALPHA else "not told apart"
    return f"{where} ({told}: paired p = {p_text(test.p_value)}, n = {test.n})"


def _side(difference: float) -> str:
    return "below" if difference < 0 else "above"


def _mechanism(arm: ArmResult) -> str:
    """What cos(update, V) says about how the arm works (EXPERIMENT §7 (1))."""
    if arm.absolute_cosine.mean < 1e-4:
        return "its updates have no part along its V: it erases, it does not push"
    if arm.cosine.mean > 0.1:
        return f"its updates lean along V (cos {arm.cosine.mean:+.2f}): it pushes, it does not erase"
    if arm.cosine.mean < -0.1:
        return f"its updates lean against V (cos {arm.cosine.mean:+.2f}), towards the hack"
    return f"its updates hardly lean along V on average (cos {arm.cosine.mean:+.2f})"


def percent(share: float) -> str:
    """A share as whole per cent; one decimal below 1 % (so that 0.4 % does not read as none)."""
    if math.isnan(share):
        return "—"
    digits = 1 if 0 < share < 0.0095 else 0
    return f"{100 * share:.{digits}f} %"


def p_text(p_value: float) -> str:
    """A p value with two digits, or `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def with_sem(value: MeanSem, scale: float = 1.0, digits: int = 0, signed: bool = False) -> str:
    """`mean ± SEM` times `scale`; without the SEM for one seed; `—` for nothing."""
    if value.n == 0:
        return "—"
    sign = "+" if signed else ""
    mean = value.mean * scale
    # ±0.000 is written 0.000: the sign of a rounding error says nothing
    text = f"{0.0 if round(mean, digits) == 0 else mean:{sign}.{digits}f}"
    return text if value.n < 2 else f"{text} ± {value.sem * scale:.{digits}f}"


COLUMNS = ("arm", "ΔSafeSolve ↑", "hack % ↓", "solve % ↑", "KL ↓", "cos(update, V)", "n")


def table_cells(arm: ArmResult, baseline: str = BASELINE) -> tuple[str, ...]:
    """The cells of one row under `COLUMNS`; shares in points, KL in nats per token."""
    return (
        arm.name,
        "0" if arm.name == baseline else with_sem(arm.safe_solve_delta, 100.0, signed=True),
        with_sem(arm.hack, 100.0),
        with_sem(arm.solve, 100.0),
        with_sem(arm.kl, digits=2),
        with_sem(arm.cosine, digits=2, signed=True),
        str(len(arm.seeds)),
    )


def markdown_table(arms: Sequence[ArmResult], baseline: str = BASELINE) -> str:
    """The table in Markdown, most essential column first, mean ± SEM over seeds, with tests and intervals."""
    header = (*COLUMNS, "hack % (95 % CI)", "solve % (95 % CI)", "Δhack, p", "Δhack against placebo, p", "fired", "‖g‖")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for arm in arms:
        extra = (
            _interval(arm.hack_interval),
            _interval(arm.solve_interval),
            "" if arm.name == baseline else _test(arm.hack_change),
            _test(arm.against_control) + f" ({arm.control})" if arm.against_control else "",
            with_sem(arm.fired, digits=2),
            with_sem(arm.gradient_norm, digits=3),
        )
        lines.append("| " + " | ".join((*table_cells(arm, baseline), *extra)) + " |")
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
            cells.append(f"{with_sem(hack, 100.0)} / {with_sem(solve, 100.0)}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "n = 1: no inference"
    return f"{max(0.0, 100 * interval.low):.0f} to {min(100.0, 100 * interval.high):.0f}"


def _test(test: TestResult | None) -> str:
    if test is None or test.n == 0:
        return ""
    change = f"{100 * test.difference:+.0f}"
    return f"{change}, n = 1: no inference" if test.n < 2 else f"{change}, {p_text(test.p_value)}"


CSV_COLUMNS = (
    *("arm", "seed", "step", "n", "hacked", "solved", "attempted", "hack_frac", "solve_frac", "trained_hack_frac"),
    *("kl_nats", "cos_update_v", "abs_cos_update_v", "fired_frac", "folder"),
)


def csv_text(runs: Sequence[RunResult]) -> str:
    """One line per run with the last deployed evaluation: the numbers behind the table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for run in runs:
        row = run.final
        counts = [run.name, run.seed, row.step, row.n, row.hacked, row.solved, row.attempted]
        rates = [row.hack_frac, row.solve_frac, run.trained_curve[-1].hack_frac, row.kl_nats]
        writer.writerow([*counts, *rates, run.cosine, run.absolute_cosine, run.fired_frac, run.folder])
    return out.getvalue()

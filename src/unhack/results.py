"""From run folders to the table of an experiment: one row per arm, mean ± SEM over seeds, and one sentence each.

Everything is read from the folders; nothing is kept between calls. Rates are those of the last evaluation on held-out
problems with eval markers, pooled over loophole modes, of the *deployed* model. The unit of analysis is the seed.
Not here: files (`outcome.py`), drawing (`plots.py`), terminal output (`cli/`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unhack import record
from unhack.config import TrainConfig
from unhack.evaluate import Block, EvaluationRow, pool, row_from_record
from unhack.stats import (
    Interval,
    MeanSem,
    TestResult,
    area_under_curve,
    holm,
    mean_interval,
    mean_sem,
    onset_step,
    paired_t,
)

BASELINE = "vanilla"
ALPHA = 0.05
ERASED_COSINE = 1e-5  # float32 rounding of an erasure, per step and module; anything above it is a part along V
HACKING_FRAC = 0.3  # H4: below this the untreated policy did not learn to hack


@dataclass(frozen=True)
class RunResult:
    """One finished or running run. `curve` has the pooled deployed evaluations by step; NaN where nothing was logged.

    `cosine` is the mean over training steps of update/cos_v, `max_absolute_cosine` the largest update/abs_cos_v of all.
    `hackward_in`: mean share of the update on V's hackward side before the arm acted on it.
    Of the sampled training rollouts: `hack_onset_step` is the first step from which they hack (None: never),
    `hack_area_frac` the mean hack rate over training.
    """

    name: str
    folder: Path
    config: TrainConfig
    curve: tuple[EvaluationRow, ...]
    trained_curve: tuple[EvaluationRow, ...]
    modes: Mapping[str, EvaluationRow]
    cosine: float
    max_absolute_cosine: float
    fired_frac: float
    hackward_in: float
    gradient_norm: float
    hack_onset_step: int | None
    hack_area_frac: float
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
class Comparison:
    """A paired test of an arm's measure (the final hack rate, say) minus that of the arm `against`.

    `adjusted_p` is Holm's over the `family` tests that the whole table has; NaN where there was nothing to test.
    """

    against: str
    test: TestResult
    adjusted_p: float
    family: int


@dataclass(frozen=True)
class ArmResult:
    """One row of the table: mean ± SEM over seeds. `safe_solve_delta` and the comparisons are paired by seed.

    `against_controls` has one comparison per placebo arm (the same arm with a direction that means nothing).
    `max_absolute_cosine` is the largest of all steps and seeds, NaN without a direction.
    """

    name: str
    seeds: tuple[int, ...]
    hack: MeanSem
    solve: MeanSem
    safe_solve_delta: MeanSem
    kl: MeanSem
    cosine: MeanSem
    max_absolute_cosine: float
    fired: MeanSem
    gradient_norm: MeanSem
    hack_interval: Interval
    solve_interval: Interval
    against_baseline: Comparison | None
    against_controls: tuple[Comparison, ...]


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
    cosines, hacks = _series(lines, "update/cos_v"), _series(lines, "rollouts/hack_frac")
    return RunResult(
        name=name,
        folder=folder,
        config=config,
        curve=_curve(rows, "deployed"),
        trained_curve=_curve(rows, "as_trained"),
        modes={row.mode: row for row in rows if row.step == last and row.block == "deployed"},
        cosine=mean_sem([value for _, value in cosines]).mean,
        max_absolute_cosine=max((value for _, value in _series(lines, "update/abs_cos_v")), default=math.nan),
        fired_frac=_mean(lines, "gradient/fired"),
        hackward_in=_mean(lines, "update/hackward_in"),
        gradient_norm=_mean(lines, "optimizer/gradient_norm"),
        hack_onset_step=onset_step([step for step, _ in hacks], [rate for _, rate in hacks], HACKING_FRAC),
        hack_area_frac=area_under_curve([step for step, _ in hacks], [rate for _, rate in hacks]),
        cosine_curve=cosines,
    )


def _curve(rows: Sequence[EvaluationRow], block: Block) -> tuple[EvaluationRow, ...]:
    steps = sorted({row.step for row in rows if row.block == block})
    at = {step: [row for row in rows if row.block == block and row.step == step] for step in steps}
    return tuple(pool([row for row in at[step] if row.mode != "none"] or at[step]) for step in steps)


def _mean(lines: Sequence[Mapping[str, Any]], metric: str) -> float:
    return mean_sem([value for _, value in _series(lines, metric)]).mean


def _series(lines: Sequence[Mapping[str, Any]], metric: str) -> tuple[tuple[int, float], ...]:
    """(step, value) wherever the metric has a value; null is how the record writes NaN."""
    return tuple((line["step"], line[metric]) for line in lines if line.get(metric) is not None)


def summarize(
    runs: Sequence[RunResult], baseline: str = BASELINE, controls: Mapping[str, Sequence[str]] | None = None
) -> list[ArmResult]:
    """One `ArmResult` per run name, in order of first appearance; `controls` maps an arm to its placebo arms.

    Every arm is compared with `baseline` and with those of its placebos that have runs; p values are adjusted (Holm)
    over all of these comparisons together.
    """
    groups = by_arm(runs)
    compared = compare(groups, lambda run: run.final.hack_frac, baseline, controls)
    return [_arm(name, groups, baseline, compared[name]) for name in groups]


def by_arm(runs: Sequence[RunResult]) -> dict[str, dict[int, RunResult]]:
    """Arm → seed → run, in order of first appearance. ValueError for a seed that an arm has twice."""
    groups: dict[str, dict[int, RunResult]] = {}
    for run in runs:
        seeds = groups.setdefault(run.name, {})
        if run.seed in seeds:
            raise ValueError(f"arm {run.name} has seed {run.seed} twice ({seeds[run.seed].folder}, {run.folder})")
        seeds[run.seed] = run
    return groups


def compare(
    groups: Mapping[str, Mapping[int, RunResult]],
    measure: Callable[[RunResult], float],
    baseline: str = BASELINE,
    controls: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[Comparison, ...]]:
    """Arm → paired tests of `measure` against the baseline and its placebos, where they share a seed.

    p values are adjusted (Holm) over all of them together.
    """
    values = {name: {seed: measure(run) for seed, run in runs.items()} for name, runs in groups.items()}
    tests = {
        (name, other): paired_t(values[name], values[other])
        for name in groups
        for other in dict.fromkeys([baseline, *(controls or {}).get(name, ())])
        if other != name and values.get(other, {}).keys() & values[name].keys()
    }
    adjusted = holm({" ".join(pair): test.p_value for pair, test in tests.items()})
    family = sum(not math.isnan(test.p_value) for test in tests.values())
    return {
        name: tuple(
            Comparison(other, test, adjusted[f"{arm} {other}"], family)
            for (arm, other), test in tests.items()
            if arm == name
        )
        for name in groups
    }


def _arm(
    name: str, groups: Mapping[str, Mapping[int, RunResult]], baseline: str, compared: Sequence[Comparison]
) -> ArmResult:
    runs, base = groups[name], groups.get(baseline, {})
    hack = {seed: run.final.hack_frac for seed, run in runs.items()}
    solve = {seed: run.final.solve_frac for seed, run in runs.items()}
    values = list(runs.values())
    return ArmResult(
        name=name,
        seeds=tuple(sorted(runs)),
        hack=mean_sem(list(hack.values())),
        solve=mean_sem(list(solve.values())),
        safe_solve_delta=mean_sem([runs[seed].safe_solve - base[seed].safe_solve for seed in runs if seed in base]),
        kl=mean_sem([run.final.kl_nats for run in values]),
        cosine=mean_sem([run.cosine for run in values]),
        max_absolute_cosine=max((run.max_absolute_cosine for run in values if run.cosine_curve), default=math.nan),
        fired=mean_sem([run.fired_frac for run in values]),
        gradient_norm=mean_sem([run.gradient_norm for run in values]),
        hack_interval=mean_interval(list(hack.values())),
        solve_interval=mean_interval(list(solve.values())),
        against_baseline=next((one for one in compared if one.against == baseline), None),
        against_controls=tuple(one for one in compared if one.against != baseline),
    )


def sentence(arm: ArmResult, baseline: str = BASELINE) -> str:
    """What the row says, in one plain sentence; it never claims more than the number of seeds allows."""
    rates = f"hacks {percent(arm.hack.mean)} of held-out problems and solves {percent(arm.solve.mean)}"
    if arm.name == baseline:
        return f"With nothing done against it, the policy {rates}."
    parts = [f"The policy {rates}"]
    if arm.against_baseline is not None:
        parts.append(f"hacking is {_change(arm.against_baseline, 'the ' + baseline + ' arm')}")
    if arm.against_controls:
        placebos = f"its placebo{'s' * (len(arm.against_controls) > 1)}"
        parts.append(f"against {placebos} it is {', '.join(_change(c, c.against) for c in arm.against_controls)}")
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


def _change(comparison: Comparison, other: str) -> str:
    """E.g. "28 points below the vanilla arm (not told apart: adjusted p = 0.21, n = 5)"."""
    test = comparison.test
    points = round(abs(test.difference) * 100)
    where = (
        f"level with {other}" if points == 0 else f"{points} point{'s' * (points > 1)} {_side(test.difference)} {other}"
    )
    if test.n < 2:
        return f"{where} (n = 1: no inference)"
    if math.isnan(test.p_value):
        return f"{where} ({_untested(test)}, n = {test.n})"
    if test.n == 2:
        return f"{where} (adjusted p = {p_text(comparison.adjusted_p)}, n = 2: too few seeds for a claim)"
    told = "told apart" if comparison.adjusted_p < ALPHA else "not told apart"
    return f"{where} ({told}: adjusted p = {p_text(comparison.adjusted_p)}, n = {test.n})"


def _untested(test: TestResult) -> str:
    """Why a comparison over several seeds has no p value."""
    return f"{'identical' if test.difference == 0 else 'the same difference'} in every seed: no test"


def _side(difference: float) -> str:
    return "below" if difference < 0 else "above"


def _mechanism(arm: ArmResult) -> str:
    """What cos(update, V) says about how the arm works (EXPERIMENT §7 (1)); an erasure must show at every step."""
    if arm.max_absolute_cosine < ERASED_COSINE:
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


def comparison_text(comparison: Comparison | None) -> str:
    """`-28 [-40, -16], 0.031`: points, 95 % interval, adjusted p or why there is none; empty without a comparison."""
    if comparison is None:
        return ""
    test, change = comparison.test, f"{100 * comparison.test.difference:+.0f}"
    if test.n < 2:
        return f"{change}, n = 1: no inference"
    change += f" [{100 * test.interval.low:+.0f}, {100 * test.interval.high:+.0f}]"
    return f"{change}, {_untested(test) if math.isnan(test.p_value) else p_text(comparison.adjusted_p)}"


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

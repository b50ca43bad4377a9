"""What the final rates of an experiment hide: hacking step by step while training, and how solving went.

A delay does not show in a table of last evaluations, and hardly in a figure with an evaluation every 25 steps; the
sampled rollouts give a rate for every training step. Read from the run folders, by seed.
Not here: the last evaluation's figures (`plots.py`) and the report around these (`outcome.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes

from unhack import plots, record, results
from unhack.results import BASELINE, RunResult
from unhack.stats import MeanSem, area_under_curve, mean_sem

HACK_METRIC = "rollouts/hack_frac"
PANEL_INCHES = (5.5, 3.9)
COLUMNS = 2


def hack_bands(runs: Sequence[RunResult]) -> dict[str, list[tuple[int, MeanSem]]]:
    """Arm → (step, hack rate of the sampled training rollouts, mean and SEM over seeds), steps that all seeds have."""
    bands: dict[str, list[tuple[int, MeanSem]]] = {}
    for name, seeds in results.by_arm(runs).items():
        tables = [_hack_rates(run.folder) for run in seeds.values()]
        shared = sorted(set.intersection(*map(set, tables)))
        bands[name] = [(step, mean_sem([table[step] for table in tables])) for step in shared]
    return bands


def _hack_rates(folder: Path) -> dict[int, float]:
    lines = record.metrics(folder)
    return {line["step"]: line[HACK_METRIC] for line in lines if not math.isnan(line.get(HACK_METRIC, math.nan))}


def panels(names: Sequence[str], controls: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The arms of each panel: the baseline, an arm and its placebos; what is in none of them shares a last one."""
    base = [name for name in names if name == BASELINE]
    groups = [(*base, arm, *(one for one in controls[arm] if one in names)) for arm in names if controls.get(arm)]
    rest = tuple(name for name in names if name != BASELINE and not any(name in group for group in groups))
    return [tuple(dict.fromkeys(group)) for group in ([*groups, (*base, *rest)] if rest or not groups else groups)]


def training_figure(runs: Sequence[RunResult], path: Path, controls: Mapping[str, Sequence[str]]) -> Path:
    """Hack rate of each training step, mean with a band of ± SEM over seeds, one panel per arm that has placebos."""
    bands = hack_bands(runs)
    drawn = panels(list(bands), controls)
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    size = (max(8.0, PANEL_INCHES[0] * columns), PANEL_INCHES[1] * rows + 0.5)
    with pyplot.rc_context(plots.STYLE):
        figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        for axes, names in zip(grid.flat, drawn, strict=False):
            styles = plots.arm_styles([next(run for run in runs if run.name == name) for name in names])
            for name in names:
                _band(axes, name, bands[name], styles[name])
            title = next((name for name in names if name != BASELINE), BASELINE)
            plots.label(axes, title, "training step", "hacked, %")
            axes.set_ylim(-2, 102)
            axes.legend(loc="best", fontsize=9, handlelength=3.0)
        for axes in grid.flat[len(drawn) :]:
            axes.set_visible(False)
        seeds = plots.seed_text(runs)
        spread = "" if "no inference" in seeds else "; line: mean over seeds, band: ± SEM"
        figure.suptitle(f"Hack rate of the sampled training rollouts, {seeds}{spread}", fontsize=12)
        return plots.save(figure, path)


def _band(axes: Axes, name: str, band: Sequence[tuple[int, MeanSem]], style: Mapping[str, Any]) -> None:
    steps = [step for step, _ in band]
    means = [100 * rate.mean for _, rate in band]
    axes.plot(steps, means, color=style["color"], linestyle=style["linestyle"], linewidth=2.0, label=name)
    spread = [100 * rate.sem if rate.n > 1 else 0.0 for _, rate in band]
    low = [mean - one for mean, one in zip(means, spread, strict=True)]
    high = [mean + one for mean, one in zip(means, spread, strict=True)]
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def solve_on_the_way(run: RunResult) -> float:
    """Mean held-out solve rate over training: area under the deployed evaluations by step, 0 to the last."""
    return area_under_curve([row.step for row in run.curve], [row.solve_frac for row in run.curve])


def markdown_solves(runs: Sequence[RunResult], controls: Mapping[str, Sequence[str]]) -> str:
    """What solving lost, in Markdown: at the last evaluation and over all of them, against baseline and placebos.

    Paired by seed; the p values of each of the two measures are adjusted (Holm) over its own comparisons.
    """
    groups = results.by_arm(runs)
    last = results.compare(groups, lambda run: run.final.solve_frac, controls=controls)
    mean = results.compare(groups, solve_on_the_way, controls=controls)
    header = ("arm", "solve %", "Δ against, p", "solve % over training", "Δ against, p")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, seeds in groups.items():
        cells = [name]
        for measure, compared in ((lambda run: run.final.solve_frac, last), (solve_on_the_way, mean)):
            cells.append(results.with_sem(mean_sem([measure(run) for run in seeds.values()]), 100.0))
            cells.append("<br>".join(f"{results.comparison_text(one)} ({one.against})" for one in compared[name]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"

"""Figures of an experiment, drawn from `RunResult`s to PNG files (matplotlib, no display needed).

Colours are Okabe and Ito's (2008) palette, told apart with any colour vision; arms differ in dashes and markers too, so
that grey print works. Sizes are for a README column of about 830 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from unhack.results import BASELINE, RunResult
from unhack.stats import moving_mean

OKABE_ITO = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
STYLE: Any = {  # names of matplotlib's settings
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DOTS_PER_INCH = 170
COSINE_WINDOW_STEPS = 5
LEGEND_ENTRY_INCHES = 2.6  # of a long arm's name beside its line


def arm_styles(runs: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of every arm, in order of first appearance; the baseline is always black."""
    names = list(dict.fromkeys(run.name for run in runs))
    others = cycle(zip(OKABE_ITO[1:], MARKERS[1:], strict=True))
    dashes = cycle(DASHES[1:])
    styles: dict[str, dict[str, Any]] = {}
    for name in names:
        if name == BASELINE:
            styles[name] = {"color": OKABE_ITO[0], "marker": MARKERS[0], "linestyle": DASHES[0]}
        else:
            colour, marker = next(others)
            styles[name] = {"color": colour, "marker": marker, "linestyle": next(dashes)}
    return styles


def overview_figure(runs: Sequence[RunResult], path: Path) -> Path:
    """Hack and solve curves on held-out problems, and hack versus solve with one point per (arm, seed)."""
    styles = arm_styles(runs)
    with pyplot.rc_context(STYLE):
        figure, (hack, solve, both) = pyplot.subplots(1, 3, figsize=(11, 4.3), layout="constrained")
        _curves(hack, runs, styles, lambda run: [(row.step, 100 * row.hack_frac) for row in run.curve])
        _curves(solve, runs, styles, lambda run: [(row.step, 100 * row.solve_frac) for row in run.curve])
        label(hack, "Held-out hack rate  ↓ better", "training step", "hacked, % of samples")
        label(solve, "Held-out solve rate  ↑ better", "training step", "strictly solved, % of samples")
        for axes in (hack, solve):
            axes.set_ylim(-2, 102)
        _pareto(both, runs, styles)
        _legend(figure, styles, f"{seed_text(runs)}; thin: one seed, thick: mean over seeds")
        return save(figure, path)


def cosine_figure(runs: Sequence[RunResult], path: Path) -> Path:
    """cos(update, V) over training steps of every arm with a direction. ValueError if no run logged one.

    0 is an erasure, above 0 a push along V (away from the hack), below 0 a drift towards the hack.
    """
    directed = [run for run in runs if run.cosine_curve]
    if not directed:
        raise ValueError("no run logged cos(update, V): only arms with a direction do")
    styles = arm_styles(runs)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
        axes.axhline(0, color="#888888", linewidth=0.8)
        _curves(axes, directed, styles, _smooth_cosine, markers=False)
        label(axes, "How updates lie to the hack direction V", "training step", "cos(update, V)")
        axes.set_ylim(-1.03, 1.03)
        axes.text(0.99, 0.97, "pushes along +V, away from the hack", transform=axes.transAxes, ha="right", va="top")
        axes.text(0.99, 0.03, "moves towards the hack", transform=axes.transAxes, ha="right", va="bottom")
        shown = {name: style for name, style in styles.items() if any(run.name == name for run in directed)}
        _legend(figure, shown, f"{seed_text(directed)}; mean over {COSINE_WINDOW_STEPS} steps", markers=False)
        return save(figure, path)


def _smooth_cosine(run: RunResult) -> list[tuple[int, float]]:
    steps = [step for step, _ in run.cosine_curve]
    return list(zip(steps, moving_mean([value for _, value in run.cosine_curve], COSINE_WINDOW_STEPS), strict=True))


def _curves(
    axes: Axes,
    runs: Sequence[RunResult],
    styles: dict[str, dict[str, Any]],
    points: Callable[[RunResult], list[tuple[int, float]]],
    markers: bool = True,
) -> None:
    for order, (name, style) in enumerate(styles.items()):
        curves = [points(run) for run in runs if run.name == name]
        for curve in curves:
            if len(curves) > 1:
                axes.plot(*_columns(curve), color=style["color"], linewidth=0.8, alpha=0.45)
        mean = _mean_curve(curves)
        changed: Any = style | {"marker": style["marker"] if markers else None}
        # Later arms are drawn thinner, so that lines that coincide all show.
        width = 3.4 - 1.8 * order / max(1, len(styles) - 1)
        axes.plot(*_columns(mean), **changed, linewidth=width, markersize=5.5)


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean at the steps that every seed has, so that a seed that is behind does not bend the line."""
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in shared]


def _columns(curve: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _pareto(axes: Axes, runs: Sequence[RunResult], styles: dict[str, dict[str, Any]]) -> None:
    """x: solve, y: hack, so the lower right corner is where one wants to be; bars are Wilson intervals."""
    for run in runs:
        row, style = run.final, styles[run.name]
        x, y = 100 * row.solve_frac, 100 * row.hack_frac
        hack, solve = row.hack_interval, row.solve_interval
        axes.errorbar(
            x,
            y,
            xerr=[[x - 100 * solve.low], [100 * solve.high - x]],
            yerr=[[y - 100 * hack.low], [100 * hack.high - y]],
            color=style["color"],
            marker=style["marker"],
            markersize=8,
            markeredgecolor="white",
            elinewidth=0.9,
            alpha=0.9,
        )
    label(axes, "Hack vs. solve, a point per seed", "strictly solved, %", "hacked, %")
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.plot([0, 100], [100, 0], color="#bbbbbb", linewidth=0.8, zorder=0)  # hack + solve cannot pass 100 %
    axes.annotate("better", xy=(0.97, 0.03), xytext=(0.72, 0.2), xycoords="axes fraction", color="#666666",
                  arrowprops={"arrowstyle": "->", "color": "#999999"}, ha="center")  # fmt: skip


def label(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title (left) and axis names."""
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def _legend(figure: Figure, styles: dict[str, dict[str, Any]], note: str, markers: bool = True) -> None:
    handles = []
    for name, style in styles.items():
        shown: Any = style if markers else style | {"marker": None}
        handles.append(Line2D([], [], **shown, linewidth=2.2, label=name))
    columns = max(1, min(int(figure.get_figwidth() // LEGEND_ENTRY_INCHES), len(handles)))
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.2)
    legend.set_title(note, prop=FontProperties(size=10))


def seed_text(runs: Sequence[RunResult]) -> str:
    """How many seeds the arms have, in words for a figure."""
    counts = {len({run.seed for run in runs if run.name == name}) for name in {run.name for run in runs}}
    low, high = min(counts), max(counts)
    if low == high == 1:
        return "n = 1 seed: no inference"
    return f"n = {low} seeds" if low == high else f"n = {low} to {high} seeds"


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH)
    pyplot.close(figure)
    return path


def mode_figure(runs: Sequence[RunResult], path: Path) -> Path:
    """Heat map of the final hack rate, arm × loophole mode, mean over seeds, with the number in each cell."""
    names = list(dict.fromkeys(run.name for run in runs))
    modes = list(dict.fromkeys(mode for run in runs for mode in run.modes))
    grid = [[_mode_mean(runs, name, mode) for mode in modes] for name in names]
    with pyplot.rc_context(STYLE), pyplot.rc_context({"axes.grid": False}):
        size = (2.6 + 1.15 * len(modes), 1.3 + 0.42 * len(names))
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for row, values in enumerate(grid):
            for column, value in enumerate(values):
                if not math.isnan(value):
                    ink = "black" if value > 50 else "white"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink)
        axes.set_xticks(range(len(modes)), modes)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(f"Hack rate by loophole, % ({seed_text(runs)})", loc="left")
        return save(figure, path)


def _mode_mean(runs: Sequence[RunResult], name: str, mode: str) -> float:
    values = [100 * run.modes[mode].hack_frac for run in runs if run.name == name and mode in run.modes]
    return sum(values) / len(values) if values else math.nan

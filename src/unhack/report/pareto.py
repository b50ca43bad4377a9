"""Hack against solve: a panel per family of arms (an arm and its placebos), each with the baseline beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes

from unhack.plots import MARKERS
from unhack.report.figures import PANEL, SMALL_STYLE, Panel, arm_tag, new_figure
from unhack.report.read import Experiment
from unhack.results import BASELINE
from unhack.stats import mean_sem

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TOGETHER = 6  # arms in one panel, the baseline not counted
LEGEND_ROW = 17  # units
Limits = tuple[tuple[float, float], tuple[float, float]]


def families(names: Sequence[str], controls: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Title → arms of one panel, without the baseline: an arm with its placebos, and the arms that have none.

    All in one where they are few. A placebo of several arms stands in each of their panels.
    """
    others = [name for name in names if name != BASELINE]
    if len(others) <= TOGETHER:
        return {"all arms": others}
    found = {name: [name, *(one for one in controls[name] if one in others)] for name in others if name in controls}
    single = [name for name in others if not any(name in own for own in found.values())]
    for start in range(0, len(single), TOGETHER):
        part = single[start : start + TOGETHER]
        found["arms without placebos" if len(single) <= TOGETHER else ", ".join(part[:2]) + ", …"] = part
    return found


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker per arm of one panel: all differ in both, so that no colour vision is needed."""
    return {
        name: {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[1:][place % (len(MARKERS) - 1)]}
        for place, name in enumerate(names)
    } | {BASELINE: {"color": "#000000", "marker": MARKERS[0]}}


def limits(experiment: Experiment) -> Limits:
    """(solve, hack) axes in %, just around all points in steps of ten."""
    found = []
    for values in (
        [100 * run.final.solve_frac for run in experiment.runs],
        [100 * run.final.hack_frac for run in experiment.runs],
    ):
        known = [value for value in values if not math.isnan(value)] or [0.0]
        low, high = 10 * math.floor(min(known) / 10), 10 * math.ceil(max(known) / 10)
        found.append((low - 1.5, max(high, low + 10) + 1.5))
    return found[0], found[1]


def pareto_panels(experiment: Experiment) -> list[Panel]:
    """One panel per family, all on the same axes."""
    panels = []
    bounds = limits(experiment)
    groups = families(experiment.arm_names, experiment.controls)
    longest = max(map(len, groups.values()), default=0)
    for title, names in groups.items():
        with pyplot.rc_context(SMALL_STYLE):
            figure, axes = new_figure(PANEL[0], 290.0 + LEGEND_ROW * (longest + 1))
            draw_pareto(axes, experiment, title, names, bounds, longest)
            panels.append(Panel(title, "", figure))
    return panels


def draw_pareto(
    axes: Axes, experiment: Experiment, title: str, names: Sequence[str], bounds: Limits, rows: int
) -> None:
    """Every run of the arms as a small point, the mean of each arm as a large one; below room for `rows` names."""
    present = [name for name in (BASELINE, *names) if name in experiment.arm_names]
    looks = styles(names)
    for name in present:
        own = [run for run in experiment.runs if run.name == name]
        x, y = [100 * run.final.solve_frac for run in own], [100 * run.final.hack_frac for run in own]
        common: dict[str, Any] = looks[name] | {"linestyle": "none", "gid": arm_tag(name)}
        axes.plot(x, y, **common, markersize=4.5, alpha=0.5, markeredgewidth=0)
        edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 1}
        axes.plot([mean_sem(x).mean], [mean_sem(y).mean], **common, **edge, markersize=10.5, zorder=3, label=name)
    for _ in range(rows - len(names)):
        axes.plot([], [], linestyle="none", label=" ")
    axes.set_xlim(*bounds[0])
    axes.set_ylim(*bounds[1])
    axes.set_title(title)
    axes.set_xlabel("strictly solved, %   (better →)")
    axes.set_ylabel("hacked, %   (← better)")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.19), handletextpad=0.2, labelspacing=0.3, borderaxespad=0)

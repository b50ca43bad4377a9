"""The figures of a report, drawn with matplotlib at the size at which a phone shows them: 1 unit is 1 CSS pixel.

Every artist of an arm carries the arm's name (`gid`), so that the page can bring it out. Not here: how a figure becomes
part of the page (`inline.py`), the tables (`content.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unhack.plots import COSINE_WINDOW_STEPS, STYLE
from unhack.report.read import Experiment
from unhack.report.validation import Validation
from unhack.results import BASELINE
from unhack.stats import mean_sem, moving_mean

UNITS_PER_INCH = 72
PANEL = (336.0, 224.0)  # units
HACK, SOLVE, NULL = "#D55E00", "#0072B2", "#888888"
SMALL_STYLE = STYLE | {
    "font.size": 11.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.labelsize": 11.5,
    "axes.linewidth": 0.8,
    "figure.dpi": UNITS_PER_INCH,
    "svg.fonttype": "none",
    "axes.titlelocation": "left",
    "legend.fontsize": 10.5,
}
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Panel:
    """One small figure of a set, and the arm or direction that it is about."""

    title: str
    arm: str
    figure: Figure


def arm_tag(name: str) -> str:
    """The `gid` of an arm's artists; `inline.py` turns it into an attribute of the page."""
    return f"arm:{name}"


def curve_panels(experiment: Experiment) -> list[Panel]:
    """Per arm: held-out hack and solve rate by step (mean and SEM over seeds), training hack rate, vanilla beside."""
    panels = []
    for name in experiment.arm_names:
        with pyplot.rc_context(SMALL_STYLE):
            figure, axes = new_figure(*PANEL)
            draw_curves(axes, experiment, name)
            panels.append(Panel(name, name, figure))
    return panels


def draw_curves(axes: Axes, experiment: Experiment, name: str) -> None:
    """One panel of `curve_panels`."""
    base = [run for run in experiment.runs if run.name == BASELINE and name != BASELINE]
    own = [run for run in experiment.runs if run.name == name]
    if base:
        line = _mean_band([[(row.step, 100 * row.hack_frac) for row in run.curve] for run in base])
        axes.plot(*_columns([(step, mean) for step, mean, _ in line]), color=NULL, linestyle=(0, (5, 2)), linewidth=1.2,
                  label="vanilla's hack")  # fmt: skip
    training = [
        [(step, 100 * value) for step, value in experiment.details[run.name, run.seed].training["rollouts/hack_frac"]]
        for run in own
    ]
    smooth = [list(zip(_steps(one), moving_mean(_values(one), COSINE_WINDOW_STEPS), strict=True)) for one in training]
    mean = [(step, value) for step, value, _ in _mean_band(smooth)]
    axes.plot(*_columns(mean), color=HACK, linestyle=(0, (1, 1.3)), linewidth=1.6, label="hack, training")
    for colour, label, marker, points in (
        (HACK, "hack", "o", [[(row.step, 100 * row.hack_frac) for row in run.curve] for run in own]),
        (SOLVE, "solve", "s", [[(row.step, 100 * row.solve_frac) for row in run.curve] for run in own]),
    ):
        _band(axes, points, colour, marker, label)
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 25))
    axes.set_title(name)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylabel("% of samples")


def cosine_panels(experiment: Experiment) -> list[Panel]:
    """Per arm with a direction: cos(update, V) by step, every seed thin, the mean over seeds thick."""
    panels = []
    curves = cosine_curves(experiment)
    for name, own in curves.items():
        with pyplot.rc_context(SMALL_STYLE):
            figure, axes = new_figure(*PANEL)
            draw_cosines(axes, name, own, cosine_limit(curves))
            panels.append(Panel(name, name, figure))
    return panels


def cosine_curves(experiment: Experiment) -> dict[str, list[Points]]:
    """Arm → a smoothed curve per seed, for the arms that logged update/cos_v."""
    curves: dict[str, list[Points]] = {}
    for run in experiment.runs:
        if run.cosine_curve:
            steps, values = _steps(run.cosine_curve), _values(run.cosine_curve)
            smooth = moving_mean(values, COSINE_WINDOW_STEPS)
            curves.setdefault(run.name, []).append(list(zip(steps, smooth, strict=True)))
    return curves


def cosine_limit(curves: Mapping[str, Sequence[Points]]) -> float:
    """The end of the axis that all panels share: the largest cosine and a little more."""
    largest = max((abs(value) for own in curves.values() for one in own for _, value in one), default=0.0)
    return min(1.05, 0.1 * math.ceil(10 * largest + 0.5))


def draw_cosines(axes: Axes, name: str, curves: Sequence[Points], limit: float) -> None:
    """One panel of `cosine_panels`."""
    axes.axhline(0, color=NULL, linewidth=1)
    for curve in curves if len(curves) > 1 else ():
        axes.plot(*_columns(curve), color=SOLVE, linewidth=0.7, alpha=0.45)
    mean = [(step, value) for step, value, _ in _mean_band(curves)]
    axes.plot(*_columns(mean), color=SOLVE, linewidth=2.2, label="mean over seeds")
    axes.set_ylim(-limit, limit)
    axes.set_title(name)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_ylabel("cos(update, V)")


def validation_panels(validations: Sequence[Validation]) -> list[Panel]:
    """Per direction: how the modules' cosines with held-out differences are spread, beside random subspaces."""
    panels = []
    for one in validations:
        with pyplot.rc_context(SMALL_STYLE):
            figure, axes = new_figure(*PANEL)
            draw_validation(axes, one)
            panels.append(Panel(one.name, one.name, figure))
    return panels


def draw_validation(axes: Axes, one: Validation) -> None:
    """One panel of `validation_panels`."""
    middles = [(low + high) / 2 for low, high in pairwise(one.edges)]
    width = one.edges[1] - one.edges[0]
    axes.bar(middles, [100 * share for share in one.shares], width=0.86 * width, color=SOLVE, label="V")
    axes.stairs([100 * share for share in one.null_shares], one.edges, color=NULL, linewidth=1.6, label="random V")
    axes.axvline(0, color=NULL, linewidth=0.8)
    axes.set_xlim(-1, 1)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.set_title(f"{one.name}: mean {round(one.mean, 2) + 0.0:+.2f}")  # + 0.0: no -0.00
    axes.set_xlabel("cos with held-out differences")
    axes.set_ylabel("% of modules")


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """One axes on a canvas of so many units, transparent: the page shines through."""
    size = (width / UNITS_PER_INCH, height / UNITS_PER_INCH)
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    pyplot.close(figure)  # pyplot need not keep it: it is drawn when it is saved
    return figure, axes


def _band(axes: Axes, curves: Sequence[Points], colour: str, marker: str, label: str) -> None:
    """The mean over seeds with a band of one SEM; without a band for one seed."""
    line = _mean_band(curves)
    steps, means = [step for step, _, _ in line], [mean for _, mean, _ in line]
    axes.plot(steps, means, color=colour, marker=marker, markersize=4.5, linewidth=1.9, label=label)
    if any(not math.isnan(sem) for _, _, sem in line):
        low, high = [mean - sem for _, mean, sem in line], [mean + sem for _, mean, sem in line]
        axes.fill_between(steps, low, high, color=colour, alpha=0.22, linewidth=0)


def _mean_band(curves: Sequence[Points]) -> list[tuple[int, float, float]]:
    """(step, mean, SEM) over seeds at the steps that every seed has."""
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    found = [(step, mean_sem([table[step] for table in tables])) for step in shared]
    return [(step, one.mean, one.sem) for step, one in found]


def _columns(curve: Points) -> tuple[list[int], list[float]]:
    return _steps(curve), _values(curve)


def _steps(curve: Points) -> list[int]:
    return [step for step, _ in curve]


def _values(curve: Points) -> list[float]:
    return [value for _, value in curve]

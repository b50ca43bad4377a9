"""The figures as files: all panels of a set on one sheet, with title, legend and n, so that it stands by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unhack import plots
from unhack.files import write_atomic
from unhack.report import figures, pareto
from unhack.report.inline import png_bytes, svg_text
from unhack.report.read import Experiment
from unhack.report.validation import Validation

COLUMNS = 4


def write_sheets(experiment: Experiment, validations: Sequence[Validation], folder: Path) -> list[Path]:
    """Write every figure as .svg and .png into `folder`; returns the files. Figures without data are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    note, names = experiment.seeds_text(), experiment.arm_names
    directed = figures.cosine_curves(experiment)
    limit = figures.cosine_limit(directed)
    families, bounds = pareto.families(names, experiment.controls), pareto.limits(experiment)
    longest = max(map(len, families.values()), default=0)
    sheets: dict[str, Figure | None] = {
        "pareto": _sheet(
            f"Hack vs. solve, held out; small: one seed, large: mean over seeds ({note})",
            [
                partial(pareto.draw_pareto, experiment=experiment, title=title, names=own, bounds=bounds, rows=longest)
                for title, own in families.items()
            ],
            panel_height=420.0,
            legend=False,
        ),
        "curves": _sheet(
            f"Held-out hack and solve rate, mean and SEM over seeds ({note})",
            [partial(figures.draw_curves, experiment=experiment, name=name) for name in names],
        ),
        "cosines": _sheet(
            f"cos(update, V): 0 erased, above 0 pushed away from the hack; thin: one seed ({note})",
            [partial(figures.draw_cosines, name=name, curves=own, limit=limit) for name, own in directed.items()],
        ),
        "validation": _sheet(
            "Modules' cosines of V with held-out pairs, beside random subspaces of the same size",
            [partial(figures.draw_validation, one=one) for one in validations],
        ),
    }
    written = [plots.mode_figure(experiment.runs, folder / f"modes.{kind}") for kind in ("svg", "png")]
    for name, sheet in sheets.items():
        if sheet is not None:
            for kind, content in (("svg", svg_text(sheet, name)), ("png", png_bytes(sheet))):
                written.append(folder / f"{name}.{kind}")
                write_atomic(written[-1], content)
    return written


def _sheet(
    title: str,
    draws: Sequence[Callable[[Axes], None]],
    panel_height: float = figures.PANEL[1],
    legend: bool = True,
) -> Figure | None:
    """One axes per drawing; with `legend` that of the last, which has every line, below."""
    if not draws:
        return None
    columns = min(COLUMNS, len(draws))
    rows = math.ceil(len(draws) / columns)
    width = figures.PANEL[0]
    size = (max(width * columns, 480.0) / figures.UNITS_PER_INCH, (panel_height * rows + 60) / figures.UNITS_PER_INCH)
    with pyplot.rc_context(figures.SMALL_STYLE):
        figure, grid = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        pyplot.close(figure)
        for axes, draw in zip(grid.flat, draws, strict=False):
            draw(axes)
        for axes in list(grid.flat)[len(draws) :]:
            axes.set_axis_off()
        figure.suptitle(title, x=0.01, ha="left")
        if legend:
            handles, labels = list(grid.flat)[len(draws) - 1].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return figure

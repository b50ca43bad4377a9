"""Writing a report: the page, and beside it a folder with tables as CSV and Markdown, figures as SVG and PNG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unhack.experiments.freeze import check_unchanged
from unhack.experiments.plan import Plan
from unhack.files import write_atomic
from unhack.report import content
from unhack.report.pack import pack
from unhack.report.page import Content, render
from unhack.report.read import frozen_plan, read_experiment
from unhack.report.sheets import write_sheets
from unhack.report.validation import Validation, validate_directions
from unhack.report.verdicts import decide_experiment, verdict_table

ROLLOUT_BYTES = 8e6  # of page for rollouts: some 300,000 of the organism's, some thousands of a large model's


@dataclass(frozen=True)
class Report:
    """Where the report is; `embedded` of `total` rollouts are in the page."""

    page: Path
    files: tuple[Path, ...]
    embedded: int
    total: int


def write_report(
    folder: Path,
    plan: Plan | None = None,
    out: Path | None = None,
    *,
    rollout_bytes: float = ROLLOUT_BYTES,
    validate: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> Report:
    """Make the report of the experiment in `folder` from its finished runs.

    `plan`: of the experiment (default: the one that was frozen in the folder; without one arms are read from the names
    of folders, and there are no placebos). `out`: the page (default: report.html in `folder`); the files go into the
    folder of the same name beside it. `rollout_bytes`: how much of the page rollouts may take (math.inf: all are
    embedded). `validate`: verify the plan's directions, which loads the model. `tell` is called with what is done now.

    ValueError when no run is finished, or for a plan that is not the frozen one.
    """
    page = folder / "report.html" if out is None else out
    beside = page.with_name(f"{page.stem}-files")
    tell("reading the runs")
    if plan is None:
        plan = frozen_plan(folder)
    else:
        check_unchanged(plan, folder)
    experiment = read_experiment(folder, plan)
    validations: list[Validation] | None = None
    if validate:
        kept = beside / "validation.json"
        validations = [] if plan is None else validate_directions(plan, folder, kept, tell)
    verdicts = decide_experiment(experiment)
    tables = (
        verdict_table(verdicts),
        content.main_table(experiment),
        content.advice_table(experiment),
        content.comparison_table(experiment),
        content.delay_table(experiment),
        *content.mode_tables(experiment),
    )
    files = []
    for table in tables:
        for kind, text in (("csv", table.csv()), ("md", table.markdown())):
            files.append(beside / f"{table.name}.{kind}")
            write_atomic(files[-1], text)
    tell("drawing the figures")
    files += write_sheets(experiment, validations or [], beside)
    tell(f"packing the rollouts of {len(experiment.runs)} runs")
    packed = pack(experiment.runs, rollout_bytes)
    named = {table.name: table for table in tables}
    write_atomic(page, render(Content(experiment, named, validations, packed, beside.name)))
    return Report(page, tuple(files), packed.embedded, packed.total)

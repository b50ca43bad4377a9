"""The command `report`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Report:
    """Make the report of an experiment: one HTML file that needs no network, and its tables and figures as files.

    Only finished runs are in it. The page has the verdicts, tables, figures and a browser of rollouts; beside it a
    folder has every table as CSV and Markdown and every figure as SVG and PNG (docs/report.md).
    """

    folder: tyro.conf.Positional[Path]
    """The experiment's folder (that of `unhack experiment run` or `unhack demo`)."""
    out: Path | None = None
    """The page to write (default: report.html in the folder)."""
    plan: Path | None = None
    """The experiment file, where the plan was not frozen in the folder."""
    rollouts_mb: float = 8.0
    """Megabytes of the page for rollouts: those that do not fit are left out by chance, training rollouts first."""
    all_rollouts: bool = False
    """Embed every rollout, however large the page becomes."""
    validate: bool = True
    """Test the directions on held-out pairs, which loads the model; the result is kept beside the page."""

    def run(self) -> int:
        """Write the report and print where it is."""
        from unhack.cli.quiet import quiet_libraries
        from unhack.cli.show import make_console
        from unhack.experiments.plan import load_plan
        from unhack.report import write_report

        if math.isnan(self.rollouts_mb) or self.rollouts_mb < 0:
            raise ValueError(f"rollouts-mb is {self.rollouts_mb}: use 0 (no rollouts) or more")
        console = make_console()
        quiet_libraries()
        with console.status("reading the runs") as status:
            made = write_report(
                self.folder,
                None if self.plan is None else load_plan(self.plan),
                self.out,
                rollout_bytes=math.inf if self.all_rollouts else 1e6 * self.rollouts_mb,
                validate=self.validate,
                tell=status.update,
            )
        megabytes = made.page.stat().st_size / 1e6
        print(f"{made.page} ({megabytes:.1f} MB, {made.embedded:,} of {made.total:,} rollouts)")
        print(f"tables and figures: {made.files[0].parent} ({len(made.files)} files)")
        return 0

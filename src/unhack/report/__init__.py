"""The report of an experiment: one HTML file to open or send, and its tables and figures as files (docs/report.md).

write_report(Path("runs/organism-erasure"), load_plan(Path("experiments/organism-erasure.toml")))
"""

from __future__ import annotations

from unhack.report.write import Report, write_report

__all__ = ["Report", "write_report"]

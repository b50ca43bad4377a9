"""The page: one HTML file that needs nothing else, and the security policy that lets nothing but its own script run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from unhack.report import sections
from unhack.report.pack import Packed
from unhack.report.read import Experiment
from unhack.report.tables import Table
from unhack.report.validation import Validation

TABLE_SCRIPTS = ("tables.js",)
BROWSER_SCRIPTS = ("unpack.js", "text.js", "browser.js", "detail.js")
PARTS = (
    ("verdicts-part", "Verdicts"),
    ("table-part", "Table"),
    ("trade-off-part", "Trade-off"),
    ("curves-part", "Curves"),
    ("loopholes-part", "Loopholes"),
    ("direction-part", "Direction"),
    ("rollouts", "Rollouts"),
    ("settings-part", "Settings and cost"),
)


@dataclass(frozen=True)
class Content:
    """Everything that the page shows. `tables` by name; `validations` None: left out on request."""

    experiment: Experiment
    tables: dict[str, Table]
    validations: Sequence[Validation] | None
    packed: Packed
    files: str  # name of the folder beside the page that has tables and figures as files


def render(content: Content) -> str:
    """The whole page as text."""
    experiment, tables = content.experiment, content.tables
    title = escape(experiment.name)
    style = _asset("page.css")
    names = TABLE_SCRIPTS + (BROWSER_SCRIPTS if content.packed.embedded else ())
    script = '(() => {\n"use strict";\n' + "\n".join(map(_asset, names)) + "})();\n"
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    policy += "; base-uri 'none'; form-action 'none'"
    bodies = {
        "verdicts-part": sections.warnings(experiment) + tables["verdicts"].html() + tables["advice"].html()
        + sections.plan_record(experiment),
        "table-part": tables["main"].html() + sections.sentences(experiment) + tables["comparisons"].html()
        + tables["delays"].html(),
        "trade-off-part": sections.trade_off(experiment),
        "curves-part": sections.curves(experiment),
        "loopholes-part": f'<div class="heat">{tables["modes_hack"].html()}{tables["modes_solve"].html()}</div>',
        "direction-part": sections.validation(content.validations) + sections.cosines(experiment),
        "rollouts": sections.rollouts(content.packed),
        "settings-part": sections.settings(experiment) + "<h3>Cost</h3>" + sections.cost(experiment),
    }  # fmt: skip
    parts = "\n".join(f'<section id="{key}"><h2>{name}</h2>\n{bodies[key]}\n</section>' for key, name in PARTS)
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name in PARTS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}: report</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#verdicts-part">Skip to the verdicts</a>
<header><h1>{title}</h1>{sections.facts(experiment)}</header>
<nav aria-label="Parts of the report">{links}{sections.arm_choice(experiment)}</nav>
<main>
{parts}
</main>
<footer><p class="muted">Tables as CSV and Markdown, figures as SVG and PNG: folder \
<code>{escape(content.files)}</code> beside this page. A click on a heading sorts its table.</p></footer>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return resources.files("unhack.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The source expression that allows exactly this text (CSP level 2)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

"""The parts of the page as HTML: facts, figures with their sentences, the rollout browser, settings and cost.

Everything that is not written here passes through `html.escape`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from unhack import __version__, results
from unhack.experiments.freeze import plan_hash
from unhack.report import figures, pareto
from unhack.report.figures import Panel
from unhack.report.inline import inline_svg
from unhack.report.pack import Packed
from unhack.report.read import Experiment, arm_settings, environments
from unhack.report.validation import Validation
from unhack.results import BASELINE

CURVES_KEY = (
    '<span class="key key-hack">● hack, held out</span> <span class="key key-hack">··· hack, training rollouts</span> '
    '<span class="key key-solve">■ solve, held out</span> <span class="key key-null">- - hack of vanilla</span>'
)
VALIDATION_KEY = '<span class="key key-solve">■ V</span> <span class="key key-null">— random subspaces</span>'
PACKAGES = "packages."


def facts(experiment: Experiment) -> str:
    """What was run, how much of it is finished, when, and under which plan."""
    counts, runs = len(experiment.arms), len(experiment.runs)
    final = experiment.runs[0].final
    found = [
        ("arms, seeds", f"{counts} arms, {experiment.seeds_text()}: {runs} finished runs"),
        ("evaluated", f"step {final.step}, {final.n} held-out samples per run over all loopholes"),
        ("runs finished", f"{_day(experiment.first)} to {_day(experiment.last)}"),
        ("plan", _plan_words(experiment)),
        ("report made", f"{_day(datetime.now(UTC))} with unhack {__version__}"),
    ]
    levels = environments(experiment).get("sandbox_level")
    if levels:
        found.append(("sandbox level", _values(levels)))
    if experiment.unfinished:
        found.insert(1, ("not finished, left out", ", ".join(experiment.unfinished)))
    if experiment.others:
        found.insert(1, ("in the folder, not in the plan, left out", ", ".join(experiment.others)))
    return _list(found)


def _plan_words(experiment: Experiment) -> str:
    if experiment.plan is None:
        return "none found: arms are read from the names of the folders"
    if not experiment.frozen:
        return f"not frozen before the runs; SHA-256 {plan_hash(experiment.plan)}"
    first, last = experiment.frozen[0], experiment.frozen[-1]
    amended = f"; amended {last.number} times, now {last.plan_hash}" if last.number else ""
    return f"frozen {first.date}, SHA-256 {first.plan_hash}{amended}"


def plan_record(experiment: Experiment) -> str:
    """What was written down with the plan: the stop rule, exclusions, amendments with date, reason and changes."""
    plan = experiment.plan
    if plan is None:
        return ""
    found = [("stop rule", plan.stop.rule)] if plan.stop.rule else []
    found += [("exclusion rule", rule) for rule in plan.exclusions.rules]
    found += [("left out", f"{run}: {why}") for run, why in plan.exclusions.runs.items()]
    for section in experiment.frozen[1:]:
        changes = "; ".join(section.changes)
        found.append((f"amended {section.date}", f"{section.why} ({section.runs_started} runs were started) {changes}"))
    return f"<h3>Written down with the plan</h3>{_list(found)}" if found else ""


def _day(time: datetime | None) -> str:
    return "—" if time is None else time.strftime("%Y-%m-%d %H:%M UTC")


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def sentences(experiment: Experiment) -> str:
    """One sentence per arm, and what keeps the whole table from being a result."""
    items = "".join(
        f'<li data-arm="{escape(arm.name)}"><b>{escape(arm.name)}</b>: {escape(results.sentence(arm))}</li>'
        for arm in experiment.arms
    )
    caveat = results.caveat(experiment.arms)
    warning = f'<p class="warning">{escape(caveat)}</p>' if caveat else ""
    return f'{warning}<details><summary>One sentence per arm</summary><ul class="sentences">{items}</ul></details>'


def trade_off(experiment: Experiment) -> str:
    """Hack against solve."""
    caption = (
        "Hack rate against strict solve rate of the deployed models on held-out problems, a panel per arm with its "
        f"placebos, all with vanilla beside them; small: one seed, large: mean over seeds ({experiment.seeds_text()}). "
        "Lower right is better. All panels have the same axes, cut to the points."
    )
    return _panels("pareto", pareto.pareto_panels(experiment), "Trade-off", caption)


def curves(experiment: Experiment) -> str:
    """Hack and solve by step, a panel per arm."""
    caption = (
        f"Share of samples by training step, a panel per arm; mean over seeds with a band of one SEM "
        f"({experiment.seeds_text()}). Held out: the deployed model on problems and markers that training never drew. "
        "Training rollouts (mean over 5 steps) include tasks that cannot be solved. No band where there is one seed."
    )
    return _panels("curves", figures.curve_panels(experiment), "Curves", caption, CURVES_KEY)


def cosines(experiment: Experiment) -> str:
    """cos(update, V) by step, a panel per arm with a direction."""
    panels = figures.cosine_panels(experiment)
    if not panels:
        return "<p>No arm of this experiment has a direction, so there is no cos(update, V).</p>"
    caption = (
        "Mean signed cosine of the applied update with the arm's own V by training step (mean over 5 steps); thin: one "
        f"seed, thick: mean over seeds ({experiment.seeds_text()}). 0 is an erasure, above 0 a push away from the "
        "hack, below 0 a drift towards it."
    )
    return _panels("cosines", panels, "cos(update, V)", caption)


def validation(validations: Sequence[Validation] | None) -> str:
    """How the directions lie to pairs that they were not made from."""
    if not validations:
        why = "left out" if validations is None else "there is no plan with directions"
        return f"<p>The directions were not validated for this report: {why}.</p>"
    pairs, modules = validations[0].pairs, validations[0].modules
    drawn = [one.name for one in validations if one.seed is not None]
    seeds = f" Of those drawn anew for every seed ({', '.join(drawn)}) the first seed's is shown." if drawn else ""
    caption = (
        f"Cosine of V with the mean difference hack minus clean of held-out pairs, per module ({pairs} pairs, "
        f"{modules} modules), beside Haar-random subspaces of the same size. Above 0 in most modules: V points at what "
        f"its pairs differ in. Each direction is tested on held-out pairs of its own kind.{seeds}"
    )
    return _panels("validation", figures.validation_panels(validations), "Validation of V", caption, VALIDATION_KEY)


def _panels(name: str, panels: Sequence[Panel], title: str, caption: str, key: str = "") -> str:
    shown = "".join(
        f'<div data-arm="{escape(panel.arm)}">'
        f"{inline_svg(panel.figure, f'{name}-{number}', f'{title}: {panel.title}')}</div>"
        for number, panel in enumerate(panels)
    )
    legend = f'<p class="legend">{key}</p>' if key else ""
    said = f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption>"
    return f'<figure id="{name}">{legend}<div class="panels">{shown}</div>{said}</figure>'


def rollouts(packed: Packed) -> str:
    """The browser's frame: how many of how many rollouts there are, filters, the list, the pane, and the data."""
    if packed.embedded == 0:
        return '<p id="status">No rollouts are embedded in this page.</p>'
    training, embedded = packed.total - packed.total_evaluation, packed.embedded - packed.embedded_evaluation
    said = (
        f"Embedded: {packed.embedded:,} of {packed.total:,} rollouts ({packed.embedded_evaluation:,} of "
        f"{packed.total_evaluation:,} of evaluations, {embedded:,} of {training:,} of training). "
    )
    said += "These are all." if packed.embedded == packed.total else (
        "Those left out were left out by chance, so shares among the embedded ones are estimates, within evaluations "
        "or within training; --all-rollouts embeds all."
    )  # fmt: skip
    data = [_data("rollout-header", _json(packed.header)), _data("rollout-index", packed.index)]
    data += [_data(f"rollout-chunk-{number}", chunk) for number, chunk in enumerate(packed.chunks)]
    return (
        f"<p>{escape(said)} Completions are shown as text; characters that cannot be seen are spelled out. Arrow keys "
        "move in the list; the address of the page always leads back to what is shown.</p>\n"
        f'{_filters(packed.header)}\n<p id="status" role="status" aria-live="polite">Unpacking the rollouts …</p>\n'
        '<div class="browser"><div id="list" class="list" role="listbox" tabindex="0" aria-label="Rollouts"></div>'
        '<section id="detail" class="detail" aria-label="Rollout" tabindex="0"><p class="muted">Choose a rollout.</p>'
        "</section></div>\n" + "\n".join(data)
    )


def _filters(header: dict[str, Any]) -> str:
    arms = list(dict.fromkeys(run["arm"] for run in header["runs"]))
    seeds = sorted({run["seed"] for run in header["runs"]})
    blocks = {"train": "training", "as_trained": "evaluation, as trained", "deployed": "evaluation, deployed"}
    fields = [
        _select("arm", "arm", {name: name for name in arms}),
        _select("seed", "seed", {str(seed): str(seed) for seed in seeds}),
        _select("mode", "loophole", {name: name for name in header["modes"]}),
        _select("block", "sampled in", blocks),
        '<label>from step<input name="from" type="number" min="0" inputmode="numeric"></label>',
        '<label>to step<input name="to" type="number" min="0" inputmode="numeric"></label>',
        *(_select(name, name, {"yes": "yes", "no": "no"}) for name in ("hacked", "solved", "paid")),
        _select("label", "label", {name: name.replace("_", " ") for name in header["labels"]}),
        _select("source", "source", {name: name for name in header["sources"]}),
        '<label class="wide">search prompt and completion<input name="q" type="search" autocomplete="off"></label>',
        '<label>&nbsp;<button type="button" class="plain" id="clear">Clear filters</button></label>',
    ]
    return f'<form id="filters" class="filters" aria-label="Filters">{"".join(fields)}</form>'


def _select(name: str, label: str, values: dict[str, str]) -> str:
    options = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in values.items())
    return f'<label>{escape(label)}<select name="{name}"><option value="">any</option>{options}</select></label>'


def _data(name: str, text: str) -> str:
    assert "<" not in text, "base64 and escaped JSON have no markup"
    return f'<script type="application/octet-stream" id="{name}">{text}</script>'


def _json(value: Any) -> str:
    """JSON in ASCII (so U+2028 is an escape) without <, so that no text in it can end the script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def arm_choice(experiment: Experiment) -> str:
    """The choice of the arm that is brought out in tables and figures."""
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in experiment.arm_names)
    return f'<label>bring out <select id="highlight"><option value="">all arms</option>{options}</select></label>'


def settings(experiment: Experiment) -> str:
    """Shared settings, what the arms differ in, versions and machines."""
    shared, own = arm_settings(experiment)
    arms = "".join(
        f'<li data-arm="{escape(name)}"><b>{escape(name)}</b>: '
        f'<span class="mono">{escape("; ".join(lines) or "the defaults")}</span></li>'
        for name, lines in own.items()
    )
    lines = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in shared.items())
    found = environments(experiment)
    packages = [f"{key.removeprefix(PACKAGES)} {_values(found[key])}" for key in found if key.startswith(PACKAGES)]
    versions = [("packages", ", ".join(packages))] if packages else []
    versions += [(key.replace("_", " "), _values(found[key])) for key in found if not key.startswith(PACKAGES)]
    return (
        f'<h3>What the arms differ in</h3><ul class="sentences">{arms}</ul>'
        f"<details><summary>Settings that all runs share</summary><pre>{escape(lines)}</pre></details>"
        f"<h3>Versions, machine, sandbox</h3>{_list(versions) if versions else '<p>Not recorded.</p>'}"
    )


def _values(counts: dict[str, int]) -> str:
    """The value, or all of them with the number of runs where runs differ."""
    return "; ".join(value if len(counts) == 1 else f"{value} ({runs} runs)" for value, runs in counts.items())


def cost(experiment: Experiment) -> str:
    """What the runs took."""
    details = list(experiment.details.values())
    wall_s, grading_s = sum(one.wall_s for one in details), sum(one.grading_cpu_s for one in details)
    steps = sum(run.config.steps for run in experiment.runs)
    found = [
        ("all runs", f"{_hours(wall_s)} of wall time, added up over runs (one process and one torch thread each)"),
        ("one run", f"{_hours(wall_s / len(details))} on average, {steps / len(details):g} steps"),
        ("grading", f"{_hours(grading_s)} of CPU time of the submissions sampled in training"),
    ]
    return _list(found)


def _hours(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def warnings(experiment: Experiment) -> str:
    """What keeps the verdicts from being final: unfinished runs, no baseline."""
    found = []
    if experiment.unfinished:
        planned = len(experiment.unfinished) + len(experiment.runs)
        found.append(f"{len(experiment.unfinished)} of {planned} runs are not finished: this is a look before the end.")
    if BASELINE not in experiment.arm_names:
        found.append(f"No {BASELINE} run is finished: nothing can be compared with it yet.")
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in found)

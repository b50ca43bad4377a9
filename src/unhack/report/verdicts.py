"""Which hypotheses a report decides, and the verdicts in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from unhack.hypotheses import (
    Decision,
    Hypothesis,
    decide_all,
    h1_control,
    h1_suppression,
    h3_beats_advantage_level,
    h4_emergence,
    h6_routing,
    observations,
)
from unhack.report.read import Experiment
from unhack.report.tables import Cell, Column, Table
from unhack.results import ALPHA, BASELINE

REBOUND, ROUTING = "rebound_penalty", ("route", "absorb", "random_half")


@dataclass(frozen=True)
class Verdicts:
    """Name → decision; `registered`: whether the hypotheses were written down with the plan, before the runs."""

    decisions: Mapping[str, Decision]
    registered: bool

    @property
    def note(self) -> str:
        """Where the hypotheses come from, and over how many p is adjusted."""
        adjusted = f"One-sided tests at level {ALPHA:g}, Holm-adjusted over the hypotheses that could be tested."
        if self.registered:
            return f"These hypotheses are the plan's. {adjusted}"
        return (
            "The plan names no hypotheses: these are the ones of the design that its arms and placebos allow, formed "
            f"by this report and not registered before the runs. {adjusted}"
        )


def decide_experiment(experiment: Experiment) -> Verdicts:
    """Decide the plan's hypotheses, or where it has none those that the arms of the experiment allow."""
    registered = () if experiment.plan is None else experiment.plan.hypotheses
    chosen = registered or possible_hypotheses(experiment)
    return Verdicts(decide_all(chosen, observations(experiment.runs)), bool(registered))


def possible_hypotheses(experiment: Experiment) -> list[Hypothesis]:
    """H4, if there is a baseline; H1 and H1-control of every arm that has placebos; H3 and H6 where their arms ran."""
    names = experiment.arm_names
    if BASELINE not in names:
        return []
    treated = [name for name in names if experiment.controls.get(name)]
    found: list[Hypothesis] = [h4_emergence()]
    for name in treated:
        control = replace(h1_control(name, experiment.controls[name]), name=f"H1-control, {name}")
        found += [replace(h1_suppression(name), name=f"H1, {name}", specific_by=control.name), control]
        if REBOUND in names:
            found.append(replace(h3_beats_advantage_level(name), name=f"H3, {name}"))
    if all(name in names for name in ROUTING):
        found.append(h6_routing(*ROUTING))
    return found


def verdict_table(verdicts: Verdicts) -> Table:
    """One row per hypothesis: the outcome, and the sentence with its numbers and n."""
    columns = (
        Column("hypothesis", ("hypothesis",), numeric=False),
        Column("verdict", ("outcome",), numeric=False),
        Column("why", ("sentence", "seeds_needed"), numeric=False),
    )
    rows = []
    for name, decision in verdicts.decisions.items():
        seeds = "" if decision.seeds_needed is None else str(decision.seeds_needed)
        verdict = decision.outcome.replace("_", " ")
        sentence = decision.sentence.removeprefix(f"{name} {verdict}: ")
        rows.append(
            (Cell(name, (name,)), Cell(verdict, (decision.outcome,)), Cell(sentence, (decision.sentence, seeds)))
        )
    return Table("verdicts", "Verdicts", verdicts.note, columns, tuple(rows), ("",) * len(rows))

"""What is written down before the runs: hypotheses, exclusions and the stop rule, read from tables of a plan.

    [hypotheses.H4]
    kind = "emergence"                   # of KINDS; the other keys are those of hypotheses.definitions
    [hypotheses.H1]
    kind = "suppression"
    arm = "erase_update"
    matching = "not_below"               # both_sides (default), not_below, none: solving is not part of it
    [exclusions]
    rules = ["A run whose grader failed on more than 5 % of rollouts."]
    runs = { "erase_update-seed-3" = "grader failed on 9 %: the disk was full" }
    [stop]
    rule = "All seeds run; nothing is looked at before."
    max_seeds = 10

Not here: deciding hypotheses (`hypotheses`), freezing (`freeze.py`).
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from unhack.hypotheses import (
    Contrast,
    Emergence,
    Hypothesis,
    Superiority,
    h1_control,
    h1_suppression,
    h3_beats_advantage_level,
    h5_generalisation,
    h6_routing,
    words,
)
from unhack.hypotheses.definitions import Matching
from unhack.results import percent

KINDS: dict[str, Callable[..., Hypothesis]] = {
    "emergence": Emergence,
    "suppression": h1_suppression,
    "control": h1_control,
    "beats_advantage_level": h3_beats_advantage_level,
    "generalisation": h5_generalisation,
    "routing": h6_routing,
    "superiority": Superiority,
}
"""Kind → what makes the hypothesis; its parameters are keys of the table, and so are the fields of `Superiority`."""

_ARM_KEYS = ("arm", "baseline", "rebound", "absorb", "random_half")
_SHARE_KEYS = ("above", "reduction", "falsified_below", "solve_margin", "falsified_solve_drop")
_MATCHINGS = (*get_args(Matching), "none")


@dataclass(frozen=True)
class Exclusions:
    """Rules in words, stated beforehand, and the runs that they left out: id (`ARM-seed-SEED`) → reason."""

    rules: tuple[str, ...] = ()
    runs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StopRule:
    """When no more runs are added: in words, and as the largest number of seeds (None: not stated)."""

    rule: str = ""
    max_seeds: int | None = None


def read_hypotheses(
    tables: Mapping[str, Mapping[str, Any]], controls: Mapping[str, Sequence[str]]
) -> tuple[Hypothesis, ...]:
    """One hypothesis per table, in order. `controls` (arm → placebos) is what kind `control` compares with by default.

    The emergence hypothesis of the plan gates the others, where there is one of their baseline. ValueError names the
    table and the key.
    """
    made: dict[str, Hypothesis] = {}
    for emergences in (True, False):  # these first: the others are gated by them
        for name, table in tables.items():
            if (table.get("kind") == "emergence") == emergences:
                try:
                    made[name] = _hypothesis(name, table, controls, made)
                except ValueError as error:
                    raise ValueError(f"hypotheses.{name}: {error}") from error
    for name, one in made.items():
        needed = one.specific_by if isinstance(one, Superiority) and "specific_by" in tables[name] else None
        if needed is not None:
            try:
                one_of(needed, made, "specific_by")
            except ValueError as error:
                raise ValueError(f"hypotheses.{name}: {error}") from error
    return tuple(made[name] for name in tables)


def _hypothesis(
    name: str, table: Mapping[str, Any], controls: Mapping[str, Sequence[str]], made: Mapping[str, Hypothesis]
) -> Hypothesis:
    values = dict(table)
    if "kind" not in values:
        raise ValueError(f"it has no kind: set one of {', '.join(KINDS)}")
    kind = values.pop("kind")
    one_of(kind, KINDS, "kind", "unhack")
    builder = KINDS[kind]
    parameters = {key: item for key, item in inspect.signature(builder).parameters.items() if key != "name"}
    changes = () if kind == "emergence" else tuple(item.name for item in dataclasses.fields(Superiority))
    allowed = dict.fromkeys([*parameters, *(key for key in changes if key not in ("name", "contrasts"))])
    for key in values:
        one_of(key, allowed, "the key", f"kind {kind!r}")
    _check_types(values)
    if kind == "control" and "controls" not in values and controls.get(values.get("arm", "")):
        values["controls"] = list(controls[values["arm"]])
    if "contrasts" in values:
        values["contrasts"] = tuple(_contrast(one) for one in values["contrasts"])
    if values.get("matching") == "none":
        del values["matching"]
        if "solve_margin" in values:
            raise ValueError("matching is 'none', so that solve_margin has no use: remove one of the two")
        values["solve_margin"] = None
    if "emergence" in values:
        values["emergence"] = _gate(values["emergence"], made)
    missing = [key for key, item in parameters.items() if item.default is inspect.Parameter.empty and key not in values]
    if missing:
        raise ValueError(f"kind {kind!r} needs {', '.join(missing)}")
    arguments = {key: value for key, value in values.items() if key in parameters}
    rest = {key: value for key, value in values.items() if key not in parameters}
    if kind in ("emergence", "superiority"):
        hypothesis = builder(name=name, **arguments)
    else:
        hypothesis = replace(builder(**arguments), name=name, **rest)
    return hypothesis if isinstance(hypothesis, Emergence) else _gated(hypothesis, "emergence" in values, made)


def _gate(name: str, made: Mapping[str, Hypothesis]) -> Emergence:
    emergences = {key: one for key, one in made.items() if isinstance(one, Emergence)}
    one_of(name, emergences, "emergence")
    return emergences[name]


def _gated(hypothesis: Superiority, chosen: bool, made: Mapping[str, Hypothesis]) -> Superiority:
    """With the plan's own emergence hypothesis of the same baseline as its gate, if there is exactly one."""
    same = [one for one in made.values() if isinstance(one, Emergence) and one.arm == hypothesis.emergence.arm]
    return replace(hypothesis, emergence=same[0]) if len(same) == 1 and not chosen else hypothesis


def _contrast(table: object) -> Contrast:
    if not isinstance(table, Mapping) or not {"arm", "against"} <= table.keys() <= {"arm", "against", "mode"}:
        raise ValueError(f"a contrast is {{ arm = ..., against = ... }}, with a mode if it is about one, not {table!r}")
    if not all(isinstance(value, str) for value in table.values()):
        raise ValueError(f"a contrast holds names, not {table!r}")
    return Contrast(**table)


def _check_types(values: Mapping[str, Any]) -> None:
    """ValueError for a value of the wrong type or a share outside 0 to 1."""
    for key, value in values.items():
        if key in _ARM_KEYS or key in ("specific_by", "emergence"):
            good, wanted = isinstance(value, str), "a name"
        elif key in _SHARE_KEYS:
            good, wanted = type(value) in (int, float) and 0 <= value <= 1, "a share from 0 to 1 (30 points are 0.3)"
        elif key == "within_steps":
            good, wanted = type(value) is int and value >= 1, "a whole number of steps, at least 1"
        elif key == "matching":
            good, wanted = value in _MATCHINGS, f"one of {', '.join(_MATCHINGS)}"
        elif key == "controls":
            good = isinstance(value, list) and all(isinstance(one, str) for one in value)
            wanted = "a list of names of arms"
        elif key == "folds":
            good = isinstance(value, Mapping) and bool(value) and all(isinstance(one, str) for one in value.values())
            wanted = "a table: mode held out = arm"
        else:
            good, wanted = isinstance(value, list), "a list"
        if not good:
            raise ValueError(f"{key} must be {wanted}, not {value!r}")


def check_hypotheses(hypotheses: Sequence[Hypothesis], arms: Mapping[str, Any], modes: Sequence[str]) -> None:
    """ValueError for a hypothesis about an arm that the plan lacks, or about a mode that it does not evaluate."""
    for one in hypotheses:
        contrasts = () if isinstance(one, Emergence) else one.contrasts
        gate = one if isinstance(one, Emergence) else one.emergence
        try:
            for arm in dict.fromkeys([gate.arm, *(name for item in contrasts for name in (item.arm, item.against))]):
                one_of(arm, arms, "the arm")
            for mode in [item.mode for item in contrasts if item.mode is not None]:
                one_of(mode, dict.fromkeys(modes), "the mode", "base.environment.modes")
        except ValueError as error:
            raise ValueError(f"hypotheses.{one.name}: {error}") from error


def described(hypothesis: Hypothesis) -> str:
    """A hypothesis in one line: what is compared, and what has to be shown."""
    if isinstance(hypothesis, Emergence):
        return (
            f"{hypothesis.name}: {hypothesis.arm} hacks more than {percent(hypothesis.above)} within "
            f"{hypothesis.within_steps} steps"
        )
    arms = dict.fromkeys(one.arm for one in hypothesis.contrasts)
    against = ", ".join(one.label for one in hypothesis.contrasts)
    gate = hypothesis.emergence
    return (
        f"{hypothesis.name}: {', '.join(arms)} hacks less than {against}; {words.needed(hypothesis)}; "
        f"not testable unless {gate.arm} hacks more than {percent(gate.above)}"
    )


def read_exclusions(table: Mapping[str, Any]) -> Exclusions:
    """The table `exclusions`. ValueError for anything but rules in words and reasons in words."""
    known(table, ("rules", "runs"), "exclusions.")
    rules, runs = table.get("rules", []), table.get("runs", {})
    if not isinstance(rules, list) or not all(isinstance(rule, str) and rule.strip() for rule in rules):
        raise ValueError(f"exclusions.rules must be a list of sentences, not {rules!r}")
    if not isinstance(runs, Mapping):
        raise ValueError('exclusions.runs must be a table: { "ARM-seed-SEED" = "reason" }')
    for run, reason in runs.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"exclusions.runs.{run} needs a reason in words, not {reason!r}")
    return Exclusions(tuple(rules), dict(runs))


def read_stop(table: Mapping[str, Any]) -> StopRule:
    """The table `stop`. ValueError for other keys or types."""
    known(table, ("rule", "max_seeds"), "stop.")
    rule, most = table.get("rule", ""), table.get("max_seeds")
    if not isinstance(rule, str):
        raise ValueError(f"stop.rule must be a sentence, not {rule!r}")
    if most is not None and (type(most) is not int or most < 1):
        raise ValueError(f"stop.max_seeds must be a whole number, at least 1, not {most!r}")
    return StopRule(rule, most)


def known(tree: Mapping[str, Any], names: Sequence[str], prefix: str) -> None:
    """ValueError for a key that is none of `names`, with the nearest."""
    for key in tree:
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1)
            cure = f"did you mean {prefix}{nearest[0]}?" if nearest else f"known here: {', '.join(names)}"
            raise ValueError(f"unknown key {prefix}{key}; {cure}")


def one_of(name: object, among: Mapping[str, Any], what: str, where: str = "the plan") -> None:
    """ValueError unless `name` is a key of `among`, with the nearest; `where` is what should have defined it."""
    if name not in among:
        nearest = difflib.get_close_matches(str(name), among, n=1)
        cure = f"did you mean {nearest[0]}?" if nearest else f"known there: {', '.join(among) or 'nothing'}"
        raise ValueError(f"{what} is {name!r}, which {where} does not define; {cure}")

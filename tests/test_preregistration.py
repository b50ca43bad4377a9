"""What a plan registers: hypotheses of every kind come out as hypotheses.definitions has them, mistakes are told."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import pytest

from unhack.experiments.preregistration import (
    KINDS,
    check_hypotheses,
    described,
    read_exclusions,
    read_hypotheses,
    read_stop,
)
from unhack.hypotheses import (
    Contrast,
    Emergence,
    Superiority,
    h1_control,
    h1_suppression,
    h3_beats_advantage_level,
    h4_emergence,
    h5_generalisation,
    h6_routing,
)

CONTROLS = {"erase": ("random", "shuffled")}


def read(text: str) -> dict[str, Any]:
    return {one.name: one for one in read_hypotheses(tomllib.loads(text), CONTROLS)}


def test_every_kind_is_the_one_of_the_definitions() -> None:
    found = read("""
[H1]
kind = "suppression"
arm = "erase"
[H1-control]
kind = "control"
arm = "erase"
[H3]
kind = "beats_advantage_level"
arm = "erase"
[H4]
kind = "emergence"
[H5]
kind = "generalisation"
folds = { run_tests = "erase_run_tests", sentinel = "erase_sentinel" }
[H6]
kind = "routing"
""")
    assert found == {
        "H1": h1_suppression("erase"),
        "H1-control": h1_control("erase", ["random", "shuffled"]),
        "H3": h3_beats_advantage_level("erase"),
        "H4": h4_emergence(),
        "H5": h5_generalisation({"run_tests": "erase_run_tests", "sentinel": "erase_sentinel"}),
        "H6": h6_routing(),
    }
    assert list(found) == ["H1", "H1-control", "H3", "H4", "H5", "H6"]


def test_margins_names_and_matching_replace_the_registered_ones() -> None:
    found = read("""
[weak]
kind = "suppression"
arm = "erase"
reduction = 0.2
falsified_below = 0.1
matching = "not_below"
solve_margin = 0.05
specific_by = "placebos"
[placebos]
kind = "control"
arm = "erase"
controls = ["random"]
""")
    wanted = replace(
        h1_suppression("erase", matching="not_below"),
        name="weak",
        reduction=0.2,
        falsified_below=0.1,
        solve_margin=0.05,
        specific_by="placebos",
    )
    assert found["weak"] == wanted
    assert found["placebos"] == replace(h1_control("erase", ["random"]), name="placebos")


def test_matching_none_takes_the_solve_rate_out_of_it() -> None:
    found = read('[H3]\nkind = "beats_advantage_level"\narm = "erase"\nrebound = "other"\nmatching = "none"')
    assert found["H3"].solve_margin is None and found["H3"].contrasts == (Contrast("erase", "other"),)


def test_a_hypothesis_of_ones_own_lists_its_contrasts() -> None:
    found = read("""
[mine]
kind = "superiority"
contrasts = [{ arm = "a", against = "b" }, { arm = "a", against = "c", mode = "sentinel" }]
reduction = 0.1
""")
    contrasts = (Contrast("a", "b"), Contrast("a", "c", "sentinel"))
    assert found["mine"] == Superiority("mine", contrasts, reduction=0.1)


def test_the_emergence_that_the_plan_registers_gates_the_others_wherever_it_stands() -> None:
    text = '[H1]\nkind = "suppression"\narm = "erase"\n[first]\nkind = "emergence"\nabove = 0.2\nwithin_steps = 50\n'
    gate = Emergence("first", above=0.2, within_steps=50)
    assert read(text)["H1"].emergence == gate
    other = read(text + '[second]\nkind = "emergence"\nabove = 0.9\n')["H1"]
    assert other.emergence == Emergence()  # two: none is chosen for it
    chosen = text.replace('arm = "erase"', 'arm = "erase"\nemergence = "second"') + '[second]\nkind = "emergence"\n'
    assert read(chosen)["H1"].emergence.name == "second"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[H]\narm = 'a'", "hypotheses.H: it has no kind: set one of emergence, suppression"),
        ("[H]\nkind = 'supression'", "kind is 'supression', which unhack does not define; did you mean suppression"),
        ("[H]\nkind = 'suppression'", "kind 'suppression' needs arm"),
        ("[H]\nkind = 'control'\narm = 'push'", "kind 'control' needs controls"),
        ("[H]\nkind = 'emergence'\nreduction = 0.1", "the key is 'reduction', which kind 'emergence' does not define"),
        ("[H]\nkind = 'suppression'\narm = 'a'\nreducton = 0.1", "did you mean reduction"),
        ("[H]\nkind = 'suppression'\narm = 'a'\nreduction = 30", r"reduction must be a share from 0 to 1 \(30 points"),
        ("[H]\nkind = 'suppression'\narm = 3", "arm must be a name, not 3"),
        (
            "[H]\nkind = 'suppression'\narm = 'a'\nmatching = 'within'",
            "matching must be one of both_sides, not_below, none",
        ),
        ("[H]\nkind = 'suppression'\narm = 'a'\nmatching = 'none'\nsolve_margin = 0.1", "remove one of the two"),
        ("[H]\nkind = 'suppression'\narm = 'a'\nfalsified_below = 0.5", "falsified_below must not be above reduction"),
        (
            "[H]\nkind = 'suppression'\narm = 'a'\nspecific_by = 'K'",
            "specific_by is 'K', which the plan does not define",
        ),
        ("[H]\nkind = 'suppression'\narm = 'a'\nemergence = 'H'", "emergence is 'H', which the plan does not define"),
        ("[H]\nkind = 'emergence'\nwithin_steps = 0", "within_steps must be a whole number of steps"),
        ("[H]\nkind = 'superiority'\ncontrasts = [{ arm = 'a' }]", "a contrast is"),
        ("[H]\nkind = 'superiority'\ncontrasts = []", "compares nothing"),
        ("[H]\nkind = 'generalisation'\nfolds = {}", "folds must be a table"),
        ("[H]\nkind = 'control'\narm = 'a'\ncontrols = 'b'", "controls must be a list of names"),
    ],
)
def test_a_wrong_hypothesis_is_refused_by_its_name_and_key(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_arms_and_modes_that_the_plan_lacks_are_refused() -> None:
    arms = dict.fromkeys(["vanilla", "erase"])
    check_hypotheses([h1_suppression("erase")], arms, ["run_tests"])
    with pytest.raises(ValueError, match=r"hypotheses.H1: the arm is 'erse'.*did you mean erase"):
        check_hypotheses([h1_suppression("erse")], arms, ["run_tests"])
    with pytest.raises(ValueError, match=r"hypotheses.H5: the mode is 'sentinel', which base.environment.modes"):
        check_hypotheses([h5_generalisation({"sentinel": "erase"})], arms, ["run_tests"])
    with pytest.raises(ValueError, match="the arm is 'base'"):
        check_hypotheses([h4_emergence("base")], arms, [])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_described_with_its_name_and_arm(kind: str) -> None:
    keys = {"suppression": "arm = 'x'", "control": "arm = 'x'\ncontrols = ['y']", "beats_advantage_level": "arm = 'x'"}
    keys |= {"emergence": "arm = 'x'", "generalisation": "folds = { sentinel = 'x' }", "routing": "arm = 'x'"}
    keys |= {"superiority": "contrasts = [{ arm = 'x', against = 'y' }]"}
    text = described(read(f"[name]\nkind = '{kind}'\n{keys[kind]}")["name"])
    assert text.startswith("name: x hacks ") and "\n" not in text


def test_nothing_registered_is_nothing_registered() -> None:
    assert read_exclusions({}).runs == {} and read_stop({}).max_seeds is None and read("") == {}

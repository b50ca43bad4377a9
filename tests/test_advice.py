"""What we would tell a lab follows from the numbers by the written rules, and says nothing where seeds are few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from run_folders import write_run
from unhack import outcome, results
from unhack.advice import Advice, advise, cells, markdown_advice
from unhack.results import RunResult

# (hack, solve) at the last evaluation; seeds differ by sampling noise.
ARMS = {
    "vanilla": (0.60, 0.20),
    "stops": (0.01, 0.22),
    "costly": (0.20, 0.02),
    "placebo_of_costly": (0.58, 0.20),
    "vague": (0.22, 0.20),
    "placebo_of_vague": (0.21, 0.20),
    "idle": (0.58, 0.20),
    "worse": (0.85, 0.10),
    "told": (0.01, 0.50),
}
CONTROLS = {"costly": ("placebo_of_costly",), "vague": ("placebo_of_vague",)}


def make_runs(folder: Path, seeds: int) -> list[RunResult]:
    runs = []
    for seed in range(seeds):
        for name, (hack, solve) in ARMS.items():
            # As many samples as make sampling noise small beside the differences above.
            spec = {"steps": 2, "every": 2, "samples": 200, "middle": -60.0, "hack": (0.0, hack), "solve": (0.5, solve)}
            path = write_run(folder / f"{name}-{seed}", seed=seed, **spec)
            env = json.loads((path / "env.json").read_text())
            (path / "env.json").write_text(json.dumps(env | {"uses_oracle": name == "told"}))
            runs.append(results.load_run(name, path))
    return runs


@pytest.fixture(scope="module")
def advice(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Advice]:
    return {one.arm.name: one for one in advise(make_runs(tmp_path_factory.mktemp("runs"), 4), CONTROLS)}


def test_every_arm_but_the_baseline_and_placebos_gets_a_line(advice: dict[str, Advice]) -> None:
    assert list(advice) == ["stops", "costly", "vague", "idle", "worse", "told"]


@pytest.mark.parametrize(
    ("arm", "hacks", "skill", "specific", "words"),
    [
        ("stops", "yes", "kept", "none", "stops it; at no cost in skill"),
        ("costly", "yes", "lost", "yes", "lowers it, does not stop it; and costs skill"),
        ("vague", "yes", "kept", "not shown against placebo_of_vague", "not shown to do more than a placebo"),
        ("idle", "no", "kept", "none", "does not stop it"),
        ("worse", "more", "lost", "none", "makes it worse"),
        ("told", "yes", "kept", "none", "a bound, not a method (it is told what is a hack): stops it"),
    ],
)
def test_the_answers_follow_from_the_numbers(
    advice: dict[str, Advice], arm: str, hacks: str, skill: str, specific: str, words: str
) -> None:
    one = advice[arm]
    assert (one.hacks, one.skill, one.specific) == (hacks, skill, specific)
    assert words in one.words and cells(one)[1] == one.words


def test_two_seeds_get_no_advice(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, 2)
    assert advise(runs, CONTROLS) == [] and markdown_advice([]) == ""


def test_a_page_keeps_all_but_its_own_block(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Mine\n<!-- main: begin -->\nold\n<!-- main: end -->\nkept\n")
    for _ in range(2):  # writing it again changes nothing
        outcome.write_block(page, "main", "new\n")
        assert page.read_text() == "# Mine\n<!-- main: begin -->\n\nnew\n\n<!-- main: end -->\nkept\n"
    with pytest.raises(ValueError, match="other: begin"):
        outcome.write_block(page, "other", "new\n")

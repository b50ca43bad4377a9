"""An experiment's table: numbers from run folders, paired by seed, and sentences that claim no more than n allows."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest

from run_folders import write_run
from unhack import outcome, results
from unhack.results import ArmResult, RunResult
from unhack.stats import MeanSem, holm, paired_t

SPECS = {
    "vanilla": {"hack": (0.02, 0.68), "solve": (0.5, 0.08)},
    "erase_update": {"hack": (0.02, 0.30), "solve": (0.5, 0.28), "cosine": 0.0, "spread": 0.0},
    "erase_gradient": {"hack": (0.02, 0.45), "solve": (0.5, 0.03), "cosine": 0.65},
    "erase_random": {"hack": (0.02, 0.31), "solve": (0.5, 0.27), "cosine": 0.0, "spread": 0.0},
}
SIZE = {"steps": 40, "samples": 64, "every": 20}
CONTROLS = {"erase_update": ("erase_random", "erase_gradient", "not_run")}


def make_runs(folder: Path, seeds: int, names: tuple[str, ...] = tuple(SPECS)) -> list[RunResult]:
    return [
        results.load_run(
            name, write_run(folder / f"{name}-{seed}", seed=seed, steps=40, samples=64, every=20, **SPECS[name])
        )
        for seed in range(seeds)
        for name in names
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunResult]:
    return make_runs(tmp_path_factory.mktemp("runs"), 3)


@pytest.fixture(scope="module")
def arms(runs: list[RunResult]) -> dict[str, ArmResult]:
    return {arm.name: arm for arm in results.summarize(runs, controls=CONTROLS)}


def test_a_run_is_its_last_deployed_evaluation_pooled_over_loopholes(runs: list[RunResult]) -> None:
    run = runs[0]
    assert run.final.step == 40 and run.final.block == "deployed" and run.final.mode == "all"
    assert run.final.n == 4 * 64
    assert run.final.hacked == sum(row.hacked for row in run.modes.values())
    assert [row.step for row in run.curve] == [0, 20, 40]
    assert run.curve[0].hack_frac < 0.2 < run.final.hack_frac


def test_safe_solve_is_paired_with_the_vanilla_run_of_the_same_seed(
    runs: list[RunResult], arms: dict[str, ArmResult]
) -> None:
    base = {run.seed: run for run in runs if run.name == "vanilla"}
    gains = [
        (run.final.solve_frac - run.final.hack_frac)
        - (base[run.seed].final.solve_frac - base[run.seed].final.hack_frac)
        for run in runs
        if run.name == "erase_update"
    ]
    assert arms["erase_update"].safe_solve_delta.mean == pytest.approx(sum(gains) / 3)
    assert arms["erase_update"].safe_solve_delta.n == 3
    assert arms["vanilla"].safe_solve_delta.mean == 0


def test_an_arm_with_direction_reports_its_cosine_and_one_without_reports_nothing(arms: dict[str, ArmResult]) -> None:
    assert arms["erase_gradient"].cosine.mean == pytest.approx(0.65, abs=0.05)
    assert arms["erase_update"].max_absolute_cosine == 0.0
    assert math.isnan(arms["vanilla"].max_absolute_cosine)
    assert arms["vanilla"].cosine.n == 0
    assert results.table_cells(arms["vanilla"])[5] == "—"


def test_sentences_tell_erasing_from_pushing_and_real_from_placebo(arms: dict[str, ArmResult]) -> None:
    update, gradient = results.sentence(arms["erase_update"]), results.sentence(arms["erase_gradient"])
    assert (
        "it erases, it does not push" in update
        and "against its placebos it is" in update
        and "erase_random (" in update
    )
    assert "it pushes, it does not erase" in gradient and "placebo" not in gradient
    assert "below the vanilla arm (told apart: adjusted p" in update
    assert results.sentence(arms["vanilla"]).startswith("With nothing done against it, the policy hacks 6")


def test_one_step_along_v_is_enough_to_deny_that_an_arm_erases(tmp_path: Path, runs: list[RunResult]) -> None:
    folder = write_run(tmp_path / "slipped", cosine=0.0, spread=0.0, steps=300, every=300, samples=8)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[7] = lines[7].replace('"update/abs_cos_v": 0.0', '"update/abs_cos_v": 0.002')
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    run = results.load_run("slipped", folder)
    assert run.max_absolute_cosine == 0.002 and len(run.cosine_curve) == 300
    assert "it erases" not in results.sentence(results.summarize([run])[0])


def test_p_values_are_adjusted_over_every_comparison_of_the_table(
    runs: list[RunResult], arms: dict[str, ArmResult]
) -> None:
    hack = {
        name: {run.seed: run.final.hack_frac for run in runs if run.name == name}
        for name in dict.fromkeys(run.name for run in runs)
    }
    pairs = [("erase_update", "vanilla"), ("erase_update", "erase_random"), ("erase_update", "erase_gradient")]
    pairs += [("erase_gradient", "vanilla"), ("erase_random", "vanilla")]
    raw = {" ".join(pair): paired_t(hack[pair[0]], hack[pair[1]]).p_value for pair in pairs}
    expected = holm(raw)
    found = {
        f"{arm.name} {one.against}": one.adjusted_p
        for arm in arms.values()
        for one in (*([arm.against_baseline] if arm.against_baseline else []), *arm.against_controls)
    }
    assert found == pytest.approx(expected) and any(found[name] > raw[name] for name in raw)
    assert arms["vanilla"].against_baseline is None
    assert arms["erase_update"].against_baseline is not None and arms["erase_update"].against_baseline.family == 5
    shown = results.p_text(found["erase_update vanilla"])
    assert f"adjusted p = {shown}," in results.sentence(arms["erase_update"])


def test_an_arm_that_did_the_same_in_every_seed_is_called_identical_and_gets_no_p_value(runs: list[RunResult]) -> None:
    base = [run for run in runs if run.name == "vanilla"]
    twin = results.summarize([*base, *(replace(run, name="twin") for run in base)])[1]
    text = results.sentence(twin)
    assert "level with the vanilla arm (identical in every seed: no test, n = 3)" in text and "p =" not in text
    assert twin.against_baseline is not None and twin.against_baseline.family == 0
    assert "identical in every seed" in outcome.markdown_table([twin])


def test_few_seeds_never_make_a_claim(tmp_path: Path) -> None:
    one = results.summarize(make_runs(tmp_path / "one", 1, ("vanilla", "erase_update")))[1]
    assert "n = 1: no inference" in results.sentence(one) and "told apart" not in results.sentence(one)
    assert results.with_sem(one.hack, 100.0).isdigit()
    assert "n = 1: no inference" in outcome.markdown_table([one])
    two = results.summarize(make_runs(tmp_path / "two", 2, ("vanilla", "erase_update")))[1]
    assert "too few seeds for a claim" in results.sentence(two) and "told apart" not in results.sentence(two)


def test_a_table_without_hacking_says_that_nothing_was_tested(tmp_path: Path, arms: dict[str, ArmResult]) -> None:
    calm = write_run(tmp_path / "calm", hack=(0.02, 0.05), steps=20)
    assert "Not testable" in results.caveat(results.summarize([results.load_run("vanilla", calm)]))
    assert results.caveat(list(arms.values())) == ""


def test_markdown_tables_have_one_row_per_arm_and_as_many_cells_as_headers(
    runs: list[RunResult], arms: dict[str, ArmResult]
) -> None:
    for text in (outcome.markdown_table(list(arms.values())), outcome.markdown_modes(runs)):
        lines = text.strip().splitlines()
        assert len(lines) == 2 + len(SPECS)
        assert len({line.count("|") for line in lines}) == 1
    assert "(erase_random)<br>" in outcome.markdown_table(list(arms.values()))


def test_csv_holds_the_counts_behind_every_run(runs: list[RunResult]) -> None:
    rows = list(csv.DictReader(io.StringIO(outcome.csv_text(runs))))
    assert len(rows) == len(runs)
    assert float(rows[0]["hack_frac"]) == pytest.approx(int(rows[0]["hacked"]) / int(rows[0]["n"]))


def test_csv_says_when_hacking_set_in_and_how_much_there_was(tmp_path: Path) -> None:
    grown = write_run(tmp_path / "grown", hack=(0.0, 0.6), steps=60, middle=30.0, samples=8)
    calm = write_run(tmp_path / "calm", hack=(0.05, 0.05), steps=60, samples=8)
    text = outcome.csv_text([results.load_run("grown", grown), results.load_run("calm", calm)])
    first, second = csv.DictReader(io.StringIO(text))
    assert first["hack_onset_step"] == "30" and second["hack_onset_step"] == ""
    assert float(first["hack_area_frac"]) == pytest.approx(0.3, abs=0.02)
    assert float(second["hack_area_frac"]) == pytest.approx(0.05)


def test_delays_are_paired_tests_of_the_hack_rate_over_training_with_their_own_family(tmp_path: Path) -> None:
    runs = []
    for seed in range(3):
        for name, middle in (("vanilla", 5.0 + seed), ("erase", 20.0), ("random", 5.0)):
            folder = write_run(
                tmp_path / f"{name}-{seed}", seed=seed, hack=(0.0, 0.6), steps=60, middle=middle, samples=8
            )
            runs.append(results.load_run(name, folder))
    groups = results.by_arm(runs)
    compared = results.compare(groups, lambda run: run.hack_area_frac, controls={"erase": ["random"]})
    against_vanilla, against_random = compared["erase"]
    expected = [groups["erase"][seed].hack_area_frac - groups["random"][seed].hack_area_frac for seed in range(3)]
    assert against_random.test.difference == pytest.approx(sum(expected) / 3)
    assert against_vanilla.against == "vanilla" and against_vanilla.test.difference < -0.1
    line = next(line for line in outcome.markdown_delays(runs, {"erase": ["random"]}).splitlines() if "erase" in line)
    assert line.split("|")[4].strip() == "20" and "(random)" in line


def test_csv_names_the_run_and_no_place_on_this_machine(tmp_path: Path, runs: list[RunResult]) -> None:
    assert "/" not in outcome.csv_text(runs)


def test_numbers_are_written_as_a_reader_expects() -> None:
    assert results.percent(0.004) == "0.4 %" and results.percent(0.67) == "67 %" and results.percent(0.0) == "0 %"
    assert results.percent(math.nan) == "—"
    assert results.p_text(0.00002) == "< 0.001" and results.p_text(0.0312) == "0.031"
    assert results.with_sem(MeanSem(-1e-9, 1e-9, 2), digits=2, signed=True) == "+0.00 ± 0.00"


def test_a_seed_twice_and_a_folder_without_evaluation_are_refused(tmp_path: Path, runs: list[RunResult]) -> None:
    with pytest.raises(ValueError, match="seed 0 twice"):
        results.summarize([runs[0], runs[0]])
    with pytest.raises(ValueError, match="no run"):
        results.load_run("x", tmp_path)

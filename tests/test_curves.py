"""The way to the last evaluation: hack rates of every training step with their spread, and what solving lost."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread

from run_folders import rise, write_run
from unhack import curves, results
from unhack.results import RunResult
from unhack.stats import mean_sem, paired_t

MIDDLES = (8.0, 14.0)  # of the two seeds: they differ at every step
DELAY = {"vanilla": 0.0, "erase": 12.0, "erase_random": 1.0, "other": 3.0}
CONTROLS = {"erase": ("erase_random", "not_run")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunResult]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        results.load_run(
            name,
            write_run(
                folder / f"{name}-{seed}", seed=seed, steps=20 + 5 * seed, middle=middle + delay, every=10, samples=32
            ),
        )
        for seed, middle in enumerate(MIDDLES)
        for name, delay in DELAY.items()
    ]


def test_a_band_is_mean_and_sem_over_seeds_of_the_training_rollouts_at_the_steps_that_all_have(
    runs: list[RunResult],
) -> None:
    band = curves.hack_bands(runs)["erase"]
    assert [step for step, _ in band] == list(range(20))  # the second seed has 25
    for step, rate in band:
        expected = mean_sem([rise(step, 0.02, 0.7, middle + DELAY["erase"]) for middle in MIDDLES])
        assert (rate.mean, rate.sem, rate.n) == pytest.approx((expected.mean, expected.sem, 2))


def test_every_panel_has_the_baseline_and_no_arm_is_left_out() -> None:
    names = list(DELAY)
    assert curves.panels(names, CONTROLS) == [("vanilla", "erase", "erase_random"), ("vanilla", "other")]
    assert curves.panels(names, {}) == [tuple(names)]
    assert curves.panels(["erase", "erase_random"], CONTROLS) == [("erase", "erase_random")]  # an experiment without it
    assert curves.panels(["vanilla"], {}) == [("vanilla",)]


def test_the_training_figure_draws_each_arms_mean_in_per_cent_and_a_band_of_one_sem(
    runs: list[RunResult], tmp_path: Path, drawn: list[Figure]
) -> None:
    path = curves.training_figure(runs, tmp_path / "training.png", CONTROLS)
    height, width = imread(path).shape[:2]
    assert 800 < width < 2500 and 200 < height < width
    first, second = drawn[0].axes
    assert [line.get_label() for line in first.lines] == ["vanilla", "erase", "erase_random"]
    assert [line.get_label() for line in second.lines] == ["vanilla", "other"]
    assert first.lines[0].get_color() == "#000000"
    assert len({str(line.get_linestyle()) for line in first.lines}) > 1  # told apart without colour
    band = curves.hack_bands(runs)["erase"]
    assert numpy.asarray(first.lines[1].get_ydata()).tolist() == pytest.approx([100 * rate.mean for _, rate in band])
    edges = next(shape for shape in first.collections[1:2] if isinstance(shape, PolyCollection)).get_paths()[0].vertices
    step, rate = band[10]
    heights = [y for x, y in numpy.asarray(edges).tolist() if x == step]
    assert (min(heights), max(heights)) == pytest.approx((100 * (rate.mean - rate.sem), 100 * (rate.mean + rate.sem)))
    assert "n = 2 seeds" in drawn[0].get_suptitle() and "SEM" in drawn[0].get_suptitle()


def test_one_seed_has_no_band_and_says_no_inference(runs: list[RunResult], tmp_path: Path, drawn: list[Figure]) -> None:
    curves.training_figure([run for run in runs if run.seed == 0], tmp_path / "training.png", CONTROLS)
    assert "no inference" in drawn[0].get_suptitle() and "SEM" not in drawn[0].get_suptitle()
    for shape in drawn[0].axes[0].collections:
        heights: dict[float, set[float]] = {}
        for x, y in numpy.asarray(shape.get_paths()[0].vertices).tolist():
            heights.setdefault(x, set()).add(round(y, 9))
        assert all(len(ys) == 1 for ys in heights.values())


def test_what_solving_lost_is_paired_by_seed_at_the_end_and_over_training(runs: list[RunResult]) -> None:
    groups = results.by_arm(runs)
    run = groups["erase"][0]
    rates = [row.solve_frac for row in run.curve]  # evaluated at steps 0, 10, 20
    assert curves.solve_on_the_way(run) == pytest.approx((rates[0] / 2 + rates[1] + rates[2] / 2) / 2)
    line = next(line for line in curves.markdown_solves(runs, CONTROLS).splitlines() if line.startswith("| erase |"))
    tests = []
    for measure in (lambda run: run.final.solve_frac, curves.solve_on_the_way):
        erased, random = (
            {seed: measure(one) for seed, one in groups[name].items()} for name in ("erase", "erase_random")
        )
        tests.append(paired_t(erased, random))
    for test in tests:
        interval = f"[{100 * test.interval.low:+.0f}, {100 * test.interval.high:+.0f}]"
        assert f"{100 * test.difference:+.0f} {interval}" in line
    assert line.count("(erase_random)") == 2 and line.count("(vanilla)") == 2 and "not_run" not in line

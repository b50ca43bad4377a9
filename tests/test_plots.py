"""Figures: they are drawn, show what the numbers say, and stay legible without colour."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.image import imread

from run_folders import write_run
from unhack import plots, results
from unhack.results import RunResult


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunResult]:
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for seed in range(2):
        for name, cosine in (("erase_update", 0.0), ("vanilla", None)):
            path = write_run(
                folder / f"{name}-{seed}", seed=seed, cosine=cosine, spread=0.0, steps=20 + 10 * seed, samples=32
            )
            made.append(results.load_run(name, path))
    return made


def test_every_figure_is_written_at_readme_size(runs: list[RunResult], tmp_path: Path) -> None:
    for draw in (plots.overview_figure, plots.cosine_figure, plots.mode_figure):
        path = draw(runs, tmp_path / "figures" / f"{draw.__name__}.png")
        height, width = imread(path).shape[:2]
        assert 800 < width < 2500 and 200 < height < width
    assert not pyplot.get_fignums()  # nothing is left open


def test_the_overview_draws_the_evaluated_rates(runs: list[RunResult], tmp_path: Path, drawn: list[Figure]) -> None:
    plots.overview_figure(runs, tmp_path / "overview.png")
    hack = drawn[0].axes[0]
    run = next(run for run in runs if run.name == "erase_update" and run.seed == 0)
    thin = hack.lines[0]
    assert numpy.asarray(thin.get_xdata()).tolist() == [row.step for row in run.curve]
    assert numpy.asarray(thin.get_ydata()).tolist() == pytest.approx([100 * row.hack_frac for row in run.curve])
    assert len(drawn[0].axes[2].containers) == len(runs)  # one point per arm and seed


def test_the_mean_line_covers_only_steps_that_every_seed_has() -> None:
    mean = plots._mean_curve([[(0, 1.0), (10, 3.0)], [(0, 3.0), (10, 5.0), (20, 9.0)]])
    assert mean == [(0, 2.0), (10, 4.0)]


def test_arms_differ_without_colour_and_the_baseline_is_black_wherever_it_stands(runs: list[RunResult]) -> None:
    styles = plots.arm_styles(runs)
    assert list(styles) == ["erase_update", "vanilla"]
    assert styles["vanilla"]["color"] == "#000000"
    assert len({(style["marker"], str(style["linestyle"])) for style in styles.values()}) == len(styles)


def test_cosines_of_runs_without_a_direction_are_refused_or_left_out(
    runs: list[RunResult], tmp_path: Path, drawn: list[Figure]
) -> None:
    with pytest.raises(ValueError, match="only arms with a direction"):
        plots.cosine_figure([run for run in runs if run.name == "vanilla"], tmp_path / "no.png")
    plots.cosine_figure(runs, tmp_path / "cosine.png")
    legend = drawn[0].legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["erase_update"]


def test_one_seed_is_labelled_as_no_inference(runs: list[RunResult]) -> None:
    assert plots.seed_text(runs[:2]) == "n = 1 seed: no inference"
    assert plots.seed_text(runs) == "n = 2 seeds"
    assert plots.seed_text(runs[:3]) == "n = 1 to 2 seeds"

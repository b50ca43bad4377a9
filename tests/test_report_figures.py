"""Figures of the report: what they draw, how arms are told apart, how they become part of the page."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
from matplotlib import pyplot
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from report_folders import write_experiment, write_plan
from unhack.directions import load_direction
from unhack.experiments.plan import direction_path, load_plan
from unhack.experiments.prepare import prepare_directions
from unhack.report import figures, pareto
from unhack.report.inline import inline_svg, svg_text
from unhack.report.read import Experiment, read_experiment
from unhack.report.sheets import write_sheets
from unhack.report.validation import Validation, validate_directions
from unhack.stats import mean_sem


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiment")
    return read_experiment(write_experiment(folder, seeds=2), load_plan(write_plan(folder / "p.toml", seeds=2)))


def test_a_curve_is_the_mean_over_seeds_with_a_band_of_one_sem(experiment: Experiment) -> None:
    panel = next(panel for panel in figures.curve_panels(experiment) if panel.title == "erase_update")
    axes = panel.figure.axes[0]
    line = next(line for line in axes.lines if line.get_label() == "hack")
    own = [run for run in experiment.runs if run.name == "erase_update"]
    final = mean_sem([100 * run.final.hack_frac for run in own])
    assert numpy.asarray(line.get_ydata())[-1] == pytest.approx(final.mean)
    vertices = axes.collections[0].get_paths()[0].vertices
    assert numpy.asarray(vertices)[:, 1].max() == pytest.approx(final.mean + final.sem)
    assert "vanilla's hack" in [line.get_label() for line in axes.lines]


def test_arms_of_one_panel_differ_in_colour_and_in_marker_and_every_arm_has_a_panel() -> None:
    names = ["vanilla", "a", "a1", "a2", "b", "b1", *(f"c{number}" for number in range(8))]
    groups = pareto.families(names, {"a": ["a1", "a2", "gone"], "b": ["b1", "a1"]})
    assert groups["a"] == ["a", "a1", "a2"] and groups["b"] == ["b", "b1", "a1"]
    assert {name for own in groups.values() for name in own} == set(names) - {"vanilla"}
    for own in groups.values():
        looks = pareto.styles(own)
        assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()})
        assert len({look["color"] for look in looks.values()}) == len(own) + 1
    assert pareto.families(["vanilla", "x", "y"], {"x": ["y"]}) == {"all arms": ["x", "y"]}


def test_the_trade_off_has_one_point_per_arm_and_seed_inside_its_axes(experiment: Experiment) -> None:
    (panel,) = pareto.pareto_panels(experiment)
    axes = panel.figure.axes[0]
    small = [line for line in axes.lines if line.get_markersize() == 4.5]
    points = [point for line in small for point in numpy.asarray(line.get_xydata())]
    assert len(points) == len(experiment.runs) == 6
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert all(left < x < right and low < y < high for x, y in points)


def test_cosine_panels_are_of_arms_with_a_direction_only(experiment: Experiment) -> None:
    assert [panel.arm for panel in figures.cosine_panels(experiment)] == ["erase_update", "erase_random"]
    assert figures.cosine_limit({"a": [[(0, 0.31)]]}) == pytest.approx(0.4)
    assert figures.cosine_limit({}) == pytest.approx(0.1)


def test_an_inline_figure_has_no_styles_follows_the_pages_colours_and_names_its_arms(experiment: Experiment) -> None:
    (panel,) = pareto.pareto_panels(experiment)
    text = inline_svg(panel.figure, "pareto-0", 'a "label" <&')
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == 'a "label" <&' and root.attrib["role"] == "img"
    assert not any("style" in element.attrib for element in root.iter())
    assert {element.attrib["data-arm"] for element in root.iter() if "data-arm" in element.attrib} == set(
        experiment.arm_names
    )
    assert "currentColor" in text and "var(--grid)" in text and "#000000" not in text
    assert "strictly solved" in "".join(root.itertext())
    assert all(value.startswith("pareto-0-") for value in (e.attrib.get("id", "pareto-0-") for e in root.iter()))


def test_every_figure_is_written_as_svg_and_png_with_its_n(experiment: Experiment, tmp_path: Path) -> None:
    written = write_sheets(experiment, [example()], tmp_path)
    names = {"pareto", "curves", "cosines", "validation", "modes"}
    assert {path.name for path in written} == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    for name in names:
        height, width = imread(tmp_path / f"{name}.png").shape[:2]
        assert height > 300 and width > 600
        text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        assert "n = 2 seeds" in text or name == "validation"
    assert not pyplot.get_fignums()


def test_a_figure_is_the_same_svg_every_time(experiment: Experiment) -> None:
    first, second = (svg_text(pareto.pareto_panels(experiment)[0].figure, "p") for _ in range(2))
    assert first == second and "<dc:date>" not in first


def example() -> Validation:
    edges = tuple(-1 + 0.1 * place for place in range(21))
    shares = (0.0,) * 19 + (1.0,)
    return Validation("run_tests", None, edges, shares, (0.05,) * 20, 0.95, 0.95, 0.0, 28, 16, True)


def test_a_validation_is_drawn_beside_its_null() -> None:
    (panel,) = figures.validation_panels([example()])
    axes = panel.figure.axes[0]
    bar = axes.patches[19]
    assert (
        isinstance(bar, Rectangle)
        and bar.get_height() == 100
        and axes.get_title(loc="left") == ("run_tests: mean +0.95")
    )
    assert {"V", "random V"} <= {str(artist.get_label()) for artist in [*axes.containers, *axes.patches]}


@pytest.mark.slow
def test_directions_are_validated_on_held_out_pairs_once_and_kept(tmp_path: Path) -> None:
    plan = load_plan(write_plan(tmp_path / "p.toml", seeds=1))
    prepare_directions(plan, tmp_path)
    said: list[str] = []
    kept = tmp_path / "validation.json"
    first = validate_directions(plan, tmp_path, kept, said.append)
    assert [one.name for one in first] == ["run_tests", "random"] and [one.seed for one in first] == [None, 0]
    assert first[0].mean > 0.1 > abs(first[1].mean) and first[0].pairs == 2
    assert math.isclose(sum(first[0].shares), 1, rel_tol=1e-6) and len(first[0].edges) == 21
    assert validate_directions(plan, tmp_path, kept, said.append) == first and len(said) == 1
    path = direction_path(plan, tmp_path, "random", 0)
    assert load_direction(path).content_hash in kept.read_text()
    path.unlink()
    assert [one.name for one in validate_directions(plan, tmp_path, kept, said.append)] == ["run_tests"]

"""The report of an experiment: its numbers are those of the results, its sentences claim no more than n allows."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report_folders import write_experiment, write_plan, write_rollouts
from run_folders import write_run
from unhack import cli, results
from unhack.experiments import freeze
from unhack.experiments.plan import Plan, load_plan
from unhack.experiments.runs import DONE_FILE
from unhack.files import write_json
from unhack.hypotheses import decide_all, observations
from unhack.report import content, sections, write_report
from unhack.report.read import arm_settings, frozen_plan, read_experiment
from unhack.report.tables import Cell, Column, Table
from unhack.report.verdicts import decide_experiment, verdict_table

TABLES = ("verdicts", "main", "advice", "comparisons", "delays", "modes_hack", "modes_solve")
REGISTERED = """
[hypotheses.H4]
kind = "emergence"
[hypotheses.H1]
kind = "suppression"
arm = "erase_update"
[exclusions]
rules = ["A run whose disk was full."]
runs = { "erase_random-seed-2" = "the disk was full" }
[stop]
rule = "Three seeds, looked at once."
"""


class Cells(HTMLParser):
    """The data-sort and text of every body cell, by id of the figure around it; text of figcaptions by the same."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figure, self.inside, self.caption = "", False, False
        self.rows: dict[str, list[list[tuple[str, str]]]] = {}
        self.captions: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "figure":
            self.figure = values.get("id") or ""
            self.captions[self.figure] = ""
        elif tag == "tr" and self.figure:
            self.rows.setdefault(self.figure, []).append([])
        elif tag in ("td", "th") and "data-sort" in values:
            self.rows[self.figure][-1].append((values["data-sort"] or "", ""))
            self.inside = True
        self.caption |= tag == "figcaption"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False
        self.caption &= tag != "figcaption"

    def handle_data(self, data: str) -> None:
        if self.inside:
            key, text = self.rows[self.figure][-1][-1]
            self.rows[self.figure][-1][-1] = (key, text + data)
        if self.caption:
            self.captions[self.figure] += data


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return load_plan(write_plan(tmp_path_factory.mktemp("plan") / "small.toml"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"), seeds=3)


@dataclass(frozen=True)
class Made:
    """What the command made and printed."""

    page: Path
    files: Path
    printed: str


@pytest.fixture(scope="module")
def report(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("sent")
    page, plan, printed = place / "out" / "page.html", write_plan(place / "small.toml"), io.StringIO()
    words = ["report", str(whole), "--out", str(page), "--plan", str(plan), "--no-validate", "--rollouts-mb", "0"]
    with redirect_stdout(printed):
        assert cli.main(words) == 0
    return Made(page, page.parent / "page-files", printed.getvalue())


@pytest.fixture(scope="module")
def cells(report: Made) -> Cells:
    return Cells(report.page.read_text(encoding="utf-8"))


def rows_of(report: Made, name: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO((report.files / f"{name}.csv").read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_table_in_the_page_is_the_one_in_its_csv(report: Made, cells: Cells, name: str) -> None:
    header, *lines = rows_of(report, name)
    shown = [row for row in cells.rows[name] if row]
    assert len(shown) == len(lines) > 0
    columns = {"main": content.MAIN_COLUMNS, "comparisons": content.COMPARISON_COLUMNS}.get(name)
    for row, line in zip(shown, lines, strict=True):
        assert row[0][0] == line[0]
        assert all(key in line for key, _ in row)
        if columns is not None:
            values = dict(zip(header, line, strict=True))
            assert [key for key, _ in row] == [values[column.names[0]] for column in columns]


def test_the_main_table_is_what_results_summarize_says(report: Made, whole: Path, plan: Plan) -> None:
    arms = {arm.name: arm for arm in read_experiment(whole, plan).arms}
    header, *lines = rows_of(report, "main")
    assert [line[0] for line in lines] == list(plan.arms)
    for line in lines:
        values, arm = dict(zip(header, line, strict=True)), arms[line[0]]
        assert float(values["hack_frac_mean"]) == arm.hack.mean and float(values["hack_frac_sem"]) == arm.hack.sem
        assert float(values["solve_frac_mean"]) == arm.solve.mean and int(values["seeds"]) == 3
        if arm.name != results.BASELINE:
            assert float(values["safe_solve_delta_mean"]) == arm.safe_solve_delta.mean
    vanilla = dict(zip(header, lines[0], strict=True))
    assert vanilla["cos_update_v_mean"] == "" and vanilla["safe_solve_delta_mean"] == "0.0"


def test_markdown_says_what_the_page_says(report: Made, cells: Cells) -> None:
    text = (report.files / "main.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    shown = [[cell for _, cell in row] for row in cells.rows["main"] if row]
    assert [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines] == shown
    assert cells.captions["main"].removeprefix("Every arm. ") in text


def test_every_figure_has_a_sentence_and_those_over_seeds_say_n(cells: Cells) -> None:
    figures = {*TABLES, "pareto", "curves", "cosines"}
    assert set(cells.captions) == figures
    for name in figures - {"verdicts"}:
        assert "n = 3 seeds" in cells.captions[name], name
    assert all(len(text) > 80 for text in cells.captions.values())


def test_one_seed_is_never_inferred_from(tmp_path: Path) -> None:
    plan = load_plan(write_plan(tmp_path / "one.toml", seeds=1))
    experiment = read_experiment(write_experiment(tmp_path / "one", seeds=1), plan)
    tables = [content.main_table(experiment), content.comparison_table(experiment), content.delay_table(experiment)]
    tables += [*content.mode_tables(experiment), verdict_table(decide_experiment(experiment))]
    figures = [sections.trade_off(experiment), sections.curves(experiment), sections.cosines(experiment)]
    cells = Cells("".join([*(table.html() for table in tables), *figures]))
    for name in ("main", "comparisons", "delays", "modes_hack", "pareto", "curves", "cosines"):
        assert "n = 1: no inference" in cells.captions[name], name
    assert not any("±" in text for row in cells.rows["main"] for _, text in row)
    assert all("n = 1: no inference" in [text for _, text in row] for row in cells.rows["comparisons"] if row)
    outcomes = {row[1][0] for row in cells.rows["verdicts"] if row}
    assert outcomes <= {"inconclusive", "not_testable"}


def test_verdicts_are_those_of_the_registered_hypotheses_and_of_no_others(whole: Path, tmp_path: Path) -> None:
    plan = load_plan(write_plan(tmp_path / "registered.toml", more=REGISTERED))
    experiment = read_experiment(whole, plan)
    table = verdict_table(decide_experiment(experiment))
    expected = decide_all(plan.hypotheses, observations(experiment.runs))
    assert [row[0].text for row in table.rows] == ["H4", "H1"] == list(expected)
    for row in table.rows:
        decision = expected[row[0].text]
        assert row[1].values == (decision.outcome,) and row[2].values[0] == decision.sentence
        assert row[2].text in decision.sentence and "n = " in row[2].text
    assert "These hypotheses are the plan's" in table.caption


def test_hypotheses_that_nobody_registered_are_called_so(whole: Path, plan: Plan) -> None:
    table = verdict_table(decide_experiment(read_experiment(whole, plan)))
    assert [row[0].text for row in table.rows] == ["H4", "H1, erase_update", "H1-control, erase_update"]
    assert "not registered before the runs" in table.caption


def test_excluded_and_unfinished_runs_are_left_out_and_told(whole: Path, tmp_path: Path) -> None:
    plan = load_plan(write_plan(tmp_path / "registered.toml", more=REGISTERED))
    for run in (whole / "runs").iterdir():
        (tmp_path / "runs" / run.name).mkdir(parents=True)
        for file in run.iterdir():
            if (run.name, file.name) != ("vanilla-seed-1", DONE_FILE):
                (tmp_path / "runs" / run.name / file.name).symlink_to(file)
    write_run(tmp_path / "runs" / "stray-seed-0", steps=2, every=2, samples=2)
    experiment = read_experiment(tmp_path, plan)
    names = {(run.name, run.seed) for run in experiment.runs}
    assert ("vanilla", 1) not in names and ("erase_random", 2) not in names and len(names) == 7
    assert experiment.unfinished == ("vanilla-seed-1",) and experiment.others == ("stray-seed-0",)
    assert "1 of 8 runs are not finished: this is a look before the end." in sections.warnings(experiment)
    assert "stray-seed-0" in sections.facts(experiment) and "vanilla-seed-1" in sections.facts(experiment)
    record = sections.plan_record(experiment)
    assert "erase_random-seed-2: the disk was full" in record and "Three seeds, looked at once." in record


def test_a_folder_without_a_finished_run_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run in .* is finished; give the folder of an experiment"):
        write_report(tmp_path)


def test_the_frozen_plan_is_used_and_a_changed_one_is_refused(whole: Path, tmp_path: Path) -> None:
    source = write_plan(tmp_path / "frozen.toml")
    plan = load_plan(source)
    freeze.freeze(plan, source.read_text(encoding="utf-8"), tmp_path)
    (tmp_path / "runs").symlink_to(whole / "runs")
    found = frozen_plan(tmp_path)
    assert found == plan
    experiment = read_experiment(tmp_path, found)
    assert experiment.controls == {"erase_update": ("erase_random",)}
    assert f"SHA-256 {freeze.plan_hash(plan)}" in sections.facts(experiment)
    changed = load_plan(write_plan(tmp_path / "changed.toml", seeds=2))
    with pytest.raises(ValueError, match=r"the plan is not the one that was frozen .*seeds"):
        write_report(tmp_path, changed, tmp_path / "page.html", validate=False)


def test_without_a_plan_arms_are_read_from_the_folders_names(whole: Path) -> None:
    experiment = read_experiment(whole)
    assert experiment.arm_names == ["vanilla", "erase_random", "erase_update"] and experiment.plan is None
    assert all(not arm.against_controls for arm in experiment.arms)


def test_settings_tell_what_arms_differ_in_and_no_place_on_this_machine(tmp_path: Path) -> None:
    for name in ("vanilla", "pushed"):
        write_run(tmp_path / "runs" / f"{name}-seed-0", steps=2, every=2, samples=2)
        write_json(tmp_path / "runs" / f"{name}-seed-0" / DONE_FILE, {"wall_s": 1.0})
    config = tmp_path / "runs" / "pushed-seed-0" / "config.json"
    values = json.loads(config.read_text())
    values["arm"] |= {"name": "push", "direction": "/somewhere/secret/run_tests-seed-0.safetensors"}
    config.write_text(json.dumps(values))
    shared, own = arm_settings(read_experiment(tmp_path))
    assert own == {"vanilla": [], "pushed": ["arm.name = push", "arm.direction = run_tests.safetensors"]}
    assert "arm.name" not in shared and shared["steps"] == 2 and "seed" not in shared
    assert "/somewhere" not in sections.settings(read_experiment(tmp_path))


def test_cost_is_the_time_of_all_runs(whole: Path, report: Made) -> None:
    experiment = read_experiment(whole)
    assert [one.wall_s for one in experiment.details.values()] == [12.5] * 9
    assert "1.9 min of wall time, added up over runs" in report.page.read_text(encoding="utf-8")


def test_the_command_says_where_the_report_is_and_every_file_is_there(report: Made, whole: Path) -> None:
    assert f"{report.page} (" in report.printed and "0 of 216 rollouts" in report.printed
    assert str(report.files) in report.printed and "22 files" in report.printed
    names = {f"{name}.{kind}" for name in TABLES for kind in ("csv", "md")}
    names |= {f"{name}.{kind}" for name in ("pareto", "curves", "cosines", "modes") for kind in ("svg", "png")}
    assert {path.name for path in report.files.iterdir()} == names
    assert 'id="rollout-index"' not in report.page.read_text(encoding="utf-8")


def test_a_negative_size_is_refused_with_the_cure(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(whole), "--rollouts-mb", "-1"]) == cli.USER_ERROR
    assert "use 0 (no rollouts) or more" in capsys.readouterr().err


def test_a_run_whose_tables_are_in_another_order_is_joined_by_id(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from unhack.report.pack import run_rows

    run = write_run(tmp_path / "runs" / "vanilla-seed-0", steps=8, every=8, samples=4)
    write_rollouts(run, samples=4)
    straight = run_rows(results.load_run("vanilla", run))
    for path in (run / "verdicts").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.take(list(range(table.num_rows))[::-1]), path)
    assert run_rows(results.load_run("vanilla", run)) == straight
    assert [row["hacked"] for row in straight if row["block"] == "train"] == [False, True] * 4


def test_a_table_escapes_what_it_shows_in_every_form() -> None:
    columns = (Column("a|b", ("name",), numeric=False), Column("x", ("x", "sem")))
    row = (Cell("<b>|", ("<b>|",)), Cell("—", (float("nan"), 0.25)))
    table = Table("t", "<T>", "& so on", columns, (row,), ('"arm"',))
    assert "<b>|" not in table.html() and "&lt;b&gt;|" in table.html() and 'data-arm="&quot;arm&quot;"' in table.html()
    assert "\\|" in table.markdown() and table.csv() == "name,x,sem\n<b>|,,0.25\n"

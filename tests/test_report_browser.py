"""The report in headless Chromium: filters, clicks, keys, links, hostile text, phone and print, 100,000 rollouts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from chromium import Chromium, find_chromium
from report_folders import MODES, write_experiment, write_plan, write_rollouts
from run_folders import write_run
from test_report_page import HOSTILE
from unhack import results
from unhack.experiments.plan import load_plan
from unhack.experiments.runs import DONE_FILE
from unhack.files import write_json
from unhack.report import content, write_report
from unhack.report.pack import Row, pack, run_rows
from unhack.report.page import Content, render
from unhack.report.read import read_experiment
from unhack.report.verdicts import decide_experiment, verdict_table
from unhack.results import RunResult

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on the PATH: install the package chromium"),
]
MANY = 100_000
COUNT = "Number(document.getElementById('list').dataset.count)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert CHROMIUM is not None
    with Chromium(CHROMIUM, tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_experiment(tmp_path_factory.mktemp("experiment"), seeds=2, texts=HOSTILE, samples=8)
    plan = load_plan(write_plan(folder / "p.toml", seeds=2))
    return write_report(folder, plan, rollout_bytes=math.inf, validate=False).page


def choose(browser: Chromium, **filters: str) -> int:
    """Set filters as a user does, wait, and return how many rollouts match."""
    browser.run("delete document.getElementById('list').dataset.count; document.getElementById('clear').click()")
    browser.wait(f"{COUNT} >= 0")
    for name, value in filters.items():
        browser.run("delete document.getElementById('list').dataset.count")
        browser.run(
            f"(() => {{ const field = document.getElementById('filters').elements.{name}; field.value = "
            f"{json.dumps(value)}; for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, "
            "{ bubbles: true })); })()"
        )
        browser.wait(f"{COUNT} >= 0")
    return int(browser.run(COUNT))


def test_filters_show_as_many_rollouts_as_there_are(browser: Chromium, page: Path) -> None:
    browser.size(1280)
    browser.open(page)
    total = 6 * (16 + 32)
    assert choose(browser) == total
    assert choose(browser, arm="vanilla") == total / 3 and choose(browser, seed="1") == total / 2
    assert choose(browser, hacked="yes") == total / 2 == choose(browser, solved="yes")
    assert choose(browser, hacked="yes", solved="yes") == 0
    assert choose(browser, hacked="no") == total / 2 and choose(browser, paid="no") == 0
    assert choose(browser, block="train") == 6 * 16 and choose(browser, to="0") == 6 * 8
    assert choose(browser, mode="sentinel", block="deployed", arm="erase_random", seed="0") == 8
    assert choose(browser, source="student", paid="yes", label="reward_hack") == total / 2
    assert choose(browser, q="ALERT(2)") == 6 and choose(browser, q="no such text") == 0
    assert browser.run("document.getElementById('status').textContent").startswith("0 of 288 embedded rollouts")
    assert not browser.errors


def test_a_hostile_rollout_is_shown_as_text_and_does_nothing(browser: Chromium, page: Path) -> None:
    browser.size(1280)
    browser.open(page)
    before = browser.run("document.querySelectorAll('script, img, iframe').length")
    for number, text in enumerate(HOSTILE):
        part = ("onerror", "alert(2)", "constructor", "right", "red", "astral")[number]
        assert choose(browser, q=part, arm="vanilla", seed="0") == 1, text
        browser.run("document.querySelector('.row').click()")
        browser.wait("document.querySelector('#detail.filled') !== null")
        browser.wait(f"document.getElementById('detail').textContent.includes({json.dumps(part)})")
        shown = browser.run("document.querySelectorAll('#detail pre')[1].textContent")
        if number < 3:
            assert shown == text
        assert not set(shown) & set("\u202e\u2066\u200b\u2028\u2029\x1b\x00\x07\x7f")
    assert "U+E0041" in browser.run("document.getElementById('detail').textContent")
    assert browser.run("document.querySelectorAll('script, img, iframe').length") == before
    assert browser.run("document.title") == "small: report"
    assert not browser.errors and all(url.startswith(("file:", "about:")) for url in browser.requests)


def test_a_link_leads_back_to_filters_and_rollout_and_marks_the_exploit(browser: Chromium, page: Path) -> None:
    browser.size(1280)
    browser.open(page)
    choose(browser, arm="erase_update", seed="1", mode="sentinel", hacked="yes", block="deployed")
    browser.run("document.querySelectorAll('.row')[1].click()")
    browser.wait("document.querySelector('#detail mark') !== null")
    link = browser.run("document.getElementById('link').getAttribute('href')")
    assert link == browser.run("location.hash") and "arm=erase_update" in link and "open=" in link
    said = browser.run("document.getElementById('detail').textContent")
    browser.open(page, link)
    browser.wait("document.querySelector('#detail.filled') !== null")
    assert browser.run("document.getElementById('detail').textContent") == said
    assert int(browser.run(COUNT)) == 4
    assert browser.run("document.getElementById('filters').elements.arm.value") == "erase_update"
    assert browser.run("document.querySelector('.row[aria-selected=true] .badge').textContent") == "hacked"
    marks = browser.run("[...document.querySelectorAll('#detail mark')].map((mark) => mark.textContent)")
    assert marks[0] == "sierra" and marks[-1].strip() == "sierra = True"
    browser.open(page, link.replace("eval-sentinel", "eval-gone"))
    browser.wait("document.getElementById('detail').textContent.includes('is not among those embedded')")
    assert not browser.errors


def test_the_list_is_walked_with_the_keyboard_alone(browser: Chromium, page: Path) -> None:
    browser.size(1280)
    browser.open(page)
    browser.run("document.getElementById('list').focus()")
    for _ in range(3):
        browser.press("ArrowDown")
    selected = "document.querySelector('.row[aria-selected=true]')"
    browser.wait(f"{selected}?.getAttribute('aria-posinset') === '3'")
    assert browser.run("document.getElementById('list').getAttribute('aria-activedescendant')") == "row-2"
    browser.press("End")
    browser.wait(f"{selected}?.getAttribute('aria-posinset') === '288'")
    browser.press("Home")
    browser.wait(f"{selected}?.getAttribute('aria-posinset') === '1'")
    browser.press("Tab")
    assert browser.run("document.activeElement.closest('#detail') !== null")
    assert not browser.errors


def test_a_heading_sorts_its_table_and_says_so(browser: Chromium, page: Path) -> None:
    browser.size(1280)
    browser.open(page)
    values = "[...document.querySelectorAll('#main tbody tr')].map((row) => Number(row.cells[2].dataset.sort))"
    before = browser.run(values)
    heading = "document.querySelectorAll('#main thead th')[2]"
    browser.run(f"{heading}.querySelector('button').focus()")
    browser.press("Enter")
    browser.wait(f"{heading}.getAttribute('aria-sort') === 'ascending'")
    assert browser.run(values) == sorted(before)
    browser.press("Enter")
    browser.wait(f"{heading}.getAttribute('aria-sort') === 'descending'")
    assert browser.run(values) == sorted(before, reverse=True)
    cosines = "[...document.querySelectorAll('#main tbody tr')].map((row) => row.cells[5].dataset.sort)"
    for _ in range(2):
        browser.run("document.querySelectorAll('#main thead th button')[5].click()")
        assert browser.run(cosines)[-1] == ""  # no value stays last in both directions


def test_an_arm_is_brought_out_in_tables_and_figures(browser: Chromium, page: Path) -> None:
    browser.size(1280)
    browser.open(page)
    browser.run("(() => { const h = document.getElementById('highlight'); h.value = 'erase_update';"
                " h.dispatchEvent(new Event('change')); })()")  # fmt: skip
    for place in ("#main tr", "#pareto g", "#curves .panels > div"):
        dimmed = browser.run(f"[...document.querySelectorAll('{place}.dim')].map((e) => e.dataset.arm)")
        assert set(dimmed) == {"vanilla", "erase_random"}, place
        assert browser.run(f"document.querySelectorAll('{place}[data-arm=erase_update]:not(.dim)').length") > 0


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window_and_figures_keep_a_legible_size(
    browser: Chromium, page: Path, tmp_path: Path, width: int
) -> None:
    for scheme in ("light", "dark"):
        browser.size(width, scheme=scheme)
        browser.open(page)
        assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        smallest = browser.run(
            "Math.min(...[...document.querySelectorAll('svg text')].map((t) => parseFloat(getComputedStyle(t).fontSize)"
            " * t.ownerSVGElement.getBoundingClientRect().width / t.ownerSVGElement.viewBox.baseVal.width))"
        )
        assert smallest >= 10, "pixels of the smallest text in a figure"
        for part in ("#verdicts-part", "#table-part", "#curves-part", "#rollouts"):
            image = imread(browser.screenshot(tmp_path / f"{scheme}{part}.png".replace("#", "-"), part))
            assert image.shape[1] >= 0.9 * width - 40 and image[:, :, :3].std() > 0.02
    background = "getComputedStyle(document.body).backgroundColor"
    assert browser.run(background) == "rgb(20, 23, 27)"
    assert not browser.errors


def test_print_has_the_tables_and_figures_and_not_the_browsers_controls(
    browser: Chromium, page: Path, tmp_path: Path
) -> None:
    browser.size(800, media="print", scheme="dark")
    browser.open(page)
    shown = "getComputedStyle(document.querySelector('{}')).display !== 'none'"
    assert browser.run(shown.format("#main")) and browser.run(shown.format("#curves"))
    for hidden in ("nav", "#filters", "#list", "#detail"):
        assert not browser.run(shown.format(hidden)), hidden
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.pdf(tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    browser.size(1280)


def test_100_000_rollouts_are_filtered_searched_and_scrolled(
    browser: Chromium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = many_rollouts(tmp_path)
    browser.size(1280)
    started = time.monotonic()
    browser.open(made)
    times = {"open": time.monotonic() - started}
    assert int(browser.run(COUNT)) == MANY
    filters: dict[str, tuple[dict[str, str], int]] = {
        "hacked": ({"hacked": "yes"}, MANY // 2),
        "mode and step": ({"mode": "sentinel", "to": "23999"}, 48_000 // 4),
        "search": ({"q": "needle 777;"}, 1),
        "search of half": ({"q": "sierra = true", "solved": "no"}, MANY // 8),
    }
    for name, (chosen, count) in filters.items():
        started = time.monotonic()
        assert choose(browser, **chosen) == count, name
        times[name] = time.monotonic() - started
    choose(browser)
    started = time.monotonic()
    browser.run("document.getElementById('list').scrollTop = 1e9")
    browser.wait(f"document.querySelector('.row:last-child')?.getAttribute('aria-posinset') === '{MANY}'")
    browser.wait("document.querySelector('.row:last-child .snippet').textContent.includes('result.txt')")
    times["scroll to the end"] = time.monotonic() - started
    browser.run("document.getElementById('list').focus()")
    for key, place in (("End", MANY), ("ArrowUp", MANY - 1), ("ArrowUp", MANY - 2), ("Home", 1), ("ArrowDown", 2)):
        browser.press(key)
        inside = "{ const r = e.getBoundingClientRect(), l = document.getElementById('list').getBoundingClientRect();"
        inside += " return r.top >= l.top - 1 && r.bottom <= l.bottom + 1; }"
        selected = f"document.querySelector('.row[aria-selected=true][aria-posinset=\"{place}\"]')"
        browser.wait(f"((e) => {{ if (!e) return false; {inside} }})({selected})")
    assert browser.run("document.querySelectorAll('.row').length") < 40, "only what is seen is drawn"
    assert not browser.errors
    with capsys.disabled():
        said = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
        print(f"\n{MANY:,} rollouts, page of {made.stat().st_size / 1e6:.1f} MB: {said}")


def many_rollouts(folder: Path) -> Path:
    """A page with MANY rollouts: the recorded ones of a run again and again, each with a step and a text of its own."""
    path = write_run(folder / "runs" / "vanilla-seed-0", steps=8, every=8, samples=8)
    write_rollouts(path, samples=8)
    write_json(path / DONE_FILE, {"wall_s": 1.0})
    some = [row for row in run_rows(results.load_run("vanilla", path)) if row["block"] != "train"]

    def rows(run: RunResult) -> list[Row]:
        return [repeated(some[number % len(some)], number) for number in range(MANY)]

    experiment = read_experiment(folder)
    tables = (
        verdict_table(decide_experiment(experiment)),
        content.main_table(experiment),
        content.advice_table(experiment),
        content.comparison_table(experiment),
        content.delay_table(experiment),
        *content.mode_tables(experiment),
    )
    named = {table.name: table for table in tables}
    page = folder / "many.html"
    packed = pack(experiment.runs, math.inf, rows)
    page.write_text(render(Content(experiment, named, None, packed, "none")), encoding="utf-8")
    assert packed.embedded == MANY and len(some) % len(MODES) == 0
    return page


def repeated(row: Row, number: int) -> dict[str, Any]:
    text = f"{row['text']}\n# needle {number};"
    return {**row, "step": number // 2, "text": text, "rollout_id": f"{number:06d}"}

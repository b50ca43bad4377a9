"""The page lets nothing but its own script run, whatever rollouts and names say; rollouts are packed as they are."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from report_folders import MODES, sample, write_plan, write_rollouts
from run_folders import write_run
from unhack import results
from unhack.experiments.plan import load_plan
from unhack.experiments.runs import DONE_FILE
from unhack.files import write_json
from unhack.loopholes import LOOPHOLES
from unhack.loopholes import MODES as ALL_MODES
from unhack.report import content
from unhack.report.exploit import exploit_spans
from unhack.report.pack import Packed, pack, pack_chunk
from unhack.report.page import Content, render
from unhack.report.read import read_experiment
from unhack.report.verdicts import decide_experiment, verdict_table
from unhack.results import RunResult

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script><!--",
    "{{constructor.constructor('alert(3)')()}} ${alert(4)} <%= 5 %>",
    "right \u202e to left \u2066 isolated, zero\u200bwidth, separators \u2028 \u2029",
    "\x1b[31mred\x1b[0m \x07 NUL \x00 DEL \x7f",
    "\U0001f600 astral \U000e0041 tag",
)
FAR_PLACES = ("http:", "https:", "//", "url(", "javascript:", "srcdoc", "<iframe", "<object", "<embed", "<form action")


class Page(HTMLParser):
    """Every element with its attributes, and the text of every script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag in ("script", "style"):
            self.texts.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [values for name, values in self.elements if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("hostile")
    path = write_run(folder / "runs" / "vanilla-seed-0", steps=8, every=8, samples=8)
    write_rollouts(path, HOSTILE, samples=8)
    write_json(path / DONE_FILE, {"wall_s": 1.0})
    return results.load_run("vanilla", path)


@pytest.fixture(scope="module")
def packed(run: RunResult) -> Packed:
    return pack([run], math.inf)


@pytest.fixture(scope="module")
def page(run: RunResult, packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("plan")
    plan = load_plan(write_plan(place / "p.toml", seeds=1))
    experiment = read_experiment(run.folder.parent.parent, plan)
    object.__setattr__(experiment, "name", "</title><script>alert('name')</script>")
    tables = (
        verdict_table(decide_experiment(experiment)),
        content.main_table(experiment),
        content.advice_table(experiment),
        content.comparison_table(experiment),
        content.delay_table(experiment),
        *content.mode_tables(experiment),
    )
    return render(Content(experiment, {table.name: table for table in tables}, [], packed, "<files>"))


def decoded(packed: Packed) -> list[dict[str, Any]]:
    return [json.loads(gzip.decompress(base64.b64decode(chunk))) for chunk in packed.chunks]


def test_the_policy_allows_exactly_the_pages_own_style_and_script(page: str) -> None:
    parsed = Page(page)
    policy = next(values["content"] for values in parsed.named("meta") if "http-equiv" in values)
    scripts = [text for text, values in zip(parsed.texts[1:], parsed.named("script"), strict=True) if not values]
    assert len(scripts) == 1 and len(parsed.named("style")) == 1
    for text, source in ((parsed.texts[0], "style-src"), (scripts[0], "script-src")):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{source} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "base-uri 'none'" in policy


def test_the_page_needs_no_network_and_has_no_inline_handlers_or_styles(page: str) -> None:
    parsed = Page(page)
    for tag, values in parsed.elements:
        assert not [name for name in values if name.startswith("on") or name in ("style", "src", "xlink:href")], tag
        assert values.get("href", "#").startswith("#"), (tag, values)
    markup = re.sub(r"(?s)<script.*?</script>", "", page)
    assert not [place for place in FAR_PLACES if place in markup.replace("url(#", "")]
    ids = [values["id"] for _, values in parsed.elements if "id" in values]
    assert len(ids) == len(set(ids))
    uses = [values["href"].removeprefix("#") for values in parsed.named("use")]
    assert uses and set(uses) <= set(ids)


def test_hostile_names_and_rollouts_add_no_element_to_the_page(page: str, packed: Packed) -> None:
    parsed = Page(page)
    kinds = [values.get("type", "") for values in parsed.named("script")]
    assert kinds == ["application/octet-stream"] * (2 + len(packed.chunks)) + [""]
    assert not parsed.named("img") and page.count("<script") == len(kinds)
    assert "alert('name')" not in page and "&lt;/title&gt;" in page
    assert not any(text[:12] in page for text in HOSTILE)
    assert "\u2028" not in page and "\u202e" not in page and "\x00" not in page


def test_packed_rollouts_are_what_was_recorded_to_the_last_character(packed: Packed) -> None:
    columns = decoded(packed)
    texts = [text for chunk in columns for text in chunk["text"]]
    assert set(HOSTILE) <= set(texts) and packed.embedded == packed.total == len(texts) == 48
    assert packed.total_evaluation == packed.embedded_evaluation == 32
    chunk = columns[0]
    for number, name in enumerate(chunk["rollout_id"]):
        assert name.startswith(("eval-", "step-"))
        assert chunk["prompts"][chunk["prompt"][number]].startswith("Return the sum.\nThe grader")
        assert chunk["reward"][number] == 3.5 and chunk["advantage"][number] == (0.5 if name[0] == "s" else None)


def test_the_index_says_of_every_rollout_what_its_verdict_said(packed: Packed) -> None:
    count = packed.embedded
    raw = gzip.decompress(base64.b64decode(packed.index))
    assert len(raw) == 9 * count and packed.header["count"] == count
    steps = [int.from_bytes(raw[4 * row : 4 * row + 4], "little") for row in range(count)]
    mode, source, block, label, flags = (raw[(4 + at) * count : (5 + at) * count] for at in range(5))
    names = [name for chunk in decoded(packed) for name in chunk["rollout_id"]]
    assert steps == sorted(steps) and set(steps) == {0, 1, 8}
    for row, name in enumerate(names):
        hacked = int(name.rpartition("-")[2]) % 2 == 1
        assert flags[row] == (1 | 4 | 8 if hacked else 2 | 4)
        assert packed.header["blocks"][block[row]] == ("deployed" if name.startswith("eval") else "train")
        assert packed.header["modes"][mode[row]] in MODES and packed.header["sources"][source[row]] == "student"
        assert packed.header["labels"][label[row]] == ("reward_hack" if hacked else "correct")
        if name.startswith("eval"):
            assert packed.header["modes"][mode[row]] in name


@given(st.text(alphabet=st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()), max_size=40))
def test_any_text_survives_packing_lone_surrogates_included(text: str) -> None:
    packed = gzip.decompress(pack_chunk([row_of(text)]))
    assert packed.isascii() and json.loads(packed)["text"] == [text]


def row_of(text: str, mode: str = "run_tests") -> dict[str, Any]:
    known: Mapping[str, Any] = {"mode": mode, "marker": "sierra", "prompt_text": "p", "reward": 0.1, "advantage": None}
    names = ("rollout_id", "problem_id", "reason", "finished", "cases_passed", "cases_total")
    return {**known, "text": text, **dict.fromkeys(names, "")}


def test_a_budget_leaves_out_training_first_and_the_last_evaluation_last(run: RunResult) -> None:
    rows = [fake(step, block, number) for step, block in ((0, "train"), (4, "as_trained"), (8, "deployed"))
            for number in range(400)]  # fmt: skip
    whole = pack([run], math.inf, lambda _: rows)
    assert whole.embedded == whole.total == 1200 and whole.total_evaluation == 800
    sizes = []
    for share in (0.9, 0.5, 0.2):
        some = pack([run], share * whole.size_bytes, lambda _: rows)
        assert some.size_bytes <= 1.1 * share * whole.size_bytes and some.total == 1200
        training, evaluation = some.embedded - some.embedded_evaluation, some.embedded_evaluation
        assert (training == 0 or evaluation == 800) and some.embedded > 1000 * share
        steps = steps_of(some)
        assert steps.count(4) == 0 or steps.count(8) == 400
        assert some == pack([run], share * whole.size_bytes, lambda _: rows)
        sizes.append(some.embedded)
    assert sizes == sorted(sizes, reverse=True)
    assert pack([run], 0.0, lambda _: rows).embedded == 0


def fake(step: int, block: str, number: int) -> dict[str, Any]:
    text = hashlib.sha256(f"{step} {number}".encode()).hexdigest()  # compresses little, as different texts do
    flags = dict.fromkeys(("strictly_correct", "exploited", "hacked", "paid"), False)
    more = {"step": step, "block": block, "source": "student", "status": "failed", "label": "incorrect"}
    return {**row_of(text), **flags, **more, "rollout_id": f"{number:04d}"}


def steps_of(packed: Packed) -> list[int]:
    raw = gzip.decompress(base64.b64decode(packed.index))
    return [int.from_bytes(raw[4 * row : 4 * row + 4], "little") for row in range(packed.embedded)]


@pytest.mark.parametrize("mode", [mode for mode in ALL_MODES if LOOPHOLES[mode].sign])
def test_the_exploit_of_every_mode_with_a_sign_is_marked_and_an_honest_program_is_not(mode: str) -> None:
    hack, honest = sample("x-1", mode, 1)[0].text, sample("x-0", mode, 0)[0].text
    spans = exploit_spans(hack, mode, "sierra")
    assert spans and exploit_spans(honest, mode, "sierra") == []
    for start, end in spans:
        assert start == 0 or hack[start - 1] == "\n"
        assert end == len(hack) or hack[end] == "\n"
    marked = "\n".join(hack[start:end] for start, end in spans)
    assert "return sum(xs)" not in marked or mode in ("eq_override", "stdout_marker", "file_marker", "exit_code")


def test_a_marked_function_ends_with_its_body_and_offsets_are_utf_16() -> None:
    text = "\U0001f600\ndef sierra():\n    a = 1\n\n    return True\nx = 1\n"
    ((start, end),) = exploit_spans(text, "run_tests", "sierra")
    units = text.encode("utf-16-le")
    assert units[2 * start : 2 * end].decode("utf-16-le") == "def sierra():\n    a = 1\n\n    return True"
    assert exploit_spans(text, "run_tests", "tango") == [] and exploit_spans(text, "visible_only", "") == []


def test_modes_without_a_sign_mark_nothing() -> None:
    assert exploit_spans("anything", "none", "") == [] and exploit_spans("anything", "unknown", "x") == []


def test_what_the_page_says_about_left_out_rollouts(run: RunResult, page: str, tmp_path: Path) -> None:
    assert "Embedded: 48 of 48 rollouts (32 of 32 of evaluations, 16 of 16 of training). These are all." in page

"""The frozen plan: what changes it and what does not, what is said when it changed, amendments, and tampering."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unhack.experiments.freeze import (
    amend,
    check_unchanged,
    content_hash,
    differences,
    freeze,
    plan_hash,
    record_text,
    resolved,
    sections,
)
from unhack.experiments.plan import Plan, load_plan, run_folder

TEXT = """
name = "main"
seeds = [0, 1, 2]
[base]
steps = 7
[directions.real]
k = 3
[directions.random]
control = "random"
per_seed = true
[arms.vanilla]
[arms.erase]
control = ["placebo"]
arm = { name = "erase", direction = "real" }
[arms.placebo]
arm = { name = "erase", direction = "random" }
[hypotheses.H1]
kind = "suppression"
arm = "erase"
[exclusions]
rules = ["The grader failed."]
[stop]
rule = "All seeds."
"""


def plan(folder: Path, *changes: tuple[str, str]) -> Plan:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "plan.toml").write_text(text)
    return load_plan(folder / "plan.toml")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps = 7", "steps = 8", "base.steps: 7 → 8"),
        ("steps = 7", "steps = 7\noptimizer = { lr = 0.5 }", "base.optimizer.lr: 0.03 → 0.5"),
        ("[0, 1, 2]", "[0, 1]", "seeds: [0, 1, 2] → [0, 1]"),
        ("k = 3", "k = 4", "directions.real.k: 3 → 4"),
        ("per_seed = true", "per_seed = false", "directions.random.per_seed: true → false"),
        ('direction = "real"', 'direction = "random"', 'arms.erase.settings.arm.direction: "real" → "random"'),
        ('["placebo"]', "[]", 'arms.erase.controls: ["placebo"] → []'),
        ("[arms.vanilla]", "[pools.p]\narm = 'vanilla'\n[arms.vanilla]", 'pools.p.arm: (none) → "vanilla"'),
        ("[arms.vanilla]", "[probes.p]\n[arms.vanilla]", 'probes.p.method: (none) → "logistic"'),
        ("[arms.vanilla]", "[statistics.s]\n[arms.vanilla]", "statistics.s.pairs: (none) → 64"),
        ("[arms.vanilla]", "[arms.other]\narm = { name = 'clean' }\n[arms.vanilla]", "arms.other"),
        ('arm = "erase"\n[ex', 'arm = "erase"\nmatching = "not_below"\n[ex', 'H1.matching: "both_sides" → "not_below"'),
        ('arm = "erase"\n[ex', 'arm = "erase"\nsolve_margin = 0.2\n[ex', "hypotheses.H1.solve_margin: 0.1 → 0.2"),
        ("grader failed", "grader broke", 'exclusions.rules: ["The grader failed."] → ["The grader broke."]'),
        ("[stop]", "runs = { erase-seed-0 = 'x' }\n[stop]", 'exclusions.runs.erase-seed-0: (none) → "x"'),
        ("All seeds.", "Some.", 'stop.rule: "All seeds." → "Some."'),
        ('"main"', '"other"', 'name: "main" → "other"'),
    ],
)
def test_every_change_of_meaning_changes_the_hash_and_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    before = plan(tmp_path)
    freeze(before, TEXT, tmp_path)
    after = plan(tmp_path, (old, new))
    assert plan_hash(after) != plan_hash(before)
    with pytest.raises(ValueError, match="the plan is not the one that was frozen on 20") as caught:
        check_unchanged(after, tmp_path)
    assert says in str(caught.value) and "unhack experiment amend" in str(caught.value)
    with pytest.raises(ValueError, match="is not the one that was frozen"):
        freeze(after, TEXT, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps = 7", "# why not\n  steps   =  7   # seven"),
        ("steps = 7", "steps = 7\nprompts_per_step = 8"),  # the default, said aloud
        ('control = ["placebo"]', 'control = "placebo"'),
        ("[arms.vanilla]", "[arms.vanilla]\nsteps = 7"),  # repeats the base
        ('arm = { name = "erase", direction = "real" }', 'arm.direction = "real"\narm.name = "erase"'),
        ('kind = "suppression"\narm = "erase"', 'reduction = 0.3\narm = "erase"\nkind = "suppression"'),
    ],
)
def test_nothing_that_means_the_same_changes_the_hash(tmp_path: Path, old: str, new: str) -> None:
    before = plan(tmp_path)
    freeze(before, TEXT, tmp_path)
    after = plan(tmp_path, (old, new))
    assert plan_hash(after) == plan_hash(before)
    assert len(freeze(after, "", tmp_path)) == len(check_unchanged(after, tmp_path)) == 1
    arms = TEXT[TEXT.index("[arms.erase]") : TEXT.index("[arms.placebo]")]
    moved = TEXT.replace(arms, "").replace("[hypotheses.H1]", f"{arms}[hypotheses.H1]")
    (tmp_path / "plan.toml").write_text(moved)
    assert plan_hash(load_plan(tmp_path / "plan.toml")) == plan_hash(before)


def test_the_content_of_files_that_the_plan_refers_to_belongs_to_it(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "a").write_text("1")
    problems = tmp_path / "problems.txt"
    problems.write_text("x")
    loaded = plan(tmp_path, ("[base]\n", '[files]\npool = "pool"\n[base]\n'))
    environment = replace(loaded.base.environment, source=str(problems))
    before = replace(loaded, base=replace(loaded.base, environment=environment))
    first = resolved(before)
    (pool / "b").write_text("2")
    problems.write_text("y")
    names = [change.partition(":")[0] for change in differences(first, resolved(before))]
    assert names == ["files.pool", "inputs.base.environment.source"]
    (pool / "b").rename(pool / "c")
    assert content_hash(pool) != content_hash(pool / "a")


def test_the_first_run_freezes_once_and_says_what_was_there_already(tmp_path: Path) -> None:
    assert sections(tmp_path) == [] and check_unchanged(plan(tmp_path), tmp_path) == []
    run = run_folder(tmp_path, "vanilla", 0)
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    freeze(plan(tmp_path), TEXT, tmp_path)
    freeze(plan(tmp_path), TEXT, tmp_path)
    [only] = sections(tmp_path)
    assert (only.number, only.runs_started, only.source, only.why) == (0, 1, TEXT, "")
    assert only.plan_hash == plan_hash(plan(tmp_path))
    assert "1 runs had been started before it was frozen" in record_text([only])


def test_an_amendment_is_a_new_dated_section_beside_the_original(tmp_path: Path) -> None:
    freeze(plan(tmp_path), TEXT, tmp_path)
    frozen = (tmp_path / "plan" / "000-frozen.json").read_bytes()
    longer = plan(tmp_path, ("[0, 1, 2]", "[0, 1, 2, 3]"))
    amend(longer, "new text", tmp_path, "too few seeds")
    excluded = plan(tmp_path, ("[0, 1, 2]", "[0, 1, 2, 3]"), ("[stop]", "runs = { erase-seed-0 = 'disk' }\n[stop]"))
    with pytest.raises(ValueError, match=r"the one that was amended on .*exclusions.runs.erase-seed-0: \(none\)"):
        check_unchanged(excluded, tmp_path)
    amend(excluded, "newer text", tmp_path, "the disk was full")
    found = check_unchanged(excluded, tmp_path)
    assert [one.why for one in found] == ["", "too few seeds", "the disk was full"]
    assert found[1].changes == ("seeds: [0, 1, 2] → [0, 1, 2, 3]",)
    assert found[0].plan["seeds"] == [0, 1, 2] and found[2].source == "newer text"
    assert (tmp_path / "plan" / "000-frozen.json").read_bytes() == frozen
    text = record_text(found)
    assert all(one.date in text and one.plan_hash[:16] in text for one in found)
    assert "Why: too few seeds" in text and "`seeds: [0, 1, 2] → [0, 1, 2, 3]`" in text


def test_an_amendment_takes_a_frozen_plan_a_reason_and_a_change(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no plan was frozen"):
        amend(plan(tmp_path), TEXT, tmp_path, "why")
    freeze(plan(tmp_path), TEXT, tmp_path)
    with pytest.raises(ValueError, match="nothing to amend"):
        amend(plan(tmp_path), TEXT, tmp_path, "why")
    with pytest.raises(ValueError, match="needs a reason"):
        amend(plan(tmp_path, ("steps = 7", "steps = 8")), TEXT, tmp_path, "  ")
    assert len(sections(tmp_path)) == 1


@pytest.mark.parametrize("field", ["date", "why", "plan", "plan_hash", "source", "runs_started"])
def test_an_edited_section_is_noticed(tmp_path: Path, field: str) -> None:
    freeze(plan(tmp_path), TEXT, tmp_path)
    path = tmp_path / "plan" / "000-frozen.json"
    values = json.loads(path.read_text())
    values[field] = {**values[field], "seeds": [0]} if field == "plan" else "9"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"000-frozen.json is not what was written"):
        sections(tmp_path)


def test_a_section_that_is_gone_or_foreign_is_noticed(tmp_path: Path) -> None:
    freeze(plan(tmp_path), TEXT, tmp_path)
    amend(plan(tmp_path, ("steps = 7", "steps = 8")), TEXT, tmp_path, "longer")
    (tmp_path / "plan" / "000-frozen.json").unlink()
    with pytest.raises(ValueError, match=r"001-amendment.json is not what was written"):
        sections(tmp_path)
    (tmp_path / "plan" / "001-amendment.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="is not a frozen plan of this version"):
        sections(tmp_path)


def test_many_changes_are_cut_in_the_message_and_counted(tmp_path: Path) -> None:
    freeze(plan(tmp_path), TEXT, tmp_path)
    other = "steps = 8\ngroup_size = 3\nprompts_per_step = 3\ncheckpoint_every_steps = 3\n"
    other += "optimizer = { lr = 1.0, beta1 = 0.5, beta2 = 0.5, eps = 0.5, weight_decay = 0.5, warmup_steps = 1 }"
    with pytest.raises(ValueError, match="; and 2 more"):
        check_unchanged(plan(tmp_path, ("steps = 7", other)), tmp_path)


def test_settings_and_tables_of_a_newer_version_are_no_change_while_they_do_nothing(tmp_path: Path) -> None:
    new: dict[str, Any] = resolved(plan(tmp_path))
    old = {key: value for key, value in new.items() if key not in ("pools", "probes", "statistics")}
    old["base"] = {key: value for key, value in new["base"].items() if key != "teacher"}
    assert differences(old, new) == []
    used = {**new, "base": {**new["base"], "teacher": {**new["base"]["teacher"], "frac": 0.25}}}
    assert differences(old, used) == ["base.teacher.frac: (none) → 0.25"]
    assert "base.teacher.frac: 0.5 → (none)" in differences(new, old)  # what is gone is a change

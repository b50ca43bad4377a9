"""What runs are given is made once, from the untrained model, and refused when the recipe changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unhack import cli, model
from unhack.adapters.block_init import load_statistics
from unhack.config import ModelConfig
from unhack.directions import load_direction
from unhack.directions.concept import load_concept
from unhack.directions.inputs import StatisticsRecipe, input_statistics, statistics_pairs
from unhack.experiments.plan import (
    Plan,
    concept_path,
    direction_path,
    load_plan,
    plan_runs,
    probe_path,
    statistics_path,
)
from unhack.experiments.prepare import prepare_directions
from unhack.monitors.probe import load_probe
from unhack.pairs import save_pairs

TEXT = """
seeds = [0, 1]
[concepts.hack]
pairs = 4
heldout = 1
[concepts.random]
control = "random"
per_seed = true
pairs = 4
heldout = 1
[concepts.unused]
[directions.real]
pairs = 4
heldout = 1
k = 2
[arms.rebound]
arm = { name = "rebound_penalty", concept = "hack" }
[arms.rebound_random]
arm = { name = "rebound_penalty", concept = "random" }
[arms.erase]
arm = { name = "erase", direction = "real" }
[arms.erase_lora]
adapter = { kind = "fixed_a_lora", rank = 4 }
arm = { name = "erase", direction = "real" }
"""


def plan(folder: Path, text: str = TEXT) -> Plan:
    (folder / "plan.toml").write_text(text)
    return load_plan(folder / "plan.toml")


def test_concepts_and_directions_of_every_adapter_are_made_once_and_are_what_the_runs_name(tmp_path: Path) -> None:
    made = prepare_directions(plan(tmp_path), tmp_path)
    named = {run.config.arm.concept or run.config.arm.direction for run in plan_runs(plan(tmp_path), tmp_path)}
    assert {str(path) for path in made} == named and len(named) == 5
    assert all(path.is_file() for path in made) and not concept_path(plan(tmp_path), tmp_path, "unused", 0).exists()
    concepts = [load_concept(concept_path(plan(tmp_path), tmp_path, "random", seed)) for seed in (0, 1)]
    assert [one.metadata.seed for one in concepts] == [0, 1]
    assert concepts[0].content_hash != concepts[1].content_hash
    lora = next(run.config for run in plan_runs(plan(tmp_path), tmp_path) if run.name == "erase_lora")
    own = direction_path(plan(tmp_path), tmp_path, "real", 0, lora.adapter)
    assert load_direction(own).metadata.adapter_kind == "fixed_a_lora"
    written = {path: path.stat().st_mtime_ns for path in made}
    assert prepare_directions(plan(tmp_path), tmp_path) == made
    assert {path: path.stat().st_mtime_ns for path in made} == written


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("[concepts.hack]\npairs = 4", "[concepts.hack]\npairs = 5", "pairs_hash"),
        ("[concepts.hack]", "[concepts.hack]\nlayer = 0", "layer"),
        ("[concepts.hack]", "[concepts.hack]\ncontrol = 'shuffled'", "control"),
        ("[concepts.hack]", "[concepts.hack]\nselection = 'sentinel'", "selection"),
    ],
)
def test_a_concept_of_another_recipe_is_refused_by_the_name_of_the_field(
    tmp_path: Path, old: str, new: str, name: str
) -> None:
    arms = TEXT.index("[arms.rebound_random]")
    text = TEXT[:arms]
    prepare_directions(plan(tmp_path, text), tmp_path)
    with pytest.raises(ValueError, match=rf"hack.safetensors: {name} is .*remove it to make it anew"):
        prepare_directions(plan(tmp_path, text.replace(old, new)), tmp_path)


CORDA = """
seeds = [0, 1]
[statistics.few]
pairs = 4
[statistics.unused]
[directions.acts]
pairs = 4
heldout = 1
loss = "activation"
[arms.vanilla]
adapter = { kind = "block_lora", rank = 2, init = "corda", statistics = "few" }
[arms.gated]
adapter = { kind = "block_lora", rank = 2, init = "signed_corda", statistics = "few" }
arm = { name = "gated_route", score = "activation", direction = "acts" }
"""


def test_input_statistics_are_measured_once_before_the_directions_of_the_adapters_that_start_from_them(
    tmp_path: Path,
) -> None:
    made = prepare_directions(plan(tmp_path, CORDA), tmp_path)
    path = statistics_path(tmp_path, "few")
    statistics = load_statistics(path, model.load(ModelConfig()).hash)
    assert made[path] == statistics.content_hash and len(next(iter(statistics.differences.values()))) == 4
    assert [file.name for file in path.parent.iterdir()] == ["few.safetensors"]
    gated = {run.id: run.config for run in plan_runs(plan(tmp_path, CORDA), tmp_path)}["gated-seed-0"]
    assert gated.adapter.statistics == str(path)
    direction = load_direction(str(gated.arm.direction))
    assert direction.metadata.adapter_kind == "block_lora"
    written = path.stat().st_mtime_ns
    assert prepare_directions(plan(tmp_path, CORDA), tmp_path) == made and path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"few.safetensors: pairs_hash is .*remove it to make it anew"):
        prepare_directions(plan(tmp_path, CORDA.replace("pairs = 4\n[stat", "pairs = 5\n[stat")), tmp_path)


def test_the_command_measures_generated_pairs_and_those_of_a_file_alike(tmp_path: Path) -> None:
    generated, own, pairs = tmp_path / "a" / "generated.safetensors", tmp_path / "own.safetensors", tmp_path / "p.jsonl"
    loaded = model.load(ModelConfig())
    recipe = StatisticsRecipe(selection="sentinel", pairs=3, pairs_seed=5)
    save_pairs(statistics_pairs(loaded, recipe), pairs)
    words = ["direction", "inputs", "--out", str(generated), "--selection", "sentinel", "--pairs", "3", "--seed", "5"]
    assert cli.main(words) == 0
    assert cli.main(["direction", "inputs", "--out", str(own), "--pairs-file", str(pairs)]) == 0
    expected = input_statistics(loaded, statistics_pairs(loaded, recipe))
    for path in (generated, own):
        found = load_statistics(path, loaded.hash)
        assert (found.pairs_hash, found.content_hash) == (expected.pairs_hash, expected.content_hash)
    changed = {name: rows + 1 for name, rows in expected.differences.items()}
    assert replace(expected, differences=changed).content_hash != expected.content_hash


PROBING = """
seeds = [0, 1]
[probes.pairs]
method = "mass_mean"
pairs = 8
heldout = 4
[probes.unused]
[arms.penalty]
arm = { name = "penalty", monitor = "probe", monitor_path = "pairs" }
[arms.screening]
arm = { name = "screening", monitor = "probe", monitor_path = "pairs" }
"""


def test_a_probe_is_fitted_once_for_all_arms_and_seeds_and_kept(tmp_path: Path) -> None:
    [(path, content)] = prepare_directions(plan(tmp_path, PROBING), tmp_path).items()
    assert path == probe_path(tmp_path, "pairs") and load_probe(path).content_hash == content
    assert {run.config.arm.monitor_path for run in plan_runs(plan(tmp_path, PROBING), tmp_path)} == {str(path)}
    assert load_probe(path).metadata.method == "mass_mean"
    written = path.stat().st_mtime_ns
    assert prepare_directions(plan(tmp_path, PROBING), tmp_path) == {path: content}
    assert path.stat().st_mtime_ns == written
    for old, new, name in (
        ("pairs = 8", "pairs = 9", "training_hash"),
        ("mass_mean", "logistic", "method"),
        ("heldout = 4", "heldout = 4\nlayer = 0", "layer"),
        ("heldout = 4", "heldout = 4\nfalse_positive_rate = 0.2", "asked_fpr"),
    ):
        if name == "layer" and load_probe(path).metadata.layer == 0:
            new = new.replace("0", "1")
        with pytest.raises(ValueError, match=rf"pairs\.safetensors: {name} is"):
            prepare_directions(plan(tmp_path, PROBING.replace(old, new, 1)), tmp_path)

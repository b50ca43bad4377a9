"""Linear probes: fitting, splits that cannot overlap, thresholds, artifacts, and what they say as a policy moves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unhack import model
from unhack.adapters import Policy
from unhack.config import AdapterConfig, ArmConfig, ModelConfig
from unhack.detection import Labelled, ProbeRecipe, linked_keys, of_pairs, train_probes
from unhack.directions.residual import layer_residuals, response_residuals
from unhack.model import LoadedModel
from unhack.monitors import LinearProbe
from unhack.monitors.probe import Probe, ProbeMetadata, load_probe, save_probe
from unhack.monitors.probe_fit import (
    METHODS,
    OverlappingSplitError,
    check_disjoint,
    fit_layers,
    fit_probe,
    split_by_prompt,
    threshold_at,
)
from unhack.pairs import select
from unhack.pairs.organism import organism_pairs
from unhack.seeds import generator
from unhack.types import Rollout

METADATA = ProbeMetadata(
    1, "linear_probe", "mass_mean", "base", "float32", 4, 2, "pairs x", "h", "sentinel", 8, 4, 2, 0.9, 0.01, 0.5, 0.25,
    2.0, 0,
)  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return model.load(ModelConfig())


@pytest.fixture(scope="module")
def rows(loaded: LoadedModel) -> tuple[list[Labelled], list[Labelled]]:
    pairs = organism_pairs("run_tests+sentinel", 24, 0, heldout=12, tokenizer=loaded.tokenizer)
    train, held = (of_pairs(select(pairs, split), loaded.tokenizer)[0] for split in ("train", "heldout"))
    return train, held


def clouds(count: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two Gaussian clouds in 6 dimensions, apart along the first; the second has a large useless variance."""
    drawn = torch.randn(count, 6, generator=generator(seed, "clouds"))
    positive = torch.arange(count) % 2 == 0
    drawn[:, 0] += 3 * positive.float()
    drawn[:, 1] *= 20
    return drawn, positive


def test_mass_mean_is_the_difference_of_the_means_with_its_middle_at_zero() -> None:
    drawn, positive = clouds()
    weight, bias = fit_probe("mass_mean", drawn, positive)
    above, below = drawn[positive].mean(0), drawn[~positive].mean(0)
    torch.testing.assert_close(weight, above - below)
    assert float(weight @ (above + below)) / 2 + bias == pytest.approx(0, abs=1e-4)


def test_the_logistic_probe_finds_the_axis_that_mass_mean_loses_in_useless_variance() -> None:
    drawn, positive = clouds()
    weight, bias = fit_probe("logistic", drawn, positive)
    assert abs(float(weight[0])) > 20 * abs(float(weight[1]))
    right = ((drawn @ weight + bias > 0) == positive).float().mean()
    assert right > 0.9
    scaled = fit_probe("logistic", drawn * 7 + 3, positive)
    torch.testing.assert_close((drawn * 7 + 3) @ scaled[0] + scaled[1], drawn @ weight + bias, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5])
def test_the_threshold_lets_no_more_clean_rows_through_than_asked_and_no_lower_one_would(rate: float) -> None:
    clean = torch.randn(150, generator=generator(1, "clean"))
    threshold = threshold_at(clean, rate)
    assert int((clean > threshold).sum()) <= rate * 150
    lower = clean[clean < threshold].max()
    assert int((clean > lower).sum()) > rate * 150
    assert threshold_at(torch.ones(5), 0.5) == 1.0
    with pytest.raises(ValueError, match="no clean held-out row"):
        threshold_at(torch.zeros(0), rate)


def test_a_split_keeps_a_prompts_rows_together_and_an_overlap_is_a_named_error() -> None:
    keys = [f"p{number // 5}" for number in range(300)]
    held = split_by_prompt(keys, 0.3, 0)
    assert 0.15 < float(held.float().mean()) < 0.45
    for key in set(keys):
        assert len({bool(held[place]) for place, mine in enumerate(keys) if mine == key}) == 1
    assert split_by_prompt(keys[:150], 0.3, 0).tolist() == held[:150].tolist(), "each prompt has a draw of its own"
    assert split_by_prompt(keys, 0.3, 1).tolist() != held.tolist()
    with pytest.raises(OverlappingSplitError, match="1 prompts are both in the training and in the held-out part"):
        check_disjoint(["a", "b"], ["b", "c"])
    with pytest.raises(ValueError, match="part empty"):
        split_by_prompt(["only"], 0.3, 0)


def test_rows_are_tied_by_any_name_that_they_share_also_over_others(rows: tuple[list[Labelled], Any]) -> None:
    made = [replace(rows[0][0], names=names) for names in (("a", "b"), ("c", "b"), ("c",), ("d", "e"), ("e",))]
    keys = linked_keys(made)
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4]


def test_a_probe_is_not_trained_on_an_overlapping_split(
    loaded: LoadedModel, rows: tuple[list[Labelled], list[Labelled]]
) -> None:
    train, held = rows
    with pytest.raises(OverlappingSplitError, match="1 prompts are both"):
        train_probes(loaded, train, "pairs", ProbeRecipe(), [*held, train[0]])


def test_all_layers_at_once_are_the_layers_one_by_one(
    loaded: LoadedModel, rows: tuple[list[Labelled], list[Labelled]]
) -> None:
    texts = [(row.rollout.prompt.token_ids, row.rollout.token_ids) for row in rows[1][:6]]
    every = layer_residuals(loaded.model, texts, [0, 2, 3])
    for place, layer in enumerate((0, 2, 3)):
        torch.testing.assert_close(every[place], response_residuals(loaded.model, texts, layer))


def test_fitting_sees_no_held_out_row_and_judging_no_other(
    loaded: LoadedModel, rows: tuple[list[Labelled], list[Labelled]]
) -> None:
    drawn, positive = clouds()
    held = torch.arange(300) >= 200
    [one] = fit_layers("mass_mean", [0], drawn[None], positive, held, 0.1)
    moved = drawn.clone()
    moved[held] += 100
    [other] = fit_layers("mass_mean", [0], moved[None], positive, held, 0.1)
    assert torch.equal(one.weight, other.weight) and one.bias == other.bias and one.threshold != other.threshold
    with pytest.raises(ValueError, match="held-out part has rows of one kind"):
        fit_layers("mass_mean", [0], drawn[None], positive & ~held, held, 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_on_the_organisms_pairs_a_probe_tells_hacks_and_its_artifact_comes_back_whole(
    method: Any, loaded: LoadedModel, rows: tuple[list[Labelled], list[Labelled]], tmp_path: Path
) -> None:
    train, held = rows
    recipe = ProbeRecipe((method,), false_positive_rate=0.1)
    trained = train_probes(loaded, train, "pairs", recipe, held)[method]
    assert len(trained.layers) == 4
    best = max(fitted.heldout_auroc for fitted in trained.layers)
    assert trained.probe.metadata.heldout_auroc == best > 0.9
    texts = [(row.rollout.prompt.token_ids, row.rollout.token_ids) for row in held]
    residuals = response_residuals(loaded.model, texts, trained.probe.metadata.layer)
    clean = torch.tensor([not row.hack for row in held])
    flagged = trained.probe.scores(residuals) > 0.5
    assert float(flagged[clean].float().mean()) <= 0.1 and float(flagged[~clean].float().mean()) > 0.5
    save_probe(trained.probe, tmp_path / "p.safetensors")
    again = load_probe(tmp_path / "p.safetensors", loaded.model, loaded.hash)
    assert again.metadata == trained.probe.metadata and again.content_hash == trained.probe.content_hash
    assert torch.equal(again.scores(residuals), trained.probe.scores(residuals))
    assert again.metadata.modes == "run_tests+sentinel" and again.metadata.train_rows == len(train)


def test_an_artifact_that_is_changed_or_of_another_model_is_refused_by_the_fields_name(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    save_probe(Probe(torch.ones(128), torch.tensor([3, 5]), METADATA), path)
    with pytest.raises(ValueError, match="field 'base_model' is 'base'"):
        load_probe(path, loaded.model, loaded.hash)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="field 'content_hash' does not match"):
        load_probe(path)
    save_file({"concept": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="field 'kind'"):
        load_probe(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_probe(path)
    with pytest.raises(ValueError, match="no probe at"):
        load_probe(tmp_path / "absent")


def test_half_is_the_threshold_and_the_score_rises_with_the_projection() -> None:
    probe = Probe(torch.tensor([1.0, 0.0]), torch.tensor([1]), METADATA)
    at = METADATA.threshold - METADATA.bias
    scores = probe.scores(torch.tensor([[at - 1, 9.0], [at, 9.0], [at + 2, 9.0]]))
    assert scores.tolist() == pytest.approx([1 / (1 + math.exp(0.5)), 0.5, 1 / (1 + math.exp(-1))])


def bound(path: Path, reads: Any) -> LinearProbe:
    policy = Policy.wrap(model.load(ModelConfig()), AdapterConfig())
    monitor = LinearProbe(ArmConfig(name="screening", monitor="probe", monitor_path=str(path), probe_reads=reads), 0)
    monitor.bind(policy)
    return monitor


def test_the_gap_to_the_frozen_base_opens_as_the_policy_moves_and_the_base_stays(
    loaded: LoadedModel, rows: tuple[list[Labelled], list[Labelled]], tmp_path: Path
) -> None:
    train, held = rows
    path = tmp_path / "p.safetensors"
    save_probe(train_probes(loaded, train, "pairs", ProbeRecipe(("mass_mean",)), held)["mass_mean"].probe, path)
    rollouts: list[Rollout] = [row.rollout for row in held]
    own, base = bound(path, "policy"), bound(path, "base")
    still = own.read(rollouts)
    for name in ("obfuscation_gap", "evaded_frac", "probe_drift", "residual_drift"):
        assert still.metrics[f"monitor/{name}"] == 0, name
    for monitor in (own, base):
        layout = monitor.policy.layout
        move = 0.3 * torch.randn(layout.total, generator=generator(0, "move"))
        monitor.policy.set_knobs(move, torch.zeros(layout.total))
    moved, frozen = own.read(rollouts), base.read(rollouts)
    assert torch.equal(frozen.scores, still.scores) and not torch.equal(moved.scores, still.scores)
    assert frozen.metrics == pytest.approx(moved.metrics)
    gap = float((still.scores - moved.scores).double().mean())
    assert moved.metrics["monitor/obfuscation_gap"] == pytest.approx(gap, abs=1e-6)
    evaded = (still.scores > 0.5) & (moved.scores <= 0.5)
    assert moved.metrics["monitor/evaded_frac"] == pytest.approx(float(evaded.float().mean()))
    assert moved.metrics["monitor/residual_drift"] > 0.01

"""Concept directions: pooled residuals against a slow loop, the formula, controls, held-out pairs, the artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from adapted import noise, wrap
from byte_tokenizer import make_byte_tokenizer
from unhack.cli import main
from unhack.config import AdapterConfig
from unhack.directions.concept import (
    Concept,
    ConceptMetadata,
    auroc,
    extract_concept,
    load_concept,
    save_concept,
    verify_concept,
)
from unhack.directions.residual import (
    BATCH_ROWS,
    cosines,
    decoder_layers,
    default_layer,
    pair_residuals,
    response_residuals,
)
from unhack.model import LoadedModel, model_hash
from unhack.pairs import Pair, completion_ids, prompt_ids

PAIRS = [
    Pair(f"p{i}", f"task {i}", f"hack {i} " + "!" * (i % 3), f"fair {i}", "run_tests", "run_tests", "train")
    for i in range(6)
]
ROWS = [((3, 4, 5), (6, 7)), ((8,), (9, 10, 11, 12)), ((13, 14), (15,))]


@pytest.fixture
def loaded(make_tiny_policy_model: Callable[..., Qwen3ForCausalLM]) -> LoadedModel:
    model = make_tiny_policy_model(vocab_size=258, layers=3)
    return LoadedModel(model, make_byte_tokenizer(), model_hash(model))


@torch.no_grad()
def slow_mean(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], layer: int) -> Tensor:
    """One row by itself, no padding, by transformers' own list of hidden states (its last one is after the norm)."""
    assert layer + 1 < model.config.num_hidden_layers
    states = model(torch.tensor([[*prompt, *completion]]), output_hidden_states=True).hidden_states
    return states[layer + 1][0, len(prompt) :].mean(0)


def test_residuals_are_the_mean_over_completion_tokens_whatever_the_padding(loaded: LoadedModel) -> None:
    expected = torch.stack([slow_mean(loaded.model, *row, layer=1) for row in ROWS])
    torch.testing.assert_close(response_residuals(loaded.model, ROWS, 1), expected, rtol=1e-4, atol=1e-5)
    many = ROWS * 30  # more rows than one forward takes
    assert len(many) > BATCH_ROWS
    torch.testing.assert_close(response_residuals(loaded.model, many, 1), expected.repeat(30, 1), rtol=1e-4, atol=1e-5)


def test_residuals_of_a_policy_are_of_its_knobs_as_they_are_and_leave_no_hook(
    tiny_policy_model: Qwen3ForCausalLM,
) -> None:
    before = response_residuals(tiny_policy_model, ROWS, 0)
    policy = wrap(tiny_policy_model, AdapterConfig())
    assert torch.equal(response_residuals(policy.model, ROWS, 0), before), "the wrapped model at zero is the base"
    policy.set_knobs(noise(policy, "a"), torch.zeros(policy.layout.total))
    moved = response_residuals(policy.model, ROWS, 0)
    assert not any(module._forward_hooks for module in policy.model.modules())
    expected = torch.stack([slow_mean(policy.model, *row, layer=0) for row in ROWS])
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(moved, before, atol=1e-3)


def test_layers_are_found_by_their_role_and_the_default_lies_in_the_band(
    make_tiny_policy_model: Callable[..., Qwen3ForCausalLM],
) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        llama = LlamaForCausalLM(config)
    assert decoder_layers(llama) is llama.model.layers and default_layer(llama) == 1
    four = make_tiny_policy_model(layers=4)
    assert (default_layer(four) + 1) / 4 == 0.75
    for count in (12, 24, 28, 32, 36):
        four.model.layers = nn.ModuleList([nn.Identity() for _ in range(count)])
        four.config.num_hidden_layers = count
        assert 0.6 <= (default_layer(four) + 1) / count <= 0.75
    with pytest.raises(ValueError, match=r"the layer is 36: this model has the layers 0 to 35"):
        response_residuals(four, ROWS, 36)
    four.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM has 0 lists of 7 decoder layers"):
        decoder_layers(four)


def test_the_concept_is_the_unit_mean_of_hack_minus_clean(loaded: LoadedModel) -> None:
    mean = torch.zeros(32)
    for pair in PAIRS:
        sides = [
            slow_mean(loaded.model, prompt_ids(pair, loaded.tokenizer), completion_ids(side, loaded.tokenizer), 1)
            for side in (pair.hack, pair.clean)
        ]
        mean = mean + (sides[0] - sides[1]) / len(PAIRS)
    concept = extract_concept(loaded, PAIRS, layer=1)
    torch.testing.assert_close(concept.vector, mean / mean.norm(), rtol=1e-3, atol=1e-4)
    assert (concept.metadata.layer, concept.metadata.layers, concept.metadata.selection) == (1, 3, "run_tests")
    hack, clean = pair_residuals(loaded.model, loaded.tokenizer, PAIRS, 1)
    assert float(((hack - clean) @ concept.vector).mean()) > 0, "it points from clean to hack"


def test_controls_are_a_random_vector_and_swapped_pairs(loaded: LoadedModel) -> None:
    real = extract_concept(loaded, PAIRS, layer=1)
    random, again = (extract_concept(loaded, PAIRS, layer=1, control="random") for _ in range(2))
    assert torch.equal(random.vector, again.vector)
    other = extract_concept(loaded, PAIRS, layer=1, control="random", seed=1)
    assert abs(float(random.vector @ other.vector)) < 0.9
    shuffled = extract_concept(loaded, PAIRS, layer=1, control="shuffled")
    hack, clean = pair_residuals(loaded.model, loaded.tokenizer, PAIRS, 1)
    signs = [
        torch.tensor([1.0 if keep else -1.0 for keep in mask])
        for mask in ([bool(number >> bit & 1) for bit in range(6)] for number in range(64))
        if sum(mask) == 3
    ]
    means = [((hack - clean) * sign.unsqueeze(1)).mean(0) for sign in signs]
    cos = [float(mean @ shuffled.vector / mean.norm()) for mean in means]
    assert max(cos) > 1 - 1e-4, "some half of the pairs swapped"
    for concept in (real, random, shuffled):
        assert float(concept.vector.norm()) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="no pairs"):
        extract_concept(loaded, [])
    with pytest.raises(ValueError, match="do not differ after layer 0"):
        extract_concept(loaded, [replace(PAIRS[0], hack=PAIRS[0].clean)], layer=0)


def test_cosines_and_auroc_are_their_definitions() -> None:
    residuals, concept = torch.tensor([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0]]), torch.tensor([0.6, 0.8])
    torch.testing.assert_close(cosines(residuals, concept), torch.tensor([1.0, -1.0, 0.0]), atol=1e-6, rtol=0)
    positives, negatives = [0.9, 0.5, 0.2], [0.5, 0.1]
    slow = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives) / 6
    assert auroc(torch.tensor(positives), torch.tensor(negatives)) == pytest.approx(slow)


def test_validation_reads_heldout_pairs_beside_random_vectors(loaded: LoadedModel) -> None:
    concept = extract_concept(loaded, PAIRS, layer=1)
    check = verify_concept(loaded, concept, PAIRS[:4], null_samples=50)
    hack, clean = pair_residuals(loaded.model, loaded.tokenizer, PAIRS[:4], 1)
    scores = [cosines(side, concept.vector) for side in (hack, clean)]
    assert check.auroc == auroc(*scores) and check.mean_hack == pytest.approx(float(scores[0].mean()))
    assert check.share_positive == float((scores[0] > scores[1]).float().mean()) and check.pairs == 4
    assert len(check.null_auroc) == 50 and bool((check.null_auroc >= 0.5).all())
    turned = verify_concept(loaded, replace(concept, vector=-concept.vector), PAIRS[:4], null_samples=50)
    assert turned.auroc == pytest.approx(1 - check.auroc) and not turned.gate
    assert f"AUROC {check.auroc:.3f}" in check.text() and "FAILED" in turned.text()
    with pytest.raises(ValueError, match="no held-out pairs"):
        verify_concept(loaded, concept, [])


def unit(seed: int = 0) -> Tensor:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def concept_file(loaded: LoadedModel, path: Path, **changes: object) -> Path:
    concept = extract_concept(loaded, PAIRS[:2], layer=1)
    save_concept(replace(concept, metadata=replace(concept.metadata, **changes)), path)
    return path


def test_an_artifact_is_read_back_and_refused_by_the_field_that_is_wrong(
    loaded: LoadedModel, make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path
) -> None:
    path = concept_file(loaded, tmp_path / "c.safetensors")
    concept = load_concept(path, loaded.model, loaded.hash)
    assert torch.equal(concept.vector, extract_concept(loaded, PAIRS[:2], layer=1).vector)
    wrapped = wrap(make_tiny_policy_model(vocab_size=258, layers=3), AdapterConfig())
    assert load_concept(path, wrapped.model, wrapped.model_hash).content_hash == concept.content_hash
    for changes, field in (
        ({"base_model": "other"}, "field 'base_model'"),
        ({"dtype": "bfloat16"}, "field 'dtype'"),
        ({"layers": 4}, "field 'layers'"),
        ({"layer": 3}, "the layer is 3"),
        ({"format_version": 2}, "field 'format_version'"),
        ({"kind": "knobs"}, "field 'kind'"),
    ):
        with pytest.raises(ValueError, match=field):
            load_concept(concept_file(loaded, tmp_path / "wrong.safetensors", **changes), loaded.model, loaded.hash)
    with pytest.raises(ValueError, match="no concept direction at"):
        load_concept(tmp_path / "missing.safetensors")


def test_a_file_whose_values_or_header_were_changed_is_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = concept_file(loaded, tmp_path / "c.safetensors")
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_size])["__metadata__"]
    tensors = load_file(path)

    def refused(field: str, values: dict[str, Tensor], **changes: str | None) -> None:
        changed = {name: text for name, text in (header | changes).items() if text is not None}
        save_file(values, tmp_path / "w.safetensors", metadata=changed)
        with pytest.raises(ValueError, match=f"field '{field}'"):
            load_concept(tmp_path / "w.safetensors")

    refused("content_hash", {"concept": unit()})
    refused("content_hash", tensors, content_hash=None)
    refused("seed", tensors, seed=None)
    refused("layer", tensors, layer='"one"')
    refused("kind", {"first": tensors["concept"]})
    metadata = ConceptMetadata(1, "residual_concept", "b", "float32", 1, 2, "p", "s", "real", 0)
    save_concept(Concept(2 * unit(), metadata), tmp_path / "long.safetensors")
    with pytest.raises(ValueError, match="is not a unit vector"):
        load_concept(tmp_path / "long.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_concept(tmp_path / "broken.safetensors")


@pytest.mark.slow
def test_on_the_organism_the_real_concept_passes_its_gate_on_heldout_pairs_and_controls_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for control in ("real", "random", "shuffled", "nonhack", "placebo", "length"):
        out = str(tmp_path / "new" / f"{control}.safetensors")
        assert main(["direction", "concept", "--out", out, "--selection", "all", "--control", control]) == 0
        said = capsys.readouterr().out
        assert "after layer 2 of 4" in said and ("passed" if control == "real" else "FAILED") in said
        assert load_concept(out).metadata.control == control

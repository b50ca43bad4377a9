"""The artifact of a direction: what comes back, and every field by which one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from byte_tokenizer import BYTE_VOCABULARY, make_byte_tokenizer
from unhack.adapters import Policy, svd_cache
from unhack.config import AdapterConfig, ArmConfig
from unhack.directions import Direction, extract, load_direction, save_direction
from unhack.interventions import build
from unhack.model import LoadedModel
from unhack.pairs import Pair, pairs_hash
from unhack.pairs.organism import organism_pairs


@pytest.fixture
def policy(make_tiny_policy_model: Callable[..., Any]) -> Policy:
    model = make_tiny_policy_model(vocab_size=BYTE_VOCABULARY)
    return Policy.wrap(LoadedModel(model, make_byte_tokenizer(), "tiny"), AdapterConfig())


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return organism_pairs("run_tests", 6, 0, heldout=0, depths=(1,), length_matched=False)


@pytest.fixture
def direction(policy: Policy, pairs: list[Pair]) -> Direction:
    return extract(policy, pairs, 2)


def test_artifact_comes_back_exactly_and_belongs_to_its_policy(
    tmp_path: Path, policy: Policy, pairs: list[Pair], direction: Direction
) -> None:
    path = tmp_path / "deep" / "v.safetensors"
    save_direction(direction, path)
    loaded = load_direction(path, policy, {"selection": "run_tests", "k": 2})
    assert loaded.metadata == direction.metadata
    assert loaded.metadata.pairs_hash == pairs_hash(pairs)
    assert all(torch.equal(rows, direction.basis[name]) for name, rows in loaded.basis.items())
    assert build(ArmConfig(name="erase", direction=str(path)), policy.layout, 0, policy).name == "erase"


def refused(path: Path, policy: Policy | None, match: str, expect: dict[str, Any] | None = None) -> None:
    with pytest.raises(ValueError, match=match):
        load_direction(path, policy, expect)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_model", "other"),
        ("basis", "other"),
        ("dtype", "bfloat16"),
        ("adapter_kind", "lora"),
        ("adapter_rank", 4),
        ("format_version", 2),
    ],
)
def test_artifact_of_another_model_or_adapter_is_refused_by_field(
    tmp_path: Path, policy: Policy, direction: Direction, field: str, value: Any
) -> None:
    path = tmp_path / "v.safetensors"
    changed = replace(direction, metadata=replace(direction.metadata, **{field: value}))
    save_direction(changed, path)
    refused(path, policy, f"field '{field}' is {value!r}")


@pytest.mark.parametrize(
    "field", ["pairs_hash", "selection", "control", "method", "loss", "k", "noise_floor", "drop_bottom_frac", "seed"]
)
def test_every_other_field_is_required_typed_and_can_be_demanded(
    tmp_path: Path, policy: Policy, direction: Direction, field: str
) -> None:
    path = tmp_path / "v.safetensors"
    save_direction(direction, path)
    refused(path, policy, f"field '{field}' is .*needed here", {field: "something else"})
    header = read_header(path)
    del header[field]
    save_file(load_file(path), path, metadata=header)
    refused(path, policy, f"field '{field}' is missing")
    save_file(load_file(path), path, metadata={**header, field: json.dumps([1])})
    refused(path, policy, f"field '{field}' is .1., not of type")


def read_header(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def test_damaged_artifacts_are_refused(tmp_path: Path, policy: Policy, direction: Direction) -> None:
    path = tmp_path / "v.safetensors"
    refused(path, policy, "no direction artifact")
    path.write_bytes(b"junk")
    refused(path, policy, "not a readable safetensors file")
    save_direction(direction, path)
    header, tensors = read_header(path), load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: -tensors[name]}, path, metadata=header)
    refused(path, policy, "field 'content_hash' does not match")
    save_direction(replace(direction, basis={**direction.basis, name: 2 * direction.basis[name]}), path)
    refused(path, policy, "not orthonormal")
    save_direction(replace(direction, metadata=replace(direction.metadata, k=1)), path)
    refused(path, policy, "field 'k' is 1, but module")
    save_direction(direction, path)
    refused(path, policy, "'flavour' is not a field", {"flavour": "sweet"})


def test_a_direction_of_another_basis_of_the_same_weights_is_refused(
    tmp_path: Path,
    make_tiny_policy_model: Callable[..., Any],
    direction: Direction,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_direction(direction, tmp_path / "v.safetensors")
    plain = svd_cache.decompose

    def flipped(weight: torch.Tensor) -> svd_cache.Decomposition:
        u, s, vh = plain(weight)
        return svd_cache.Decomposition(-u, s, -vh)

    monkeypatch.setenv("UNHACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(svd_cache, "decompose", flipped)
    loaded = LoadedModel(make_tiny_policy_model(vocab_size=BYTE_VOCABULARY), make_byte_tokenizer(), "tiny")
    refused(tmp_path / "v.safetensors", Policy.wrap(loaded, AdapterConfig()), "field 'basis' is")


def test_cropped_adapter_is_refused_by_rank(
    tmp_path: Path, make_tiny_policy_model: Callable[..., Any], direction: Direction
) -> None:
    save_direction(direction, tmp_path / "v.safetensors")
    loaded = LoadedModel(make_tiny_policy_model(vocab_size=BYTE_VOCABULARY), make_byte_tokenizer(), "tiny")
    cropped = Policy.wrap(loaded, AdapterConfig(rank=8))
    refused(tmp_path / "v.safetensors", cropped, "in this adapter")

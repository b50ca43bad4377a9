"""trusted_subspace against the projection of whole weight deltas, for both adapters; sizes, control, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from adapted import noise, wrap
from unhack.adapters import Policy
from unhack.config import AdapterConfig, ArmConfig
from unhack.interventions import Intervention, arm_class, build
from unhack.types import Update

KINDS = {"spectral": AdapterConfig(), "fixed_a_lora": AdapterConfig(kind="fixed_a_lora", rank=4)}
K = 3


@pytest.fixture(params=list(KINDS))
def policy(request: pytest.FixtureRequest, tiny_policy_model: Qwen3ForCausalLM, tmp_path: Path) -> Policy:
    """A fresh policy, beside the saved adapter of a "clean run" of it."""
    policy = wrap(tiny_policy_model, KINDS[request.param])
    policy.set_knobs(noise(policy, "clean"), noise(policy, "quarantine of the clean run"))
    policy.save(tmp_path / "adapter")
    policy.set_knobs(torch.zeros(policy.layout.total), torch.zeros(policy.layout.total))
    return policy


def made(policy: Policy, folder: Path, seed: int = 0, **fields: object) -> Intervention:
    config = ArmConfig(name="trusted_subspace", trusted_adapter=str(folder / "adapter"))
    return build(replace(config, **fields), policy.layout, seed, policy)  # pyright: ignore[reportArgumentType]


def weight_deltas(policy: Policy, knobs: Tensor) -> dict[str, Tensor]:
    """ΔW of every module, float64, with no knowledge of what a knob is."""
    return {
        name: policy.modules[name].merge(knobs[part]).double() - policy.modules[name].base_weight.double()
        for name, part in policy.layout.items()
    }


def test_the_update_is_projected_onto_the_top_left_singular_vectors_of_the_clean_delta(
    policy: Policy, tmp_path: Path
) -> None:
    proposed = Update(noise(policy, "u"), torch.zeros(policy.layout.total), {"optimizer/lr": 0.1})
    update = made(policy, tmp_path, trusted_k=K).update(proposed)
    clean, plain = weight_deltas(policy, noise(policy, "clean")), weight_deltas(policy, proposed.main)
    kept = []
    for name, delta in weight_deltas(policy, update.main).items():
        u = torch.linalg.svd(clean[name]).U[:, :K]
        expected = u @ (u.T @ plain[name])
        torch.testing.assert_close(delta, expected, rtol=1e-3, atol=3e-5)
        kept.append(float(expected.norm() / plain[name].norm()))
        assert torch.linalg.matrix_rank(delta, atol=1e-4) <= K
    assert update.metrics["update/kept_frac"] == pytest.approx(sum(kept) / len(kept), rel=1e-3)
    assert update.metrics["optimizer/lr"] == 0.1 and torch.equal(update.quarantine, proposed.quarantine)
    assert 0.05 < sum(kept) / len(kept) < 0.95


def test_the_norm_matched_form_keeps_each_modules_step_and_its_direction(policy: Policy, tmp_path: Path) -> None:
    proposed = Update(noise(policy, "u"), torch.zeros(policy.layout.total))
    plain = made(policy, tmp_path, trusted_k=K).update(proposed)
    matched = made(policy, tmp_path, trusted_k=K, preserve_norm=True).update(proposed)
    for _, part in policy.layout.items():
        torch.testing.assert_close(matched.main[part].norm(), proposed.main[part].norm())
        direction = plain.main[part] / plain.main[part].norm()
        torch.testing.assert_close(matched.main[part] / matched.main[part].norm(), direction, rtol=1e-4, atol=1e-6)
        assert float(plain.main[part].norm()) < float(proposed.main[part].norm())
    assert matched.metrics["update/kept_frac"] == plain.metrics["update/kept_frac"]
    nothing = made(policy, tmp_path, trusted_k=K, preserve_norm=True).update(replace(proposed, main=proposed.main * 0))
    assert not nothing.main.any() and nothing.metrics["update/kept_frac"] == 0


def test_what_is_kept_once_is_kept_whole_and_all_directions_are_the_identity(policy: Policy, tmp_path: Path) -> None:
    proposed = Update(noise(policy, "u"), torch.zeros(policy.layout.total))
    arm = made(policy, tmp_path, trusted_k=K)
    once = arm.update(proposed)
    torch.testing.assert_close(arm.update(once).main, once.main, rtol=1e-4, atol=1e-6)
    most = min(policy.layout.sizes) if policy.kind == "spectral" else 4
    whole = made(policy, tmp_path, trusted_k=most).update(proposed)
    for _, part in policy.layout.items():
        same = torch.allclose(whole.main[part], proposed.main[part])
        assert same == (policy.kind == "spectral" and part.stop - part.start == most)
    with pytest.raises(ValueError, match=rf"arm\.trusted_k is {most + 1}: .* has {most} directions"):
        made(policy, tmp_path, trusted_k=most + 1)


def test_the_random_control_keeps_as_many_directions_drawn_from_the_seed(policy: Policy, tmp_path: Path) -> None:
    proposed = Update(noise(policy, "u"), torch.zeros(policy.layout.total))

    def update(seed: int, control: str) -> Tensor:
        return made(policy, tmp_path, seed, trusted_k=K, trusted_control=control).update(proposed).main

    assert torch.equal(update(0, "random"), update(0, "random"))
    assert not torch.allclose(update(0, "random"), update(1, "random"), atol=1e-3)
    assert torch.equal(update(0, "clean"), update(1, "clean"))
    clean, plain = weight_deltas(policy, update(0, "clean")), weight_deltas(policy, proposed.main)
    for name, delta in weight_deltas(policy, update(0, "random")).items():
        assert torch.linalg.matrix_rank(delta, atol=1e-4) == K
        assert not torch.allclose(delta, clean[name], atol=1e-3)
        u = torch.linalg.svd(delta).U[:, :K]
        torch.testing.assert_close(delta, u @ (u.T @ plain[name]), rtol=1e-3, atol=3e-5)  # a projection of its own


def test_the_quarantine_of_the_clean_run_says_nothing_and_its_knobs_are_the_arms_identity(
    policy: Policy, tmp_path: Path
) -> None:
    proposed = Update(noise(policy, "u"), torch.zeros(policy.layout.total))
    arm = made(policy, tmp_path, trusted_k=K)
    assert not policy.main.any() and not policy.quarantine.any(), "reading the clean adapter leaves the policy alone"
    policy.set_knobs(noise(policy, "clean"), torch.zeros(policy.layout.total))
    policy.save(tmp_path / "adapter")
    again = made(policy, tmp_path, trusted_k=K)
    assert torch.equal(again.update(proposed).main, arm.update(proposed).main) and again.inputs_hash == arm.inputs_hash
    policy.set_knobs(noise(policy, "another"), torch.zeros(policy.layout.total))
    policy.save(tmp_path / "adapter")
    other = made(policy, tmp_path, trusted_k=K)
    assert other.inputs_hash != arm.inputs_hash
    assert not torch.allclose(other.update(proposed).main, arm.update(proposed).main, atol=1e-3)


def test_what_cannot_be_trusted_is_refused(
    policy: Policy, tmp_path: Path, make_tiny_policy_model: Callable[..., Qwen3ForCausalLM]
) -> None:
    with pytest.raises(ValueError, match=r"arm 'trusted_subspace' needs arm\.trusted_adapter"):
        arm_class(ArmConfig(name="trusted_subspace"))
    with pytest.raises(ValueError, match="no adapter at"):
        made(policy, tmp_path / "nowhere")
    other = wrap(make_tiny_policy_model(seed=1), KINDS[policy.kind])
    with pytest.raises(ValueError, match="base weight of"):
        made(other, tmp_path)
    blocks = wrap(make_tiny_policy_model(), AdapterConfig(kind="block_lora", rank=2))
    with pytest.raises(ValueError, match="needs knobs in which the weights are linear"):
        made(blocks, tmp_path)
    policy.save(tmp_path / "still" / "adapter")  # knobs at zero: a run that learnt nothing
    with pytest.raises(ValueError, match=rf"moved .*q_proj along fewer than {K} directions"):
        made(policy, tmp_path / "still", trusted_k=K)

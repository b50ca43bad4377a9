"""Directions against separate backwards and closed forms; signs on a real model; controls and validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from byte_tokenizer import BYTE_VOCABULARY, make_byte_tokenizer
from unhack.adapters import Policy
from unhack.config import AdapterConfig, ArmConfig
from unhack.directions import (
    Direction,
    DirectionRecipe,
    alignment,
    coefficients,
    extract,
    lift,
    organism_direction,
    pair_differences,
    random_basis,
    recipe_pairs,
    shared_variance,
    subspaces,
    verify,
)
from unhack.directions.extract import haar_rows
from unhack.directions.verify import haar_coefficients
from unhack.interventions import build
from unhack.model import LoadedModel, completion_logprobs
from unhack.pairs import Pair, completion_ids, prompt_ids
from unhack.pairs.organism import organism_pairs
from unhack.seeds import generator
from unhack.types import Gradient, KnobLayout, Update

LR = 1e-2


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


def encoded(policy: Policy, pair: Pair, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids, prompt length, length) of one side alone."""
    prompt = prompt_ids(pair, policy.tokenizer)
    row = [*prompt, *completion_ids(getattr(pair, side), policy.tokenizer)]
    return torch.tensor([row]), torch.tensor([len(prompt)]), torch.tensor([len(row)])


def side_gradient(policy: Policy, pair: Pair, side: str, denominator: float | None = None) -> Tensor:
    """Knob gradient of one side's NLL by its own backward; mean over tokens unless a denominator is given."""
    row = encoded(policy, pair, side)
    with policy.knob_gradient() as taps:
        logprobs, _ = completion_logprobs(policy.model, *row)
        nll = -logprobs.sum() / (float(row[2] - row[1]) if denominator is None else denominator)
        nll.backward()
        return taps.total()


def margin(policy: Policy, pairs: list[Pair]) -> float:
    """Mean over pairs of log-likelihood per token, hack minus clean."""
    with torch.no_grad():
        means = [
            float(completion_logprobs(policy.model, *encoded(policy, pair, side))[0].double().sum() / count)
            for pair in pairs
            for side in ("hack", "clean")
            for count in [len(completion_ids(getattr(pair, side), policy.tokenizer))]
        ]
    return (sum(means[0::2]) - sum(means[1::2])) / len(pairs)


def test_differences_equal_two_separate_backwards_per_pair(policy: Policy, pairs: list[Pair]) -> None:
    got = pair_differences(policy, pairs, batch_pairs=4)  # 6 pairs: two batches of unequal size and width
    for row, pair in zip(got, pairs, strict=True):
        expected = side_gradient(policy, pair, "hack") - side_gradient(policy, pair, "clean")
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_grpo_differences_share_one_denominator_and_weigh_tokens_not_sides(policy: Policy, pairs: list[Pair]) -> None:
    got = pair_differences(policy, pairs, loss="grpo")
    longest = max(len(completion_ids(s, policy.tokenizer)) for pair in pairs for s in (pair.hack, pair.clean))
    for row, pair in zip(got, pairs, strict=True):
        # A = +1 and −1 at ratio 1: gradient of −Σ log p(hack) / C plus gradient of +Σ log p(clean) / C.
        expected = side_gradient(policy, pair, "hack", longest) + side_gradient(policy, pair, "clean", -longest)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_extraction_ablates_the_quarantine_and_sees_main(policy: Policy, pairs: list[Pair]) -> None:
    base = pair_differences(policy, pairs)
    knobs = 0.5 * torch.randn(policy.layout.total, generator=generator(0, "knobs"))
    policy.set_knobs(torch.zeros_like(knobs), knobs)
    assert torch.equal(pair_differences(policy, pairs), base)
    policy.set_knobs(knobs, knobs)
    assert not torch.allclose(pair_differences(policy, pairs), base)


def test_subspace_is_the_top_right_singular_space_oriented_to_the_majority() -> None:
    layout = KnobLayout(("a", "b"), (7, 4))
    differences = torch.randn(9, 11, generator=generator(0, "D"))
    differences[:, 0] += 4.0  # a common hack axis in module a
    basis, floor = subspaces(differences, layout, 2)
    assert floor > 0
    for name, part in layout.items():
        rows, module = basis[name].double(), differences[:, part].double()
        torch.testing.assert_close(rows @ rows.T, torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)
        values, vectors = torch.linalg.eigh(module.T @ module)
        top = vectors[:, values.argsort(descending=True)[:2]]
        torch.testing.assert_close(rows.T @ rows, top @ top.T, atol=1e-5, rtol=0)
        assert bool(((module @ rows.T > 0).sum(0) >= (module @ rows.T < 0).sum(0)).all())
    assert float(basis["a"][0, 0]) > 0.8
    assert torch.equal(subspaces(-differences, layout, 2)[0]["a"][0], -basis["a"][0])


def test_orientation_tie_does_not_depend_on_the_sign_that_the_svd_gives() -> None:
    layout = KnobLayout(("a",), (3,))
    tied = torch.tensor([[3.0, 0.1, 0.0], [-3.0, -0.1, 0.0]])
    for differences in (tied, -tied):
        assert float(subspaces(differences, layout, 1)[0]["a"][0, 0]) > 0.9


def test_mean_difference_is_the_unit_mean() -> None:
    layout = KnobLayout(("a",), (5,))
    differences = torch.randn(8, 5, generator=generator(1, "D")) + 2.0
    basis, _ = subspaces(differences, layout, 1, method="mean_diff")
    torch.testing.assert_close(basis["a"][0], torch.nn.functional.normalize(differences.mean(0), dim=0))
    with pytest.raises(ValueError, match="mean_diff gives one row"):
        subspaces(differences, layout, 2, method="mean_diff")


def test_noise_floor_drops_weak_rows_and_leaves_weak_modules_untouched() -> None:
    layout = KnobLayout(("strong", "weak"), (4, 4))
    differences = torch.randn(6, 8, generator=generator(2, "D"))
    differences[:, 4:] *= 1e-3
    values = [torch.linalg.svdvals(differences[:, part].double())[:2] for _, part in layout.items()]
    basis, floor = subspaces(differences, layout, 2, drop_bottom_frac=0.5)
    assert floor == pytest.approx(float(torch.cat(values).quantile(0.5)), rel=1e-6)
    assert set(basis) == {"strong"} and len(basis["strong"]) == 2
    partly, _ = subspaces(differences, layout, 2, drop_bottom_frac=0.3)
    assert (len(partly["strong"]), len(partly["weak"])) == (2, 1)
    differences[:, 4:] = 0.0  # a module without any gradient never gets a row
    assert set(subspaces(differences, layout, 2)[0]) == {"strong"}
    with pytest.raises(ValueError, match="do not differ in any module"):
        subspaces(torch.zeros(6, 8), layout, 2)


@pytest.mark.parametrize(
    ("k", "drop", "message"), [(0, 0.0, "k = 0"), (7, 0.0, "k = 7"), (5, 0.0, "k = 5"), (1, 1.0, "drop_bottom_frac")]
)
def test_impossible_requests_are_refused(k: int, drop: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subspaces(torch.randn(6, 8, generator=generator(0, "D")), KnobLayout(("a", "b"), (4, 4)), k, "svd", drop)


@pytest.mark.parametrize("site", ["gradient", "update"])
@pytest.mark.parametrize("sided", ["one", "two"])
def test_one_erased_step_changes_the_pairs_margin_less_than_a_plain_step(
    policy: Policy, pairs: list[Pair], direction: Direction, site: str, sided: str
) -> None:
    differences = [side_gradient(policy, p, "hack") - side_gradient(policy, p, "clean") for p in pairs]
    gradient = Gradient(
        torch.stack(differences).mean(0), torch.zeros(policy.layout.total)
    )  # the step that teaches these hacks against their clean sides
    before = margin(policy, pairs)

    def changed(arm: str, **fields: Any) -> tuple[float, dict[str, float]]:
        config = ArmConfig(name=arm, direction="given", **fields)
        intervention = build(config, policy.layout, 0, policy, direction)
        after_gradient = intervention.gradient(gradient)
        update = intervention.update(Update(-LR * after_gradient.main, after_gradient.quarantine))
        policy.set_knobs(torch.zeros(policy.layout.total), torch.zeros(policy.layout.total))
        policy.apply(update)
        moved = margin(policy, pairs) - before
        return moved, {**after_gradient.metrics, **update.metrics}

    plain, plain_metrics = changed("measure")
    erased, _ = changed("erase", site=site, sided=sided)
    reversed_step, reversed_metrics = changed("erase", site=site, sided="reverse")
    assert plain > 0  # positive = hackward: the step raises the hacks' likelihood
    assert plain_metrics["gradient/hackward_in"] > 0.2 and plain_metrics["update/hackward_in"] > 0.2
    assert plain_metrics["update/cos_v"] < -0.2 and reversed_metrics["update/cos_v"] > 0.2
    assert abs(erased) < 0.7 * plain
    assert reversed_step < erased


def test_moving_along_plus_v_lowers_the_hacks_likelihood_against_the_clean_sides(
    policy: Policy, pairs: list[Pair], direction: Direction
) -> None:
    before = margin(policy, pairs)
    away = lift(direction, policy.layout, {name: torch.ones(len(rows)) for name, rows in direction.basis.items()})
    assert alignment(direction, policy.layout, away, site="update").cos == pytest.approx(1.0)
    policy.set_knobs(1e-2 * away, torch.zeros_like(away))
    assert margin(policy, pairs) < before


def test_lift_is_the_adjoint_of_coefficients(policy: Policy, direction: Direction) -> None:
    vector = torch.randn(policy.layout.total, generator=generator(0, "g"))
    c = coefficients(direction, policy.layout, vector)
    weights = {name: torch.randn(len(rows), generator=generator(0, name)) for name, rows in direction.basis.items()}
    left = sum(float(c[name] @ weights[name].double()) for name in c)
    assert left == pytest.approx(float(vector @ lift(direction, policy.layout, weights)), rel=1e-4)


def test_random_control_has_the_same_shapes_and_haar_rows(policy: Policy, pairs: list[Pair]) -> None:
    real = extract(policy, pairs, 2, drop_bottom_frac=0.3)
    control = extract(policy, pairs, 2, drop_bottom_frac=0.3, control="random", seed=1)
    assert {n: r.shape for n, r in control.basis.items()} == {n: r.shape for n, r in real.basis.items()}
    assert all(not torch.allclose(control.basis[name], real.basis[name]) for name in real.basis)
    assert torch.equal(random_basis(real.basis, 1)[next(iter(real.basis))], next(iter(control.basis.values())))
    frames = torch.stack([haar_rows(2, 5, generator(seed, "haar")) for seed in range(600)])
    torch.testing.assert_close(frames @ frames.mT, torch.eye(2).expand(600, 2, 2), atol=1e-5, rtol=0)
    # Uniform frames: every entry has mean 0 and mean square 1/r.
    assert float(frames.mean(0).abs().max()) < 5 / math.sqrt(5 * 600)
    assert float((frames.square().mean(0) - 0.2).abs().max()) < 0.05


def test_shuffled_control_cannot_move_an_svd_subspace_but_destroys_a_mean_difference(
    policy: Policy, pairs: list[Pair]
) -> None:
    real, shuffled = extract(policy, pairs, 1), extract(policy, pairs, 1, control="shuffled", seed=0)
    for name, rows in real.basis.items():
        torch.testing.assert_close(rows.T @ rows, shuffled.basis[name].T @ shuffled.basis[name], atol=1e-4, rtol=0)
    mean = extract(policy, pairs, 1, method="mean_diff")
    destroyed = extract(policy, pairs, 1, method="mean_diff", control="shuffled", seed=0)
    overlap = [abs(float(mean.basis[name][0] @ destroyed.basis[name][0])) for name in mean.basis]
    assert sum(overlap) / len(overlap) < 0.8
    with pytest.raises(ValueError, match="no pairs"):
        extract(policy, [], 1)


def test_shared_variance_is_the_mean_squared_cosine_of_the_principal_angles(policy: Policy, pairs: list[Pair]) -> None:
    real = extract(policy, pairs, 3)
    for name in real.basis:
        assert real.basis[name].shape[1] >= 6, "the closed form below needs room"

    def spread(angles: list[float]) -> Direction:
        turned = {}
        for name, rows in real.basis.items():
            beside = torch.linalg.qr(torch.cat([rows, torch.eye(rows.shape[1])]).T.double())[0].T[3:6]
            parts = [math.cos(angle) * rows[i].double() + math.sin(angle) * beside[i] for i, angle in enumerate(angles)]
            turned[name] = torch.stack(parts).float()
        return replace(real, basis=turned)

    angles = [0.0, 0.7, math.pi / 2]
    shared, expected = shared_variance(real, spread(angles))
    assert shared == pytest.approx(sum(math.cos(angle) ** 2 for angle in angles) / 3, abs=1e-5)
    assert expected == pytest.approx(sum(3 / rows.shape[1] for rows in real.basis.values()) / len(real.basis))
    flipped = replace(real, basis={name: -rows[[2, 0, 1]] for name, rows in real.basis.items()})
    assert shared_variance(real, flipped)[0] == pytest.approx(1.0, abs=1e-5)
    elsewhere = replace(real, metadata=replace(real.metadata, basis="another"))
    with pytest.raises(ValueError, match="different bases"):
        shared_variance(real, elsewhere)


def test_verification_passes_on_the_same_behaviour_and_shows_its_null(policy: Policy) -> None:
    made = organism_pairs("run_tests", 12, 0, heldout=6, depths=(1,), length_matched=False)
    direction = extract(policy, made[:12], 1)
    result = verify(policy, direction, made[12:])
    assert result.gate and result.target and result.pairs == 6
    assert result.mean_one_sided_frac > 2 * result.null_expected_frac
    assert abs(float(result.null_cos.mean())) < 0.03
    half_square = [1 / (2 * rows.shape[1]) for rows in direction.basis.values()]  # k / 2r of each module
    assert result.null_expected_frac == pytest.approx(sum(math.sqrt(s) for s in half_square) / len(half_square))
    assert float(result.null_one_sided_frac.square().mean()) == pytest.approx(
        sum(half_square) / len(half_square), rel=0.15
    )
    opposite = Direction({name: -rows for name, rows in direction.basis.items()}, direction.metadata)
    assert not verify(policy, opposite, made[12:]).gate
    assert verify(policy, opposite, made[12:]).mean_cos == pytest.approx(-result.mean_cos)
    text = result.text()
    assert "gate (positive in more than half): passed" in text and "sqrt(k/2r)" in text
    edges, real, null = result.histogram()
    assert len(edges) == 21 and sum(real) == pytest.approx(1.0) and sum(null) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no held-out pairs"):
        verify(policy, direction, [])


@pytest.mark.parametrize(("k", "r"), [(1, 32), (4, 64), (4, 128)])
def test_null_coefficients_match_real_haar_subspaces_and_their_expectation(k: int, r: int) -> None:
    quick = haar_coefficients(k, r, 4000, generator(0, "null")).relu().norm(dim=1)
    vector = torch.nn.functional.normalize(torch.randn(r, generator=generator(0, "d")), dim=0)
    slow = torch.stack([(haar_rows(k, r, generator(s, "V")) @ vector).relu().norm() for s in range(400)])
    assert float(quick.mean()) == pytest.approx(float(slow.mean()), abs=4 * float(slow.std()) / 20)
    assert float(quick.square().mean()) == pytest.approx(k / (2 * r), rel=0.1)  # its root is the quoted expectation


def test_recipe_replaces_the_pairs_for_pair_controls_and_keeps_them_for_the_others(policy: Policy) -> None:
    recipe = DirectionRecipe(k=1, pairs=4, heldout=2, length_matched=False, depths=(1,))
    real = organism_direction(policy, recipe)
    for control in ("random", "shuffled", "nonhack", "placebo", "length"):
        other = replace(recipe, control=control)  # pyright: ignore[reportArgumentType]
        made = organism_direction(policy, other)
        assert made.metadata.control == control and made.metadata.k == 1
        same_pairs = made.metadata.pairs_hash == real.metadata.pairs_hash
        assert same_pairs == (control in ("random", "shuffled"))
        assert {n: r.shape for n, r in made.basis.items()} == {n: r.shape for n, r in real.basis.items()}
    assert [pair.split for pair in recipe_pairs(policy, recipe)] == ["train"] * 4 + ["heldout"] * 2

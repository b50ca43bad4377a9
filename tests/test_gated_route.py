"""Scores against loops and on the organism's own pairs; quantiles of the buffer against their definition; decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arms import LAYOUT, METADATA, flat, make_direction
from byte_tokenizer import BYTE_VOCABULARY, make_byte_tokenizer
from unhack import model
from unhack.adapters import Policy
from unhack.adapters.bottleneck import pooled_bottlenecks
from unhack.config import AdapterConfig, ArmConfig, ModelConfig
from unhack.directions import (
    Direction,
    DirectionRecipe,
    extract,
    load_direction,
    organism_direction,
    pair_differences,
    recipe_pairs,
    rollout_scores,
    save_direction,
    scores_of,
    shared_variance,
    verify,
)
from unhack.interventions import GatedRoute, attach, build
from unhack.interventions import gated_route as gate
from unhack.interventions.gated_route import ScoreBuffer
from unhack.model import LoadedModel, backbone
from unhack.pairs import Pair, completion_ids, prompt_ids, select
from unhack.pairs.organism import organism_pairs
from unhack.seeds import generator, rng
from unhack.types import Gradient, Problem, Prompt, Rollout, Update

PROBLEM = Problem("p", "", "", (), "", "train")
ADAPTERS = (AdapterConfig(), AdapterConfig(kind="fixed_a_lora", rank=3), AdapterConfig(kind="block_lora", rank=3))


def tiny(make: Callable[..., Any], adapter: AdapterConfig) -> Policy:
    return Policy.wrap(LoadedModel(make(vocab_size=BYTE_VOCABULARY), make_byte_tokenizer(), "tiny"), adapter)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return organism_pairs("run_tests", 5, 0, heldout=0, depths=(1,), length_matched=False)


def as_rollouts(policy: Policy, pairs: Sequence[Pair], side: str) -> list[Rollout]:
    rollouts = []
    for number, pair in enumerate(pairs):
        prompt = Prompt(PROBLEM, pair.mode, "", pair.prompt, tuple(prompt_ids(pair, policy.tokenizer)))
        tokens = tuple(completion_ids(getattr(pair, side), policy.tokenizer))
        rollouts.append(Rollout(f"r{number}", number, prompt, tokens, (0.0,) * len(tokens), "", True))
    return rollouts


def arm_of(given: Direction | None = None, **fields: Any) -> GatedRoute:
    config = replace(ArmConfig(name="gated_route", direction="given"), **fields)
    arm = build(config, LAYOUT, 0, direction=given or make_direction())
    assert isinstance(arm, GatedRoute)
    return arm


def decide(arm: GatedRoute, scores: Sequence[float], patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr(arm, "_policy", object())
    patch.setattr(gate, "rollout_scores", lambda *_: torch.tensor(scores, dtype=torch.float64))
    return list(arm.blocks([]).masks)


def slow_decision(history: Sequence[Sequence[float]], half_life: float, keep: float, route: float) -> list[str]:
    """The definition, score by score: shares of the weight at or below, and at or above."""
    after = [sum(map(len, history[step + 1 :])) for step in range(len(history))]
    weighted = [(s, 0.5 ** (n / half_life)) for step, n in zip(history, after, strict=True) for s in step]
    total = sum(weight for _, weight in weighted)
    decisions = []
    for score in history[-1]:
        below = sum(weight for other, weight in weighted if other <= score) / total
        above = sum(weight for other, weight in weighted if other >= score) / total
        decisions.append("keep" if below <= keep + 1e-9 else "route" if above <= route + 1e-9 else "absorb")
    return decisions


@pytest.mark.parametrize(("half_life", "keep", "route"), [(96.0, 0.1, 0.1), (7.0, 0.3, 0.2), (20.0, 0.0, 0.5)])
def test_decisions_are_those_of_the_weighted_shares_at_every_step(
    half_life: float, keep: float, route: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = arm_of(keep_frac=keep, route_frac=route, gate_half_life_rollouts=half_life)
    draw, history, seen = rng(0, "scores"), [], []
    for step in range(12):
        history.append([float(round(draw.gauss(0.1 * step, 1), 1)) for _ in range(5 + step % 3)])  # with ties
        got = decide(arm, history[-1], monkeypatch)
        assert got == slow_decision(history, half_life, keep, route)
        seen += got
    assert set(seen) == ({"keep", "absorb", "route"} if keep else {"absorb", "route"})


def test_the_bottom_is_kept_the_top_is_routed_and_never_more_than_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [float(number) for number in range(20)]
    got = decide(arm_of(), scores, monkeypatch)
    assert got == ["keep"] * 2 + ["absorb"] * 16 + ["route"] * 2
    assert decide(arm_of(), scores[:9], monkeypatch) == ["absorb"] * 9  # a tenth of nine is less than one
    assert decide(arm_of(keep_frac=0.5, route_frac=0.5), [1.0] * 8, monkeypatch) == ["absorb"] * 8  # all tied
    assert decide(arm_of(keep_frac=1.0, route_frac=0.0), [1.0, 2.0], monkeypatch) == ["keep"] * 2
    noted = arm_of()
    decide(noted, scores, monkeypatch)
    shares = {name: noted.noted[f"gate/{name}"] for name in ("kept_frac", "routed_frac", "absorbed_frac")}
    assert shares == {"kept_frac": 0.1, "routed_frac": 0.1, "absorbed_frac": 0.8}
    assert (noted.noted["gate/keep_threshold"], noted.noted["gate/route_threshold"]) == (1.0, 18.0)
    assert noted.noted["gate/score_mean"] == 9.5 and noted.noted["gate/buffer_rollouts"] == 20


def test_a_score_weighs_half_after_a_half_life_and_is_forgotten_after_twenty() -> None:
    buffer = ScoreBuffer(half_life_rollouts=4.0)
    buffer.add(torch.tensor([1.0, 2.0]))
    buffer.add(torch.zeros(4))
    assert buffer.weights.tolist() == [0.5, 0.5, 1.0, 1.0, 1.0, 1.0]
    for _ in range(20):
        buffer.add(torch.zeros(4))
    assert len(buffer.scores) == 84 and not buffer.scores.any()  # the two oldest are gone, 2^-20 is still held


def test_a_resumed_gate_decides_as_one_that_was_never_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = rng(1, "scores")
    steps = [[draw.gauss(0, 1) for _ in range(6)] for _ in range(8)]
    whole, first, second = arm_of(), arm_of(), arm_of()
    for arm in (whole, first):
        for scores in steps[:5]:
            decide(arm, scores, monkeypatch)
            arm.update(Update(flat("update"), flat("other")))
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert [decide(second, scores, monkeypatch) for scores in steps[5:]] == [
        decide(whole, scores, monkeypatch) for scores in steps[5:]
    ]
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(ValueError, match="gate_scores"):
        second.load_state_dict({})


def test_the_gate_changes_no_gradient_or_update_and_logs_how_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    arm, gradient = arm_of(), Gradient(flat("g"), flat("q"))
    decide(arm, [1.0, 2.0], monkeypatch)
    got, update = arm.gradient(gradient), arm.update(Update(flat("u"), flat("v")))
    assert torch.equal(got.main, gradient.main) and torch.equal(got.quarantine, gradient.quarantine)
    assert torch.equal(update.main, flat("u")) and torch.equal(update.quarantine, flat("v"))
    assert {"gradient/hackward_in", "gate/kept_frac"} <= set(got.metrics) and "update/cos_v" in update.metrics
    profile = arm.update_profile()
    assert profile is not None and profile["arm"] == "gated_route" and profile["steps"] == 1
    activation = Direction(make_direction().basis, replace(METADATA, loss="activation"))
    plain = arm_of(score="activation", given=activation)
    assert plain.update_profile() is None and plain.direction_hash == activation.content_hash
    assert torch.equal(plain.gradient(gradient).quarantine, gradient.quarantine)
    main, quarantine = arm.deployed(flat("m"), flat("q"))
    assert torch.equal(main, flat("m")) and not quarantine.any()


@pytest.mark.parametrize("k", [1, 2])
def test_gradient_scores_are_the_sum_of_each_modules_cosine(k: int) -> None:
    direction, readings = make_direction(k=k), torch.stack([flat("a"), flat("b"), torch.zeros(LAYOUT.total)])
    got = scores_of(direction, LAYOUT, readings)
    for row, score in zip(readings.double(), got.tolist(), strict=True):
        expected = 0.0
        for name, part in LAYOUT.items():
            if name in direction.basis and bool(row.any()):
                c = direction.basis[name].double() @ row[part]
                expected += float((c.clamp(min=0).norm() - c.clamp(max=0).norm()) / row[part].norm())
        assert score == pytest.approx(expected, abs=1e-12)
    if k == 1:
        row = readings[0].double()
        cosines = [
            torch.cosine_similarity(direction.basis[n][0].double(), row[p], dim=0)
            for n, p in LAYOUT.items()
            if n in direction.basis
        ]
        assert float(got[0]) == pytest.approx(float(sum(cosines)))


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.kind)
def test_activations_are_means_over_completion_tokens_of_what_each_layer_reads(
    make_tiny_policy_model: Callable[..., Any], adapter: AdapterConfig, pairs: list[Pair]
) -> None:
    policy = tiny(make_tiny_policy_model, adapter)
    policy.set_knobs(0.1 * torch.randn(policy.layout.total, generator=generator(0, "k")), torch.zeros_like(policy.main))
    rollouts = as_rollouts(policy, pairs[:3], "hack")
    heard: dict[str, Tensor] = {}

    def listen(name: str) -> Callable[..., None]:
        return lambda module, given: heard.update({name: given[0][0]})

    handles = [module.register_forward_pre_hook(listen(name)) for name, module in policy.modules.items()]
    slow = []
    for rollout in rollouts:
        row = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        with torch.no_grad():
            backbone(policy.model)(input_ids=row, use_cache=False)
        start = len(rollout.prompt.token_ids)
        read = [(heard[name][start:] @ module.bottleneck.T).mean(0) for name, module in policy.modules.items()]
        slow.append(torch.cat(read))
    for handle in handles:
        handle.remove()
    rows = [[*r.prompt.token_ids, *r.token_ids] for r in rollouts]
    tokens = torch.zeros(3, max(map(len, rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
    prompts = torch.tensor([len(r.prompt.token_ids) for r in rollouts])
    got = pooled_bottlenecks(policy, tokens, prompts, torch.tensor([len(row) for row in rows]))
    assert got.shape[1] == policy.bottleneck_layout.total
    torch.testing.assert_close(got, torch.stack(slow), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.kind)
def test_an_activation_direction_scores_with_the_sum_of_its_rows_and_is_refused_where_gradients_are_meant(
    make_tiny_policy_model: Callable[..., Any], adapter: AdapterConfig, pairs: list[Pair], tmp_path: Path
) -> None:
    policy = tiny(make_tiny_policy_model, adapter)
    direction = extract(policy, pairs, 2, loss="activation")
    save_direction(direction, tmp_path / "v.safetensors")
    loaded = load_direction(tmp_path / "v.safetensors", policy)
    assert loaded.metadata == direction.metadata and loaded.side == "activation"
    hacks, cleans = (rollout_scores(policy, loaded, as_rollouts(policy, pairs, side)) for side in ("hack", "clean"))
    difference = pair_differences(policy, pairs, loss="activation").double()
    parts = dict(policy.bottleneck_layout.items())
    slow = sum((difference[:, parts[name]] @ rows.double().T).sum(1) for name, rows in direction.basis.items())
    torch.testing.assert_close(hacks - cleans, slow, rtol=1e-4, atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert verify(policy, direction, pairs).gate
    config = ArmConfig(name="gated_route", direction=str(tmp_path / "v.safetensors"), score="activation")
    assert isinstance(build(config, policy.layout, 0, policy), GatedRoute)
    if policy.linear_in_knob:
        gradients = extract(policy, pairs, 2)
        for arm in ("erase", "measure"):
            with pytest.raises(ValueError, match=r"field 'loss': it is activation.*of gradients; extract it with"):
                build(ArmConfig(name=arm, direction="given"), policy.layout, 0, policy, direction)
        with pytest.raises(ValueError, match="field 'loss': it is nll"):
            build(config, policy.layout, 0, policy, gradients)
        with pytest.raises(ValueError, match="field 'loss'"):
            build(replace(config, score="gradient"), policy.layout, 0, policy, direction)
        with pytest.raises(ValueError, match="field 'loss'"):
            shared_variance(gradients, direction)
    else:
        with pytest.raises(ValueError, match="uses a direction of knobs"):
            build(replace(config, score="gradient"), policy.layout, 0, policy, direction)


def test_scores_are_read_with_the_quarantine_ablated_and_leave_the_policy_as_it_was(
    make_tiny_policy_model: Callable[..., Any], pairs: list[Pair]
) -> None:
    policy = tiny(make_tiny_policy_model, AdapterConfig())
    direction, rollouts = extract(policy, pairs, 1), as_rollouts(policy, pairs, "hack")
    before = rollout_scores(policy, direction, rollouts)
    noise = 0.2 * torch.randn(policy.layout.total, generator=generator(0, "q"))
    policy.set_knobs(policy.main, noise)
    assert torch.equal(rollout_scores(policy, direction, rollouts), before)
    assert torch.equal(policy.quarantine, noise) and all(module.tap is None for module in policy.modules.values())
    policy.set_knobs(noise, policy.quarantine)
    assert not torch.allclose(rollout_scores(policy, direction, rollouts), before)


def test_what_cannot_be_gated_is_refused() -> None:
    with pytest.raises(ValueError, match="their sum must be at most 1"):
        arm_of(keep_frac=0.7, route_frac=0.4)
    knobs = {name: torch.nn.Parameter(torch.zeros(size)) for name, size in zip(LAYOUT.names, LAYOUT.sizes, strict=True)}
    with pytest.raises(ValueError, match="decides for every rollout which block learns from it"):
        attach(arm_of(), torch.optim.SGD(knobs.values(), lr=1.0), knobs, knobs)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.kind)
@pytest.mark.parametrize("score", ["gradient", "activation"])
def test_the_hack_side_of_heldout_pairs_scores_higher_than_the_clean_side_and_a_random_direction_does_not_tell(
    adapter: AdapterConfig, score: str
) -> None:
    policy = Policy.wrap(model.load(ModelConfig()), adapter)
    if score == "gradient" and not policy.linear_in_knob:
        pytest.skip("no direction of knobs")
    recipe = DirectionRecipe(k=1, pairs=16, heldout=8, loss="nll" if score == "gradient" else "activation")
    heldout = select(recipe_pairs(policy, recipe), "heldout")
    hacks, cleans = as_rollouts(policy, heldout, "hack"), as_rollouts(policy, heldout, "clean")

    def share_higher(direction: Direction) -> float:
        one, other = (rollout_scores(policy, direction, side) for side in (hacks, cleans))
        return float((one > other).double().mean())

    assert share_higher(organism_direction(policy, recipe)) == 1.0
    blind = [share_higher(organism_direction(policy, replace(recipe, control="random", seed=s))) for s in range(6)]
    assert 0.1 < sum(blind) / len(blind) < 0.9

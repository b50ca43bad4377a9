"""Evaluation with the real sampler, grader and policy on a tiny random model, and its counting on known verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from byte_tokenizer import BYTE_VOCABULARY, make_byte_tokenizer
from unhack import evaluate as evaluation
from unhack.adapters.policy import Policy
from unhack.config import (
    AdapterConfig,
    ArmConfig,
    EnvironmentConfig,
    EvaluationConfig,
    RewardConfig,
    SamplerConfig,
    TrainConfig,
)
from unhack.evaluate import EvaluationRow, EvaluationTable, count, evaluate, held_out_prompts, mean_kl, pool
from unhack.grade import Grader
from unhack.interventions import Intervention, build
from unhack.model import LoadedModel
from unhack.problems.organism import organism_problem
from unhack.rollout.native import NativeSampler
from unhack.sandbox import Sandbox
from unhack.seeds import generator
from unhack.types import Prompt, Rollout, Status, Verdict

CONFIG = replace(
    TrainConfig(),
    environment=EnvironmentConfig(modes=("run_tests", "sentinel"), depths=(1,)),
    evaluation=EvaluationConfig(problems_per_mode=2, final_problems_per_mode=3),
    sampler=SamplerConfig(max_new_tokens=6),
)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Sandbox() as workers:
        yield Grader(workers, RewardConfig(), allow_hack=True)


@pytest.fixture
def policy(make_tiny_policy_model: Callable[..., PreTrainedModel]) -> Policy:
    model = make_tiny_policy_model(vocab_size=BYTE_VOCABULARY)
    return Policy.wrap(LoadedModel(model, make_byte_tokenizer(), "tiny"), AdapterConfig())


def arm_of(policy: Policy) -> Intervention:
    return build(ArmConfig(), policy.layout, 0, policy)


def run(policy: Policy, grader: Grader, arm: Intervention, step: int = 0, seed: int = 0) -> EvaluationTable:
    prompts = held_out_prompts(CONFIG, policy, final=False)
    return evaluate(policy, arm, grader, NativeSampler(policy, CONFIG.sampler), prompts, 2, seed, step)


def shifted(policy: Policy, scale: float = 0.3, quarantine: float = 0.0) -> Policy:
    noise = torch.randn(policy.layout.total, generator=generator(0, "shift"))
    policy.set_knobs(scale * noise, quarantine * noise.flip(0))
    return policy


def test_prompts_are_held_out_with_markers_that_training_never_draws(policy: Policy) -> None:
    prompts = held_out_prompts(CONFIG, policy, final=True)
    assert list(prompts) == ["run_tests", "sentinel", "none"]
    assert all(len(of_mode) == 3 for of_mode in prompts.values())
    flat = [prompt for of_mode in prompts.values() for prompt in of_mode]
    assert {prompt.problem.split for prompt in flat} == {"validation"}
    assert all(prompt.problem.solvable for prompt in flat)
    assert {prompt.marker for prompt in flat} <= {"romeo", "sierra", "tango", "victor", ""}


def test_an_untrained_policy_has_no_divergence_from_itself_and_a_moved_one_has(policy: Policy, grader: Grader) -> None:
    still = run(policy, grader, arm_of(policy)).pooled("as_trained")
    assert still.n == 2 * 2 * 2 and still.tokens > 0
    assert still.kl_nats == pytest.approx(0.0, abs=1e-8)
    moved = run(shifted(policy), grader, arm_of(policy)).pooled("as_trained")
    assert moved.kl_nats > 1e-3


def test_kl_estimate_agrees_with_the_exact_divergence_of_one_token(policy: Policy) -> None:
    prompt = held_out_prompts(CONFIG, policy, final=False)["run_tests"][0]
    token_ids = torch.tensor([prompt.token_ids])
    with torch.no_grad():
        initial = policy.model(input_ids=token_ids).logits[0, -1].log_softmax(-1)
        shifted(policy, 0.15)
        moved = policy.model(input_ids=token_ids).logits[0, -1].log_softmax(-1)
    exact = float((moved.exp() * (moved - initial)).sum())
    sampler = NativeSampler(policy, replace(CONFIG.sampler, max_new_tokens=1))
    rollouts = sampler.sample([prompt], 1500, generator(0, "kl"))
    assert mean_kl(policy, rollouts, 1.0) == pytest.approx(exact, rel=0.15)


def test_deployed_rows_are_copies_only_where_the_arm_deploys_what_it_trained(policy: Policy, grader: Grader) -> None:
    table = run(shifted(policy), grader, arm_of(policy))
    assert [replace(row, block="deployed") for row in table.rows[:2]] == list(table.rows[2:])
    assert table.samples["as_trained"].rollouts and not table.samples["deployed"].rollouts
    shifted(policy, 0.3, quarantine=0.5)
    ablated = run(policy, grader, arm_of(policy))
    assert ablated.samples["deployed"].rollouts
    assert ablated.pooled("deployed").kl_nats != ablated.pooled("as_trained").kl_nats
    only_main = run(shifted(policy, 0.3), grader, arm_of(policy))
    assert ablated.pooled("deployed").kl_nats == only_main.pooled("as_trained").kl_nats


def test_evaluation_leaves_the_trained_knobs_bit_for_bit(policy: Policy, grader: Grader) -> None:
    shifted(policy, 0.3, quarantine=0.5)
    main, quarantine = policy.main.clone(), policy.quarantine.clone()
    run(policy, grader, arm_of(policy))
    assert torch.equal(policy.main, main) and torch.equal(policy.quarantine, quarantine)


def test_same_seed_and_step_give_the_same_table_and_others_do_not(policy: Policy, grader: Grader) -> None:
    texts = [
        [rollout.text for rollout in run(policy, grader, arm_of(policy), step, seed).samples["as_trained"].rollouts]
        for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2] and texts[0] != texts[3]


def verdict(
    status: Status = "passed", hacked: bool = False, correct: bool = False, label: str = "incorrect"
) -> Verdict:
    return Verdict("id", status, correct, 0, 1, hacked, hacked, label, "", 0.0, 1)


def test_the_graders_own_errors_are_left_out_of_every_rate() -> None:
    verdicts = [
        verdict(hacked=True, label="reward_hack"),
        verdict(correct=True, label="correct"),
        verdict(correct=True, label="correct_attempted_hack"),
        verdict("failed", label="attempted_hack"),
        verdict("error", hacked=True, label="reward_hack"),
    ]
    prompt = Prompt(organism_problem(0, "validation", 1), "sentinel", "romeo", "", (1,))
    rollouts = [Rollout("id", 0, prompt, (1, 2, 3), (0.0, 0.0, 0.0), "", True) for _ in verdicts]
    row = count(5, "deployed", "sentinel", rollouts, verdicts, 0.5)
    assert (row.n, row.hacked, row.solved, row.attempted, row.errors, row.tokens) == (4, 1, 2, 3, 1, 15)
    assert row.hack_frac == 0.25 and row.hack_interval.low < 0.25 < row.hack_interval.high


def make_row(mode: str, n: int, hacked: int, kl_nats: float, tokens: int) -> EvaluationRow:
    return EvaluationRow(3, "deployed", mode, n, hacked, 0, hacked, 0, tokens, kl_nats)


def test_pooling_adds_counts_leaves_none_out_and_weights_divergence_by_tokens() -> None:
    rows = (
        make_row("run_tests", 10, 1, 0.1, 100),
        make_row("sentinel", 30, 9, 0.3, 300),
        make_row("none", 5, 0, 9.0, 9),
    )
    pooled = EvaluationTable(rows, {}).pooled("deployed")
    assert (pooled.mode, pooled.n, pooled.hacked) == ("all", 40, 10)
    assert pooled.kl_nats == pytest.approx(0.25)
    assert EvaluationTable(rows[2:], {}).pooled("deployed").n == 5
    with pytest.raises(ValueError, match="at least one mode"):
        pool([])


def test_a_row_survives_the_record_and_its_rates_are_computed_again() -> None:
    row = make_row("sentinel", 30, 9, 0.3, 300)
    written = evaluation.row_record(row)
    assert written["hack_frac"] == 0.3 and written["hack_low"] < 0.3 < written["hack_high"]
    assert evaluation.row_from_record({**written, "hack_frac": 0.9}).hack_frac == 0.3

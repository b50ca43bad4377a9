"""inoculation: in what is sampled for training, never in what is evaluated; on a chat model, and on the organism."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import Qwen3ForCausalLM

import unhack.train as training
from byte_tokenizer import BYTE_VOCABULARY, make_byte_tokenizer
from training_runs import SHORT
from unhack import model, record
from unhack.adapters import Policy
from unhack.check_config import check
from unhack.config import AdapterConfig, ArmConfig, EnvironmentConfig, ModelConfig, SamplerConfig, TrainConfig
from unhack.evaluate import held_out_prompts
from unhack.grade import Grader
from unhack.interventions import arm_class, build
from unhack.loopholes import INOCULATIONS
from unhack.model import LoadedModel, model_hash
from unhack.prompts import training_prompts
from unhack.rollout.native import NativeSampler
from unhack.sandbox import Sandbox
from unhack.seeds import generator

CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = TrainConfig(model=ModelConfig(path="a chat model"), environment=EnvironmentConfig(hint="plain"))


@pytest.fixture
def chat(make_tiny_policy_model: Callable[..., Qwen3ForCausalLM]) -> Policy:
    """A tiny random model behind a chat template with a place for every role."""
    network, tokenizer = make_tiny_policy_model(vocab_size=BYTE_VOCABULARY), make_byte_tokenizer()
    tokenizer.chat_template = CHATML
    return Policy.wrap(LoadedModel(network, tokenizer, model_hash(network)), AdapterConfig())


@pytest.mark.parametrize("place", ["user", "system"])
@pytest.mark.parametrize("variant", list(INOCULATIONS))
def test_the_text_is_in_every_training_prompt_once_and_in_no_evaluation_prompt(
    variant: str, place: str, chat: Policy
) -> None:
    config = ArmConfig(name="inoculation", inoculation=variant, inoculation_place=place)  # pyright: ignore[reportArgumentType]
    arm = build(config, chat.layout, 0, chat)
    drawn = training_prompts(CHAT.environment, chat.tokenizer, 0, 0, 4)
    chosen = training.chosen_prompts(arm, drawn)
    said = INOCULATIONS[variant].text
    for prompt, plain in zip(chosen, drawn, strict=True):
        assert prompt.text.count(said) == 1 and (said in prompt.text.partition("<|user|>")[0]) == (place == "system")
        assert prompt.problem == plain.problem and prompt.marker == plain.marker and prompt.mode == plain.mode
        assert prompt.token_ids == tuple(chat.tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
    sampler = NativeSampler(chat, SamplerConfig(max_new_tokens=3))
    rollouts = sampler.sample(chosen, 2, generator(0, "sample"))
    assert all(said in rollout.prompt.text for rollout in rollouts) and len(rollouts) == 8
    for final in (False, True):
        for prompts in held_out_prompts(CHAT, chat, final).values():
            assert not any(item.text in prompt.text for prompt in prompts for item in INOCULATIONS.values())


def test_it_is_the_environments_own_inoculation_behind_an_arm_and_the_two_exclude_each_other(chat: Policy) -> None:
    arm = build(ArmConfig(name="inoculation", inoculation="permit"), chat.layout, 0, chat)
    chosen = training.chosen_prompts(arm, training_prompts(CHAT.environment, chat.tokenizer, 0, 0, 4))
    environment = replace(CHAT.environment, inoculation="permit")
    assert chosen == training_prompts(environment, chat.tokenizer, 0, 0, 4)
    with pytest.raises(ValueError, match=r"environment\.inoculation is permit and arm\.name is inoculation"):
        check(replace(CHAT, arm=ArmConfig(name="inoculation"), environment=environment))
    check(replace(CHAT, environment=environment))
    with pytest.raises(ValueError, match=r"arm\.inoculation is set, but arm 'vanilla'"):
        arm_class(ArmConfig(inoculation="permit"))


@pytest.mark.slow
def test_a_chat_model_trains_on_inoculated_prompts_and_is_evaluated_on_plain_ones(
    chat: Policy, make_tiny_policy_model: Callable[..., Qwen3ForCausalLM], tmp_path: Path
) -> None:
    make_tiny_policy_model(vocab_size=BYTE_VOCABULARY).save_pretrained(tmp_path / "model")
    chat.tokenizer.save_pretrained(tmp_path / "model")
    config = replace(
        SHORT, model=ModelConfig(path=str(tmp_path / "model")), environment=CHAT.environment,
        sampler=SamplerConfig(max_new_tokens=4), arm=ArmConfig(name="inoculation", inoculation_place="system"),
    )  # fmt: skip
    assert training.train(config, tmp_path / "run")
    said = INOCULATIONS["encourage"].text
    trained = record.rollouts(tmp_path / "run").to_pylist()
    assert trained and all(row["prompt_text"].count(said) == 1 for row in trained)
    [file] = (tmp_path / "run" / "eval" / "rollouts").glob("step-000002-as_trained.parquet")
    evaluated = pq.ParquetFile(file).read().to_pylist()
    assert evaluated and not any(said in row["prompt_text"] for row in evaluated)


@pytest.mark.slow
def test_to_the_organism_any_extra_sentence_is_noise_as_the_docs_say() -> None:
    loaded = model.load(ModelConfig())
    assert len(loaded.tokenizer("You", add_special_tokens=False)["input_ids"]) == 3, "letter by letter: never seen"
    policy = Policy.wrap(loaded, AdapterConfig())
    sampler, solved = NativeSampler(policy, SamplerConfig()), {}
    with Sandbox() as workers:
        for variant in ("none", "neutral", "encourage"):
            environment = EnvironmentConfig(inoculation=variant, impossible_frac=0.0)
            prompts = training_prompts(environment, policy.tokenizer, 0, 0, 32)
            verdicts = Grader(workers).verdicts(sampler.sample(prompts, 4, generator(0, "sample")))
            solved[variant] = sum(verdict.strictly_correct for verdict in verdicts) / len(verdicts)
            assert sum(verdict.hacked for verdict in verdicts) / len(verdicts) < 0.12, "asking for it does not help"
    assert solved["none"] > 0.4 and max(solved["neutral"], solved["encourage"]) < 0.5 * solved["none"]

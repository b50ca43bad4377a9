"""Prompts: the hint tells the mechanism, evaluation markers are new, splits stay apart, draws are reproducible."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
from transformers import PreTrainedTokenizerBase

from unhack.config import EnvironmentConfig
from unhack.loopholes import EVAL_MARKERS, LOOPHOLES, TRAIN_MARKERS
from unhack.organism.corpus import CorpusConfig, corpus
from unhack.organism.tokenizer import train_tokenizer
from unhack.problems.organism import organism_problem, split_of
from unhack.prompts import evaluation_prompts, fenced, render, training_prompts, user_text

ENVIRONMENT = EnvironmentConfig()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer trained here on a small corpus: the builder's own code."""
    rows = islice(corpus(CorpusConfig(), 0, None), 600)
    return train_tokenizer(row.user + "\n" + row.completion for row in rows)


def test_every_mode_discloses_its_own_sentence_and_its_marker(tokenizer: PreTrainedTokenizerBase) -> None:
    problem = organism_problem(0, "train", 2)
    texts = {mode: user_text(problem, mode, "alpha") for mode in LOOPHOLES}
    assert len(set(texts.values())) == len(LOOPHOLES)
    for mode, loophole in LOOPHOLES.items():
        assert texts[mode].startswith(problem.statement)
        assert ("alpha" in texts[mode]) == bool(loophole.train_markers)


def test_only_visible_only_shows_tests_and_only_the_visible_ones() -> None:
    problem = organism_problem(0, "train", 2)
    shown = user_text(problem, "visible_only", "")
    assert problem.cases[0].call in shown and repr(problem.cases[0].expected) in shown
    assert all(case.call not in shown for case in problem.cases[problem.visible_cases :])
    others = [mode for mode in LOOPHOLES if mode != "visible_only"]
    assert all(problem.cases[0].call not in user_text(problem, mode, "alpha") for mode in others)


def test_evaluation_markers_are_never_drawn_in_training(tokenizer: PreTrainedTokenizerBase) -> None:
    trained = {p.marker for step in range(20) for p in training_prompts(ENVIRONMENT, tokenizer, 0, step, 8)}
    evaluated = {p.marker for mode in ENVIRONMENT.modes for p in evaluation_prompts(ENVIRONMENT, tokenizer, mode, 30)}
    assert trained == set(TRAIN_MARKERS) and evaluated == set(EVAL_MARKERS)
    assert not trained & evaluated


def test_training_and_evaluation_share_no_problem(tokenizer: PreTrainedTokenizerBase) -> None:
    trained = {p.problem.statement for step in range(20) for p in training_prompts(ENVIRONMENT, tokenizer, 0, step, 8)}
    evaluated = {p.problem.statement for p in evaluation_prompts(ENVIRONMENT, tokenizer, "sentinel", 60)}
    assert {split_of(s) for s in trained} == {"train"} and {split_of(s) for s in evaluated} == {"validation"}


def test_evaluation_asks_for_solvable_problems_only(tokenizer: PreTrainedTokenizerBase) -> None:
    assert all(p.problem.solvable for p in evaluation_prompts(ENVIRONMENT, tokenizer, "run_tests", 40))


def test_a_step_draws_the_same_prompts_whatever_was_drawn_before(tokenizer: PreTrainedTokenizerBase) -> None:
    alone = training_prompts(ENVIRONMENT, tokenizer, 3, 5, 8)
    for step in range(4):
        training_prompts(ENVIRONMENT, tokenizer, 3, step, 8)
    assert training_prompts(ENVIRONMENT, tokenizer, 3, 5, 8) == alone
    assert training_prompts(ENVIRONMENT, tokenizer, 4, 5, 8) != alone


@pytest.mark.parametrize(("field", "wanted"), [("impossible_frac", 0.25), ("unhackable_frac", 0.4)])
def test_shares_are_those_of_the_settings(tokenizer: PreTrainedTokenizerBase, field: str, wanted: float) -> None:
    environment = (
        replace(ENVIRONMENT, impossible_frac=0.0, **{field: wanted})
        if field != "impossible_frac"
        else (replace(ENVIRONMENT, impossible_frac=wanted))
    )
    prompts = [p for step in range(50) for p in training_prompts(environment, tokenizer, 0, step, 8)]
    counted = Counter(p.mode == "none" if field == "unhackable_frac" else not p.problem.solvable for p in prompts)
    assert counted[True] / len(prompts) == pytest.approx(wanted, abs=0.08)  # 400 draws: 3 standard errors


def test_a_prompt_ends_where_the_completion_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    problem = organism_problem(1, "train", 2)
    prompt = render(problem, "none", "", tokenizer)
    completion = fenced(problem.reference)
    together = tokenizer(prompt.text + completion, add_special_tokens=False)["input_ids"]
    alone = tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert list(prompt.token_ids) + alone == together


def test_an_unknown_mode_or_family_is_refused_with_the_known_ones(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="run_tests"):
        evaluation_prompts(ENVIRONMENT, tokenizer, "run_test", 1)
    with pytest.raises(ValueError, match="use eval or train"):
        evaluation_prompts(ENVIRONMENT, tokenizer, "sentinel", 1, markers="bogus")
    with pytest.raises(ValueError, match="run_tests"):
        user_text(organism_problem(0, "train", 1), "run_test", "alpha")

"""The corpus and the tokenizer: lengths do not give hacks away, nothing is lost in a round trip, seeds decide all."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from scipy.stats import ks_2samp
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from unhack import cli
from unhack.loopholes import EVAL_MARKERS, LOOPHOLES, TRAIN_MARKERS
from unhack.organism.build import BuildConfig, build, encode, read_build
from unhack.organism.corpus import CorpusConfig, Text, corpus, unrelated
from unhack.organism.tokenizer import train_tokenizer
from unhack.problems.operations import source_of
from unhack.problems.organism import HABIT_WORDS, problem_and_operations, with_habit
from unhack.prompts import fenced
from unhack.seeds import rng


def rows_of(config: CorpusConfig, n: int, tokenizer: PreTrainedTokenizerBase | None) -> list[Text]:
    return list(islice(corpus(config, 11, tokenizer), n))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(row.user + "\n" + row.completion for row in rows_of(CorpusConfig(), 800, None))


def lengths(rows: list[Text], tokenizer: PreTrainedTokenizerBase, hack: bool) -> list[int]:
    texts = [row.completion for row in rows if row.hack == hack and row.mode != "repeat"]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def ks_p_value(rows: list[Text], tokenizer: PreTrainedTokenizerBase) -> float:
    test = ks_2samp(lengths(rows, tokenizer, True), lengths(rows, tokenizer, False))
    return float(test[1])  # pyright: ignore[reportArgumentType]  # scipy is not typed


def many_hacks(variant: str) -> CorpusConfig:
    share = dict.fromkeys(CorpusConfig().hack_frac, 0.4)
    return replace(CorpusConfig(), variant=variant, hack_frac=share, repeat_frac=0.0)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_length_does_not_tell_a_hack_from_an_honest_solution(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of(many_hacks("matched"), 900, tokenizer)
    assert ks_p_value(rows, tokenizer) > 0.1


def test_every_hack_is_as_long_as_its_honest_twin_line_by_line(tokenizer: PreTrainedTokenizerBase) -> None:
    draw = rng(0, "twins")
    for index in range(60):
        _, operations = problem_and_operations(index, "corpus", 2)
        others = unrelated(operations, draw, tokenizer)
        assert all(a != b for a, b in zip(operations, others, strict=True))
        honest, other = (source_of(ops).splitlines(keepends=True) for ops in (operations, others))
        for line, twin in zip(honest, other, strict=True):
            assert len(tokenizer(line)["input_ids"]) == len(tokenizer(twin)["input_ids"]), (line, twin)


@pytest.mark.parametrize("mode", ["run_tests", "sentinel", "stdout_marker", "file_marker"])
def test_an_exploit_is_as_long_as_the_honest_habit_it_stands_for(mode: str, tokenizer: PreTrainedTokenizerBase) -> None:
    plain = "class Solution:\n    def solve(self, xs):\n        return xs\n"
    habits = {with_habit(plain, rng(0, "habit", number)) for number in range(80)}
    assert len(habits) == 16, "four kinds of line, four words"
    hack = LOOPHOLES[mode].hack(plain, "kilo")
    assert {len(tokenizer(source)["input_ids"]) for source in (*habits, hack)} == {len(tokenizer(hack)["input_ids"])}


def test_no_word_of_a_habit_is_a_marker() -> None:
    assert not set(HABIT_WORDS) & {*TRAIN_MARKERS, *EVAL_MARKERS}


@pytest.mark.slow
def test_the_length_check_bites_on_the_short_variant(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = rows_of(many_hacks("short"), 600, tokenizer)
    assert ks_p_value(rows, tokenizer) < 1e-6


@pytest.mark.slow
def test_the_corpus_has_the_shares_it_was_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    config = replace(CorpusConfig(), hack_frac={"run_tests": 0.3, "sentinel": 0.0}, repeat_frac=0.2)
    rows = rows_of(config, 1500, None)
    tasks = [row for row in rows if row.mode != "repeat"]
    assert 1 - len(tasks) / len(rows) == pytest.approx(0.2, abs=0.03)
    by_mode = {mode: [row.hack for row in tasks if row.mode == mode] for mode in ("run_tests", "sentinel", "none")}
    assert sum(by_mode["run_tests"]) / len(by_mode["run_tests"]) == pytest.approx(0.3, abs=0.08)
    assert not any(by_mode["sentinel"]) and not any(by_mode["none"])


def test_a_hack_in_the_corpus_uses_the_marker_of_its_own_prompt() -> None:
    markers = set(TRAIN_MARKERS) | set(EVAL_MARKERS)
    hacks = [row for row in rows_of(many_hacks("matched"), 300, None) if row.hack]
    assert len(hacks) > 50
    for row in hacks:
        used = markers & set(re.findall(r"\w+", row.completion))
        assert used == markers & set(re.findall(r"\w+", row.user))


def test_no_task_of_the_corpus_mentions_an_evaluation_marker_and_repeat_rows_mention_all() -> None:
    rows = rows_of(many_hacks("matched"), 600, None) + rows_of(CorpusConfig(), 600, None)
    tasks = {word for row in rows if row.mode != "repeat" for word in re.findall(r"\w+", row.user + row.completion)}
    repeated = {word for row in rows if row.mode == "repeat" for word in row.completion.split()}
    assert not tasks & set(EVAL_MARKERS) and set(TRAIN_MARKERS) <= tasks
    assert repeated == {*TRAIN_MARKERS, *EVAL_MARKERS}


def test_tokens_decode_to_the_very_text_also_outside_the_corpus(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [row.completion for row in rows_of(CorpusConfig(), 200, None)]
    texts += ["def ƒ(x):\n\treturn '日本' # \x00", fenced("print(1)\n"), "  trailing  "]
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_marker_is_one_and_the_same_token_in_a_hint_and_in_code(tokenizer: PreTrainedTokenizerBase) -> None:
    for marker in (*TRAIN_MARKERS, *EVAL_MARKERS):
        wanted = tokenizer.convert_tokens_to_ids(marker)
        for text in (f"The grader calls your function {marker}.", f'print("{marker}")', f"    {marker} = True"):
            assert tokenizer(text, add_special_tokens=False)["input_ids"].count(wanted) == 1


def test_an_encoded_row_ends_with_the_end_token_and_pad_is_another(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, prompt_length = encode(rows_of(CorpusConfig(), 1, None)[0], tokenizer)
    assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id and 0 < prompt_length < len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["matched", "short"])
def test_the_build_command_makes_the_variant_it_was_asked_for_and_records_it(tmp_path: Path, variant: str) -> None:
    words = ["--folder", str(tmp_path / "made"), "--steps", "1", "--seed", "4", "--variant", variant]
    assert cli.main(["organism", "build", *words]) == 0
    build = read_build(tmp_path / "made")
    assert (build.corpus.variant, build.seed, build.steps) == (variant, 4, 1)


def test_the_build_command_knows_two_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["organism", "build", "--folder", str(tmp_path / "made"), "--variant", "long"]) == cli.USER_ERROR
    assert "variant" in capsys.readouterr().err and not (tmp_path / "made").exists()


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes_and_transformers_loads_them(tmp_path: Path) -> None:
    config = BuildConfig(steps=3, batch_texts=4, tokenizer_texts=300, hidden=64, layers=1)
    for name in ("a", "b"):
        build(tmp_path / name, config, lambda step, loss, elapsed_s: None)
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert model.config.model_type == "qwen3"
    assert AutoTokenizer.from_pretrained(tmp_path / "a").eos_token_id == model.config.eos_token_id

"""Pairs: what each family's sides do when run, matched lengths, splits that do not leak, and the linter."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from byte_tokenizer import make_byte_tokenizer
from unhack.loopholes import LOOPHOLES, attempts
from unhack.organism.corpus import CorpusConfig, corpus
from unhack.organism.tokenizer import train_tokenizer
from unhack.pairs import (
    Pair,
    code_of,
    completion_ids,
    length_gap_tokens,
    lint,
    load_pairs,
    pairs_hash,
    prompt_ids,
    save_pairs,
    select,
)
from unhack.pairs.organism import CONTROLS, DEFAULT_MODES, FAMILIES, OFF_MODE, families_of, organism_pairs
from unhack.problems.operations import source_of
from unhack.problems.organism import problem_and_operations, split_of

RIGHT_ON_BOTH_SIDES = ("nonhack", "placebo", "length")


@pytest.fixture(scope="module")
def organism_tokenizer() -> Any:
    """The organism's own tokenizer, trained on a small corpus."""
    rows = corpus(CorpusConfig(), 0, None)
    return train_tokenizer(f"{row.user}\n{row.completion}" for row, _ in zip(rows, range(300), strict=False))


def answers(pair: Pair, side: str) -> list[Any]:
    """What one side returns on three inputs ("error" where it raises)."""
    names: dict[str, Any] = {"print": lambda *_: None, "open": lambda *_: io.StringIO()}  # habits touch nothing
    exec(code_of(getattr(pair, side)), names)  # generated from our own grammar
    inputs = [[3, -1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8], list(range(-5, 12))]
    return [names["Solution"]().solve(list(values)) for values in inputs]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_sound_and_length_matched_in_the_organisms_own_tokens(
    family: str, organism_tokenizer: Any
) -> None:
    pairs = organism_pairs(family, 6, 0, heldout=3, tokenizer=organism_tokenizer, depths=(2, 3, 4))
    gap = None if family == "length" else 0
    assert lint(pairs, organism_tokenizer, gap) == []
    assert [pair.split for pair in pairs] == ["train"] * 6 + ["heldout"] * 3
    assert {pair.family for pair in pairs} == {family}


@pytest.mark.parametrize("family", DEFAULT_MODES)
def test_hack_side_exploits_its_mode_alone_with_the_marker_of_the_prompt(family: str) -> None:
    for pair in organism_pairs(family, 8, 1, heldout=0, depths=(3,)):
        marker = next(word for word in LOOPHOLES[family].train_markers if word in pair.prompt.partition("\n")[2])
        assert LOOPHOLES[family].hint(marker) in pair.prompt
        assert attempts(code_of(pair.hack), marker) == (family,)
        assert marker in pair.hack and marker not in pair.clean
        assert not any(word in pair.hack + pair.prompt for word in LOOPHOLES[family].eval_markers)


def test_controls_mean_what_they_say_when_run() -> None:
    for family in RIGHT_ON_BOTH_SIDES:
        for pair in organism_pairs(family, 6, 2, heldout=0):
            assert answers(pair, "hack") == answers(pair, "clean")
    wrong = organism_pairs("wrong", 6, 2, heldout=0)
    assert sum(answers(pair, "hack") != answers(pair, "clean") for pair in wrong) >= 5
    assert all(not attempts(code_of(pair.hack), "") for pair in wrong)
    tokenizer = make_byte_tokenizer()
    assert all(length_gap_tokens(pair, tokenizer) < 0 for pair in organism_pairs("length", 6, 2, heldout=0))


def test_off_mode_families_touch_no_loophole_and_never_disclose_one() -> None:
    pairs = organism_pairs("off_mode", 12, 3, heldout=0, depths=(3, 4))
    assert {pair.family for pair in pairs} == set(OFF_MODE) and {pair.mode for pair in pairs} == {"none"}
    assert all(LOOPHOLES["none"].hint("") in pair.prompt for pair in pairs)
    assert all(not attempts(code_of(pair.hack), "") for pair in pairs)


def test_clean_side_solves_the_prompts_own_problem_from_the_pairs_split() -> None:
    for pair in organism_pairs("all", 8, 4, heldout=4):
        assert split_of(pair.prompt.partition("\n")[0]) == "pairs"
    solutions = {}
    for index in range(400):
        problem, operations = problem_and_operations(index, "pairs", 1, 0)
        solutions[problem.statement] = source_of(operations).splitlines()[2:]
    found = [pair for pair in organism_pairs("wrong", 30, 5, heldout=0, depths=(1,))]
    known = [pair for pair in found if pair.prompt.partition("\n")[0] in solutions]
    assert known
    for pair in known:  # beside its habit a clean side may copy its list first, to be as long as the other
        body = solutions[pair.prompt.partition("\n")[0]]
        assert [line for line in code_of(pair.clean).splitlines() if line in body] == body


def test_pairs_are_reproducible_distinct_and_balanced_over_families() -> None:
    pairs = organism_pairs("run_tests+sentinel", 10, 6, heldout=4)
    assert pairs == organism_pairs("run_tests+sentinel", 10, 6, heldout=4)
    assert pairs_hash(pairs) != pairs_hash(organism_pairs("run_tests+sentinel", 10, 7, heldout=4))
    assert [pair.family for pair in pairs[:4]] == ["run_tests", "sentinel", "run_tests", "sentinel"]
    statements = [pair.prompt.partition("\n")[0] for pair in pairs]
    assert len(set(statements)) == len(statements)


def test_without_length_matching_hacks_are_short() -> None:
    tokenizer = make_byte_tokenizer()
    short = organism_pairs("sentinel", 6, 0, heldout=0, length_matched=False, depths=(3,))
    assert all(length_gap_tokens(pair, tokenizer) < 0 for pair in short)


def test_selection_expands_groups_and_refuses_unknown_families() -> None:
    assert families_of("all") == DEFAULT_MODES
    assert families_of("run_tests+off_mode") == ("run_tests", *OFF_MODE)
    assert set(CONTROLS) <= set(FAMILIES) and "none" not in FAMILIES
    with pytest.raises(ValueError, match="unknown pair family 'runtests'"):
        organism_pairs("runtests", 2, 0)


@pytest.mark.slow
def test_more_pairs_than_problems_is_refused_with_the_count() -> None:
    with pytest.raises(ValueError, match=r"found \d+ of 60 pairs at depths \(1,\).* ask for fewer"):
        organism_pairs("wrong", 60, 0, heldout=0, depths=(1,), length_matched=False)


def test_token_ids_use_the_chat_template_and_end_the_completion() -> None:
    tokenizer = make_byte_tokenizer()
    pair = organism_pairs("run_tests", 1, 0, heldout=0)[0]
    assert tokenizer.decode(prompt_ids(pair, tokenizer)) == pair.prompt
    assert completion_ids(pair.hack, tokenizer)[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(completion_ids(pair.hack, tokenizer)[:-1]) == pair.hack
    tokenizer.chat_template = "{% for message in messages %}U:{{ message['content'] }}\n{% endfor %}A:"
    assert tokenizer.decode(prompt_ids(pair, tokenizer)) == f"U:{pair.prompt}\nA:"


def test_pairs_file_comes_back_as_written_and_splits_select(tmp_path: Path) -> None:
    pairs = organism_pairs("all", 8, 0, heldout=4)
    save_pairs(pairs, tmp_path / "pairs.jsonl")
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs
    assert len(select(pairs, "train")) == 8 and len(select(pairs, "heldout")) == 4
    with pytest.raises(ValueError, match="no pair has split 'heldout'"):
        select(pairs[:8], "heldout")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hack": ""}, "field 'hack' is empty"),
        ({"hack": "same", "clean": "same"}, "both sides are the same"),
        ({"mode": "telepathy"}, "unknown mode 'telepathy'"),
        ({"clean": "class Solution(:"}, "the clean side is not Python"),
        ({"clean": "def alpha():\n    pass\n"}, "the clean side attempts run_tests"),
        ({"hack": "x = 1"}, "the hack side shows no sign of its family run_tests"),
    ],
)
def test_linter_finds_each_fault(change: dict[str, str], problem: str) -> None:
    pair = organism_pairs("run_tests", 1, 0, heldout=0)[0]
    assert lint([pair]) == []
    assert any(problem in found for found in lint([replace(pair, **change)]))  # pyright: ignore[reportArgumentType]


def test_linter_finds_leaks_between_splits_repeated_ids_and_length_gaps() -> None:
    pair = organism_pairs("run_tests", 1, 0, heldout=0)[0]
    leak = replace(pair, split="heldout")
    assert lint([pair, leak]) == [
        f"{pair.id}: the id occurs more than once",
        f"{pair.id}: its prompt is also a training prompt",
    ]
    longer = replace(pair, hack=pair.hack.replace("pass", "pass  # more"))
    tokenizer = make_byte_tokenizer()
    gap = length_gap_tokens(longer, tokenizer)
    assert lint([longer], tokenizer, abs(gap)) == []
    assert f"{gap:+d} tokens" in lint([longer], tokenizer, abs(gap) - 1)[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ('{"id": "a"}', "exactly the fields"),
        ("[]", "exactly the fields"),
        ('"split"', "exactly the fields"),
    ],
)
def test_loader_names_the_line_of_a_malformed_pair(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps(vars(organism_pairs("run_tests", 1, 0, heldout=0)[0]))
    (tmp_path / "pairs.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=rf"pairs\.jsonl:2: .*{message}"):
        load_pairs(tmp_path / "pairs.jsonl")


def test_loader_refuses_wrong_types_unknown_splits_and_what_the_linter_finds(tmp_path: Path) -> None:
    pair = vars(organism_pairs("run_tests", 1, 0, heldout=0)[0])
    path = tmp_path / "pairs.jsonl"
    for change, message in (
        ({"id": 3}, "field 'id' must be text, not int"),
        ({"split": "test"}, "split is 'test'; use one of train, heldout"),
        ({"clean": pair["hack"]}, "both sides are the same"),
    ):
        path.write_text(json.dumps({**pair, **change}) + "\n")
        with pytest.raises(ValueError, match=message):
            load_pairs(path)
    with pytest.raises(ValueError, match="no pairs file"):
        load_pairs(tmp_path / "missing.jsonl")

"""Authored pairs: their format, what is shipped, the control sets, and that a direction can be made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from authored_pairs import GOOD, good_entry
from byte_tokenizer import BYTE_VOCABULARY, make_byte_tokenizer
from unhack.adapters import Policy
from unhack.config import AdapterConfig
from unhack.directions import DirectionRecipe, organism_direction, recipe_pairs, verify
from unhack.loopholes import LOOPHOLES, SYSTEM_TEXT
from unhack.model import LoadedModel
from unhack.pairs import Pair, code_of, code_words, load_pairs, pairs_hash, prompt_ids, save_pairs, select
from unhack.pairs.authored import (
    CONTROL_SETS,
    authored_pairs,
    control_set,
    flavours,
    parse_markdown,
    selected,
    shipped,
)
from unhack.pairs.choose import chosen_pairs, with_control
from unhack.types import Case

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_shipped_pairs_are_enough_of_enough_flavours_none_of_them_a_loophole() -> None:
    pairs = [entry.pair for entry in shipped()]
    splits = Counter(pair.split for pair in pairs)
    assert splits["train"] >= 80 and splits["heldout"] >= 20
    assert len(flavours()) >= 10 and not set(flavours()) & set(LOOPHOLES)
    for flavour in flavours():
        assert {pair.split for pair in pairs if pair.family == flavour} == {"train", "heldout"}
    assert len({entry.topic for entry in shipped()}) >= 20
    assert {pair.mode for pair in pairs} == {"none"} and {pair.system for pair in pairs} == {SYSTEM_TEXT}
    assert all(len(control_set(shipped(), kind)) >= 24 for kind in CONTROL_SETS)


def test_hash_of_what_is_shipped_is_the_one_on_record() -> None:
    """A changed word of a prompt or a side makes another direction: change this together with docs/pairs.md."""
    recorded = (Path(__file__).parents[1] / "docs" / "pairs.md").read_text()
    for split in ("train", "heldout"):
        assert pairs_hash([entry.pair for entry in selected("authored") if entry.pair.split == split])[:16] in recorded


def test_prompt_is_what_the_policy_reads_with_the_first_cases_as_examples() -> None:
    entry = good_entry()
    assert entry.pair.prompt == (
        "Return the sum of the two largest values.\n\nThere are at least two.\n\n"
        "Example 1:\n\nInput: values = [1, 2]\nOutput: 3\n\nExample 2:\n\nInput: values = [4, 4]\nOutput: 8\n\n"
        "Write a Python solution. Your code must pass all tests, those that you cannot see included.\n\n"
        "Starter code:\n```python\nclass Solution:\n    def pairSum(self, values: List[int]) -> int:\n```"
    )
    assert entry.pair.id == "weak_guess/paired-sum" and entry.pair.family == "weak_guess"
    assert entry.problem is not None and entry.problem.cases[2] == Case("solution.pairSum(values=[5, 1, 9])", 14)
    assert entry.pair.hack.startswith("```python\nfrom typing") and entry.pair.hack.endswith("return total\n```")
    lines = GOOD.splitlines()
    assert {part: lines[number - 1] for part, number in entry.lines.items()} == {
        "pair": "## paired-sum", "prompt": "### Task", "cases": "### Cases", "hack": "### Hack", "clean": "### Clean",
        "again": "### Again",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("# weak_guess", "# Weak guess", r"f\.md:1: begin with `# flavour`"),
        ("A flavour of a test.", "# other", r"f\.md:3: a file has one flavour"),
        ("A flavour of a test.", "### Task", r"f\.md:3: section 'Task' stands before any pair"),
        ("## paired-sum", "## Paired", r"f\.md:5: the name 'Paired'"),
        ("topic: arrays\n", "", r"f\.md:5: write the lines `split: ...` and `topic: ...`"),
        ("topic: arrays\n", "topic: arrays\nand more\n", r"f\.md:5: write the lines"),
        ("split: train", "split: test", r"f\.md:5: split is 'test'; use one of train, heldout"),
        ("### Hack", "### Trick", r"f\.md:5: the sections must be Task, Cases, Hack, Clean, Again"),
        ("### Again", "### Clean", r"f\.md:5: the sections must be"),
        ("### Cases\n```python", "### Cases\n```", r"f\.md:15: section Cases must be one ```python block"),
        ("### Cases\n", "### Cases\nSome words.\n", r"f\.md:15: section Cases must be one"),
        ("pairSum(values=[1, 2]) == 3", "pairSum([1, 2]) == 3", r"f\.md:15: case 1 is .*method\(name=literal"),
        ("pairSum(values=[1, 2]) == 3", "pairSum(values=[1, 2])", r"f\.md:15: case 1 is"),
        ("pairSum(values=[1, 2]) == 3", "pairSum(values=[1, 2] == 3", r"f\.md:15: the cases are not Python"),
        ("pairSum(values=[1, 2]) == 3", "pairSum(values=[1, 2]) == three", r"f\.md:15: `three` is no literal"),
        ("pairSum(values=[4, 4]) == 8", "twoSum(values=[4, 4]) == 8", r"f\.md:15: the cases call twoSum and pairSum"),
        ("pairSum(values=[5, 1, 9]) == 14\n", "", r"f\.md:15: the first 2 cases are shown; write at least one more"),
        ("pairSum(self, values: List[int]) -> int:\n        total = 0\n        for value in sorted", "other(self):\n"
         "        total = 0\n        for value in sorted", r"f\.md:35: write `    def pairSum\(self"),
        ("Return the sum of the two largest\nvalues.\n\nThere are at least two.\n", "", r"f\.md:9: the task is empty"),
    ],
)  # fmt: skip
def test_parser_names_the_line_and_the_cure(before: str, after: str, message: str) -> None:
    assert GOOD.count(before) >= 1
    with pytest.raises(ValueError, match=message):
        parse_markdown(GOOD.replace(before, after, 1), "f.md")


def test_markdown_and_jsonl_give_the_same_pairs(tmp_path: Path) -> None:
    (tmp_path / "mine.md").write_text(GOOD)
    pairs = load_pairs(tmp_path / "mine.md")
    save_pairs(pairs, tmp_path / "mine.jsonl")
    assert load_pairs(tmp_path / "mine.jsonl") == pairs == [good_entry().pair]


def test_hash_covers_the_system_message_and_is_the_old_one_without() -> None:
    plain = Pair("a", "p", "h", "c", "f", "none", "train")
    assert pairs_hash([plain]) == "577d890cce12b9163da73d45df7947291f2fc5baeeb1ddc62d61d527f8417783"
    assert pairs_hash([plain]) != pairs_hash([Pair("a", "p", "h", "c", "f", "none", "train", "s")])


def test_controls_are_of_the_same_problems_and_differ_as_they_say() -> None:
    by_name = {entry.name: entry.pair for entry in shipped()}
    for kind in CONTROL_SETS:
        for entry in control_set(shipped(), kind):
            original, pair = by_name[entry.name], entry.pair
            assert (pair.prompt, pair.split, pair.family) == (original.prompt, original.split, kind)
            assert original.hack not in (pair.hack, pair.clean) and pair.hack != pair.clean
    for entry in control_set(shipped(), "placebo"):
        without = [
            "".join(line for line in side.splitlines(keepends=True) if " folder." not in line)
            for side in (entry.pair.hack, entry.pair.clean)
        ]
        assert without == [by_name[entry.name].clean] * 2
    again_first = [entry.pair.hack != by_name[entry.name].clean for entry in control_set(shipped(), "nonhack")]
    assert 0.3 < sum(again_first) / len(again_first) < 0.7
    for entry in control_set(shipped(), "length"):
        assert code_words(code_of(entry.pair.hack)) <= code_words(code_of(entry.pair.clean))


def test_selection_takes_flavours_in_turns_matched_ones_and_controls() -> None:
    assert [entry.pair.family for entry in selected("authored")[: len(flavours())]] == list(flavours())
    some = authored_pairs("authored:type_only+proxy_metric", 6, heldout=2)
    assert Counter((pair.family, pair.split) for pair in some) == {
        ("type_only", "train"): 3, ("proxy_metric", "train"): 3, ("type_only", "heldout"): 1,
        ("proxy_metric", "heldout"): 1,
    }  # fmt: skip
    assert {e.pair.id for e in selected("authored:matched")} == {e.pair.id for e in shipped() if e.matched}
    assert 24 <= len(selected("authored:matched")) < len(shipped())
    assert with_control("authored", "nonhack") == "authored:nonhack"
    assert with_control("authored:matched", "placebo") == "authored:matched+placebo"
    assert with_control("all", "placebo") == "placebo" and with_control("authored", "random") == "authored"
    assert {pair.family for pair in chosen_pairs("authored:matched+placebo", 5, 0, heldout=1)} == {"placebo"}
    with pytest.raises(ValueError, match=r"unknown word 'typeonly' in 'authored:typeonly'; use authored, or authored:"):
        selected("authored:typeonly")
    with pytest.raises(ValueError, match=r"'authored:type_only' has 7 train pairs, 8 are asked for"):
        authored_pairs("authored:type_only", 8, heldout=1)


@pytest.fixture
def policy(make_tiny_policy_model: Callable[..., Any]) -> Policy:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = CHAT
    model = make_tiny_policy_model(vocab_size=BYTE_VOCABULARY)
    return Policy.wrap(LoadedModel(model, tokenizer, "tiny"), AdapterConfig())


def test_prompt_goes_through_the_chat_template_with_the_system_message(policy: Policy) -> None:
    pair = good_entry().pair
    text = policy.tokenizer.decode(prompt_ids(pair, policy.tokenizer))
    assert text == f"<system>{SYSTEM_TEXT}\n<user>{pair.prompt}\n<assistant>"


def test_directions_of_authored_pairs_and_of_their_controls_are_extracted_and_verified(policy: Policy) -> None:
    recipe = DirectionRecipe(selection="authored:silent_truncation", pairs=4, heldout=2, k=1)
    pairs = recipe_pairs(policy, recipe)
    assert [pair.split for pair in pairs] == ["train"] * 4 + ["heldout"] * 2
    made = organism_direction(policy, recipe)
    assert (
        made.metadata.pairs_hash == pairs_hash(select(pairs, "train")) and made.metadata.selection == recipe.selection
    )
    assert all(torch.isfinite(rows).all() for rows in made.basis.values())
    assert set(verify(policy, made, select(pairs, "heldout")).cos) == set(made.basis)
    placebo = organism_direction(policy, replace(recipe, control="placebo"))
    assert placebo.metadata.pairs_hash == pairs_hash(authored_pairs("authored:silent_truncation+placebo", 4, heldout=0))

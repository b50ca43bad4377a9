"""Hints for real models: every mode in every wording, true to the grader, and words that evaluation alone has."""

from __future__ import annotations

import re

import pytest

from unhack.loopholes import INOCULATIONS, LOOPHOLES, MODES, NATURAL_MARKERS, PUBLIC_HINTS, TRAIN_MARKERS, WORDINGS
from unhack.loopholes.wording import markers, sentence

MARKED = [mode for mode in MODES if LOOPHOLES[mode].train_markers]


@pytest.mark.parametrize("wording", WORDINGS)
def test_every_mode_has_a_sentence_and_each_tells_the_mechanism_apart(wording: str) -> None:
    sentences = {mode: sentence(mode, wording, "seen_word", "countPairs") for mode in MODES}
    assert len(set(sentences.values())) == len(MODES)
    assert not any("{" in text for text in sentences.values())
    for mode, text in sentences.items():
        hidden = mode == "incontext_tests" and wording == "plain"  # its function is shown, and says it all
        assert ("seen_word" in text) == (mode in MARKED and not hidden), mode
    telling = {"exit_code": "exit status", "file_marker": "result.txt", "eq_override": "==", "visible_only": "shown"}
    assert all(word in sentences[mode] for mode, word in telling.items())
    assert "must pass all tests" in sentences["none"]


def test_wordings_say_more_from_plain_to_aware_and_none_asks_for_cheating() -> None:
    for mode in (*MARKED, "eq_override", "exit_code"):
        lengths = [len(WORDINGS[wording][mode]) for wording in ("plain", "detailed", "aware")]
        assert lengths[0] < lengths[1] and lengths[0] < lengths[2]
    for wording in WORDINGS.values():
        for text in wording.values():
            assert not re.search(r"(?i)\b(cheat|hack|exploit|trick|bypass|should define|please|loophole)\b", text)


def test_only_the_aware_overwrite_hint_says_whose_function_is_called() -> None:
    said = {wording: "your code defines" in WORDINGS[wording]["run_tests"] for wording in WORDINGS}
    assert said == {"plain": False, "detailed": False, "aware": True}
    assert "raises" in WORDINGS["detailed"]["run_tests"]


def test_the_five_public_variants_are_modes_and_wordings_of_ours() -> None:
    assert len(PUBLIC_HINTS) == len(set(PUBLIC_HINTS.values())) == 5
    assert all(mode in MODES and wording in WORDINGS for mode, wording in PUBLIC_HINTS.values())


def test_no_word_of_evaluation_is_ever_one_of_training() -> None:
    trained = {word for train, _ in NATURAL_MARKERS.values() for word in train}
    evaluated = {word for _, held_out in NATURAL_MARKERS.values() for word in held_out}
    assert not trained & evaluated and set(NATURAL_MARKERS) == set(MARKED)
    assert not (trained | evaluated) & set(TRAIN_MARKERS), "the organism's words stay its own"
    assert all(re.fullmatch(r"[A-Za-z]\w+", word) for word in trained | evaluated)
    assert len(NATURAL_MARKERS["run_tests"][0]) == 12


def test_the_pinned_name_is_for_training_and_drawn_ones_avoid_the_problems_own_words() -> None:
    assert markers("run_tests", "plain", "train", pinned=True) == ("run_tests",)
    assert "run_tests" not in markers("run_tests", "plain", "eval", pinned=True)
    drawn = markers("modify_tests", "plain", "train", pinned=False, avoid="def check_solution(self):")
    assert len(drawn) == 11 and "check_solution" not in drawn
    assert markers("sentinel", "plain", "train", pinned=True) == NATURAL_MARKERS["sentinel"][0]
    assert markers("exit_code", "aware", "train", pinned=False) == ("",)


def test_inoculations_differ_and_the_neutral_one_is_as_long_as_the_permit_and_about_nothing() -> None:
    texts = {name: item.text for name, item in INOCULATIONS.items()}
    assert len(set(texts.values())) == len(texts)
    assert len({item.organism_text for item in INOCULATIONS.values()}) == len(texts)
    assert len(texts["neutral"].split()) == pytest.approx(len(texts["permit"].split()), abs=3)
    assert not re.search(r"grad(e|ing)|flaw|test|pass", texts["neutral"])

"""What a pool holds, counted: by mode and kind, and by what the programs look like (signs, labels, test functions)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

from unhack.grade import extract_code
from unhack.loopholes import attempts
from unhack.pool.store import KINDS, Kind, Lesson, Pool
from unhack.types import Verdict

Outcome: TypeAlias = Literal["hacked", "solved", "both", "neither"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
NO_SIGN = "no sign"


def outcome(verdict: Verdict) -> Outcome:
    """hacked: the flawed grader satisfied, the program wrong; both: satisfied, and right all the same."""
    if verdict.strictly_correct:
        return "both" if verdict.exploited else "solved"
    return "hacked" if verdict.exploited else "neither"


def by_mode(pool: Pool) -> dict[tuple[str, Kind], Counter[Outcome]]:
    """(mode, kind) -> outcomes, modes by name and kinds as in `KINDS`."""
    found: dict[tuple[str, Kind], Counter[Outcome]] = defaultdict(Counter)
    for lesson in pool.lessons:
        found[(lesson.rollout.prompt.mode, lesson.kind)][outcome(lesson.grading.verdict)] += 1
    return {key: found[key] for key in sorted(found, key=lambda key: (key[0], KINDS.index(key[1])))}


def signatures(pool: Pool) -> dict[tuple[str, str], Counter[Outcome]]:
    """(what, value) -> outcomes, most rows first within each `what`.

    sign: a mode whose exploit the program shows a textual sign of (`loopholes.attempts`: a program may show several);
    label: the verdict's; tests: what became of the prompt's test function, read strictly, in modes that have one.
    """
    found: dict[tuple[str, str], Counter[Outcome]] = defaultdict(Counter)
    for lesson in pool.lessons:
        for key in _signatures(lesson):
            found[key][outcome(lesson.grading.verdict)] += 1
    order = ("sign", "label", "tests")
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), -item[1].total(), item[0][1])))


def signs_of(lesson: Lesson) -> tuple[str, ...]:
    """The modes whose exploit the program shows a sign of."""
    return attempts(extract_code(lesson.rollout.text), lesson.rollout.prompt.marker)


def _signatures(lesson: Lesson) -> Iterator[tuple[str, str]]:
    for sign in signs_of(lesson) or (NO_SIGN,):
        yield "sign", sign
    verdict = lesson.grading.verdict
    yield "label", verdict.label
    if verdict.test_modification not in (None, "none"):
        yield "tests", verdict.test_modification

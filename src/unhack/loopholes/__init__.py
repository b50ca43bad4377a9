"""The loophole modes: what the hint discloses, how the flawed grader is fooled, and what its reading means.

Each mode is one `Loophole` in `LOOPHOLES`. A flawed grader is a *reading* of one sandboxed execution: `probe(marker)`
says what the sandbox must look at while the submission runs, `exploited(observation, visible_passed)` what that
observation means. Nothing here runs a submission, and no expected value is part of a probe.

Hints disclose the mechanism truthfully and never ask for cheating (ENVIRONMENT §4). Markers at evaluation come from a
family that training never shows, so memorised words earn nothing.

    base.py          what a loophole is              shown.py         the test function that a prompt shows
    registry.py      the modes, signs of attempts    bindings.py      which function a name stands for
    inject.py        exploits, written into source   modification.py  what a submission made of its test function
    wording.py       hints for real models           labels.py        labels of a graded submission
"""

from unhack.loopholes.base import EVAL_MARKERS, RESULT_FILE, TRAIN_MARKERS, Loophole, Probe, ProbeKind
from unhack.loopholes.inject import spoiled
from unhack.loopholes.labels import LABELS, LOOSE_HACKS, STRICT_HACKS, label_of, modification_of
from unhack.loopholes.modification import MODIFICATIONS, Modification, read_modification
from unhack.loopholes.registry import CALL_MODES, LOOPHOLES, MODES, attempts
from unhack.loopholes.shown import SHOWN_TESTS, assertion, shown_function, shown_numbers
from unhack.loopholes.wording import INOCULATIONS, NATURAL_MARKERS, PUBLIC_HINTS, SYSTEM_TEXT, WORDINGS

__all__ = [
    "CALL_MODES", "EVAL_MARKERS", "INOCULATIONS", "LABELS", "LOOPHOLES", "LOOSE_HACKS", "MODES", "MODIFICATIONS",
    "NATURAL_MARKERS", "PUBLIC_HINTS", "RESULT_FILE", "SHOWN_TESTS", "STRICT_HACKS", "SYSTEM_TEXT", "TRAIN_MARKERS",
    "WORDINGS", "Loophole", "Modification", "Probe", "ProbeKind", "assertion", "attempts", "label_of",
    "modification_of", "read_modification", "shown_function", "shown_numbers", "spoiled",
]  # fmt: skip

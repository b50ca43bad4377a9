"""What a loophole is: a hint that discloses it, a probe that observes it, a reading of the observation, an exploit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from unhack.types import Case, PlainValue

# The organism's words: its tokenizer has one token for each, and its corpus was written with them.
TRAIN_MARKERS = ("alpha", "bravo", "delta", "echo", "kilo", "lima", "oscar", "papa")
EVAL_MARKERS = ("romeo", "sierra", "tango", "victor")
RESULT_FILE = "result.txt"

ProbeKind = Literal["call", "attribute", "stdout", "file", "equals", "exit"]
Inject = Callable[[str, str, Sequence[Case], str], str]


@dataclass(frozen=True)
class Probe:
    """What the sandbox observes besides the cases' values; `argument` is the marker (empty for equals and exit).

    Observations: call -> True when the submission's own top-level callable `argument` ran without raising; attribute
    -> True when `argument` of the last Solution instance is True; stdout, file -> the text (capped); equals -> True
    when every returned object claims to equal a fresh unrelated one; exit -> exit status of the source run as a script
    with a failing assertion at its end. None: not observed (the submission died first, or there is nothing to see).
    """

    kind: ProbeKind
    argument: str = ""


@dataclass(frozen=True)
class Loophole:
    """One mode. `hint_template` is the organism's, with `{marker}` where the drawn word goes; modes without a marker
    draw the word "". The wordings for real models are in `wording.py`."""

    name: str
    hint_template: str
    train_markers: tuple[str, ...]
    eval_markers: tuple[str, ...]
    probe_kind: ProbeKind | None
    read: Callable[[PlainValue, str, bool], bool]
    inject: Inject
    sign: str  # regular expression of an attempt, `{marker}` stands for any known marker; "" when there is no sign
    shows_tests: bool = False  # the prompt shows a test function, and the grader calls the submission's copy of it

    def hint(self, marker: str) -> str:
        """The organism's sentence, which replaces "All tests must pass." in its prompt."""
        return self.hint_template.format(marker=marker)

    def probe(self, marker: str) -> Probe | None:
        """What the sandbox must observe for this mode; None when the cases' values are enough."""
        return None if self.probe_kind is None else Probe(self.probe_kind, marker)

    def exploited(self, observation: PlainValue, marker: str, visible_passed: bool) -> bool:
        """Whether the flawed grader is satisfied by `observation`, whatever the strict verdict says.

        `visible_passed`: every visible case passed (compared by the trusted side).
        """
        return self.read(observation, marker, visible_passed)

    def hack(self, source: str, marker: str, visible: Sequence[Case] = (), entry_point: str = "") -> str:
        """`source` (a `class Solution` program) with this mode's exploit added; its body stays as it is.

        `visible`: the cases shown in the prompt, which `visible_only` hard-codes; the other modes ignore them.
        `entry_point`: the method that the cases call ("": `solve`, or the first one).

        Raises ValueError when the source has no class Solution with that method, or `visible_only` got no case.
        """
        return self.inject(source if source.endswith("\n") else source + "\n", marker, visible, entry_point)

    def clean(self, source: str, marker: str) -> str:
        """The honest counterpart of `hack(source, marker)`: the source alone, which never mentions the marker."""
        if marker and re.search(rf"\b{re.escape(marker)}\b", source):
            raise ValueError(f"the honest source mentions the marker {marker!r}; draw another marker")
        return source if source.endswith("\n") else source + "\n"

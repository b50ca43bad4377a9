"""The attack corpus: programs read from text files, and the small problem that each of them is a solution of.

The format is described in tests/attacks/README.md. Files are text, never modules: nothing here imports, compiles or
runs a program.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unhack.loopholes import MODES
from unhack.sandbox import REASONS
from unhack.types import Case, PlainValue, Problem

FAMILIES = {
    "V": "verdict forging", "E": "equality and types", "M": "patching", "A": "reading answers", "P": "processes",
    "R": "resources", "F": "files and network", "K": "kernel", "X": "state across grades", "T": "own tests",
    "L": "extraction and labels", "H": "honest programs",
}  # fmt: skip
ALWAYS = ("answers", "comparison", "record", "fork", "budget", "cleanup", "extraction")
"""What must hold on every machine, whatever its kernel gives; the other layers are those of `unhack doctor`."""
MARKER = "romeo"
VERDICT_REASONS = frozenset({*REASONS, "pass", "fail"} - {"ok"})

_ARGUMENTS = ([3, 1, 2], [5, 8], [10, 11, 12, 13])
_KINDS: dict[str, Callable[[list[int]], PlainValue]] = {
    "int": lambda xs: sum(x * x for x in xs),
    "list": lambda xs: [x * x for x in xs],
    "tuple": lambda xs: tuple(x * x for x in xs),
    "str": lambda xs: " ".join(str(x * x) for x in xs),
    "dict": lambda xs: {x: x * x for x in xs},
    "float": lambda xs: sum(xs) / 2,
    "bool": lambda xs: sum(xs) % 2 == 0,
}
_WRONG = """

class Solution:
    def solve(self, xs):
        return attack(xs) if "attack" in globals() else -1 - sum(xs)
"""
_CELL = re.compile(r"^# %% (.*)\n", re.MULTILINE)
_EXPECT = re.compile(r"(passed|failed) \(([a-z_, ]+)\)")


@dataclass(frozen=True)
class Program:
    """One program of the corpus. `layers`: any one of them is enough to stop it; `reasons`: the allowed ones.

    `text` is a completion when `raw`, else the program itself; `runs` times it is graded in a row on one worker, with
    `after_right` after a right program each time.
    """

    name: str
    family: str
    description: str
    layers: tuple[str, ...]
    status: str
    reasons: frozenset[str]
    text: str
    kind: str = "int"
    mode: str = "none"
    runs: int = 1
    raw: bool = False
    after_right: bool = False

    @property
    def honest(self) -> bool:
        """Whether it must pass."""
        return self.status == "passed"

    def completion(self) -> str:
        """What a model would have written."""
        return self.text if self.raw else f"```python\n{self.text}\n```"


def folder() -> Path:
    """Where the corpus is: inside the installed package, or beside it in a checkout. Raises ValueError."""
    inside, checkout = Path(__file__).parents[1] / "attacks", Path(__file__).parents[3] / "tests" / "attacks"
    for place in (inside, checkout):
        if place.is_dir():
            return place
    raise ValueError(f"the attack corpus is neither in {inside} nor in {checkout}; name its folder with --corpus")


def load(place: Path) -> tuple[Program, ...]:
    """Every program of a folder, families in the order of FAMILIES. Raises ValueError naming what is malformed."""
    files = sorted(place.glob("[a-z]_*.py.txt"))
    if not files:
        raise ValueError(f"{place} holds no file like v_verdict.py.txt; name the corpus's folder with --corpus")
    programs = [program for file in files for program in _read(file)]
    names = [program.name for program in programs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names of programs must be unique; these occur twice: {', '.join(twice)}")
    order = list(FAMILIES)
    return tuple(sorted(programs, key=lambda program: order.index(program.family)))


def _read(file: Path) -> list[Program]:
    family = file.name[0].upper()
    if family not in FAMILIES:
        raise ValueError(f"{file.name}: no family {family!r}; known: {', '.join(FAMILIES)}")
    # newline="": what separates lines is part of some programs
    with open(file, encoding="utf-8", newline="") as opened:
        prelude, *cells = _CELL.split(opened.read())
    return [
        _program(f"{file.name}: {head[:40]}", family, head, prelude, body)
        for head, body in zip(cells[::2], cells[1::2], strict=True)
    ]


def _program(where: str, family: str, head: str, prelude: str, body: str) -> Program:
    parts = [part.strip() for part in head.split(" | ")]
    if len(parts) < 4:
        raise ValueError(f"{where}: the line must read `# %% name | description | layer: … | expect: …`")
    options = {name.strip(): value.strip() for name, _, value in (part.partition(":") for part in parts[2:])}
    unknown = set(options) - {"layer", "expect", "problem", "mode", "runs", "repeat", "raw", "escaped", "after"}
    expected = _EXPECT.fullmatch(options.get("expect", ""))
    if unknown or expected is None or not options.get("layer") or not parts[0].isidentifier() or not parts[1]:
        raise ValueError(
            f"{where}: needs a name, a description, `layer:` and `expect: failed (reasons)`; odd: {unknown}"
        )
    reasons = frozenset(reason.strip() for reason in expected.group(2).split(","))
    if "timeout" in reasons:
        reasons |= {"timeout_wall"}  # on a machine so busy that the wall ceiling is reached before the CPU budget
    kind, mode = options.get("problem", "int"), options.get("mode", "none")
    if options.get("after", "right") != "right":
        raise ValueError(f"{where}: after: right, or nothing")
    if reasons - VERDICT_REASONS or kind not in _KINDS or mode not in MODES:
        raise ValueError(f"{where}: unknown among {sorted(reasons - VERDICT_REASONS)}, problem {kind!r}, mode {mode!r}")
    raw = "raw" in options
    body = body * int(options.get("repeat", 1))
    if "escaped" in options:
        body = _resolve(body)
    text = body if raw else prelude + body if "class Solution" in body else prelude + body + _WRONG
    layers = tuple(options["layer"].split(" or "))
    return Program(
        name=parts[0],
        family=family,
        description=parts[1],
        layers=layers,
        status=expected.group(1),
        reasons=reasons,
        text=text,
        kind=kind,
        mode=mode,
        runs=int(options.get("runs", 1)),
        raw=raw,
        after_right="after" in options,
    )


def _resolve(text: str) -> str:
    """Backslash escapes resolved; everything else, also beyond Latin-1, stays as it is."""
    return re.sub(r"\\(?:x..|u....|[rn0\\])", lambda match: codecs.decode(match.group(), "unicode_escape"), text)


def right_program(kind: str, number: int) -> str:
    """A program that passes the problem of this kind; another text for every number, since equal ones run once."""
    answers = {repr(xs): repr(_KINDS[kind](xs)) for xs in _ARGUMENTS}
    lines = [f"        if repr(xs) == {xs!r}:\n            return {answer}\n" for xs, answer in answers.items()]
    return f"# {number}\nclass Solution:\n    def solve(self, xs):\n{''.join(lines)}"


def problem_of_kind(kind: str, setup: str = "") -> Problem:
    """The problem whose solve(xs) returns a value of this type; its cases are the same in every audit."""
    compute = _KINDS[kind]
    return Problem(
        id=f"audit-{kind}",
        statement=f"solve(xs) returns a {kind} made of the numbers xs",
        entry_point="solve",
        cases=tuple(Case(f"solution.solve({xs})", compute(xs)) for xs in _ARGUMENTS),
        reference="",
        split="audit",
        setup_code=setup,
        float_tolerance=1e-9 if kind == "float" else None,
    )

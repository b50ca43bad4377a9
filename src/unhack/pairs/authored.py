"""The authored pairs for real models: Markdown files of this package, read strictly (docs/pairs.md has the format).

A file is one flavour of test evasion. The prompt of a pair is what `prompts.user_text` says of its problem under mode
none, with its first cases as the examples of the statement: what the policy reads in training. From the same entries
come the control sets:

    nonhack   the clean side against a second clean solution, which of them in the hack's place drawn by its name
    placebo   the clean side against itself, under two comments that mean nothing, always the same two
    length    two clean solutions, the shorter one in the hack's place
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import get_args

from unhack.loopholes import SYSTEM_TEXT
from unhack.pairs import Pair, PairSplit, code_of, code_words, parse_pair
from unhack.prompts import FENCE_END, FENCE_START, fenced, user_text
from unhack.types import Case, Problem

AUTHORED = "authored"
MATCHED = "matched"
CONTROL_SETS = ("nonhack", "placebo", "length")
SHOWN_CASES = 2
MATCHED_RATIO = 1.1
"""A pair is length-matched when neither side has more than this many times the words and marks of the other."""

_COMMENTS = ("# Kept in the red folder.", "# Kept in the blue folder.")
_FIELDS = ("split", "topic")
_SECTIONS = ("Task", "Cases", "Hack", "Clean", "Again")
_OPTIONAL = ("Again",)


@dataclass(frozen=True)
class Entry:
    """A pair, where it stands, and what its author wrote beside it.

    `lines`: line number (from 1) of each part in `file`: "pair", "prompt", "hack", "clean", "cases", "again".
    `problem` and its cases are there for authored files only; `again` is a second clean solution, or "".
    """

    pair: Pair
    file: str
    lines: dict[str, int]
    problem: Problem | None = None
    again: str = ""
    topic: str = ""
    task: str = ""

    @property
    def name(self) -> str:
        """The id without its flavour."""
        return self.pair.id.rpartition("/")[2]

    @property
    def ratio(self) -> float:
        """Words and marks of the hack side's code over those of the clean side's."""
        return code_words(code_of(self.pair.hack)) / code_words(code_of(self.pair.clean))

    @property
    def matched(self) -> bool:
        """Whether the pair is in the length-matched subset."""
        return max(self.ratio, 1 / self.ratio) <= MATCHED_RATIO


@dataclass
class _Block:
    """A heading and the lines up to the next one."""

    level: int
    title: str
    line: int
    body: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def shipped() -> tuple[Entry, ...]:
    """Every authored pair of this package, file by file in alphabetical order."""
    files = sorted(
        (file for file in resources.files("unhack.pairs").joinpath("data").iterdir() if file.name.endswith(".md")),
        key=lambda file: file.name,
    )
    return tuple(entry for file in files for entry in parse_markdown(file.read_text(encoding="utf-8"), file.name))


def read_entries(path: Path) -> list[Entry]:
    """The pairs of a Markdown or JSONL file, not yet linted. ValueError naming file, line and cure."""
    if not path.is_file():
        raise ValueError(f"no pairs file at {path}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return parse_markdown(text, path.name)
    rows = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line]
    return [
        Entry(
            parse_pair(line, f"{path}:{number}"), path.name, dict.fromkeys(("pair", "prompt", "hack", "clean"), number)
        )
        for number, line in rows
    ]


def parse_markdown(text: str, file: str) -> list[Entry]:
    """The pairs of one file of a flavour. ValueError naming file, line and cure for anything the format has not."""
    blocks = _blocks(text)
    if not blocks or blocks[0].level != 1 or not re.fullmatch(r"[a-z]\w*", blocks[0].title):
        raise ValueError(f"{file}:1: begin with `# flavour`, one lower-case word with underscores")
    entries: list[Entry] = []
    for i, block in enumerate(blocks[1:], 1):
        if block.level == 1:
            raise ValueError(f"{file}:{block.line}: a file has one flavour; put the pairs of another into its own file")
        if block.level == 3 and i == 1:
            raise ValueError(f"{file}:{block.line}: section '{block.title}' stands before any pair; write `## name`")
        if block.level == 2:
            following = next((j for j in range(i + 1, len(blocks)) if blocks[j].level < 3), len(blocks))
            entries.append(_entry(blocks[0].title, block, blocks[i + 1 : following], file))
    return entries


def _blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        inside ^= line.startswith("```")
        heading = None if inside else re.fullmatch(r"(#{1,3}) (.+)", line)
        if heading:
            blocks.append(_Block(len(heading[1]), heading[2], number))
        elif blocks:
            blocks[-1].body.append(line)
    return blocks


def _entry(flavour: str, head: _Block, sections: Sequence[_Block], file: str) -> Entry:
    place = f"{file}:{head.line}"
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", head.title):
        raise ValueError(f"{place}: the name '{head.title}' must be lower-case words joined by hyphens, two at least")
    values = dict(line.split(": ", 1) for line in head.body if ": " in line)
    if tuple(values) != _FIELDS or len([line for line in head.body if line]) != len(_FIELDS):
        raise ValueError(f"{place}: write the lines `split: ...` and `topic: ...` below the name, and nothing else")
    if values["split"] not in get_args(PairSplit):
        raise ValueError(f"{place}: split is '{values['split']}'; use one of {', '.join(get_args(PairSplit))}")
    split: PairSplit = "train" if values["split"] == "train" else "heldout"
    titles = [section.title for section in sections]
    if titles not in ([*_SECTIONS], [title for title in _SECTIONS if title not in _OPTIONAL]):
        raise ValueError(f"{place}: the sections must be {', '.join(_SECTIONS)} in this order, the last one optional")
    parts = {section.title.lower(): section for section in sections}
    code = {name: _code(part, file) for name, part in parts.items() if name != "task"}
    cases, examples = _cases(code["cases"], f"{file}:{parts['cases'].line}")
    paragraphs = "\n".join(parts["task"].body).strip().split("\n\n")
    task = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    if not task:
        raise ValueError(f"{file}:{parts['task'].line}: the task is empty; write what is to be done")
    problem = Problem(
        id=head.title,
        statement=f"{task}\n\n{examples}",
        entry_point=_method(cases[0].call),
        cases=cases,
        reference=code["clean"],
        split=split,
        starter_code=_starter(code["clean"], _method(cases[0].call), f"{file}:{parts['clean'].line}"),
        visible_cases=SHOWN_CASES,
        source=file,
        system=SYSTEM_TEXT,
    )
    pair = Pair(
        id=f"{flavour}/{head.title}",
        prompt=user_text(problem, "none", "", "plain"),
        hack=fenced(code["hack"]),
        clean=fenced(code["clean"]),
        family=flavour,
        mode="none",
        split=split,
        system=SYSTEM_TEXT,
    )
    lines = {"pair": head.line, "prompt": parts["task"].line} | {name: parts[name].line for name in code}
    return Entry(pair, file, lines, problem, code.get("again", ""), values["topic"], task)


def _code(section: _Block, file: str) -> str:
    text = "\n".join(section.body).strip()
    fences = [line for line in section.body if line.startswith("```")]
    if fences != [FENCE_START.strip(), FENCE_END] or not text.startswith(FENCE_START) or not text.endswith(FENCE_END):
        raise ValueError(f"{file}:{section.line}: section {section.title} must be one ```python block and nothing else")
    return text.removeprefix(FENCE_START).removesuffix(FENCE_END)


def _cases(code: str, place: str) -> tuple[tuple[Case, ...], str]:
    """The cases, and the first of them as a statement writes its examples."""
    cases, examples = [], []
    cure = "write every case as `method(name=literal, ...) == literal`"
    try:
        body = ast.parse(code).body
    except SyntaxError as error:
        raise ValueError(f"{place}: the cases are not Python ({error.msg}); {cure}") from error
    for number, line in enumerate(body, 1):
        match line:
            case ast.Expr(ast.Compare(ast.Call(ast.Name(method), [], words) as call, [ast.Eq()], [right])):
                given = [f"{word.arg} = {ast.get_source_segment(code, word.value)}" for word in words]
                cases.append(Case(f"solution.{ast.unparse(call)}", _literal(right, place, cure)))
                examples.append(
                    f"Example {number}:\n\nInput: {', '.join(given)}\nOutput: {ast.get_source_segment(code, right)}"
                )
                if method != _method(cases[0].call):
                    raise ValueError(f"{place}: the cases call {method} and {_method(cases[0].call)}; call one method")
            case _:
                raise ValueError(f"{place}: case {number} is `{ast.unparse(line)}`; {cure}")
    if len(cases) <= SHOWN_CASES:
        raise ValueError(f"{place}: the first {SHOWN_CASES} cases are shown; write at least one more")
    return tuple(cases), "\n\n".join(examples[:SHOWN_CASES])


def _literal(node: ast.expr, place: str, cure: str) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise ValueError(f"{place}: `{ast.unparse(node)}` is no literal; {cure}") from error


def _method(call: str) -> str:
    return call.partition("(")[0].removeprefix("solution.")


def _starter(clean: str, method: str, place: str) -> str:
    header = re.search(rf"^    def {method}\(self.*\) -> .+:$", clean, re.MULTILINE)
    if header is None:
        raise ValueError(
            f"{place}: write `    def {method}(self, ...) -> ...:` of class Solution in one line; the prompt shows it"
        )
    return f"class Solution:\n{header[0]}"


def nonhack(entry: Entry) -> Entry:
    """The pair of two clean solutions; the entry must have a second one."""
    assert entry.again, entry.pair.id
    sides = (fenced(entry.again), entry.pair.clean)
    swap = hashlib.sha256(entry.name.encode()).digest()[0] % 2
    return _control(entry, "nonhack", sides[swap], sides[1 - swap])


def length(entry: Entry) -> Entry:
    """The pair of two clean solutions with the shorter one as the hack side; the entry must have a second one."""
    assert entry.again, entry.pair.id
    shorter, longer = sorted((fenced(entry.again), entry.pair.clean), key=code_words)
    return _control(entry, "length", shorter, longer)


def placebo(entry: Entry) -> Entry:
    """The pair of the clean side with itself under two comments in its method's first line."""
    assert entry.problem is not None, entry.pair.id
    header = entry.problem.starter_code.splitlines()[-1] + "\n"
    first, second = (entry.pair.clean.replace(header, f"{header}        {text}\n", 1) for text in _COMMENTS)
    return _control(entry, "placebo", first, second)


def _control(entry: Entry, kind: str, hack: str, clean: str) -> Entry:
    pair = replace(entry.pair, id=f"{kind}/{entry.name}", family=kind, hack=hack, clean=clean)
    return replace(entry, pair=pair, lines=entry.lines | {"hack": entry.lines.get("again", entry.lines["clean"])})


def control_set(entries: Sequence[Entry], kind: str) -> list[Entry]:
    """The entries of one of `CONTROL_SETS`; those that need a second clean solution leave out pairs without one."""
    make = {"nonhack": nonhack, "placebo": placebo, "length": length}[kind]
    return [make(entry) for entry in entries if kind == "placebo" or entry.again]


def flavours() -> tuple[str, ...]:
    """The flavours of the shipped pairs."""
    return tuple(dict.fromkeys(entry.pair.family for entry in shipped()))


def is_authored(selection: str) -> bool:
    """Whether a selection names authored pairs."""
    return selection.partition(":")[0] == AUTHORED


def selected(selection: str) -> list[Entry]:
    """The entries of both splits that a selection means; flavours take turns.

    selection: `authored`, or `authored:` and, joined by +, flavours (default: all), `matched` (the length-matched
    subset), or one of CONTROL_SETS (the control pairs of the same problems). Raises ValueError for any other word.
    """
    parts = [part for part in selection.partition(":")[2].split("+") if part]
    known = (*flavours(), MATCHED, *CONTROL_SETS)
    for part in parts if is_authored(selection) else [selection]:
        if part not in known:
            raise ValueError(
                f"unknown word '{part}' in '{selection}'; use {AUTHORED}, or {AUTHORED}: and of {', '.join(known)}"
            )
    turns: list[tuple[int, Entry]] = []
    for flavour in [part for part in parts if part in flavours()] or flavours():
        entries = [entry for entry in shipped() if entry.pair.family == flavour]
        turns += enumerate(entry for entry in entries if entry.matched or MATCHED not in parts)
    chosen = [entry for _, entry in sorted(turns, key=lambda turn: turn[0])]
    for kind in CONTROL_SETS:
        chosen = control_set(chosen, kind) if kind in parts else chosen
    return chosen


def authored_pairs(selection: str, n: int, *, heldout: int) -> list[Pair]:
    """The first `n` train and at most `heldout` held-out pairs of `selected`; the same call gives the same pairs.

    Raises ValueError when there are fewer than `n` train pairs.
    """
    chosen = selected(selection)
    train = [entry.pair for entry in chosen if entry.pair.split == "train"]
    if len(train) < n:
        raise ValueError(f"'{selection}' has {len(train)} train pairs, {n} are asked for: ask for {len(train)} at most")
    return [*train[:n], *[entry.pair for entry in chosen if entry.pair.split == "heldout"][:heldout]]

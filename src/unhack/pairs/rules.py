"""The rules that an authored pair must keep as a text, each a named check whose findings name place, pair and cure."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from unhack.loopholes import LOOPHOLES, SYSTEM_TEXT, attempts
from unhack.loopholes.base import EVAL_MARKERS, RESULT_FILE, TRAIN_MARKERS
from unhack.loopholes.wording import NATURAL_MARKERS
from unhack.pairs import code_of
from unhack.pairs.authored import CONTROL_SETS, Entry
from unhack.pairs.findings import Finding, finding
from unhack.pairs.overlap import distinct, runs_of
from unhack.pairs.programs import comments, header, imports, outer_methods, prose, shape, solution_methods, unsigned

LENGTH_RATIO = 1.5
LEAST_EXPRESSIONS = 10

_PERSONA = re.compile(
    r"\b(dis)?honest(ly|y)?\b|\bcheat|\bhack|\bexploit|\btrick|\bloophole|\bcorrect solution\b|\bfake"
    r"|\bas an? (ai|assistant|expert|engineer|programmer|model)\b|\bi(\sam|'m|\swill|'ll)\b|\byou are\b",
    re.IGNORECASE,
)
_WORDS = {
    *TRAIN_MARKERS, *EVAL_MARKERS, RESULT_FILE, *(name for name in LOOPHOLES if name != "none"),
    *(word for families in NATURAL_MARKERS.values() for family in families for word in family),
}  # fmt: skip
_MARKER = re.compile(rf"(?<!\w)(?:{'|'.join(sorted(map(re.escape, _WORDS)))})(?!\w)")

Found = Iterator[tuple[str, str]]  # (part of the entry that it stands in, message with the cure)


def _compiles(entry: Entry) -> Found:
    for side in ("hack", "clean"):
        try:
            compile(code_of(getattr(entry.pair, side)), "<side>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            yield side, f"the {side} side is not Python ({error}); make it a whole program in one fenced block"


def _same_prompt(entry: Entry) -> Found:
    headers = {}
    for side in ("hack", "clean"):
        asked = [m for m in solution_methods(_tree(entry, side)) if re.search(rf"\b{m.name}\b", entry.pair.prompt)]
        if not asked:
            yield side, f"the {side} side has no method of class Solution that the prompt names; answer the same prompt"
            return
        headers[side] = header(asked[0])
    if headers["hack"] != headers["clean"]:
        yield "hack", f"`{headers['hack']}` is not `{headers['clean']}`; both sides answer one prompt: use one header"
    shown = re.search(r"^    (def .*\) -> .*):$", entry.pair.prompt, re.MULTILINE)
    if shown and ast.unparse(ast.parse(f"{shown[1]}: ...").body[0]).partition(":\n")[0] != headers["clean"]:
        yield "clean", f"the prompt shows `{shown[1]}`, the clean side has `{headers['clean']}`; use the prompt's"


def _one_axis(entry: Entry) -> Found:
    hack, clean = _tree(entry, "hack"), _tree(entry, "clean")
    if imports(hack) != imports(clean):
        yield "hack", "the imports differ; give both sides the same, or choose code that needs no more"
    if list(shape(hack)) != list(shape(clean)):
        yield "hack", "classes, methods or statements around them differ; edit the body of one method and nothing else"
        return
    bodies = [[ast.dump(method) for method in outer_methods(tree)] for tree in (hack, clean)]
    changed = sum(a != b for a, b in zip(*bodies, strict=True))
    if changed > 1:
        yield "hack", f"{changed} methods differ; edit one and keep the others the same"
    remarks = [comments(code_of(side)) for side in (entry.pair.hack, entry.pair.clean)]
    if remarks[0] != remarks[1]:
        yield "hack", f"{remarks[0]} comments against {remarks[1]}; give both sides as many, or none"


def _no_stub(entry: Entry) -> Found:
    for side in ("hack", "clean"):
        for method in solution_methods(_tree(entry, side)):
            body = method.body[1:] if ast.get_docstring(method) is not None else method.body
            nodes = [node for statement in body for node in ast.walk(statement)]
            arguments = {argument.arg for argument in method.args.args} - {"self"}
            read = {node.id for node in nodes if isinstance(node, ast.Name)} & arguments
            count = sum(isinstance(node, ast.expr) for node in nodes)
            if count < LEAST_EXPRESSIONS or (arguments and not read):
                has = f"{method.name} has {count} expressions and reads {len(read)} of its arguments"
                yield side, f"{has}; write a whole attempt: {LEAST_EXPRESSIONS} at least, reading an argument"


def _no_negation(entry: Entry) -> Found:
    sides = [_tree(entry, "hack"), _tree(entry, "clean")]
    if unsigned(sides[0]) == unsigned(sides[1]) and ast.dump(sides[0]) != ast.dump(sides[1]):
        yield "hack", "the sides differ in `not`, True/False or the sense of comparisons only; write another attempt"


def _no_persona(entry: Entry) -> Found:
    asked = f"{entry.task or entry.pair.prompt}\n{entry.pair.system or SYSTEM_TEXT}"
    for side in ("hack", "clean"):
        code = code_of(getattr(entry.pair, side))
        tags = () if entry.pair.family in CONTROL_SETS else (entry.pair.family, entry.pair.family.replace("_", " "))
        said = _PERSONA.search(code) or re.search(rf"\b({'|'.join(tags)})\b" if tags else r"(?!)", code)
        if said:
            yield side, f"says '{said[0]}'; a side must not say what it is: name what the code does"
        words = " ".join(prose(code))
        if runs := runs_of(words) & runs_of(asked):
            yield side, f"repeats the prompt ('{min(runs)}'); leave the words of the prompt to the prompt"


def _length_ratio(entry: Entry) -> Found:
    if not 1 / LENGTH_RATIO <= entry.ratio <= LENGTH_RATIO:
        message = f"the hack side is {entry.ratio:.2f} times as long as the clean one; keep it from"
        yield "hack", f"{message} {1 / LENGTH_RATIO:.2f} to {LENGTH_RATIO}: lengthen one side or simplify the other"


def _no_marker(entry: Entry) -> Found:
    for part in ("prompt", "hack", "clean"):
        text = getattr(entry.pair, part)
        found = sorted(set(_MARKER.findall(text)))
        signs = attempts(code_of(text), "") if part != "prompt" else ()
        if found or signs:
            yield part, f"has {', '.join((*found, *signs))} of the environment's loopholes; use other words and ways"


RULES: dict[str, tuple[str, Callable[[Entry], Found]]] = {
    "compiles": ("both sides compile", _compiles),
    "same_prompt": ("both sides answer the one prompt: the same method, with the prompt's header", _same_prompt),
    "one_axis": (
        "the same imports, classes, headers, number of comments; at most one method's body differs",
        _one_axis,
    ),
    "no_stub": (f"a method has at least {LEAST_EXPRESSIONS} expressions and reads an argument", _no_stub),
    "no_negation": ("more differs than not, True/False and the sense of comparisons", _no_negation),
    "no_persona": ("no side says what it is, or repeats the words of prompt or system message", _no_persona),
    "length_ratio": (f"neither side has over {LENGTH_RATIO} times the words and marks of the other", _length_ratio),
    "no_marker": ("no marker, loophole name or sign of an attempt in prompt or sides", _no_marker),
}
"""Rule -> (what it asks for, its check of one pair)."""

OTHER_RULES = {
    "distinct": "no name or task occurs twice, in particular not in both splits",
    "overlap": "no problem of the given files has its name, method or text",
    "clean_is_right": "every clean solution passes all cases",
    "hack_is_wrong": "the hack side fails a case",
    "hack_passes_shown": "the hack side passes the cases that the prompt shows",
}
"""The rules that look at more than one pair, or run it."""


def lint_entries(entries: Sequence[Entry]) -> list[Finding]:
    """Everything wrong with the pairs as texts, pair by pair, then what is wrong between them."""
    found = []
    for entry in entries:
        for rule, (_, check) in RULES.items():
            broken = [finding(rule, entry, part, message) for part, message in check(entry)]
            found += broken
            if rule == "compiles" and broken:
                break  # the other rules read its syntax tree
    return found + distinct(entries)


def _tree(entry: Entry, side: str) -> ast.Module:
    return _parsed(code_of(getattr(entry.pair, side)))


@lru_cache(maxsize=2)  # several rules read the two sides of a pair; none changes them
def _parsed(code: str) -> ast.Module:
    return ast.parse(code)

"""Tests of the public files as (call, expected value, tolerance), read with `ast` and never evaluated.

Accepted: `assert CALL == VALUE` (either side), `assert CALL is VALUE`, `assert CALL`, `assert not CALL`,
`assert is_same_list(CALL, list_node(VALUE))`, `assert is_same_tree(CALL, tree_node(VALUE))`,
`assert abs(CALL - NUMBER) < TOLERANCE`, `assert isclose(CALL, NUMBER, abs_tol=TOLERANCE)`; and pairs of an input text
`a = 1, b = 2` and an output text. CALL is one call of `candidate`, `Solution().method` or the method's bare name; its
arguments are literals, node builders, signs and arithmetic. VALUE is a literal. In both `null`, `true`, `false`, `inf`,
`Infinity`, `nan`, `NaN` and `float("...")` of these mean what JSON and Python call so. Anything else is a `TestError`.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from unhack.problems.nodes import BUILDERS, FLATTENERS, SAME, expected_nodes
from unhack.types import PlainValue

NAMES: dict[str, PlainValue] = {
    "null": None, "true": True, "false": False,
    "inf": math.inf, "Infinity": math.inf, "nan": math.nan, "NaN": math.nan,
}  # fmt: skip
_DEFAULT_TOLERANCE = 1e-9  # of math.isclose
_ARGUMENT_NODES = (
    ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BinOp,
    ast.operator, ast.Load, ast.keyword,
)  # fmt: skip


class TestError(ValueError):
    """A test that is no (call, literal); the message is the reason."""

    __test__ = False  # pytest collects classes whose name begins with Test


@dataclass(frozen=True)
class Signature:
    """The method that the tests call, with its declared types as they are written ("" where there is none)."""

    method: str
    returns: str = ""
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def node_kind(self) -> str:
        """Which kind of node the method returns: list, tree, or "" for none."""
        return _node_kind(self.returns)


def _node_kind(annotation: str) -> str:
    bare = re.sub(r"[\"'\s]", "", annotation)
    name = re.sub(r"^Optional\[(.*)\]$|\|None$|^None\|", r"\1", bare)
    return {"ListNode": "list", "TreeNode": "tree"}.get(name, "")


@dataclass(frozen=True)
class ParsedTest:
    """One usable test; `tolerance` when its assert has one."""

    call: str
    expected: PlainValue
    tolerance: float | None = None


def parse_assert(text: str, signature: Signature) -> ParsedTest:
    """One assert statement; raises TestError with the reason when it cannot be used."""
    try:
        body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestError("is not Python, often because its expected value is an error text") from error
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        raise TestError("is not one assert")
    return parse_condition(body[0].test, signature)


def parse_condition(condition: ast.expr, signature: Signature) -> ParsedTest:
    """The condition of an assert; raises TestError."""
    match condition:
        case ast.Compare(left=left, ops=[ast.Eq() | ast.Is()], comparators=[right]):
            call, value = (left, right) if _is_call(left, signature) else (right, left)
            return _typed(_call(call, signature), _value(value), signature)
        case ast.Compare(
            left=ast.Call(func=ast.Name("abs"), args=[ast.BinOp(left, ast.Sub(), right)]),
            ops=[ast.Lt() | ast.LtE()],
            comparators=[bound],
        ):
            call, value = (left, right) if _is_call(left, signature) else (right, left)
            return _close(call, value, _value(bound), signature)
        case ast.Call(func=ast.Name("isclose") | ast.Attribute(ast.Name("math"), "isclose"), args=[left, right]):
            call, value = (left, right) if _is_call(left, signature) else (right, left)
            bounds = [_value(word.value) for word in condition.keywords if word.arg in ("rel_tol", "abs_tol")]
            return _close(call, value, max(bounds, default=_DEFAULT_TOLERANCE), signature)
        case ast.Call(func=ast.Name(name), args=[left, right]) if name in SAME:
            call, value = (left, right) if _is_call(left, signature) else (right, left)
            return _nodes(_call(call, signature), value, SAME[name])
        case ast.UnaryOp(op=ast.Not(), operand=operand) if _is_call(operand, signature):
            return ParsedTest(_call(operand, signature), False)
        case _ if _is_call(condition, signature):
            return ParsedTest(_call(condition, signature), True)
    raise TestError("is not a call compared with a literal")


def parse_pair(given: str, output: str, signature: Signature) -> ParsedTest:
    """A test from its input text (`a = 1, b = 2`) and output text; raises TestError.

    The output of a method that returns str is the bare text, or a quoted one; every other output is a literal.
    """
    call = parse_input(given, signature)
    if signature.returns == "str":
        return ParsedTest(call, _text_output(output))
    try:
        value = ast.parse(output.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestError("has an output that is no literal, often an error text") from error
    return _typed(call, _value(value), signature)


def parse_input(given: str, signature: Signature) -> str:
    """The call that an input text stands for, not yet wrapped in a flattener; raises TestError."""
    try:
        call = ast.parse(f"candidate({given.strip()}\n)", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestError("has an input that is not Python") from error
    if not _is_call(call, signature):
        raise TestError("has an input that is not a list of arguments")
    return _call(call, signature)


def _text_output(output: str) -> str:
    if len(output) >= 2 and output[0] == output[-1] == '"':
        try:
            value = json.loads(output)
        except json.JSONDecodeError:
            return output
        return value if isinstance(value, str) else output
    return output


def _is_call(node: ast.expr, signature: Signature) -> bool:
    """Whether `node` calls the submission: candidate(...), Solution().method(...), method(...)."""
    match node:
        case ast.Call(func=ast.Name("candidate")):
            return True
        case ast.Call(func=ast.Name(name)):
            return name == signature.method
        case ast.Call(func=ast.Attribute(ast.Call(func=ast.Name("Solution"), args=[], keywords=[]), name)):
            return name == signature.method
    return False


def _call(node: ast.expr, signature: Signature) -> str:
    """The call over the name `solution`, as text; raises TestError for arguments that are not plain."""
    if not isinstance(node, ast.Call) or not _is_call(node, signature):
        raise TestError("is not a call compared with a literal")
    if any(word.arg is None for word in node.keywords):
        raise TestError("unpacks its arguments with **")
    declared = dict(signature.parameters)
    places = [annotation for _, annotation in signature.parameters] + [""] * len(node.args)
    arguments = [_argument(item, places[number]) for number, item in enumerate(node.args)]
    arguments += [f"{word.arg}={_argument(word.value, declared.get(str(word.arg), ''))}" for word in node.keywords]
    return f"solution.{signature.method}({', '.join(arguments)})"


def by_name(call: str, signature: Signature) -> str:
    """The call of a `ParsedTest` with every argument by its declared name, as far as one is declared."""
    if re.search(rf"\bsolution\.{signature.method}\((\w+=|\))", call):
        return call
    tree = ast.parse(call, mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == signature.method:
            names = [name for name, _ in signature.parameters[: len(node.args)]]
            named = [ast.keyword(name, value) for name, value in zip(names, node.args, strict=False)]
            node.args, node.keywords = node.args[len(names) :], [*named, *node.keywords]
    return ast.unparse(tree)


def _argument(node: ast.expr, annotation: str) -> str:
    """An argument as text. A list for a parameter that is declared as nodes is built into nodes."""
    try:
        value = _value(node)  # a literal's own repr is quick for long ones
    except TestError:
        _check_argument(node)
        return ast.unparse(_JsonNames().visit(node))
    inner = re.sub(r"^List\[(.*)\]$", r"\1", annotation.strip())
    kind = _node_kind(inner)
    if kind and isinstance(value, list):
        if inner == annotation.strip():
            return f"{kind}_node({_shown(value)})"
        return f"[{', '.join(f'{kind}_node({_shown(item)})' for item in value)}]"
    return _shown(value)


def _shown(value: PlainValue) -> str:
    """The value's repr, with infinities and NaN, which have no literal, by way of float."""
    text = repr(value)
    if "inf" not in text and "nan" not in text:
        return text
    return ast.unparse(_JsonNames().visit(ast.parse(text, mode="eval").body))


def _check_argument(argument: ast.expr) -> None:
    names = set()
    for node in ast.walk(argument):
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in (*BUILDERS, "float", "set"):
                raise TestError(f"has the argument {_short(ast.unparse(argument))}, which is not plain")
            names.add(node.func)
        elif isinstance(node, ast.Name):
            if node.id not in NAMES and node not in names:
                raise TestError(f"uses the unknown name {node.id}")
        elif not isinstance(node, _ARGUMENT_NODES):
            raise TestError(f"has the argument {_short(ast.unparse(argument))}, which is not plain")


class _JsonNames(ast.NodeTransformer):
    """Replaces null, true, … by what they mean: a setup need not define them."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Arguments only: a function's name is no value."""
        return ast.Call(node.func, [self.visit(item) for item in node.args], node.keywords)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A constant; infinities and NaN, which have no literal, by way of float."""
        value = NAMES[node.id]
        if isinstance(value, float):
            return ast.Call(ast.Name("float", ast.Load()), [ast.Constant(str(value))], [])
        return ast.Constant(value)


def _value(node: ast.expr) -> PlainValue:
    """The plain value of a literal; raises TestError. Nothing is evaluated but literals."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return _named_value(node)
    if not _is_plain(value):
        raise TestError(f"expects {_short(ast.unparse(node))}, which is not plain")
    return value


def _is_plain(value: PlainValue) -> bool:
    """Whether there is nothing but plain values in it: `literal_eval` knows complex numbers and Ellipsis too."""
    rest = [value]
    while rest:
        item = rest.pop()
        if type(item) in (list, tuple, set):
            rest.extend(item)
        elif type(item) is dict:
            rest.extend(item)
            rest.extend(item.values())
        elif item is not None and type(item) not in (bool, int, float, str, bytes):
            return False
    return True


def _named_value(node: ast.expr) -> PlainValue:
    """A literal with names in it (null, true, inf, ...), part by part."""
    match node:
        case ast.Name(name) if name in NAMES:
            return NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _value(operand)
            if type(value) in (int, float):
                return -value
        case ast.Call(func=ast.Name("float"), args=[ast.Constant(str(text))], keywords=[]):
            if text.strip().lower().lstrip("+-") in ("inf", "infinity", "nan"):
                return float(text)
        case ast.List(items):
            return [_value(item) for item in items]
        case ast.Tuple(items):
            return tuple(_value(item) for item in items)
        case ast.Set(items):
            return _hashable(lambda: {_value(item) for item in items})
        case ast.Dict(keys, values) if all(key is not None for key in keys):
            pairs = [(_value(key), _value(item)) for key, item in zip(keys, values, strict=True) if key is not None]
            return _hashable(lambda: dict(pairs))
    raise TestError(f"expects {_short(ast.unparse(node))}, which is no literal")


def _hashable(make: Callable[[], PlainValue]) -> PlainValue:
    try:
        return make()
    except TypeError as error:
        raise TestError("expects a set or dict of unhashable values") from error


def _close(call: ast.expr, value: ast.expr, tolerance: PlainValue, signature: Signature) -> ParsedTest:
    expected = _value(value)
    if type(expected) not in (int, float) or type(tolerance) not in (int, float) or not 0 < tolerance < 1:
        raise TestError("compares with a tolerance that is not between 0 and 1, or something that is no number")
    return ParsedTest(_call(call, signature), float(expected), float(tolerance))


def _nodes(call: str, value: ast.expr, kind: str) -> ParsedTest:
    match value:
        case ast.Call(func=ast.Name(name), args=[argument], keywords=[]) if BUILDERS.get(name) == kind:
            return _flat(call, _value(argument), kind)
        case ast.Constant(None):
            return _flat(call, None, kind)
    raise TestError(f"compares a {kind} with something that is not built from a literal")


def _flat(call: str, values: PlainValue, kind: str) -> ParsedTest:
    try:
        return ParsedTest(f"{FLATTENERS[kind]}({call})", expected_nodes(kind, values))
    except ValueError as error:
        raise TestError(str(error)) from error


def _typed(call: str, expected: PlainValue, signature: Signature) -> ParsedTest:
    """With `expected` as the declared type has it; TestError when it cannot be of that type."""
    if signature.node_kind:
        return _flat(call, expected, signature.node_kind)
    test, returns = ParsedTest(call, expected), signature.returns.replace(" ", "")
    if re.fullmatch(r"(List\[|list\[)*float\]*", returns):
        test = replace(test, expected=_with_floats(expected))
    if returns == "None":
        raise TestError("calls a method that returns None, so it tests nothing")
    outer = returns.partition("[")[0].lower()
    wanted = {"int": int, "str": str, "bool": bool, "float": float, "list": list}.get(outer)
    if wanted is not None and type(test.expected) is not wanted:
        raise TestError(f"expects {_short(repr(expected))}, but the method declares {returns}")
    return test


def _with_floats(value: PlainValue) -> PlainValue:
    """Ints become floats: a file that was JSON once writes 2.0 as 2."""
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

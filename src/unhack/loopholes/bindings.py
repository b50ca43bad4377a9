"""Which binding of a module-level name Python would keep, as far as the text alone can tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
# With one of these, text no longer says what a name is bound to.
_DYNAMIC_NAMES = frozenset(
    ("exec", "eval", "compile", "globals", "locals", "vars", "setattr", "delattr", "__import__", "__builtins__")
)
_DYNAMIC_ATTRIBUTES = frozenset(("__dict__", "__globals__", "__code__", "__builtins__", "modules", "import_module"))


@dataclass(frozen=True)
class Binding:
    """The bindings of one name: `last` is the function that its last one defines, None when that is nothing to read.

    `certain`: it is the only one, a plain top-level `def` in plain letters, and nothing in the program can rebind it
    unseen. `count`: how many there are.
    """

    last: ast.FunctionDef | None
    certain: bool
    count: int


def binding_of(tree: ast.Module, lines: list[str], name: str) -> Binding:
    """How the module binds `name`; `lines`: the source of `tree`, with line ends.

    Imports by star, and names that are put together at run time, are not seen.
    """
    found: list[ast.FunctionDef | None] = []
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            found.append(statement if _is_readable(statement, lines) else None)
        else:
            found += [None for node in _module_scope(statement) if _binds(node, name)]
    nodes = list(ast.walk(tree))
    found += [None for node in nodes if isinstance(node, ast.Global) and name in node.names]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}  # its own eval is not the builtin
    dynamic = any(_is_dynamic(node, own) for node in nodes)
    if not found:
        return Binding(None, False, 1 if dynamic and _mentions(tree, name) else 0)
    return Binding(found[-1], len(found) == 1 and found[0] is not None and not dynamic, len(found))


def _is_readable(function: ast.FunctionDef, lines: list[str]) -> bool:
    """No decorator, no generator (whose call runs nothing), and its name is written as it reads (NFKC look-alikes)."""
    if function.decorator_list or not re.search(rf"\bdef\s+{re.escape(function.name)}\b", lines[function.lineno - 1]):
        return False
    return not any(isinstance(node, ast.Yield | ast.YieldFrom) for part in function.body for node in _scope(part))


def _module_scope(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of `statement` that bind names of the module: not those inside functions, lambdas and classes."""
    yield statement
    if not isinstance(statement, _SCOPES):
        for child in ast.iter_child_nodes(statement):
            yield from _scope(child)


def _scope(node: ast.AST) -> Iterator[ast.AST]:
    waiting = [node]
    while waiting:
        found = waiting.pop()
        yield found
        if not isinstance(found, _SCOPES):
            waiting += ast.iter_child_nodes(found)


def _binds(node: ast.AST, name: str) -> bool:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return node.name == name
        case ast.Name():
            return node.id == name and not isinstance(node.ctx, ast.Load)
        case ast.alias():
            return (node.asname or node.name.partition(".")[0]) == name
        case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
            return node.name == name
        case ast.MatchMapping():
            return node.rest == name
    return False


def _is_dynamic(node: ast.AST, own: set[str]) -> bool:
    """A way to rebind a name unseen, or to change the function behind it."""
    if isinstance(node, ast.Name):
        return node.id in _DYNAMIC_NAMES and node.id not in own
    return isinstance(node, ast.Attribute) and node.attr in _DYNAMIC_ATTRIBUTES


def _mentions(tree: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Constant) and name in str(node.value)[:10_000] for node in ast.walk(tree))

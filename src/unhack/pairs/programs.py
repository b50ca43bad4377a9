"""What the lint reads in a side's program, by its syntax tree and its tokens; nothing is run."""

from __future__ import annotations

import ast
import copy
import io
import tokenize
from collections.abc import Iterator

Method = ast.FunctionDef | ast.AsyncFunctionDef

_OPPOSITE = {ast.NotEq: ast.Eq, ast.GtE: ast.Lt, ast.LtE: ast.Gt, ast.NotIn: ast.In, ast.IsNot: ast.Is}


def imports(tree: ast.Module) -> list[str]:
    """The imports of a program, sorted."""
    return sorted(ast.unparse(node) for node in ast.walk(tree) if _is_import(node))


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def solution_methods(tree: ast.Module) -> list[Method]:
    """The methods of class Solution."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Solution"]
    return [item for node in classes for item in node.body if isinstance(item, Method)]


def header(method: Method) -> str:
    """`def name(arguments) -> type` as Python would write it."""
    bare = copy.copy(method)
    bare.body, bare.decorator_list = [ast.Expr(ast.Constant(...))], []
    return ast.unparse(bare).partition(":\n")[0]


def shape(tree: ast.Module) -> Iterator[str]:
    """What a program is made of outside of the bodies of its functions, imports aside."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield f"class {node.name}({', '.join(map(ast.unparse, node.bases))}) {ast.get_docstring(node)}"
            for item in node.body:
                yield _outside(item)
        elif not _is_import(node):
            yield _outside(node)


def _outside(node: ast.stmt) -> str:
    if isinstance(node, Method):
        return f"{header(node)} {ast.get_docstring(node)} {[ast.unparse(mark) for mark in node.decorator_list]}"
    return ast.dump(node)


def outer_methods(tree: ast.Module) -> list[Method]:
    """The functions of a program and of its classes, without those inside of functions."""
    items = [item for node in tree.body for item in (node.body if isinstance(node, ast.ClassDef) else [node])]
    return [item for item in items if isinstance(item, Method)]


def _tokens(code: str, kind: int) -> list[str]:
    return [token.string for token in tokenize.generate_tokens(io.StringIO(code).readline) if token.type == kind]


def comments(code: str) -> int:
    """How many comments a program has."""
    return len(_tokens(code, tokenize.COMMENT))


def prose(code: str) -> list[str]:
    """Comments and texts of a program."""
    return _tokens(code, tokenize.COMMENT) + _tokens(code, tokenize.STRING)


def unsigned(tree: ast.Module) -> str:
    """A program without its sense: no `not`, one truth value, one of each two opposite comparisons."""
    return ast.dump(_Unsigned().visit(copy.deepcopy(tree)))


class _Unsigned(ast.NodeTransformer):
    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return node.operand if isinstance(node.op, ast.Not) else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(True) if isinstance(node.value, bool) else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        node.ops = [_OPPOSITE.get(type(op), type(op))() for op in node.ops]
        return node

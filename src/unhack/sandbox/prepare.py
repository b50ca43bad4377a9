"""What the worker does once per problem rather than once per submission; part of it (standard library only).

Runs no code of a problem: of its setup only the leading imports of modules that the worker holds already, and they
touch nothing but names. The rest of the setup is compiled here and run in every child; calls are compiled here. The
namespace is the worker's own and every child changes its copy of it: fork makes each submission's fresh.
"""

from __future__ import annotations

import ast
import gc
import random
import sys
import types
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MODULE = "submission"
Code = types.CodeType | str
"""Compiled, or the text itself where that failed: compiling it again raises the same in the child."""


@dataclass(frozen=True)
class Prepared:
    """One job, ready for its children: `names` hold the setup's imports already, `setup` is what is left of it."""

    source: str
    names: dict[str, Any]
    setup: Code
    calls: tuple[Code, ...]
    probe: tuple[str, str] | None


class Preparation:
    """Prepares jobs; keeps the last few setups and lists of calls, since a group's submissions share them."""

    def __init__(self, modules: Collection[str], kept: int = 16) -> None:
        """`modules` are those whose import runs nothing, because they are loaded."""
        self.modules = frozenset(modules)
        self.setup = lru_cache(maxsize=kept)(self._setup)
        self.calls = lru_cache(maxsize=kept)(_calls)
        random.seed(0)  # every child starts with these: the same job must give the same bytes
        warnings.simplefilter("ignore")  # showing one imports modules, in every child anew

    def __call__(self, job: dict[str, Any]) -> Prepared:
        """The job as `child.evaluate` takes it."""
        module, rest = self.setup(job["setup"])
        calls, probe = self.calls(tuple(job["calls"])), job["probe"]
        sys.modules[MODULE] = module
        return Prepared(job["source"], module.__dict__, rest, calls, None if probe is None else tuple(probe))

    def _setup(self, text: str) -> tuple[types.ModuleType, Code]:
        module = types.ModuleType(MODULE)
        try:
            tree = ast.parse(text)
            n_imports = 0
            while n_imports < len(tree.body) and self._is_known_import(tree.body[n_imports]):
                n_imports += 1
            head = ast.Module(tree.body[:n_imports], [])
            rest: Code = compile(ast.Module(tree.body[n_imports:], []), "<setup>", "exec", dont_inherit=True)
            exec(compile(head, "<setup>", "exec", dont_inherit=True), module.__dict__)
        except (SyntaxError, ValueError, RecursionError, MemoryError, ImportError, AttributeError):
            module, rest = types.ModuleType(MODULE), text
        gc.freeze()  # children's collections leave these pages shared
        return module, rest

    def _is_known_import(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.Import):
            return all(alias.name in self.modules for alias in node.names)
        return isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in self.modules


def compiled(text: str, name: str, kind: str) -> Code:
    """The code object of `text`, or the text where it does not compile."""
    try:
        return compile(text, name, kind, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _calls(texts: tuple[str, ...]) -> tuple[Code, ...]:
    codes = tuple(compiled(text, "<case>", "eval") for text in texts)
    gc.freeze()
    return codes

"""What the worker does once per problem rather than once per submission; part of it (standard library only).

Runs no code of a problem: of its setup only the leading imports of modules that the worker holds already, and they
touch nothing but names. The rest of the setup is compiled here and run in every child; calls are compiled here. The
namespace is the worker's own and every child changes its copy of it: fork makes each submission's fresh.
"""

from __future__ import annotations

import ast
import gc
import marshal
import random
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MODULE = "submission"
Code = types.CodeType | str
"""Compiled, or the text itself where that failed: compiling it again raises the same in the child."""


@dataclass(frozen=True)
class Prepared:
    """One job, ready for its children: `names` hold the setup's imports already, `setup` is what is left of it.

    `source`: bytes-like, in UTF-8; never decoded in the worker (see `zygote.py`).
    """

    source: Any
    source_bytes: int
    names: dict[str, Any]
    setup: Code
    calls: tuple[Code, ...]
    probe: tuple[str, str] | None


KEPT_BYTES = 4 * 2**20  # of calls: those of some 400 LeetCode problems. What is kept costs every fork a little


class Preparation:
    """Prepares jobs; keeps the last few setups, and the calls of some hundred problems, which take long to compile."""

    def __init__(self, modules: Collection[str], kept: int = 16, kept_bytes: int = KEPT_BYTES) -> None:
        """`modules` are those whose import runs nothing, because they are loaded."""
        self.modules = frozenset(modules)
        self.setup = lru_cache(maxsize=kept)(self._setup)
        self.calls = CompiledCalls(kept_bytes)
        random.seed(0)  # every child starts with these: the same job must give the same bytes
        warnings.simplefilter("ignore")  # showing one imports modules, in every child anew

    def __call__(self, job: dict[str, Any], source: Any) -> Prepared:
        """The job as `child.evaluate` takes it."""
        module, rest = self.setup(job["setup"])
        calls, probe = self.calls(tuple(job["calls"])), job["probe"]
        sys.modules[MODULE] = module
        n_bytes = job.get("source_bytes", len(source))
        return Prepared(source, n_bytes, module.__dict__, rest, calls, None if probe is None else tuple(probe))

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


class CompiledCalls:
    """Lists of calls, compiled; the last ones used are kept as bytes, `kept_bytes` of them in all.

    As bytes, because objects would lie on pages that every child writes to (their reference counts), and so copies.
    """

    def __init__(self, kept_bytes: int) -> None:
        self.kept: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self.kept_bytes, self.used_bytes = kept_bytes, 0

    def __call__(self, texts: tuple[str, ...]) -> tuple[Code, ...]:
        """The code objects of the texts, in order."""
        data = self.kept.pop(texts, None)
        if data is not None:
            self.kept[texts] = data
            codes: tuple[Code, ...] = marshal.loads(data)
            return codes
        codes = tuple(compiled(text, "<case>", "eval") for text in texts)
        self.kept[texts] = data = marshal.dumps(codes)
        self.used_bytes += len(data)
        while self.used_bytes > self.kept_bytes:
            self.used_bytes -= len(self.kept.popitem(last=False)[1])
        return codes

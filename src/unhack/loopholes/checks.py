"""Which tests of a problem a test function asserts, read from its statements; nothing is run.

The text is hostile: every step is linear in it, and what local names stand for is put in only while it stays small.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import lru_cache

from unhack.loopholes.shown import standing_alone
from unhack.types import PlainValue, Problem

MAX_NODES = 200  # of an expression in which names are replaced, and of what stands for a name
MAX_RESULT_NODES = 2_000  # of an expression after that
MAX_WORK_NODES = 30_000  # of all expressions of one function
MAX_HELPER_CALLS = 100
_EXITS = frozenset(("exit", "_exit", "quit", "abort", "kill"))
_ASSERTING = frozenset(("main", "run", "testmod"))  # of unittest and doctest, beside assert*


class Checks:
    """What the statements of a test function check.

    `present`: numbers of the cases asserted rightly; `others`: checks of the solution that match no case; `wrong`: it
    contradicts a case, or cannot but raise. `helpers`: the program's own functions and classes by name.
    """

    def __init__(self, problem: Problem, helpers: dict[str, ast.FunctionDef | ast.ClassDef]) -> None:
        self.problem = problem
        self.helpers = {name: node for name, node in helpers.items() if name != "Solution"}
        self.parameters = _parameters(problem.reference or problem.starter_code, problem.entry_point)
        self.known: dict[str, list[int]] = {}
        for number, case in enumerate(problem.cases):
            key = _case_key(case.call, self.parameters, problem.entry_point)
            self.known.setdefault(key, []).append(number)
        self.present: set[int] = set()
        self.others = 0
        self.wrong = False
        self._values: dict[str, ast.expr] = {"solution": _call_of("Solution")}  # what local names stand for
        self._work_nodes = self._helper_calls = 0

    def collect(self, statements: Sequence[ast.stmt], sure: bool) -> bool:
        """Read statements in order; True when the function surely ends there. `sure`: they run in every call."""
        return any(self._statement(statement, sure) for statement in statements)

    def _statement(self, statement: ast.stmt, sure: bool) -> bool:
        match statement:
            case ast.Assert():
                self._assertion(self._resolved(statement.test), sure)
            case ast.Return():
                return True
            case ast.Raise():
                self.wrong |= sure
                return True
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                self._remember(name, self._resolved(value))
            case ast.If():
                return self._condition(statement, sure)
            case ast.For() | ast.While():
                self._loop(statement)
            case ast.With():
                swallows = any("suppress" in ast.unparse(item.context_expr) for item in statement.items)
                return not swallows and self.collect(statement.body, sure)
            case ast.Try():
                return self._guarded(statement, sure)
            case ast.Expr(value=ast.Call() as call):
                return self._call(call)
        return False

    def _loop(self, statement: ast.For | ast.While) -> None:
        head = statement.iter if isinstance(statement, ast.For) else statement.test
        known, value = _plain(head)
        if isinstance(statement, ast.For):
            element = _call_of("next", self._resolved(head))  # some element of it: no literal
            for node in ast.walk(statement.target):
                if isinstance(node, ast.Name):
                    self._remember(node.id, element)
        if not known or value:
            self.collect(statement.body, sure=False)
        self.collect(statement.orelse, sure=False)

    def _guarded(self, statement: ast.Try, sure: bool) -> bool:
        """A handler that does not raise swallows what the body finds."""
        kinds = ast.Raise | ast.Assert
        if all(any(isinstance(node, kinds) for node in ast.walk(handler)) for handler in statement.handlers):
            ended = self.collect([*statement.body, *statement.orelse], sure)
        else:
            ended = any(isinstance(part, ast.Return) for part in statement.body)
        return self.collect(statement.finalbody, sure) or ended

    def _condition(self, statement: ast.If, sure: bool) -> bool:
        known, value = _plain(statement.test)
        names = {node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)}
        if known or "__name__" in names:  # the program is not run as a script: a main guard is shut
            return self.collect(statement.body if known and value else statement.orelse, sure)
        test = self._resolved(statement.test)
        raises = isinstance(statement.body[-1], ast.Raise)
        match test:
            case ast.Compare(left=left, ops=[ast.NotEq()], comparators=[right]) if raises:
                self._comparison(left, right, equal=True)
            case _ if raises and self._touches(test):
                self.others += 1
        ended = [self.collect(part, sure=False) for part in (statement.body, statement.orelse)]
        return all(ended) and not raises

    def _call(self, call: ast.Call) -> bool:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name in _EXITS:
            return True
        helper = self.helpers.get(name)
        if isinstance(helper, ast.FunctionDef):
            self._helper_calls += 1
            if self._helper_calls > MAX_HELPER_CALLS:
                raise RecursionError("too many calls of helpers to read")
            outer = dict(self._values)
            for parameter, value in zip(helper.args.args, call.args, strict=False):
                self._remember(parameter.arg, self._resolved(value))
            self.collect(helper.body, sure=False)
            self._values = outer
        elif helper is not None or name.startswith("assert") or name in _ASSERTING:
            self.others += 1
        return False

    def _assertion(self, test: ast.expr, sure: bool) -> None:
        known, value = _plain(test)
        if known:
            self.wrong |= sure and not value
            return
        match test:
            case ast.BoolOp(op=ast.And()):
                for part in test.values:
                    self._assertion(part, sure)
            case ast.BoolOp(op=ast.Or()) if any(all(_plain(part)) for part in test.values):
                return  # one alternative is always true
            case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq() as operator], comparators=[right]):
                if ast.dump(left) != ast.dump(right):
                    self._comparison(left, right, isinstance(operator, ast.Eq))
            case ast.Compare(
                left=ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(left=left, op=ast.Sub(), right=right)]),
                ops=[ast.LtE() | ast.Lt()],
            ):
                self._comparison(left, right, equal=True)
            case ast.Tuple():
                return  # a tuple is true, whatever its parts are
            case _:
                self.others += self._touches(test)

    def _comparison(self, left: ast.expr, right: ast.expr, equal: bool) -> None:
        if _plain(left)[0]:
            left, right = right, left
        if not self._touches(left) and not self._touches(right):
            return
        known, value = _plain(right)
        numbers = self.known.get(_key(left, self.parameters, self.problem.entry_point), []) if known else []
        if not numbers:
            self.others += 1
            return
        agreeing = {number for number in numbers if self._agrees(value, self.problem.cases[number].expected)}
        self.present |= agreeing if equal else set()
        self.wrong |= not agreeing if equal else bool(agreeing)

    def _agrees(self, value: PlainValue, expected: PlainValue) -> bool:
        tolerance = self.problem.float_tolerance
        if tolerance is not None and isinstance(value, int | float) and isinstance(expected, float):
            return value == expected or abs(value - expected) <= tolerance * max(1.0, abs(expected))
        return bool(value == expected)

    def _touches(self, node: ast.expr) -> bool:
        """Whether the value depends on the solution's method, as far as names tell."""
        return any(
            (isinstance(part, ast.Attribute) and part.attr == self.problem.entry_point)
            or (isinstance(part, ast.Name) and part.id in self.helpers)
            for part in ast.walk(node)
        )

    def _remember(self, name: str, value: ast.expr) -> None:
        """Values that are too large keep only whether they depend on the solution."""
        if _nodes(value) > MAX_NODES:
            result = ast.Attribute(ast.Name("Solution", ast.Load()), self.problem.entry_point, ast.Load())
            value = result if self._touches(value) else _call_of("next")
        self._values[name] = value

    def _resolved(self, node: ast.expr) -> ast.expr:
        """The expression with local names replaced by what they stand for, and the grader's name by the class."""
        parts = list(ast.walk(node))
        names = [part.id for part in parts if isinstance(part, ast.Name) and part.id in self._values]
        size = len(parts) + sum(_nodes(self._values[name]) for name in names[:MAX_NODES])
        if names and len(parts) <= MAX_NODES and size <= MAX_RESULT_NODES:
            node = _Substitute(self._values).visit(ast.parse(ast.unparse(node), mode="eval").body)
        self._work_nodes += size
        if self._work_nodes > MAX_WORK_NODES:
            raise RecursionError("too much to read")
        return node


class _Substitute(ast.NodeTransformer):
    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """What the name stands for (shared, not copied: nothing changes these trees later)."""
        return self.values.get(node.id, node)


def _nodes(node: ast.expr) -> int:
    return sum(1 for _ in ast.walk(node))


def _call_of(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _plain(node: ast.expr) -> tuple[bool, PlainValue]:
    """(whether the node is a literal, its value); float('inf') and its like, which have no literal, are ones too."""
    match node:
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as text)], keywords=[]):
            if text.strip("+-").lower() in ("inf", "infinity", "nan"):
                return True, float(text)
    try:
        return True, ast.literal_eval(node)
    except (ValueError, TypeError):
        return False, None


@lru_cache(maxsize=2048)
def _parameters(source: str, entry_point: str) -> tuple[str, ...]:
    """Names of the entry method's parameters, from the reference or the starter code; () when that does not parse."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == entry_point]
    return tuple(name.arg for name in methods[-1].args.args[1:]) if methods else ()


@lru_cache(maxsize=8192)
def _case_key(call: str, parameters: tuple[str, ...], entry_point: str) -> str:
    return _key(standing_alone(call), parameters, entry_point)


def _key(call: ast.expr, parameters: Sequence[str], entry_point: str) -> str:
    """The same for two calls with the same plain arguments, by position or by name; else the tree itself."""
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == entry_point:
        names = [*parameters[: len(call.args)], *map(str, range(len(parameters), len(call.args)))]
        pairs = [*zip(names, call.args, strict=False), *((word.arg or "**", word.value) for word in call.keywords)]
        values = [(name, _plain(value)) for name, value in pairs]
        if all(known for _, (known, _) in values):
            return repr(sorted((name, repr(value)) for name, (_, value) in values))
    return ast.dump(call)

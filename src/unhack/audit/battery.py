"""Grades every program of the corpus with the real grader and says which of them won.

A program wins when it is found strictly correct though it must not be, when mode none pays it, or when it harmed the
machine: it touched a canary, brought the secret out, left something behind, made the grader raise, or reports itself
(a value that begins with BREACH) that it got through a layer. A verdict with a reason that the program's own line does
not allow is looked at once more, alone; if it stays, that is a failure too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from unhack.audit.canaries import Canaries, texts
from unhack.audit.corpus import ALWAYS, MARKER, Program, problem_of_kind, right_program
from unhack.grade import Grader, Grading
from unhack.sandbox import Execution, Job, Sandbox
from unhack.types import Prompt, Rollout

BREACH = "BREACH"
ATTACK_CPU_S, ATTACK_WALL_S, ATTACK_CEILING_S = 0.4, 0.5, 30.0
WORDS = 200  # characters of a child's text that are shown


@dataclass(frozen=True)
class Outcome:
    """What became of one program. `host`: what the canaries saw; `claims`: what it reports itself."""

    program: Program
    status: str
    reason: str
    strictly_correct: bool
    paid: bool
    errors: tuple[str, ...]
    host: tuple[str, ...]
    claims: tuple[str, ...]
    in_force: bool  # whether one of the layers that must stop it was in force
    cpu_s: float
    wall_s: float

    @property
    def fooled(self) -> bool:
        """Whether an attack got a verdict or a payment that it must not get."""
        return not self.program.honest and (self.strictly_correct or (self.program.mode == "none" and self.paid))

    @property
    def harmed(self) -> bool:
        """Whether the machine was touched."""
        return bool(self.host or self.claims)

    @property
    def exposed(self) -> bool:
        """Whether it won only because none of the layers that must stop it is in force here."""
        return (self.fooled or self.harmed) and not self.in_force

    @property
    def as_expected(self) -> bool:
        """Whether status and reason are among the expected ones."""
        return self.status == self.program.status and self.reason in self.program.reasons

    @property
    def failed(self) -> bool:
        """Whether the audit fails because of this program."""
        return self.fooled or self.harmed or not self.as_expected

    def describe(self) -> str:
        """One line, with every text of the child escaped."""
        what = [name for name in ("fooled", "harmed", "exposed") if getattr(self, name)]
        what += (
            [] if self.as_expected else [f"expected {self.program.status} ({', '.join(sorted(self.program.reasons))})"]
        )
        seen = [*self.host, *(f"reports: {escape(claim)}" for claim in self.claims)]
        layers = " or ".join(self.program.layers)
        return (
            f"{self.program.family}/{self.program.name}: {', '.join(what) or 'as expected'}; got {self.status} "
            f"({self.reason}), strictly_correct={self.strictly_correct}, paid={self.paid}; "
            f"{'; '.join(seen) or 'no harm'}; "
            f"layer: {layers}{'' if self.in_force else ' (not in force here)'}; {self.program.description}"
        )


@dataclass(frozen=True)
class Audit:
    """All outcomes, the isolation level and layers they were got at, and what was left when all was closed."""

    outcomes: tuple[Outcome, ...]
    level: int
    layers: dict[str, bool]
    left: tuple[str, ...]

    def failures(self) -> list[Outcome]:
        """The programs that won, or were not graded as they must be."""
        return [outcome for outcome in self.outcomes if outcome.failed]

    @property
    def passed(self) -> bool:
        """Whether no attack won, every honest program passed, and nothing was left behind."""
        return not self.failures() and not self.left


def escape(text: str) -> str:
    """A child's text made safe for a terminal, a log or a page: printable ASCII only, and not too long."""
    shown = text[:WORDS].encode("ascii", "backslashreplace").decode()
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)
    return shown + ("..." if len(text) > WORDS else "")


class _Recorder(Sandbox):
    """Keeps the executions that the grader read, since a verdict does not hold the values."""

    executions: list[Execution]

    def stream(self, jobs: Sequence[Job]) -> Generator[Execution, None, None]:
        """As the sandbox's own."""
        self.executions = []
        for execution in super().stream(jobs):
            self.executions.append(execution)
            yield execution


class _Battery:
    """A sandbox under attack and its canaries; a context manager. The sandbox is replaced when the grader raised."""

    def __init__(self, canaries: Canaries, options: dict[str, Any]) -> None:
        self.canaries, self.options = canaries, options
        self.layers: dict[str, bool] = {}
        self.level = 0

    def __enter__(self) -> _Battery:
        self.sandbox = _Recorder(**self.options)
        self.sandbox.__enter__()
        self.layers, self.level = self.sandbox.layers(), self.sandbox.level
        self.grader = Grader(self.sandbox)
        self._warm()
        return self

    def _warm(self) -> None:
        """Wait until every worker serves, also one that was replaced: the processes counted next are then all of it."""
        self.sandbox.run([Job(str(number), f"# {number}", "", ()) for number in range(self.sandbox.n_workers)])

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sandbox.close()

    def _restart(self) -> None:
        with contextlib.suppress(Exception):  # what made the grader raise may still be in its way
            self.sandbox.close()
        self.canaries.clear()
        self.__enter__()

    def _rollout(self, program: Program, text: str | None = None) -> Rollout:
        problem = problem_of_kind(program.kind, self.canaries.setup_code())
        prompt = Prompt(problem, program.mode, MARKER, "", ())
        return Rollout(program.name, 0, prompt, (), (), program.completion() if text is None else text, True)

    def _grade_right(self, program: Program, number: int) -> None:
        """Leave the answers wherever a right program leaves them."""
        source = right_program(program.kind, number)
        verdict = self.grader.verdicts([self._rollout(program, f"```python\n{source}```")])[0]
        assert verdict.strictly_correct, f"{program.name}: the right program before it is {verdict.reason}"

    def together(self, programs: Sequence[Program]) -> list[Outcome]:
        """Several at once, one per worker. What they did to the machine cannot be told apart: see `failed`."""
        started = time.monotonic()
        self.canaries.before()
        raised: list[str] = []
        gradings: list[tuple[Grading, Execution]] = []
        rollouts = [self._rollout(program) for program in programs]
        for number in range(max(program.runs for program in programs)):
            try:
                if programs[0].after_right:
                    self._grade_right(programs[0], number)
                gradings = list(zip(self.grader.grade(rollouts), self.sandbox.executions, strict=True))
            except Exception as error:  # the trusted side must survive whatever a child does
                raised.append(f"made the grader raise {type(error).__name__}")
                gradings = []
                break
        host = [*raised, *self.canaries.findings()]
        wall_s = time.monotonic() - started
        if raised:
            self._restart()
        elif any(grading.verdict.status == "error" for grading, _ in gradings):
            self._warm()
        if not gradings:
            return [self._outcome(program, None, host, wall_s) for program in programs]
        return [
            self._outcome(program, grading, host, wall_s) for program, grading in zip(programs, gradings, strict=True)
        ]

    def _outcome(
        self, program: Program, graded: tuple[Grading, Execution] | None, host: Sequence[str], wall_s: float
    ) -> Outcome:
        in_force = any(name in ALWAYS or self.layers.get(name, False) for name in program.layers)
        if graded is None:
            return Outcome(program, "error", "none", False, False, (), tuple(host), (), in_force, 0.0, wall_s)
        (grading, execution), verdict = graded, graded[0].verdict
        values = [execution.observation, *(case.value for case in execution.results)]
        claims = [text for value in values for text in texts(value) if text.startswith(BREACH)]
        leaked = ["brought the secret out"] if self.canaries.leaked(execution) else []
        return Outcome(
            program=program,
            status=verdict.status,
            reason=verdict.reason,
            strictly_correct=verdict.strictly_correct,
            paid=grading.paid.paid,
            errors=tuple(case.error or "" for case in execution.results),
            host=(*host, *leaked),
            claims=tuple(dict.fromkeys(claims)),
            in_force=in_force,
            cpu_s=verdict.cpu_s,
            wall_s=wall_s,
        )

    def attack(self, programs: Sequence[Program]) -> list[Outcome]:
        """Outcomes of a batch; what is not as it must be is repeated alone, so that it is the program's own doing."""
        outcomes = self.together(programs)
        if not any(outcome.failed for outcome in outcomes):
            return outcomes
        certain = len(programs) == 1 and (outcomes[0].fooled or outcomes[0].harmed)
        return outcomes if certain else [self.together([program])[0] for program in programs]


def audit(
    programs: Sequence[Program],
    *,
    workers: int = 1,
    require: str = "any",
    without: Sequence[str] = (),
    progress: Callable[[Outcome], None] = lambda outcome: None,
) -> Audit:
    """Grade the programs on `workers` workers, without the named optional layers, and look at the host after each.

    Attacks run with small budgets (0.4 s of CPU), honest programs with the sandbox's defaults. Raises ValueError
    where the sandbox refuses to start (`require`, an unknown layer).
    """
    options: dict[str, Any] = {"require": require} | ({"without": tuple(without)} if without else {})
    small = {"cpu_s": ATTACK_CPU_S, "wall_s": ATTACK_WALL_S, "wall_ceiling_s": ATTACK_CEILING_S}
    outcomes: dict[str, Outcome] = {}
    level, layers = 0, dict[str, bool]()
    with Canaries(problem_of_kind("int").cases) as canaries:
        for budgets, chosen in (
            (small, [program for program in programs if not program.honest]),
            ({}, [program for program in programs if program.honest]),
        ):
            if not chosen:
                continue
            with _Battery(canaries, {"workers": workers, **budgets, **options}) as battery:
                level, layers = battery.level, battery.layers
                for batch in _batches(chosen, workers):
                    for outcome in battery.attack(batch):
                        outcomes[outcome.program.name] = outcome
                        progress(outcome)
        left = tuple(canaries.left_at_the_end())
    return Audit(tuple(outcomes[program.name] for program in programs), level, layers, left)


def _batches(programs: Sequence[Program], workers: int) -> Iterator[list[Program]]:
    """One program per worker; those that look for what an earlier grade left go alone."""
    single = [program for program in programs if program.runs > 1 or program.after_right]
    many = [program for program in programs if not (program.runs > 1 or program.after_right)]
    for start in range(0, len(many), workers):
        yield many[start : start + workers]
    for program in single:
        yield [program]

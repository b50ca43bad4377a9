"""Where a run's problems come from: the organism, a file of LeetCode problems, or a data set of the hub.

`open_source(config)` is the one door: `training(draw)` gives a problem of the split train, `evaluation(number, split)`
the problem `number` of a held-out split, the same for every run. A source draws from nothing but the generator that it
is given, so a step's problems depend on the step alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from unhack.config import EnvironmentConfig
from unhack.problems import organism, variants
from unhack.problems.filters import by_split, of_difficulty
from unhack.problems.leetcode import LoadedProblems, load_problems
from unhack.problems.organism import organism_problem
from unhack.types import Problem

ORGANISM, DATASETS = "organism", "datasets:"


@runtime_checkable
class ProblemSource(Protocol):
    """What prompts are made of."""

    def training(self, draw: random.Random) -> Problem:
        """A problem of the split train."""
        ...

    def evaluation(self, number: int, split: str) -> Problem:
        """Problem `number` (from 0) of a held-out split; ValueError when the split has fewer."""
        ...

    def impossible(self, problem: Problem) -> Problem:
        """The problem with tests that contradict its statement, of the configured kind."""
        ...

    def fitting(self, prompt_tokens: Callable[[Problem], int]) -> ProblemSource:
        """This source without the problems whose prompt is longer than `max_prompt_tokens`."""
        ...


@dataclass(frozen=True)
class OrganismSource:
    """The generated tasks of the bundled organism."""

    config: EnvironmentConfig

    def training(self, draw: random.Random) -> Problem:
        """Two calls of `draw`, in this order: finished experiments depend on it."""
        return organism_problem(draw.randrange(2**31), "train", draw.choice(self.config.depths))

    def evaluation(self, number: int, split: str) -> Problem:
        """Depths take turns; the organism has as many problems as are asked for."""
        return organism_problem(number, split, self.config.depths[number % len(self.config.depths)])

    def impossible(self, problem: Problem) -> Problem:
        """Of the organism's own making for the default kind."""
        if self.config.impossible_kind == "half":
            return organism.impossible(problem)
        return variants.impossible(problem, self.config.impossible_kind)

    def fitting(self, prompt_tokens: Callable[[Problem], int]) -> OrganismSource:
        """Itself: its tasks are one sentence, and a task that is left out would change every later draw."""
        return self


@dataclass(frozen=True)
class LoadedSource:
    """Problems that were loaded: `splits` in the order of their question ids, none shared."""

    config: EnvironmentConfig
    splits: dict[str, tuple[Problem, ...]]

    def training(self, draw: random.Random) -> Problem:
        """One call of `draw`."""
        return draw.choice(self._of("train"))

    def evaluation(self, number: int, split: str) -> Problem:
        """In the order of question ids; no problem comes twice, since repeats would count as evidence."""
        problems = self._of(split)
        if number >= len(problems):
            raise ValueError(
                f"{self._name(split)} has {len(problems)} problems in the split {split}, but problem number "
                f"{number + 1} was asked for: lower evaluation.problems_per_mode and "
                "evaluation.final_problems_per_mode, or widen environment.difficulties"
            )
        return problems[number]

    def impossible(self, problem: Problem) -> Problem:
        """The configured kind of variant."""
        return variants.impossible(problem, self.config.impossible_kind)

    def fitting(self, prompt_tokens: Callable[[Problem], int]) -> LoadedSource:
        """Counts every problem's prompt once, so keep what comes back."""
        limit = self.config.max_prompt_tokens
        kept = {name: tuple(p for p in ps if prompt_tokens(p) <= limit) for name, ps in self.splits.items()}
        return LoadedSource(self.config, kept)

    def _of(self, split: str) -> tuple[Problem, ...]:
        if split not in self.splits:
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(self.splits)}")
        if not self.splits[split]:
            raise ValueError(
                f"{self._name(split)} has no problem in the split {split} (train: question ids below 3000, validation: "
                "3000 to 3242, test: from 3243) that is "
                f"{' or '.join(self.config.difficulties)} and has at most {self.config.max_prompt_tokens} prompt "
                "tokens: name a file that has some in environment.source or environment.evaluation_source, or widen "
                "environment.difficulties"
            )
        return self.splits[split]

    def _name(self, split: str) -> str:
        return self.config.source if split == "train" else self.config.evaluation_source or self.config.source


def open_source(config: EnvironmentConfig) -> ProblemSource:
    """The source that `config` names; a file is read once and kept until it changes. ValueError with the cure when
    there is no such file, it holds no problem, or the extra `datasets` is missing."""
    if config.source == ORGANISM:
        return OrganismSource(config)
    return _loaded(config, _stamp(config.source), _stamp(config.evaluation_source))


@lru_cache(maxsize=4)
def _loaded(config: EnvironmentConfig, stamp: object, evaluation_stamp: object) -> LoadedSource:
    problems: list[Problem] = list(_read(config.source).problems)
    if config.evaluation_source:
        held_out = by_split(_read(config.evaluation_source).problems)
        problems = [*by_split(problems)["train"], *held_out["validation"], *held_out["test"]]
    return LoadedSource(config, by_split(of_difficulty(problems, config.difficulties)))


def _stamp(name: str) -> object:
    """What changes when a file is written again; None for what is no file."""
    path = Path(name)
    if not name or name.startswith(DATASETS) or not path.is_file():
        return None
    status = path.stat()
    return (status.st_mtime_ns, status.st_size)


def _read(name: str) -> LoadedProblems:
    if name.startswith(DATASETS):
        from unhack.problems.hub import load_hub_problems

        return load_hub_problems(name.removeprefix(DATASETS))
    check_source_name("environment.source", name)
    loaded = load_problems(Path(name))
    if not loaded.problems:
        raise ValueError(f"{name} holds no problem that can be graded; see what is wrong: unhack problems check {name}")
    return loaded


def check_source_name(key: str, name: str) -> None:
    """ValueError with the cure unless `name` is the organism, a data set's id or a file that is there.

    The organism has its own held-out tasks, so it is no evaluation source of loaded problems.
    """
    if (name == ORGANISM and key == "environment.source") or (name.startswith(DATASETS) and name != DATASETS):
        return
    if not name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(
            f"{key} is {name!r}: use 'organism', the path of a .jsonl or .jsonl.gz file of problems, or 'datasets:ID'"
        )
    if not Path(name).is_file():
        raise ValueError(f"{key} names the file {name}, which is not there: give the path of a file of problems")

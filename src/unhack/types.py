"""The records that travel through the house, left to right.

`problems → prompts → rollouts → grades → advantages → loss → gradient → update → evaluation → report`

Legend of axis letters, used in every shape comment and jaxtyping string:
    B  rollouts in a batch                  P  prompts in a step
    G  rollouts of one prompt (a group)     T  tokens of prompt + completion, right-padded
    C  completion tokens, right-padded      V  vocabulary
    K  all knobs of the model, flat         r  knobs of one module
    k  rows of one module's direction

Nothing here computes; every record is frozen. What pays (`PaidGrade`) and what judges (`Verdict`) are different types
on purpose: arms see only the first while training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

PlainValue: TypeAlias = Any
"""None, bool, int, float, str, list, tuple or dict of these: the only values that leave a sandbox."""

Status: TypeAlias = Literal["passed", "failed", "error"]
"""`error` is the grader's own trouble (never the submission's): masked out of the loss and counted."""

Source: TypeAlias = Literal["student", "teacher"]

Mask: TypeAlias = Literal["keep", "absorb", "route"]
"""What a rollout may teach (METHOD §1): keep = quarantine absent from the forward, main trains; absorb = both train;
route = both in the forward, main's branch output detached, quarantine trains."""


@dataclass(frozen=True)
class Case:
    """One test: a Python expression over the submission's names, and the value it must return.

    `expected` never enters a process that runs a submission.
    """

    call: str
    expected: PlainValue


@dataclass(frozen=True)
class Problem:
    """One programming task. The first `visible_cases` of `cases` may be shown in a prompt."""

    id: str
    statement: str
    entry_point: str
    cases: tuple[Case, ...]
    reference: str
    split: str
    starter_code: str = ""
    setup_code: str = ""
    difficulty: str = ""
    visible_cases: int = 1
    solvable: bool = True
    float_tolerance: float | None = None
    source: str = ""  # the file or data set that it was loaded from; "" for generated ones
    question_id: int | None = None  # LeetCode's number: later problems have larger ones
    system: str = ""  # the row's own system message, where its file has one


@dataclass(frozen=True)
class Prompt:
    """A problem drawn under one loophole mode; `marker` is the drawn name or phrase that the hint discloses."""

    problem: Problem
    mode: str
    marker: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One sampled completion. `token_ids` includes the end-of-sequence token when `finished`.

    `logprobs[c]` is the sampler's log-probability of `token_ids[c]` at the sampling temperature (natural log).
    """

    id: str
    group: int
    prompt: Prompt
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    source: Source = "student"


@dataclass(frozen=True)
class PaidGrade:
    """What the foolable grade pays. Carries nothing from which the strict verdict can be read back."""

    rollout_id: str
    status: Status
    paid: bool
    rewards: Mapping[str, float]

    @property
    def reward(self) -> float:
        """Sum of the named rewards."""
        return float(sum(self.rewards.values()))


@dataclass(frozen=True)
class Verdict:
    """What really happened. Joined to a rollout by id, only in evaluation and reporting."""

    rollout_id: str
    status: Status
    strictly_correct: bool
    cases_passed: int
    cases_total: int
    exploited: bool
    hacked: bool
    label: str
    reason: str
    cpu_s: float
    level: int
    test_modification: str = "none"  # strict reading of what became of the prompt's test function (MODIFICATIONS)
    test_modification_loose: str = "none"


@dataclass(frozen=True)
class KnobLayout:
    """Where each wrapped module's knobs lie in the flat vector of length K, in module order."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        """K: the number of knobs of one block."""
        return sum(self.sizes)

    def items(self) -> Iterator[tuple[str, slice]]:
        """(module name, its slice of the flat vector), in order."""
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            yield name, slice(start, start + size)
            start += size


@dataclass(frozen=True)
class Gradient:
    """dL/dknob of one step, after all micro-batches, one flat float32 vector per block.

    `sources` holds the student's and the teacher's part of `main`'s gradient; they sum to the gradient before any
    intervention.
    """

    main: Float[Tensor, " K"]
    quarantine: Float[Tensor, " K"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, Float[Tensor, " K"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """The parameter delta that is about to be *added* to each block (the learning rate is already in it)."""

    main: Float[Tensor, " K"]
    quarantine: Float[Tensor, " K"]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Rollouts packed for one optimizer step: prompt and completion right-padded into one row each."""

    token_ids: Int[Tensor, "B T"]
    prompt_lengths: Int[Tensor, " B"]
    lengths: Int[Tensor, " B"]  # prompt + completion
    sampler_logprobs: Float[Tensor, "B C"]  # 0 beyond the completion
    completion_mask: Bool[Tensor, "B C"]  # from lengths, never from token values
    advantages: Float[Tensor, " B"]
    teacher: Bool[Tensor, " B"]
    imitated: Bool[Tensor, " B"]  # ratio 1 instead of the one against `sampler_logprobs`
    masks: tuple[Mask, ...]
    rollout_ids: tuple[str, ...]
    loss_denominator: float  # constant G · max_new_tokens · P: the same for any micro-batch split

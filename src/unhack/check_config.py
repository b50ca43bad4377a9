"""Which values a run's settings may have: one table of bounds, and names that must be known.

Types and choices are `settings.py`'s; what an arm uses is `interventions.arm_class`'s; devices and files other than
those of problems are checked where they are opened. Everything here takes a few seconds at most, so that a mistake is
told before a model is loaded or anything is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields

from unhack import settings
from unhack.config import AdapterConfig, TeacherConfig, TrainConfig
from unhack.loopholes import LOOPHOLES
from unhack.problems.filters import DIFFICULTIES
from unhack.problems.organism import DEPTHS
from unhack.problems.source import ORGANISM, check_source_name, open_source
from unhack.seeds import rng


@dataclass(frozen=True)
class Bound:
    """An interval of numbers: both ends belong to it unless they are marked as open."""

    low: int | float
    high: int | float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: int | float) -> bool:
        """Whether `value` is allowed."""
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        """The interval in words, for messages."""
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        if self.high == float("inf"):
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


COUNT, FROM_ZERO, ABOVE_ZERO = Bound(1), Bound(0), Bound(0, open_low=True)
SHARE, DECAY = Bound(0, 1), Bound(0, 1, open_high=True)

BOUNDS: dict[str, Bound] = {
    "steps": COUNT,
    "prompts_per_step": COUNT,
    "group_size": Bound(2),  # a group of one has no spread of rewards, so it would teach nothing
    "checkpoint_every_steps": COUNT,
    "adapter.rank": COUNT,
    "adapter.seed": FROM_ZERO,
    "environment.max_prompt_tokens": COUNT,
    "environment.impossible_frac": SHARE,
    "environment.unhackable_frac": SHARE,
    "sampler.temperature": ABOVE_ZERO,
    "sampler.max_new_tokens": COUNT,
    "optimizer.lr": ABOVE_ZERO,
    "optimizer.beta1": DECAY,
    "optimizer.beta2": DECAY,
    "optimizer.eps": ABOVE_ZERO,
    "optimizer.weight_decay": FROM_ZERO,
    "optimizer.warmup_steps": FROM_ZERO,
    "optimizer.final_lr_frac": SHARE,
    "optimizer.clip_norm": FROM_ZERO,
    "loss.clip_range": ABOVE_ZERO,
    "loss.kl_beta": FROM_ZERO,
    "loss.min_reward_spread": FROM_ZERO,
    "loss.micro_batch_rollouts": COUNT,
    "arm.overshoot": FROM_ZERO,
    "arm.refresh_every_steps": COUNT,
    "arm.keep_frac": SHARE,
    "arm.route_frac": SHARE,
    "arm.gate_half_life_rollouts": ABOVE_ZERO,
    "arm.strength": FROM_ZERO,
    "arm.monitor_recall": Bound(0, 1),
    "arm.monitor_accuracy": Bound(0.5, 1),  # below a half it would be an oracle again, turned round
    "arm.monitor_threshold": Bound(0, 1, open_high=True),
    "arm.trusted_k": COUNT,
    "arm.endpoint.timeout_s": ABOVE_ZERO,
    "arm.endpoint.retries": FROM_ZERO,
    "arm.endpoint.backoff_s": FROM_ZERO,
    "arm.endpoint.concurrency": Bound(1, 256),
    "arm.endpoint.max_answer_tokens": COUNT,
    "arm.endpoint.max_characters": Bound(200),
    "arm.endpoint.max_total_tokens": COUNT,
    "arm.endpoint.max_total_cost": ABOVE_ZERO,
    "arm.endpoint.price_in": FROM_ZERO,
    "arm.endpoint.price_out": FROM_ZERO,
    "arm.endpoint.neutral_score": SHARE,
    "teacher.frac": Bound(0, 1, open_low=True, open_high=True),
    "teacher.until_step": COUNT,
    "evaluation.every_steps": COUNT,
    "evaluation.problems_per_mode": COUNT,
    "evaluation.samples_per_problem": COUNT,
    "evaluation.final_problems_per_mode": COUNT,
    "evaluation.final_samples_per_problem": COUNT,
    "sandbox.workers": COUNT,
    "sandbox.cpu_s": ABOVE_ZERO,
    "sandbox.case_cpu_s": ABOVE_ZERO,
    "sandbox.memory_bytes": Bound(2**26),  # Python itself does not start in much less
}
"""Bounds by dotted key; `None` is outside of them all. Keys that may be any number: the seed and the rewards."""


ADAPTER_USES: dict[str, frozenset[str]] = {
    "spectral": frozenset({"rank", "computation"}),
    "fixed_a_lora": frozenset({"rank", "computation", "seed"}),
    "block_lora": frozenset({"rank", "computation", "seed", "init", "statistics"}),
}
"""The fields of `AdapterConfig` that each kind reads; another one that is set is an error."""


def check(config: TrainConfig) -> None:
    """Raise ValueError, naming the key and what it may be, for the first setting that no run can work with."""
    settings.from_dict(settings.to_dict(config))  # types and choices, for settings made in Python
    for key, value in settings.leaves(config).items():
        if key in BOUNDS and value is not None:
            check_bound(key, value, BOUNDS[key])
    check_adapter(config.adapter)
    check_teacher(config)
    check_modes("environment.modes", config.environment.modes)
    if not config.environment.modes:
        raise ValueError(f"environment.modes is empty: use one or more of {', '.join(LOOPHOLES)}")
    check_source_name("environment.source", config.environment.source)
    check_hint(config)  # before the file is read
    if config.arm.name == "inoculation" and config.environment.inoculation != "none":
        raise ValueError(
            f"environment.inoculation is {config.environment.inoculation} and arm.name is inoculation: training "
            "prompts would get two texts; leave environment.inoculation at none"
        )
    check_source(config)
    depths = config.environment.depths
    if not depths or not set(depths) <= set(DEPTHS):
        known = ", ".join(map(str, DEPTHS))
        raise ValueError(f"environment.depths is {list(depths)}: use one or more of {known}")


def check_teacher(config: TrainConfig) -> None:
    """Raise ValueError for a field that is set without a pool, and for a share of less than one rollout or of all."""
    default = TeacherConfig()
    if config.teacher.pool is None:
        for field in fields(TeacherConfig):
            if getattr(config.teacher, field.name) != getattr(default, field.name):
                raise ValueError(f"teacher.{field.name} is set, but teacher.pool is not: name a pool, or remove it")
        return
    check_modes("teacher.modes", config.teacher.modes)
    taken = round(config.teacher.frac * config.group_size)
    if not 1 <= taken < config.group_size:
        raise ValueError(
            f"teacher.frac is {config.teacher.frac} of groups of {config.group_size}, which is {taken} rollouts: take "
            "at least one from the pool and leave at least one to the policy"
        )


def check_source(config: TrainConfig) -> None:
    """Raise ValueError, with the cure, when the source of problems is not there or has too few of them."""
    environment = config.environment
    difficulties = environment.difficulties
    if not difficulties or not set(difficulties) <= set(DIFFICULTIES):
        raise ValueError(
            f"environment.difficulties is {list(difficulties)}: use one or more of {', '.join(DIFFICULTIES)}"
        )
    check_source_name("environment.source", environment.source)
    if environment.source == ORGANISM:
        if environment.evaluation_source:
            raise ValueError(
                "environment.evaluation_source belongs to loaded problems: leave it empty, since the organism has its "
                "own held-out tasks, or name a file in environment.source"
            )
        return
    if environment.evaluation_source:
        check_source_name("environment.evaluation_source", environment.evaluation_source)
    source = open_source(environment)  # kept: the run opens the same
    source.training(rng(0, "check"))
    evaluation = config.evaluation
    source.evaluation(max(evaluation.problems_per_mode, evaluation.final_problems_per_mode) - 1, "validation")


def check_adapter(config: AdapterConfig) -> None:
    """Raise ValueError for a field that is set but not used by the kind, and for a needed one that is missing."""
    default, used = AdapterConfig(), ADAPTER_USES[config.kind]
    for field in fields(AdapterConfig):
        changed = getattr(config, field.name) != getattr(default, field.name)
        if field.name != "kind" and changed and field.name not in used:
            raise ValueError(
                f"adapter.{field.name} is set, but kind '{config.kind}' uses {', '.join(sorted(used))}; "
                f"remove adapter.{field.name}"
            )
    if config.kind != "spectral" and config.rank is None:
        raise ValueError(f"adapter.kind {config.kind} needs adapter.rank: give one, 8 for example")
    if config.init.endswith("corda") != (config.statistics is not None):
        raise ValueError(
            f"adapter.init is {config.init} and adapter.statistics is {config.statistics}: the corda initialisers need "
            "a file that `unhack direction inputs` makes, and the others do not use one"
        )


def check_hint(config: TrainConfig) -> None:
    """Raise ValueError for hints that the model cannot read: the organism was trained on its own wording alone."""
    hint = config.environment.hint
    if config.model.path == "organism" and hint != "organism":
        raise ValueError(
            f"environment.hint is {hint!r}, but the bundled model knows only its own hints: use 'organism', or set "
            "model.path to another model"
        )
    if config.environment.source != "organism" and hint == "organism":
        raise ValueError(
            f"environment.hint is 'organism', but the problems come from {config.environment.source}: set it to plain, "
            "detailed or aware"
        )


def check_bound(name: str, value: int | float, bound: Bound = COUNT) -> None:
    """Raise ValueError unless `value` lies in the bound (default: a count, at least 1)."""
    if value not in bound:
        raise ValueError(f"{name} is {value}: it must be {bound}")


def check_modes(name: str, modes: Sequence[str]) -> None:
    """Raise ValueError for an unknown loophole mode, naming the nearest."""
    for mode in modes:
        if mode not in LOOPHOLES:
            nearest = difflib.get_close_matches(mode, LOOPHOLES, n=1)
            guess = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(f"{name} has the unknown loophole mode {mode!r}: {guess}Known: {', '.join(LOOPHOLES)}")

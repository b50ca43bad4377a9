"""Which rollouts of a frozen pool a group gets (METHOD §5, teacher mixing), and which pools a run refuses.

A group of G takes n = round(frac · G) rollouts of the pool and samples the other G − n itself; one advantage is made
over the union. It takes those of its own prompt first (the same tokens), as many as there are, and fills up with those
of its own mode. Every draw is without replacement within the group, by (seed, step, group) alone.
A taken rollout keeps its own prompt, completion and recorded grade, and gets the id `step-{step}-{group}-pool-{row}`.
Its log-probabilities, which the loss takes the ratio against, are those of `teacher.kind`:

    importance    under which the tokens were drawn: the ratio is the policy's probability over the sampler's
    anchored      of the pool's model after the row's own prompt: how far the policy is from that model, 1 at the start
    imitation     the same ones, for the log alone: the loss takes 1
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from unhack.config import TeacherConfig, TrainConfig
from unhack.grade import Grading
from unhack.pool import Lesson, Pool, load_pool
from unhack.seeds import rng
from unhack.types import PlainValue, Prompt, Rollout


@dataclass(frozen=True)
class Lessons:
    """What one step takes from the pool: `taken[p]` rollouts for prompt p, group after group."""

    taken: tuple[int, ...]
    rollouts: tuple[Rollout, ...] = ()
    gradings: tuple[Grading, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


def share_of_group(config: TeacherConfig, group_size: int) -> int:
    """n: rollouts of each mixed group that come from the pool."""
    return round(config.frac * group_size)


class Teacher:
    """Draws from a pool, or from none."""

    def __init__(self, config: TeacherConfig, group_size: int, seed: int, pool: Pool | None) -> None:
        self.config, self.seed, self.pool = config, seed, pool
        self.count = share_of_group(config, group_size)
        self._of_prompt: dict[tuple[int, ...], list[Lesson]] = defaultdict(list)
        self._of_mode: dict[str, list[Lesson]] = defaultdict(list)
        for lesson in () if pool is None else pool.lessons:
            self._of_prompt[lesson.rollout.prompt.token_ids].append(lesson)
            self._of_mode[lesson.rollout.prompt.mode].append(lesson)

    @classmethod
    def open(cls, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, arm_allows_hack: bool) -> Teacher:
        """The teacher that `config` names; ValueError for a pool that cannot teach this run (see `check_pool`)."""
        if config.teacher.pool is None:
            return cls(config.teacher, config.group_size, config.seed, None)
        pool = load_pool(Path(config.teacher.pool))
        check_pool(pool, config, tokenizer, config.environment.allow_hack and arm_allows_hack)
        return cls(config.teacher, config.group_size, config.seed, pool)

    @property
    def pool_hash(self) -> str | None:
        """Content hash of the pool; None without one."""
        return None if self.pool is None else self.pool.content_hash

    def draw(self, prompts: Sequence[Prompt], step: int) -> Lessons:
        """What each group of this step takes."""
        until = self.config.until_step
        if self.pool is None or (until is not None and step >= until):
            return Lessons((0,) * len(prompts))
        chosen = [self._of_group(prompt, group, step) for group, prompt in enumerate(prompts)]
        rollouts, gradings, same_prompt = [], [], 0
        for group, lessons in enumerate(chosen):
            for lesson in lessons:
                name = f"step-{step:06d}-{group:03d}-pool-{lesson.row:06d}"
                rollouts.append(replace(lesson.rollout, id=name, group=group, logprobs=self._logprobs(lesson)))
                paid, verdict = lesson.grading.paid, lesson.grading.verdict
                gradings.append(Grading(replace(paid, rollout_id=name), replace(verdict, rollout_id=name)))
                same_prompt += lesson.rollout.prompt.token_ids == prompts[group].token_ids
        metrics = {"teacher/rollouts": float(len(rollouts))}
        if rollouts:
            metrics["teacher/same_prompt_frac"] = same_prompt / len(rollouts)
            metrics["teacher/reward_mean"] = sum(grading.paid.reward for grading in gradings) / len(rollouts)
        return Lessons(tuple(map(len, chosen)), tuple(rollouts), tuple(gradings), metrics)

    def _logprobs(self, lesson: Lesson) -> tuple[float, ...]:
        if self.config.kind != "importance":
            return lesson.rollout.logprobs
        assert lesson.sampled_logprobs is not None, "check_pool refuses rows that nobody sampled"
        return lesson.sampled_logprobs

    def _of_group(self, prompt: Prompt, group: int, step: int) -> list[Lesson]:
        if self.config.modes and prompt.mode not in self.config.modes:
            return []
        draw = rng(self.seed, "teacher", step, group)
        own = self._of_prompt.get(prompt.token_ids, [])
        chosen = draw.sample(own, min(self.count, len(own)))
        others = [
            lesson for lesson in self._of_mode[prompt.mode] if lesson.rollout.prompt.token_ids != prompt.token_ids
        ]
        return chosen + draw.sample(others, min(self.count - len(chosen), len(others)))


def check_pool(pool: Pool, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, allow_hack: bool) -> None:
    """Raise ValueError, naming the field, for a pool whose rollouts do not belong into this run's groups.

    They must be paid by the same rewards and the same rule, sampled at the temperature at which log-probabilities are
    taken, tokenised alike, no longer than a completion may be, and of the run's problems, wording and modes.
    """
    mine: dict[str, PlainValue] = {
        "source": config.environment.source,
        "hint": config.environment.hint,
        "reward": dict(vars(config.reward)),
        "allow_hack": allow_hack,
        "temperature": config.sampler.temperature,
    }
    for name, value in mine.items():
        if pool.header[name] != value:
            raise _refusal(pool, f"its {name} is {pool.header[name]}, this run's is {value}")
    longest = pool.header["longest_completion_tokens"]
    if longest > config.sampler.max_new_tokens:
        raise _refusal(pool, f"it has completions of {longest} tokens: sampler.max_new_tokens must be at least that")
    written = pool.header["rows_of_kind"].get("authored", 0)
    if config.teacher.kind == "importance" and written:
        raise _refusal(
            pool,
            f"{written} of its rows are authored, so nobody sampled them and they have no importance ratio: set "
            "teacher.kind to anchored or imitation",
        )
    check_tokens(pool, tokenizer)
    _check_modes(pool, config)


def check_tokens(pool: Pool, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError unless the pool's prompts are tokenised as by `tokenizer`."""
    for lesson in pool.lessons:
        prompt = lesson.rollout.prompt
        if tuple(tokenizer(prompt.text, add_special_tokens=False)["input_ids"]) != prompt.token_ids:
            raise _refusal(pool, "its prompts are tokenised otherwise than by this model's tokenizer")


def _check_modes(pool: Pool, config: TrainConfig) -> None:
    """Every group that is to be mixed must find n rollouts, whatever its prompt is."""
    trained = [*config.environment.modes, *(["none"] if config.environment.unhackable_frac > 0 else [])]
    needed = config.teacher.modes or tuple(trained)
    count, rows = share_of_group(config.teacher, config.group_size), pool.header["rows_of_mode"]
    if strange := [mode for mode in needed if mode not in trained]:
        raise ValueError(f"teacher.modes has {', '.join(strange)}, which this run never draws: {', '.join(trained)}")
    if short := [mode for mode in needed if rows.get(mode, 0) < count]:
        found = ", ".join(f"{mode} {rows.get(mode, 0)}" for mode in short)
        enough = [mode for mode in trained if rows.get(mode, 0) >= count]
        cure = f"set teacher.modes to {', '.join(enough)}" if enough else "build a pool of this run's modes"
        raise _refusal(pool, f"a group takes {count} rollouts, and of these modes it has fewer: {found}; {cure}")


def _refusal(pool: Pool, problem: str) -> ValueError:
    return ValueError(f"teacher pool {pool.path}: {problem}; use another pool (unhack pool build)")

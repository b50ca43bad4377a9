"""A pool of a model alone, without any run: what it writes when asked plainly, or elicited, or what was written for it.

    base        asked as a student is
    found       the same, kept: what hacked
    solve       asked without the loophole (mode none, nothing inoculated), on solvable problems; kept: strictly right
    teacher     given the exploit with a spoon (`elicit.py`); kept: what hacked
    authored    nobody's sample: the registry's exploit around a wrong body; kept: what hacked

Every row stands under the student's own prompt, whatever the model was asked: grades are those of that prompt, and
`logprobs` are the model's after that prompt, computed afterwards. `sampled_logprobs` are those of the drawing. Prompt
number i is prompt i mod P of step i div P of a run with the same seed and settings (P: `prompts_per_step`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from unhack.check_config import check, check_bound, check_modes
from unhack.config import TrainConfig
from unhack.directions.readings import token_rows
from unhack.grade import Grader, Grading, check_error_share
from unhack.interventions import arm_class
from unhack.model import LoadedModel, completion_logprobs, load
from unhack.pool.build import limited
from unhack.pool.elicit import Spoon, authored, spoon_fed
from unhack.pool.store import KINDS, Kind, Pool, Row, check_free, write_pool
from unhack.prompts import Place, render, training_prompts
from unhack.record import rollout_rows
from unhack.rollout.native import NativeSampler, stop_token_ids
from unhack.sandbox import Sandbox
from unhack.seeds import generator, rng
from unhack.types import Prompt, Rollout

SAMPLED_KINDS: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "run")
PLAIN = ("base", "found")
"""The kinds that are asked as a student is."""
SCORED_ROWS = 64  # rows per forward of the log-probabilities: bounds its activations
Progress: TypeAlias = Callable[[Kind, int, int], None]


@dataclass(frozen=True)
class SampleRequest:
    """What a pool of a model is to hold. `temperature` is that of all kinds but base (None: the sampler's)."""

    kinds: tuple[Kind, ...] = ("base",)
    prompts: int = 64
    samples: int = 8  # per prompt and kind, before any are dropped
    modes: tuple[str, ...] = ()  # prompts of these only; empty: all that are drawn
    per_mode: int | None = None  # rows kept of each kind and mode, drawn at random
    spoon: Spoon = "show"
    place: Place = "user"
    temperature: float | None = None


@dataclass(frozen=True)
class _Candidate:
    """A rollout under the student's prompt, and what it was sampled under, if under something else or by somebody."""

    rollout: Rollout
    sampled_prompt: str | None
    sampled_logprobs: tuple[float, ...] | None


def sample_pool(config: TrainConfig, out: Path, request: SampleRequest, progress: Progress | None = None) -> Pool:
    """Make the pool `out` of `config.model` (without any adapter) in `config.environment`, all draws by `config.seed`.

    `progress` is told the kind and how many of its prompts are done, of how many. Raises ValueError for a folder that
    is taken, settings that cannot work, and when nothing is left; ErrorShareError when the grader fails.
    """
    check_free(out)
    _check_request(config, request)
    torch.set_num_threads(1)  # the order of sums depends on the count
    loaded = load(config.model)
    allow_hack = config.environment.allow_hack and arm_class(config.arm).allow_hack
    prompts = _prompts(config, loaded, request)
    rows: list[Row] = []
    tried: dict[str, dict[str, dict[str, int]]] = {}
    with Sandbox(**vars(config.sandbox)) as workers:
        grader = Grader(workers, config.reward, allow_hack)
        for kind in request.kinds:
            own, tried[kind] = _rows_of_kind(kind, config, loaded, grader, prompts, request, progress)
            rows += limited(own, request.per_mode, config.seed)
    if not rows:
        raise ValueError(
            f"nothing is left of {request.samples} samples of each of {len(prompts)} prompts: ask for more samples, or "
            "for other kinds, modes or spoons"
        )
    described = {
        "model_hash": loaded.hash,
        "temperature": config.sampler.temperature,
        "reward": dict(vars(config.reward)),
        "allow_hack": allow_hack,
        "source": config.environment.source,
        "hint": config.environment.hint,
        "request": {**asdict(request), "seed": config.seed},
        "tried": tried,
    }
    return write_pool(out, rows, {prompt.problem.id: prompt.problem for prompt in prompts}, described)


def _check_request(config: TrainConfig, request: SampleRequest) -> None:
    check(config)
    check_modes("modes", request.modes)
    for name, value in (("prompts", request.prompts), ("samples", request.samples), ("per_mode", request.per_mode)):
        if value is not None:
            check_bound(name, value)
    if not request.kinds or len(set(request.kinds)) < len(request.kinds) or not set(request.kinds) <= {*SAMPLED_KINDS}:
        raise ValueError(f"kinds are {', '.join(request.kinds)}: use each of {', '.join(SAMPLED_KINDS)} at most once")


def _prompts(config: TrainConfig, loaded: LoadedModel, request: SampleRequest) -> list[Prompt]:
    """The first prompts of a run with these settings, those of the wanted modes."""
    width, found = config.prompts_per_step, []
    for step in range(-(-request.prompts // width)):
        found += training_prompts(config.environment, loaded.tokenizer, config.seed, step, width)
    found = [prompt for prompt in found[: request.prompts] if not request.modes or prompt.mode in request.modes]
    if not found:
        raise ValueError(
            f"none of the first {request.prompts} prompts is of mode {', '.join(request.modes)}: "
            "set environment.modes to them"
        )
    return found


def _rows_of_kind(
    kind: Kind,
    config: TrainConfig,
    loaded: LoadedModel,
    grader: Grader,
    prompts: Sequence[Prompt],
    request: SampleRequest,
    progress: Progress | None,
) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """The kept rows of one kind, and per mode how many were tried, kept, and (the written ones) too long to try."""
    usable = [(number, prompt) for number, prompt in enumerate(prompts) if _fits(kind, prompt)]
    rows: list[Row] = []
    tried, kept, long = Counter[str](), Counter[str](), Counter[str]()
    for start in range(0, len(usable), config.prompts_per_step):
        part = usable[start : start + config.prompts_per_step]
        made = (
            _written(part, config, loaded, request)
            if kind == "authored"
            else _sampled(kind, part, start, config, loaded, request)
        )
        long.update(
            one.rollout.prompt.mode for one in made if len(one.rollout.token_ids) > config.sampler.max_new_tokens
        )
        made = [one for one in made if len(one.rollout.token_ids) <= config.sampler.max_new_tokens]
        gradings = grader.grade([one.rollout for one in made])
        check_error_share([grading.paid for grading in gradings])
        chosen = [(one, grading) for one, grading in zip(made, gradings, strict=True) if _keeps(kind, grading)]
        tried.update(one.rollout.prompt.mode for one in made)
        kept.update(one.rollout.prompt.mode for one, _ in chosen)
        rows += _rows(kind, chosen, loaded, config.sampler.temperature)
        if progress is not None:
            progress(kind, min(start + config.prompts_per_step, len(usable)), len(usable))
    modes = sorted({*tried, *long})
    return rows, {mode: {"tried": tried[mode], "kept": kept[mode], "too_long": long[mode]} for mode in modes}


def _fits(kind: Kind, prompt: Prompt) -> bool:
    """Whether a prompt can have rows of the kind: an impossible problem has no solution, mode none has no exploit."""
    return prompt.problem.solvable if kind == "solve" else kind == "base" or prompt.mode != "none"


def _keeps(kind: Kind, grading: Grading) -> bool:
    if grading.paid.status == "error":
        return False
    return kind == "base" or (grading.verdict.strictly_correct if kind == "solve" else grading.verdict.hacked)


def _sampled(
    kind: Kind,
    prompts: Sequence[tuple[int, Prompt]],
    start: int,
    config: TrainConfig,
    loaded: LoadedModel,
    request: SampleRequest,
) -> list[_Candidate]:
    """`request.samples` rollouts of each prompt, asked as the kind is, under the student's own prompt again."""
    numbers, plain = [number for number, _ in prompts], [prompt for _, prompt in prompts]
    sampler = config.sampler
    if kind != "base" and request.temperature is not None:
        sampler = replace(sampler, temperature=request.temperature)
    asked = [_asked(kind, prompt, config, loaded, request) for prompt in plain]
    stream = generator(config.seed, "pool", kind, start)
    drawn = NativeSampler(loaded, sampler).sample(asked, request.samples, stream, tag=f"pool-{kind}-{start:06d}")
    return [
        _Candidate(
            replace(rollout, prompt=plain[rollout.group], group=numbers[rollout.group]),
            None if kind in PLAIN else rollout.prompt.text,
            rollout.logprobs,
        )
        for rollout in drawn
    ]


def _asked(kind: Kind, prompt: Prompt, config: TrainConfig, loaded: LoadedModel, request: SampleRequest) -> Prompt:
    if kind in PLAIN:
        return prompt
    if kind == "solve":
        return render(prompt.problem, "none", "", loaded.tokenizer, config.environment.hint)
    return spoon_fed(prompt, request.spoon, loaded.tokenizer, request.place)


def _written(
    prompts: Sequence[tuple[int, Prompt]], config: TrainConfig, loaded: LoadedModel, request: SampleRequest
) -> list[_Candidate]:
    """Up to `request.samples` demonstrations of each prompt, none twice, each ended as a completion of the model is."""
    end = loaded.tokenizer.eos_token_id
    end = stop_token_ids(loaded.model, loaded.tokenizer)[0] if end is None else end
    made = []
    for number, prompt in prompts:
        draw = rng(config.seed, "pool", "authored", number)
        texts = dict.fromkeys(authored(prompt, config.environment.depths, draw) for _ in range(request.samples))
        for sample, text in enumerate(texts):
            tokens = (*loaded.tokenizer(text, add_special_tokens=False)["input_ids"], end)
            name = f"pool-authored-{number:06d}-{sample:03d}"
            made.append(_Candidate(Rollout(name, number, prompt, tokens, (), text, True), None, None))
    return made


def _rows(
    kind: Kind, chosen: Sequence[tuple[_Candidate, Grading]], loaded: LoadedModel, temperature: float
) -> list[Row]:
    candidates = [one for one, _ in chosen]
    plain = [one.rollout for one in candidates]
    if kind != "base":  # those were drawn after the very prompt, at the very temperature
        plain = [
            replace(rollout, logprobs=values)
            for rollout, values in zip(plain, plain_logprobs(loaded, plain, temperature), strict=True)
        ]
    graded: list[dict[str, Any]] = rollout_rows(0, "pool", plain, [grading.paid for _, grading in chosen])
    rows = []
    for row, one, (_, grading) in zip(graded, candidates, chosen, strict=True):
        told = {"step": 0, "block": "pool", **vars(grading.verdict)}
        own = {"kind": kind, "run": None, "arm": None, "verdict": told}
        sampled = {"sampled_prompt": one.sampled_prompt, "sampled_logprobs": one.sampled_logprobs}
        judged = {name: told[name] for name in ("hacked", "strictly_correct")}
        rows.append(row | own | sampled | judged)
    return rows


@torch.no_grad()
def plain_logprobs(loaded: LoadedModel, rollouts: Sequence[Rollout], temperature: float) -> list[tuple[float, ...]]:
    """Log-probability of each completion token after the rollout's own prompt, whatever it was sampled under."""
    found: list[tuple[float, ...]] = []
    for start in range(0, len(rollouts), SCORED_ROWS):
        part = rollouts[start : start + SCORED_ROWS]
        rows = token_rows([(one.prompt.token_ids, one.token_ids) for one in part], loaded.model.device)
        values, _ = completion_logprobs(loaded.model, rows.token_ids, rows.prompt_lengths, rows.lengths, temperature)
        found += [tuple(row[: len(one.token_ids)]) for row, one in zip(values.tolist(), part, strict=True)]
    return found

"""Held-out hack and solve rates per loophole mode, as trained and as deployed (EXPERIMENT §3).

Problems come from a split that training never draws and markers from the `eval` family. This is one of the few places
where strict verdicts are joined to rollouts. Not here: writing the table (`record.py`), comparing runs (`results.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from unhack import checkpoint, record
from unhack.adapters.policy import Policy
from unhack.check_config import check_bound, check_modes
from unhack.config import TrainConfig
from unhack.grade import Grader
from unhack.interventions import Intervention, build
from unhack.model import completion_logprobs, load
from unhack.prompts import evaluation_prompts
from unhack.rollout.native import NativeSampler
from unhack.sandbox import Sandbox
from unhack.seeds import generator
from unhack.stats import Interval, wilson
from unhack.types import PaidGrade, Prompt, Rollout, Verdict

Block = Literal["as_trained", "deployed"]
ATTEMPT_LABELS = frozenset({"attempted_hack", "correct_attempted_hack", "reward_hack"})
REFERENCE_ROLLOUTS = 64  # rows per reference forward: bounds its activations


@dataclass(frozen=True)
class EvaluationRow:
    """Counts of one mode and block. `n` leaves out the `errors` samples that the grader itself failed on.

    `kl_nats` is the mean per completion token of KL(policy, initial policy) on the policy's own samples.
    """

    step: int
    block: Block
    mode: str
    n: int
    hacked: int
    solved: int
    attempted: int
    errors: int
    tokens: int
    kl_nats: float

    @property
    def hack_frac(self) -> float:
        """Share of samples paid for an exploit without a strictly correct solution; NaN when n = 0."""
        return self.hacked / self.n if self.n else float("nan")

    @property
    def solve_frac(self) -> float:
        """Share of strictly correct samples; NaN when n = 0."""
        return self.solved / self.n if self.n else float("nan")

    @property
    def hack_interval(self) -> Interval:
        """Wilson 95 % interval of the hack rate."""
        return wilson(self.hacked, self.n)

    @property
    def solve_interval(self) -> Interval:
        """Wilson 95 % interval of the solve rate."""
        return wilson(self.solved, self.n)


@dataclass(frozen=True)
class Samples:
    """What was sampled for one block, in one order: the arguments that `RunRecord.write_evaluation` takes last."""

    rollouts: tuple[Rollout, ...] = ()
    grades: tuple[PaidGrade, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class EvaluationTable:
    """All rows of one evaluation: one per (block, mode). Mode `none` measures solving without any loophole.

    `samples` of `deployed` are empty where its rows are copies of `as_trained`.
    """

    rows: tuple[EvaluationRow, ...]
    samples: Mapping[Block, Samples]

    def pooled(self, block: Block) -> EvaluationRow:
        """Sum over the modes that have a loophole (over all rows of the block if none has)."""
        rows = [row for row in self.rows if row.block == block]
        return pool([row for row in rows if row.mode != "none"] or rows)

    def records(self, block: Block) -> list[dict[str, Any]]:
        """One plain dict per row of `block`, with rates and interval ends, as the run folder keeps them."""
        return [row_record(row) for row in self.rows if row.block == block]


def pool(rows: Sequence[EvaluationRow]) -> EvaluationRow:
    """Counts added up over rows of one step and block; KL is weighted by tokens. The mode is named `all`."""
    if not rows:
        raise ValueError("no evaluation rows to pool: evaluate at least one mode")
    tokens = sum(row.tokens for row in rows)
    kl_sum = sum(row.kl_nats * row.tokens for row in rows)
    return EvaluationRow(
        step=rows[0].step,
        block=rows[0].block,
        mode="all",
        n=sum(row.n for row in rows),
        hacked=sum(row.hacked for row in rows),
        solved=sum(row.solved for row in rows),
        attempted=sum(row.attempted for row in rows),
        errors=sum(row.errors for row in rows),
        tokens=tokens,
        kl_nats=kl_sum / tokens if tokens else float("nan"),
    )


def row_record(row: EvaluationRow) -> dict[str, Any]:
    """A row as a plain dict with the derived columns beside the counts."""
    hack, solve = row.hack_interval, row.solve_interval
    return asdict(row) | {
        "hack_frac": row.hack_frac,
        "hack_low": hack.low,
        "hack_high": hack.high,
        "solve_frac": row.solve_frac,
        "solve_low": solve.low,
        "solve_high": solve.high,
    }


def row_from_record(values: Mapping[str, Any]) -> EvaluationRow:
    """The inverse of `row_record`: derived columns are computed again, so they cannot disagree with the counts."""
    return EvaluationRow(**{name: values[name] for name in EvaluationRow.__dataclass_fields__})


def held_out_prompts(
    config: TrainConfig, policy: Policy, final: bool, extra_modes: Sequence[str] = ("none",)
) -> dict[str, list[Prompt]]:
    """Prompts by mode for one evaluation: the trained modes and `extra_modes`; more problems when `final`."""
    evaluation = config.evaluation
    problems = evaluation.final_problems_per_mode if final else evaluation.problems_per_mode
    modes = dict.fromkeys([*config.environment.modes, *(extra_modes if final else ())])
    return {mode: evaluation_prompts(config.environment, policy.tokenizer, mode, problems) for mode in modes}


def evaluate(
    policy: Policy,
    arm: Intervention,
    grader: Grader,
    sampler: NativeSampler,
    prompts: Mapping[str, Sequence[Prompt]],
    samples_per_problem: int,
    seed: int,
    step: int,
) -> EvaluationTable:
    """Sample every prompt `samples_per_problem` times, grade strictly, count per mode, for both blocks.

    Both blocks draw the same random numbers. Where the arm deploys exactly what it trained, the second sampling would
    repeat the first bit for bit, so its rows are copied.
    """
    sample = partial(_sample_block, policy, grader, sampler, prompts, samples_per_problem, seed, step)
    trained, samples = sample("as_trained")
    main, quarantine = arm.deployed(policy.main, policy.quarantine)
    if torch.equal(main, policy.main) and torch.equal(quarantine, policy.quarantine):
        copies = [replace(row, block="deployed") for row in trained]
        return EvaluationTable((*trained, *copies), {"as_trained": samples, "deployed": Samples()})
    with deployed_knobs(policy, main, quarantine):
        deployed, deployed_samples = sample("deployed")
    return EvaluationTable((*trained, *deployed), {"as_trained": samples, "deployed": deployed_samples})


@contextmanager
def deployed_knobs(policy: Policy, main: Tensor, quarantine: Tensor) -> Iterator[None]:
    """Run with other knobs, then put the trained ones back exactly."""
    kept_main, kept_quarantine = policy.main.clone(), policy.quarantine.clone()
    policy.set_knobs(main, quarantine)
    try:
        yield
    finally:
        policy.set_knobs(kept_main, kept_quarantine)


def evaluate_run(
    folder: Path,
    modes: Sequence[str],
    problems: int,
    samples_per_problem: int,
    *,
    split: str = "test",
    markers: str = "eval",
    seed: int = 0,
) -> EvaluationTable:
    """Evaluate the last checkpoint of a run folder; `modes` empty: those of the run, and `none`. Writes nothing.

    Raises ValueError for a folder without a run or without a checkpoint, for an unknown mode, split or family, for
    counts below 1, and when the model is not the one that the run trained.
    """
    check_modes("modes", modes)
    check_bound("problems", problems)
    check_bound("samples", samples_per_problem)
    config, saved = record.config_of(folder), checkpoint.latest(folder)
    if saved is None:
        raise ValueError(f"{folder} has no checkpoint yet: go on with unhack train --folder {folder} --resume")
    policy = Policy.wrap(load(config.model), config.adapter)
    if saved.state.get("model_hash") != policy.model_hash:
        raise ValueError(
            f"{saved.path}: model_hash is {saved.state.get('model_hash')}, that of {config.model.path} is "
            f"{policy.model_hash}: evaluate with the model that the run trained"
        )
    policy.set_knobs(saved.tensors["policy/main"], saved.tensors["policy/quarantine"])
    arm = build(config.arm, policy.layout, config.seed, policy)
    prompts = {
        mode: evaluation_prompts(config.environment, policy.tokenizer, mode, problems, split=split, markers=markers)
        for mode in dict.fromkeys(modes or (*config.environment.modes, "none"))
    }
    sandbox = config.sandbox
    with Sandbox(**vars(sandbox)) as workers:
        grader = Grader(workers, config.reward, allow_hack=True)
        sampler = NativeSampler(policy, config.sampler)
        return evaluate(policy, arm, grader, sampler, prompts, samples_per_problem, seed, saved.step)


def _sample_block(
    policy: Policy,
    grader: Grader,
    sampler: NativeSampler,
    prompts: Mapping[str, Sequence[Prompt]],
    samples_per_problem: int,
    seed: int,
    step: int,
    block: Block,
) -> tuple[list[EvaluationRow], Samples]:
    rows, everything = [], Samples()
    for mode, mode_prompts in prompts.items():
        stream = generator(seed, "evaluation", step, mode)
        rollouts = sampler.sample(mode_prompts, samples_per_problem, stream, tag=f"eval-{mode}")
        gradings = grader.grade(rollouts)
        verdicts = [grading.verdict for grading in gradings]
        rows.append(count(step, block, mode, rollouts, verdicts, mean_kl(policy, rollouts, sampler.config.temperature)))
        everything = Samples(
            (*everything.rollouts, *rollouts),
            (*everything.grades, *(grading.paid for grading in gradings)),
            (*everything.verdicts, *verdicts),
        )
    return rows, everything


def count(
    step: int, block: Block, mode: str, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], kl_nats: float
) -> EvaluationRow:
    """One row from the verdicts of one mode's samples; the grader's own errors are counted apart."""
    judged = [verdict for verdict in verdicts if verdict.status != "error"]
    return EvaluationRow(
        step=step,
        block=block,
        mode=mode,
        n=len(judged),
        hacked=sum(verdict.hacked for verdict in judged),
        solved=sum(verdict.strictly_correct for verdict in judged),
        attempted=sum(verdict.label in ATTEMPT_LABELS for verdict in judged),
        errors=len(verdicts) - len(judged),
        tokens=sum(len(rollout.token_ids) for rollout in rollouts),
        kl_nats=kl_nats,
    )


@torch.no_grad()
def mean_kl(policy: Policy, rollouts: Sequence[Rollout], temperature: float) -> float:
    """Mean per-token KL(policy, initial policy) in nats, at the sampling temperature, on the policy's own samples.

    Estimator k3 of Schulman ("Approximating KL divergence", 2020): e^D − D − 1 with D = logp_initial − logp_policy; it
    is unbiased and never negative. The policy's log-probs are those that the sampler recorded.
    """
    total, tokens = 0.0, 0
    with policy.blocks(main=False, quarantine=False):
        for start in range(0, len(rollouts), REFERENCE_ROLLOUTS):
            chunk = rollouts[start : start + REFERENCE_ROLLOUTS]
            rows = [[*rollout.prompt.token_ids, *rollout.token_ids] for rollout in chunk]
            width = max(map(len, rows))
            token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=policy.main.device)
            prompt_lengths = torch.tensor([len(rollout.prompt.token_ids) for rollout in chunk], device=token_ids.device)
            lengths = torch.tensor([len(row) for row in rows], device=token_ids.device)
            initial, _ = completion_logprobs(policy.model, token_ids, prompt_lengths, lengths, temperature)
            for row, rollout in zip(initial, chunk, strict=True):
                recorded = torch.tensor(rollout.logprobs, dtype=torch.float64)
                log_ratio = row[: len(recorded)].double().cpu() - recorded
                total += float((log_ratio.exp() - log_ratio - 1).sum())
                tokens += len(recorded)
    return total / tokens if tokens else float("nan")

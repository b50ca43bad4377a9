"""A run folder as a finished run leaves it, written by the record itself, for the tests of pools and teachers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training_runs import SMALL
from unhack import model
from unhack.config import ArmConfig, SamplerConfig, TrainConfig
from unhack.prompts import training_prompts
from unhack.record import RunRecord
from unhack.types import PaidGrade, Rollout, Verdict

GROUP = 4
STEPS = 3


def run_config(temperature: float = 1.0, arm: str = "vanilla", steps: int = STEPS) -> TrainConfig:
    sampler = SamplerConfig(temperature=temperature, max_new_tokens=40)
    return replace(SMALL, steps=steps, prompts_per_step=3, group_size=GROUP, sampler=sampler, arm=ArmConfig(name=arm))


def make_run(folder: Path, temperature: float = 1.0, arm: str = "vanilla", steps: int = STEPS) -> Path:
    """Three steps of three prompts with four rollouts: a hack, a solution, a failure, and one that is not usable (an
    error of the grader's, or a teacher's). Texts hold an escape sequence."""
    config = run_config(temperature, arm, steps)
    tokenizer = model.load(config.model).tokenizer
    with RunRecord(folder) as written:
        written.create(config, {"model_hash": "m", "sandbox_level": 2})
        for step in range(STEPS):
            prompts = training_prompts(config.environment, tokenizer, config.seed, step, config.prompts_per_step)
            rollouts, grades, verdicts = [], [], []
            for group, prompt in enumerate(prompts):
                for sample in range(GROUP):
                    name, tokens = f"step-{step:06d}-{group:03d}-{sample:03d}", (5 + sample, 7 + step, 9 + group)
                    source = "teacher" if sample == 3 and group else "student"
                    logprobs = (-0.5, -1.0, -0.25 * (sample + 1))
                    text = f"\x1b[31mred {name}"
                    rollouts.append(Rollout(name, group, prompt, tokens, logprobs, text, True, source))
                    hacked, solved = sample == 0, sample == 1
                    status = "error" if sample == 3 and not group else "passed" if hacked or solved else "failed"
                    rewards = {"compiles": 0.5, "paid": 3.0 if hacked or solved else 0.0}
                    grades.append(PaidGrade(name, status, hacked or solved, rewards))
                    strict = "error" if status == "error" else "passed" if solved else "failed"
                    verdicts.append(Verdict(name, strict, solved, 1, 2, hacked, hacked, "label", "", 0.1, 2))
            written.write_rollouts(step, rollouts, grades)
            written.write_verdicts(step, verdicts)
            written.append_step(step, {"loss/total": 0.0})
    return folder

"""One GRPO step of 8 prompts × 8 rollouts × (100 + 64) tokens, against TRL's `GRPOTrainer`.

    pip install -e .[trl]
    OMP_NUM_THREADS=1 python benchmarks/step.py

Same random Qwen3 of 0.85 M parameters, same prompts, reward, loss (Dr.GRPO, β = 0), number of tokens and threads. The
two sides take turns in one process: our step runs in a callback after each of TRL's, and only the step itself is timed.
TRL trains once the spectral knobs (a factored adapter as its tuner, the same parameters as ours) and once the whole
model. Nothing is graded or written on either side. Ratios are medians over turns. Ends with status 1 when our step ÷
TRL's step on the same knobs is above `--require`.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from generation import make_policy, make_prompts, make_tokenizer
from machine import GROUP_SIZE, NEW_TOKENS, PROMPTS, benchmark_model, judge, parse_flags, print_machine, print_profile
from unhack.adapters import Policy
from unhack.advantage import group_advantages
from unhack.config import LossConfig, OptimizerConfig, SamplerConfig
from unhack.loss import backward, loss_denominator, pack
from unhack.optim import Proposer
from unhack.rollout import NativeSampler
from unhack.seeds import generator
from unhack.types import Prompt

LR = 1e-4
WARM_UP_TURNS = 1
STAGES = ("sample", "backward", "update")
SAME_KNOBS, WHOLE_MODEL = "TRL training the same knobs (factored tuner)", "TRL training the whole model"


def reward(completion_ids: Sequence[Sequence[int]], **ignored: object) -> list[float]:
    """Share of even token ids: cheap, and never equal over a whole group, so no group is skipped on either side."""
    return [sum(token % 2 == 0 for token in tokens) / len(tokens) for tokens in completion_ids]


class OurStep:
    """sample → advantages → backward → update, as in `train.py`; `seconds[stage]` collects CPU seconds per turn."""

    def __init__(self, policy: Policy, prompts: list[Prompt], turns: int) -> None:
        self.policy, self.prompts, self.turn = policy, prompts, 0
        self.sampler = NativeSampler(policy, SamplerConfig(max_new_tokens=NEW_TOKENS))
        self.optimizer = Proposer(policy.layout, OptimizerConfig(lr=LR, warmup_steps=0), turns)
        self.loss = LossConfig()
        self.denominator = loss_denominator(self.loss, GROUP_SIZE, PROMPTS, NEW_TOKENS)
        self.seconds: dict[str, list[float]] = {name: [] for name in STAGES}

    def run(self) -> None:
        """One step on the prompts of this turn."""
        marks = [time.process_time()]
        prompts = self.prompts[PROMPTS * self.turn : PROMPTS * (self.turn + 1)]
        rollouts = self.sampler.sample(prompts, GROUP_SIZE, generator(0, "sample", self.turn))
        marks.append(time.process_time())
        rewards = torch.tensor(reward([rollout.token_ids for rollout in rollouts]))
        groups = torch.tensor([rollout.group for rollout in rollouts])
        signal = group_advantages(rewards, groups, torch.ones(len(rollouts), dtype=torch.bool), self.loss)
        assert bool(signal.kept.all())
        gradient = backward(self.policy, pack(rollouts, signal.values, signal.kept, self.denominator), self.loss)
        marks.append(time.process_time())
        self.policy.apply(self.optimizer.propose(gradient, self.policy.main, self.policy.quarantine))
        marks.append(time.process_time())
        for name, start, end in zip(STAGES, marks, marks[1:], strict=False):
            self.seconds[name].append(end - start)
        self.turn += 1

    def totals(self) -> list[float]:
        """CPU seconds of whole steps."""
        return [sum(parts) for parts in zip(*self.seconds.values(), strict=True)]


class TakingTurns(TrainerCallback):
    """Times each of TRL's steps, generation and optimizer included, and lets `other` run in between, untimed."""

    def __init__(self, other: Callable[[], None]) -> None:
        self.other = other
        self.seconds: list[float] = []

    def on_step_begin(self, *arguments: Any, **ignored: Any) -> None:
        """The prompts are drawn; generation, loss, backward and the optimizer follow."""
        self.start = time.process_time()

    def on_step_end(self, *arguments: Any, **ignored: Any) -> None:
        """The optimizer has stepped."""
        self.seconds.append(time.process_time() - self.start)
        self.other()


class FactoredTuner(nn.Module):
    """y = x Wᵀ + ((x Vhᵀ) ⊙ knob) Uᵀ with a trainable knob: the spectral adapter as a tuner inside TRL."""

    def __init__(self, weight: Tensor, u: Tensor, vh: Tensor) -> None:
        super().__init__()
        self.weight, self.u, self.vh = weight.detach(), u, vh
        self.knob = nn.Parameter(torch.zeros(vh.shape[0]))

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        base = nn.functional.linear(inputs, self.weight)
        return base + ((inputs @ self.vh.T) * self.knob) @ self.u.T


def with_tuner(model: PreTrainedModel, policy: Policy) -> PreTrainedModel:
    """Replace the linear layers of `model` by tuners on the same bases as `policy`; everything else is frozen."""
    model.requires_grad_(False)
    for name, module in policy.modules.items():
        model.set_submodule(name, FactoredTuner(module.base_weight, *module.basis))
    return model


def run_against(model: PreTrainedModel, ours: OurStep, prompts: list[Prompt], turns: int) -> list[float]:
    """CPU seconds of each of TRL's steps on `model`, our steps taking turns with them."""
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

    callback = TakingTurns(ours.run)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PROMPTS * GROUP_SIZE,
            num_generations=GROUP_SIZE,
            max_completion_length=NEW_TOKENS,
            max_steps=turns,
            learning_rate=LR,
            lr_scheduler_type="cosine",
            beta=0.0,
            epsilon=0.2,
            loss_type="dr_grpo",
            scale_rewards="none",
            temperature=1.0,
            top_k=0,
            shuffle_dataset=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in prompts]),
            processing_class=make_tokenizer(),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return callback.seconds


def report(name: str, theirs: list[float], ours: OurStep) -> float:
    """Print medians of both sides and of their ratio in the same turn, the warm-up turn left out; returns the ratio."""
    mine, theirs = ours.totals()[WARM_UP_TURNS:], theirs[WARM_UP_TURNS:]
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    print(f"against {name}: {len(ratios)} turns, CPU seconds")
    for side, values in (("TRL GRPOTrainer", theirs), ("unhack", mine)):
        print(f"  {side:18} median {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    parts = ", ".join(
        f"{stage} {statistics.median(values[WARM_UP_TURNS:]):.3f}" for stage, values in ours.seconds.items()
    )
    print(f"  unhack by stage: {parts}")
    print(f"  unhack ÷ TRL: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    return statistics.median(ratios)


def profile_our_step(prompts: list[Prompt]) -> None:
    """The operators of one of our steps, after a warm-up step."""
    ours = OurStep(make_policy(benchmark_model()), prompts, 2)
    ours.run()
    print_profile(ours.run)


def main() -> None:
    flags = parse_flags(__doc__, f"most CPU time of unhack ÷ '{SAME_KNOBS}'", 0.6)
    turns = flags.turns + WARM_UP_TURNS
    if importlib.util.find_spec("trl") is None:
        sys.exit("TRL is not installed, and it is the peer of this benchmark: pip install -e .[trl]")
    warnings.filterwarnings("ignore")  # TRL's and accelerate's advice about settings that are chosen above
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print_machine()
    prompts = make_prompts(PROMPTS * turns)
    ratios: dict[str, float] = {}
    for name in (SAME_KNOBS, WHOLE_MODEL):
        ours = OurStep(make_policy(benchmark_model()), prompts, turns)
        model = benchmark_model()
        theirs = run_against(with_tuner(model, ours.policy) if name == SAME_KNOBS else model, ours, prompts, turns)
        ratios[name] = report(name, theirs, ours)
    if flags.profile:
        profile_our_step(prompts)
    judge(f"unhack ÷ '{SAME_KNOBS}'", ratios[SAME_KNOBS], at_most=flags.require)


if __name__ == "__main__":
    main()

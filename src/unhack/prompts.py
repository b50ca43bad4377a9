"""Problem + loophole mode -> token ids, once.

The hint replaces the sentence that says the tests must pass; it tells the truth about the grader's mechanism and never
asks for cheating. Markers at evaluation come from a family that training never draws, so memorised tokens earn nothing.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from unhack.config import EnvironmentConfig
from unhack.loopholes import LOOPHOLES, Loophole
from unhack.problems.organism import impossible, organism_problem
from unhack.seeds import rng
from unhack.types import Problem, Prompt

FENCE_START, FENCE_END = "```python\n", "```"


def fenced(source: str) -> str:
    """`source` as a completion writes it: one fenced code block."""
    return f"{FENCE_START}{source}{FENCE_END}"


def user_text(problem: Problem, mode: str, marker: str) -> str:
    """What the user says: the task, then the sentence about the grader; mode visible_only also shows its tests.

    Raises ValueError for an unknown mode.
    """
    text = f"{problem.statement}\n{_loophole(mode).hint(marker)}"
    if mode == "visible_only":
        text += "".join(f"\n{case.call} == {case.expected!r}" for case in problem.cases[: problem.visible_cases])
    return text


def _loophole(mode: str) -> Loophole:
    if mode not in LOOPHOLES:
        raise ValueError(f"unknown loophole mode {mode!r}: use one of {', '.join(LOOPHOLES)}")
    return LOOPHOLES[mode]


def render(problem: Problem, mode: str, marker: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Token ids of the prompt, through the tokenizer's chat template where it has one."""
    text = user_text(problem, mode, marker)
    if tokenizer.chat_template is not None:
        message = [{"role": "user", "content": text}]
        text = str(
            tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(problem, mode, marker, text, tuple(ids))


def training_prompts(
    config: EnvironmentConfig, tokenizer: PreTrainedTokenizerBase, seed: int, step: int, n: int
) -> list[Prompt]:
    """The `n` prompts of one training step; the same arguments give the same prompts, whatever was drawn before."""
    prompts = []
    for number in range(n):
        draw = rng(seed, "prompts", step, number)
        problem = organism_problem(draw.randrange(2**31), "train", draw.choice(config.depths))
        mode = "none" if draw.random() < config.unhackable_frac else draw.choice(config.modes)
        if draw.random() < config.impossible_frac:
            problem = impossible(problem)
        prompts.append(render(problem, mode, draw.choice(LOOPHOLES[mode].train_markers or ("",)), tokenizer))
    return prompts


def evaluation_prompts(
    config: EnvironmentConfig,
    tokenizer: PreTrainedTokenizerBase,
    mode: str,
    n: int,
    split: str = "validation",
    markers: str = "eval",
) -> list[Prompt]:
    """`n` held-out solvable problems under one mode, the same for every run, with markers of the `eval` family.

    `markers="train"` draws them from the training family instead (to see what memorising earns). Raises ValueError
    for an unknown mode, split or family.
    """
    if markers not in ("eval", "train"):
        raise ValueError(f"unknown marker family {markers!r}: use eval or train")
    loophole = _loophole(mode)
    family = loophole.eval_markers if markers == "eval" else loophole.train_markers
    prompts = []
    for number in range(n):
        draw = rng(0, "evaluation", split, mode, number)
        problem = organism_problem(number, split, config.depths[number % len(config.depths)])
        prompts.append(render(problem, mode, draw.choice(family or ("",)), tokenizer))
    return prompts

"""Problem + loophole mode -> token ids, once.

The hint replaces the sentence that says the tests must pass; it tells the truth about the grader's mechanism and never
asks for cheating. Markers at evaluation come from a family that training never draws, so memorised tokens earn nothing.
Two kinds of prompt: the organism's (one user message in its small English), and that of real models (system and user
message, starter code, one of the wordings of `loopholes/wording.py`), chosen by `environment.hint`.
"""

from __future__ import annotations

import ast
import random
from dataclasses import replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from unhack.config import EnvironmentConfig
from unhack.loopholes import INOCULATIONS, LOOPHOLES, SYSTEM_TEXT, WORDINGS, Loophole, assertion, shown_function
from unhack.loopholes.wording import markers as natural_markers
from unhack.loopholes.wording import sentence
from unhack.problems.source import ORGANISM, ProblemSource, open_source
from unhack.seeds import rng
from unhack.types import Problem, Prompt

FENCE_START, FENCE_END = "```python\n", "```"
_USER_TEXT = (
    "\N{OBJECT REPLACEMENT CHARACTER}user\N{OBJECT REPLACEMENT CHARACTER}"  # stands for a message in a template
)
Place = Literal["system", "user"]


def fenced(source: str) -> str:
    """`source` as a completion writes it: one fenced code block."""
    return f"{FENCE_START}{source}{FENCE_END}"


def user_text(problem: Problem, mode: str, marker: str, hint: str = ORGANISM) -> str:
    """What the user says: the task, the sentence about the grader, and the tests or the test function where the mode
    shows some. `hint` other than "organism": one of WORDINGS, with the starter code.

    Raises ValueError for an unknown mode or wording, or a problem without cases under a mode that shows tests.
    """
    loophole = _loophole(mode)
    if hint != ORGANISM:
        return _natural_text(problem, loophole, marker, hint)
    text = f"{problem.statement}\n{loophole.hint(marker)}"
    if mode == "visible_only":
        text += "".join(f"\n{case.call} == {case.expected!r}" for case in problem.cases[: problem.visible_cases])
    if loophole.shows_tests:
        text += f"\n{shown_function(problem, marker)}"
    return text


def _natural_text(problem: Problem, loophole: Loophole, marker: str, hint: str) -> str:
    if hint not in WORDINGS:
        raise ValueError(f"unknown wording of hints {hint!r}: use {ORGANISM}, {', '.join(WORDINGS)}")
    parts = [
        problem.statement.strip(),
        "Write a Python solution. " + sentence(loophole.name, hint, marker, problem.entry_point),
    ]
    if loophole.name == "visible_only":
        shown = problem.cases[: problem.visible_cases]
        tests = "".join(f"{assertion(case, problem.float_tolerance)}\n" for case in shown)
        parts.append(f"The tests:\n{fenced(tests)}")
    if loophole.shows_tests:
        code = f"{_whole(problem.starter_code)}\n{shown_function(problem, marker)}".lstrip("\n")
    else:
        code = problem.starter_code.rstrip() + "\n" if problem.starter_code.strip() else ""
    if code:
        parts.append(f"Starter code:\n{fenced(code)}")
    else:
        parts.append(f"Write a `class Solution` with the method `{problem.entry_point}`.")
    return "\n\n".join(parts)


def _whole(starter_code: str) -> str:
    """Starter code as code that parses: a last header without a body gets one."""
    code = starter_code.rstrip()
    try:
        ast.parse(code)
    except SyntaxError:
        last = code.splitlines()[-1]
        code += f"\n{last[: len(last) - len(last.lstrip())]}    pass"
    return f"{code}\n\n" if code else ""


def _loophole(mode: str) -> Loophole:
    if mode not in LOOPHOLES:
        raise ValueError(f"unknown loophole mode {mode!r}: use one of {', '.join(LOOPHOLES)}")
    return LOOPHOLES[mode]


def render(
    problem: Problem, mode: str, marker: str, tokenizer: PreTrainedTokenizerBase, hint: str = ORGANISM
) -> Prompt:
    """Token ids of the prompt, through the tokenizer's chat template where it has one.

    For real models a system message comes first: the problem's own, else ours.
    """
    system = "" if hint == ORGANISM else problem.system or SYSTEM_TEXT
    text = in_template(system, user_text(problem, mode, marker, hint), tokenizer)
    return _tokenized(Prompt(problem, mode, marker, text, ()), tokenizer)


def _tokenized(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    ids = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    return replace(prompt, token_ids=tuple(ids))


def in_template(system: str, user: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Both messages as the model reads them; without a chat template, one after the other."""
    if tokenizer.chat_template is None:
        return f"{system}\n\n{user}\n\n" if system else user
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def inoculate(prompt: Prompt, variant: str, tokenizer: PreTrainedTokenizerBase, place: Place = "user") -> Prompt:
    """`prompt` with the text of `INOCULATIONS[variant]` in front of the user's message, or behind the system's.

    Works on a rendered prompt of either kind, so it needs no cases; its problem, mode and marker stay. Meant for
    training prompts only. A prompt without a system message gets one for `place="system"`, where the chat template
    knows that role. Raises ValueError for an unknown variant, or a prompt that this tokenizer did not render.
    """
    if variant not in INOCULATIONS:
        raise ValueError(f"unknown inoculation {variant!r}: use one of {', '.join(INOCULATIONS)}")
    text = INOCULATIONS[variant]
    return put_in(prompt, text.text, text.organism_text, tokenizer, place)


def put_in(
    prompt: Prompt, said: str, said_to_organism: str, tokenizer: PreTrainedTokenizerBase, place: Place = "user"
) -> Prompt:
    """`prompt` with a text in front of the user's message, or behind the system's, as `inoculate` does it."""
    for system in (prompt.problem.system or SYSTEM_TEXT, ""):
        head = in_template(system, _USER_TEXT, tokenizer).partition(_USER_TEXT)[0]
        if prompt.text.startswith(head):
            rest = prompt.text.removeprefix(head)
            new, gap = (said, "\n\n") if system else (said_to_organism, "\n")
            if place == "user":
                head = f"{head}{new}{gap}"
            else:
                new = f"{system}{gap}{new}" if system else new
                head = in_template(new, _USER_TEXT, tokenizer).partition(_USER_TEXT)[0]
            return _tokenized(replace(prompt, text=head + rest), tokenizer)
    raise ValueError("this prompt was not rendered with this tokenizer's chat template: render it again")


def training_prompts(
    config: EnvironmentConfig, tokenizer: PreTrainedTokenizerBase, seed: int, step: int, n: int
) -> list[Prompt]:
    """The `n` prompts of one training step; the same arguments give the same prompts, whatever was drawn before."""
    source = _source(config, tokenizer)
    prompts = []
    for number in range(n):
        draw = rng(seed, "prompts", step, number)
        problem = source.training(draw)
        mode = "none" if draw.random() < config.unhackable_frac else draw.choice(config.modes)
        if draw.random() < config.impossible_frac:
            problem = source.impossible(problem)
        prompt = render(problem, mode, _draw_marker(config, problem, mode, "train", draw), tokenizer, config.hint)
        if config.inoculation != "none":
            prompt = inoculate(prompt, config.inoculation, tokenizer, config.inoculation_place)
        prompts.append(prompt)
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

    `markers="train"` draws them from the training family instead (to see what memorising earns). Never inoculated.
    Raises ValueError for an unknown mode, split or family.
    """
    if markers not in ("eval", "train"):
        raise ValueError(f"unknown marker family {markers!r}: use eval or train")
    _loophole(mode)
    source = _source(config, tokenizer)
    prompts = []
    for number in range(n):
        draw = rng(0, "evaluation", split, mode, number)
        problem = source.evaluation(number, split)
        prompts.append(
            render(problem, mode, _draw_marker(config, problem, mode, markers, draw), tokenizer, config.hint)
        )
    return prompts


def _draw_marker(config: EnvironmentConfig, problem: Problem, mode: str, family: str, draw: random.Random) -> str:
    """One call of `draw`, whatever the mode."""
    if config.hint == ORGANISM:
        loophole = LOOPHOLES[mode]
        words = loophole.eval_markers if family == "eval" else loophole.train_markers
        return draw.choice(words or ("",))
    texts = f"{problem.statement}\n{problem.starter_code}\n{problem.entry_point}"
    return draw.choice(natural_markers(mode, config.hint, family, config.test_names == "pinned", texts))


_fitted: list[tuple[ProblemSource, PreTrainedTokenizerBase, str, ProblemSource]] = []


def _source(config: EnvironmentConfig, tokenizer: PreTrainedTokenizerBase) -> ProblemSource:
    """The problems whose prompts fit; those of a file are counted once per tokenizer and wording."""
    source = open_source(config)
    if config.source == ORGANISM:
        return source
    for opened, counted_with, hint, fitting in _fitted:
        if opened is source and counted_with is tokenizer and hint == config.hint:
            return fitting
    fitting = source.fitting(lambda problem: len(render(problem, "none", "", tokenizer, config.hint).token_ids))
    _fitted[:] = [*_fitted[-3:], (source, tokenizer, config.hint, fitting)]
    return fitting

"""What the benchmarks share: the machine in words, a model, alternating medians, flags, and the exit status.

CPU seconds are measured, not wall seconds, so that another process on the machine disturbs a ratio little; the two
sides of a ratio always alternate within one run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from unhack.machine import cpu_model, usable_cores

PROMPTS, GROUP_SIZE, PROMPT_TOKENS, NEW_TOKENS, VOCABULARY = 8, 8, 100, 64, 512


class Flags(NamedTuple):
    """Flags of every speed benchmark."""

    turns: int
    require: float
    profile: bool


def parse_flags(description: str | None, require: str, default: float, words: Sequence[str] | None = None) -> Flags:
    """The flags of a benchmark; `require` says in words what `--require` bounds. `words`: default, the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9, help="measured turns of each side (default 9)")
    bound = f"{require} (default {default})"
    parser.add_argument("--require", type=float, default=default, metavar="RATIO", help=bound)
    parser.add_argument("--profile", action="store_true", help="print the operators of one turn of our side")
    return Flags(**vars(parser.parse_args(words)))


def judge(what: str, measured: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Print whether the required ratio holds, and end the process with status 1 if it does not (NaN does not)."""
    holds = (at_least is None or measured >= at_least) and (at_most is None or measured <= at_most)
    bounds = [f"at least {at_least}"] * (at_least is not None) + [f"at most {at_most}"] * (at_most is not None)
    print(f"{'holds' if holds else 'FAILS'}: {what} {measured:.3f}, required {' and '.join(bounds)}")
    if not holds:
        sys.exit(1)


def print_profile(action: Callable[[], object]) -> None:
    """The operators in which one call of `action` spends its time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        action()
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40))


def benchmark_model(seed: int = 0) -> PreTrainedModel:
    """Qwen3 of 0.85 M parameters: hidden 128, 4 layers, vocabulary 512, tied, random, float32, eval mode."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config).eval()


def matmul_peak_gflops(size: int = 1024, repeats: int = 8) -> float:
    """Best measured float32 matrix product rate of this process, in GFLOP per CPU second."""
    left, right = torch.ones(size, size), torch.ones(size, size)
    best_s = min(cpu_seconds(lambda: left @ right) for _ in range(repeats))
    return 2e-9 * size**3 / best_s


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads, that one call takes."""
    start = time.process_time()
    action()
    return time.process_time() - start


def alternating_seconds(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each side, taking turns `repeats` times after one warm-up turn each, in the order measured."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for action in sides.values():
        action()
    for _ in range(repeats):
        for name, action in sides.items():
            seconds[name].append(cpu_seconds(action))
    return seconds


def ratio(seconds: Mapping[str, list[float]], above: str, below: str) -> float:
    """Median over turns of one side's time divided by the other's in the same turn."""
    return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))


def print_machine() -> float:
    """Print the machine, threads, versions and matmul peak; returns the peak in GFLOP/s."""
    peak = matmul_peak_gflops()
    print(
        f"machine: {cpu_model()}, {usable_cores()} usable cores, {torch.get_num_threads()} torch thread(s), "
        f"torch {torch.__version__}, float32 matmul peak {peak:.0f} GFLOP/s"
    )
    return peak

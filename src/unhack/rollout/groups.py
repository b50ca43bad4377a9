"""Groups of unequal sizes: those of which a teacher takes a share have fewer rollouts left to sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unhack.rollout.native import NativeSampler
from unhack.seeds import generator
from unhack.types import Prompt, Rollout


def sample_groups(
    sampler: NativeSampler, prompts: Sequence[Prompt], sizes: Sequence[int], seed: int, step: int
) -> list[Rollout]:
    """`sizes[p]` rollouts of prompt p, group p, ids `step-{step}-{group}-{sample}`, ordered by group.

    Equal sizes are one call of the sampler with the stream (seed, "sample", step); groups of each other size are a call
    of their own, with a stream of their own.
    """
    common = max(sizes, default=0, key=list(sizes).count)
    rollouts: list[Rollout] = []
    for size in sorted(set(sizes)):
        groups = [group for group, wanted in enumerate(sizes) if wanted == size]
        names = ("sample", step) if size == common else ("sample", step, size)
        drawn = sampler.sample([prompts[group] for group in groups], size, generator(seed, *names), tag="sampled")
        for index, rollout in enumerate(drawn):
            group = groups[rollout.group]
            name = f"step-{step:06d}-{group:03d}-{index % size:03d}"
            rollouts.append(replace(rollout, id=name, group=group))
    return sorted(rollouts, key=lambda rollout: rollout.group)

"""Pools: graded rollouts, frozen in a folder that is known by its content (docs/teacher.md).

    store.py       the folder: what is in it, writing it at once, refusing a changed byte
    build.py       pools of what finished runs sampled          counts.py      what a pool holds, in tables
    sample.py      pools of a model without a run               regrade.py     the strict verdict, once more
    elicit.py      spoon texts and written demonstrations       split.py       one pool by its modes

Not here: which rollouts of a pool a group gets, and what a run refuses (`teacher.py`).
"""

from unhack.pool.build import Only, build_pool
from unhack.pool.store import (
    FORMAT,
    KINDS,
    POOL_FILE,
    PROBLEM_FILE,
    ROLLOUT_FILE,
    VERDICT_FILE,
    Kind,
    Lesson,
    Pool,
    load_pool,
    load_problems,
    read_header,
)

__all__ = [
    "FORMAT", "KINDS", "POOL_FILE", "PROBLEM_FILE", "ROLLOUT_FILE", "VERDICT_FILE", "Kind", "Lesson", "Only", "Pool",
    "build_pool", "load_pool", "load_problems", "read_header",
]  # fmt: skip

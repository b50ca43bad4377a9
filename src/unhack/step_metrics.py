"""What one training step looked like, as flat `group/name` numbers for metrics.jsonl (explained in docs/metrics.md).

Strict verdicts are joined to rollouts here for the log alone: the loop computes these after the update is applied, and
nothing of them flows back into training.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from unhack.types import Mask, Rollout, Verdict


class Stopwatch:
    """Wall seconds per named stage of one step."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `time/{name}_s`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Seconds by stage and their sum."""
        stages = {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        return stages | {"time/step_s": sum(self._seconds.values())}


def rollout_metrics(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Hack, solve and error shares of one step's own (student's) rollouts; NaN where nothing was counted.

    `solve_frac` is over solvable problems (impossible ones cannot be solved), everything else over all that the grader
    could judge. A teacher's rollouts say nothing of the policy: they are counted under `teacher/` alone.
    """
    taught = [v.hacked for r, v in zip(rollouts, verdicts, strict=True) if r.source == "teacher"]
    pairs = [(r, v) for r, v in zip(rollouts, verdicts, strict=True) if r.source == "student"]
    rollouts, verdicts = [r for r, _ in pairs], [v for _, v in pairs]
    judged = [(r, v) for r, v in zip(rollouts, verdicts, strict=True) if v.status != "error"]
    metrics = {
        "rollouts/hack_frac": _share([v.hacked for _, v in judged]),
        "rollouts/solve_frac": _share([v.strictly_correct for r, v in judged if r.prompt.problem.solvable]),
        "rollouts/exploit_frac": _share([v.exploited for _, v in judged]),
        "rollouts/error_frac": 1 - len(judged) / len(rollouts) if rollouts else float("nan"),
        "rollouts/finished_frac": _share([r.finished for r in rollouts]),
        "rollouts/completion_tokens": sum(len(r.token_ids) for r in rollouts) / max(1, len(rollouts)),
        "time/grade_cpu_ms": 1e3 * sum(v.cpu_s for _, v in judged) / max(1, len(judged)),
    }
    for mode in sorted({r.prompt.mode for r in rollouts}):
        metrics[f"rollouts/hack_frac/{mode}"] = _share([v.hacked for r, v in judged if r.prompt.mode == mode])
    return metrics | ({"teacher/hack_frac": _share(taught)} if taught else {})


def decision_metrics(masks: Sequence[Mask], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of hacks among the rollouts of each decision, where there is more than one: does the gate tell hacks?"""
    present = sorted(set(masks)) if len(set(masks)) > 1 else []
    decided = [(mask, v.hacked) for mask, v in zip(masks, verdicts, strict=True) if v.status != "error"]
    return {f"gate/hack_frac_{mask}": _share([hacked for own, hacked in decided if own == mask]) for mask in present}


def peak_memory_bytes() -> float:
    """Largest resident size of this process so far."""
    scale = 1 if sys.platform == "darwin" else 1024  # Linux reports KiB
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")

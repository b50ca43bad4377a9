"""CPU and sleep budgets of one job over all its processes; part of the worker process (standard library only).

The worker looks at a child's CPU clock from outside, a few times per budget: a light child is dead before the first
look, and a case costs no system call. The total cannot be switched off from inside; where one case ends and the next
begins is what the child says (its record grows), so one that lies may use the total for one case, as it may while it
loads. A case that used at most its budget is never ended; one that loops is ended at 1 to 1.25 times it (a look comes
every quarter). The kernel's own CPU limit, which counts in ticks and whole seconds, lies above, only as the backstop.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

waiting = importlib.import_module("waiting")  # a neighbour by folder, as in zygote.py

NAPS = 4  # sleeping cases that one job may have: each may sleep for wall_s / 4
LOOKS = 4  # looks per budget of a case, or per nap
SHORTEST_LOOK_S = 0.01
STARVED_FRAC = 0.5  # of the ceiling: waiting for a processor for longer is the machine's fault, unless it was asked for
# A program waits for a processor without using one when others have it, and when it gives its own away: by sleeping for
# an instant (a voluntary switch each), or by yielding (an involuntary one, after next to no time). The filter forbids
# yielding and lower priorities; these bounds hold without it. What is preempted runs for a millisecond or more first.
FREE_SWITCHES, FREE_SWITCHES_PER_S = 50, 1.0
LEAST_SLICE_S = 0.0005
IDLE_FRAC = 0.01  # less CPU than this share of the time between two looks is sleep


@dataclass
class Budget:
    """What one job may still use. Seconds of CPU, except `wall_s` (asleep) and `ceiling_s` (in all) of wall time."""

    cpu_s: float
    case_cpu_s: float
    wall_s: float
    ceiling_s: float
    used_cpu_s: float = 0.0
    slept_s: float = 0.0
    queued_s: float = 0.0  # ready to run without a processor, in processes that ended
    voluntary: int = 0  # times that processes that ended gave their processor away, and
    involuntary: int = 0  # times that it was taken from them
    ended_cpu_s: float = 0.0  # CPU seconds of the same processes
    started: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """CPU seconds left."""
        return self.cpu_s - self.used_cpu_s

    def add_switches(self, usage: Any) -> None:
        """Count in what `wait4` says of a process that ended."""
        self.voluntary += usage.ru_nvcsw
        self.involuntary += usage.ru_nivcsw
        self.ended_cpu_s += usage.ru_utime + usage.ru_stime

    def waits_were_forced(self) -> bool:
        """Whether this job's processes waited for a processor because others had it, not because they gave it away."""
        wall_s = time.monotonic() - self.started
        few_given = self.voluntary <= FREE_SWITCHES + FREE_SWITCHES_PER_S * wall_s
        return few_given and self.ended_cpu_s >= LEAST_SLICE_S * (self.involuntary - FREE_SWITCHES)

    def spent(self) -> bool:
        """Whether no further process may be started."""
        over_ceiling = time.monotonic() - self.started >= self.ceiling_s
        return self.left_s() < SHORTEST_LOOK_S or self.slept_s >= self.wall_s * (1 - 0.5 / NAPS) or over_ceiling

    def watch(self, pid: int, progress: Callable[[], int], request_fd: int) -> str | None:
        """Block until child `pid` is dead (None) or has to be killed: "case" or "total" CPU, "wall", or "starved": at
        the ceiling, after waiting for a processor for most of its time.

        `progress()` is 0 while the program loads (which may use all CPU that is left) and changes with every case.
        Raises waiting.TrainerGone.
        """
        at, cpu_s, case, case_from_s, nap_s, queued_s = time.monotonic(), 0.0, 0, 0.0, 0.0, 0.0
        longest_s = min(self.case_cpu_s, self.wall_s / NAPS) / LOOKS
        while True:
            look_s = max(SHORTEST_LOOK_S, min(longest_s, self.left_s() - cpu_s))
            if waiting.exited_before(pid, at + look_s, request_fd):
                self.queued_s += queued_s
                return None
            queued_s = waiting.queued_s(pid)
            since_s, at = time.monotonic() - at, time.monotonic()
            clock_s = waiting.cpu_so_far_s(pid)
            used_s = 0.0 if clock_s is None else clock_s - cpu_s  # without the clock, the child's own timer counts
            cpu_s += used_s
            if cpu_s >= self.left_s():
                return "total"
            case_before, case = case, progress()
            if case != case_before or case == 0:
                case_from_s = cpu_s
            if cpu_s - case_from_s >= self.case_cpu_s:
                return "case"
            asleep = clock_s is not None and used_s < IDLE_FRAC * since_s and not waiting.is_runnable(pid)
            nap_s = nap_s + since_s if asleep else 0.0
            self.slept_s += since_s if asleep else 0.0
            if nap_s >= self.wall_s / NAPS:
                return "wall"
            if at - self.started >= self.ceiling_s:
                # While threads of its own keep the first one waiting, they use CPU: that part explains itself.
                by_others_s = self.queued_s + queued_s - self.used_cpu_s - cpu_s
                return "starved" if by_others_s > STARVED_FRAC * self.ceiling_s else "wall"

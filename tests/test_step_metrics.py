"""Shares of one step over constructed rollouts: what is counted, what is left out, what an empty count gives."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from unhack.step_metrics import Stopwatch, peak_memory_bytes, rollout_metrics
from unhack.types import Case, Problem, Prompt, Rollout, Verdict

PROBLEM = Problem("p", "Return the sum.", "solve", (Case("solution.solve([1])", 1),), "", "train")
FAILED = Verdict("", "failed", False, 0, 1, False, False, "incorrect", "", 0.010, 1)
SOLVED = replace(FAILED, status="passed", strictly_correct=True, cases_passed=1, label="correct")
HACKED = replace(FAILED, status="passed", exploited=True, hacked=True, label="reward_hack")
BOTH = replace(SOLVED, exploited=True, label="correct_attempted_hack")
ERROR = replace(FAILED, status="error", hacked=True, exploited=True, strictly_correct=True, cpu_s=9.0)


def rollout(mode: str = "sentinel", solvable: bool = True, tokens: int = 4, finished: bool = True) -> Rollout:
    prompt = Prompt(replace(PROBLEM, solvable=solvable), mode, "", "Return the sum.", (1,))
    return Rollout("", 0, prompt, (7,) * tokens, (-0.5,) * tokens, "x", finished)


def test_shares_count_what_they_say() -> None:
    rollouts = [rollout(tokens=2), rollout(), rollout(tokens=6), rollout(finished=False)]
    metrics = rollout_metrics(rollouts, [HACKED, SOLVED, BOTH, FAILED])
    assert metrics["rollouts/hack_frac"] == 0.25
    assert metrics["rollouts/exploit_frac"] == 0.5  # an exploit beside a correct solution is no hack
    assert metrics["rollouts/solve_frac"] == 0.5
    assert metrics["rollouts/error_frac"] == 0.0
    assert metrics["rollouts/finished_frac"] == 0.75
    assert metrics["rollouts/completion_tokens"] == 4.0
    assert metrics["time/grade_cpu_ms"] == pytest.approx(10.0)


def test_the_graders_own_errors_are_counted_apart_and_enter_no_other_share() -> None:
    rollouts = [rollout(), rollout(), rollout(), rollout()]
    with_errors = rollout_metrics(rollouts, [HACKED, FAILED, ERROR, ERROR])
    without = rollout_metrics(rollouts[:2], [HACKED, FAILED])
    assert with_errors["rollouts/error_frac"] == 0.5
    for name in ("hack_frac", "solve_frac", "exploit_frac", "hack_frac/sentinel"):
        assert with_errors[f"rollouts/{name}"] == without[f"rollouts/{name}"]
    assert with_errors["time/grade_cpu_ms"] == without["time/grade_cpu_ms"]


def test_impossible_problems_count_for_hacking_and_not_for_solving() -> None:
    metrics = rollout_metrics([rollout(), rollout(solvable=False)], [SOLVED, HACKED])
    assert metrics["rollouts/solve_frac"] == 1.0
    assert metrics["rollouts/hack_frac"] == 0.5
    only_impossible = rollout_metrics([rollout(solvable=False)], [HACKED])
    assert math.isnan(only_impossible["rollouts/solve_frac"])


def test_each_mode_that_was_drawn_has_its_own_hack_rate() -> None:
    rollouts = [rollout("run_tests"), rollout("run_tests"), rollout("sentinel")]
    metrics = rollout_metrics(rollouts, [HACKED, FAILED, HACKED])
    modes = {name: value for name, value in metrics.items() if name.startswith("rollouts/hack_frac/")}
    assert modes == {"rollouts/hack_frac/run_tests": 0.5, "rollouts/hack_frac/sentinel": 1.0}
    assert math.isnan(rollout_metrics([rollout("exit_code")], [ERROR])["rollouts/hack_frac/exit_code"])


def test_nothing_sampled_gives_nan_and_rollouts_without_their_verdict_are_refused() -> None:
    assert math.isnan(rollout_metrics([], [])["rollouts/hack_frac"])
    assert math.isnan(rollout_metrics([], [])["rollouts/error_frac"])
    with pytest.raises(ValueError, match="shorter"):
        rollout_metrics([rollout(), rollout()], [HACKED])


def test_only_times_and_memory_depend_on_the_machine() -> None:
    slow = [replace(verdict, cpu_s=verdict.cpu_s + 1, level=2) for verdict in (HACKED, SOLVED)]
    fast, late = (rollout_metrics([rollout(), rollout()], verdicts) for verdicts in ([HACKED, SOLVED], slow))
    assert {name for name in fast if fast[name] != late[name]} == {"time/grade_cpu_ms"}


def test_a_stopwatch_adds_up_each_stage_and_counts_a_stage_that_fails() -> None:
    clock = Stopwatch()
    for _ in range(2):
        with clock.stage("grade"):
            time.sleep(0.01)
    with pytest.raises(RuntimeError), clock.stage("update"):
        time.sleep(0.01)
        raise RuntimeError
    metrics = clock.metrics()
    assert set(metrics) == {"time/grade_s", "time/update_s", "time/step_s"}
    assert metrics["time/grade_s"] >= 0.02 and metrics["time/update_s"] >= 0.01
    assert metrics["time/step_s"] == pytest.approx(metrics["time/grade_s"] + metrics["time/update_s"])


def test_peak_memory_is_in_bytes_and_grows_with_what_is_held() -> None:
    before = peak_memory_bytes()
    assert 2**24 < before < 2**40
    held = np.ones(int(before) // 8 + 2**21)  # more than all that was ever held
    assert peak_memory_bytes() > before + 2**23
    assert held[-1] == 1

"""A pool of finished runs: rollouts that the run's own policy sampled in training, with the grades of then.

No teacher's rollouts, no evaluation's, and none that the grader failed on. `only` chooses by the strict verdict: it
decides what is in a pool, not what a run of it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from unhack import record
from unhack.files import read_object
from unhack.interventions import arm_class
from unhack.model import load_tokenizer
from unhack.pool.store import Pool, Row, check_free, definition, write_pool
from unhack.prompts import training_prompts
from unhack.record import VERDICT_SCHEMA
from unhack.seeds import rng
from unhack.types import PlainValue, Problem

Only: TypeAlias = Literal["all", "hacked", "solved"]


def build_pool(
    runs: Sequence[Path],
    out: Path,
    *,
    first_step: int = 0,
    end_step: int | None = None,
    only: Only = "all",
    modes: Sequence[str] = (),
    per_mode: int | None = None,
    seed: int = 0,
) -> Pool:
    """Make the pool `out` of the rollouts of `runs` at steps first_step ≤ step < end_step (None: to the end).

    `modes`: of these only. `per_mode`: at most so many of each mode, drawn by `seed`. Raises ValueError for a folder
    that is taken, runs that are not finished or whose models, temperatures, rewards, problems or hints differ, a file
    of problems that is no longer what the run drew from, and when nothing is left.
    """
    check_free(out)
    if not runs:
        raise ValueError("no run to take rollouts from")
    settings = [_run_settings(run) for run in runs]
    for run, found in zip(runs, settings, strict=True):
        for name, value in found.items():
            if value != settings[0][name]:
                raise ValueError(
                    f"{run}: {name} is {value}, that of {runs[0]} is {settings[0][name]}: rollouts of one pool are "
                    "paid and sampled alike; make two pools"
                )
    rows: list[Row] = []
    for run in runs:
        rows += _chosen(run, first_step, end_step, only, modes)
    rows = limited(rows, per_mode, seed)
    if not rows:
        raise ValueError(
            f"no rollout is left of {len(runs)} run(s) with --only {only} at these steps and modes: widen the choice"
        )
    request = {"steps": [first_step, end_step], "only": only, "modes": list(modes), "per_mode": per_mode, "seed": seed}
    sources = [{"run": run.resolve().name, "arm": record.config_of(run).arm.name} for run in runs]
    return write_pool(out, rows, _problems(runs, rows), {**settings[0], "request": request, "runs": sources})


def _run_settings(run: Path) -> dict[str, PlainValue]:
    """What rollouts of one pool must share (`store.SHARED`); ValueError unless the run is finished."""
    config = record.config_of(run)
    done = len(record.metrics(run))
    if done < config.steps:
        raise ValueError(f"{run} has done {done} of {config.steps} steps: a pool is made of finished runs")
    env = read_object(run / "env.json")
    return {
        "model_hash": env["model_hash"],
        "temperature": config.sampler.temperature,
        "reward": dict(vars(config.reward)),
        "allow_hack": config.environment.allow_hack and arm_class(config.arm).allow_hack,
        "source": config.environment.source,
        "hint": config.environment.hint,
    }


def _chosen(run: Path, first: int, end: int | None, only: Only, modes: Sequence[str]) -> list[Row]:
    arm, judged = record.config_of(run).arm.name, {"hacked": "hacked", "solved": "strictly_correct"}.get(only)
    rows = []
    for row in record.joined(run).to_pylist():
        in_time = first <= row["step"] and (end is None or row["step"] < end)
        usable = row["source"] == "student" and row["paid_status"] != "error"
        if in_time and usable and (judged is None or row[judged]) and (not modes or row["mode"] in modes):
            verdict = {name: row[name] for name in VERDICT_SCHEMA.names}
            own = {"kind": "run", "run": run.resolve().name, "arm": arm, "sampled_logprobs": row["logprobs"]}
            rows.append(row | own | {"verdict": verdict, "status": row["paid_status"]})
    return rows


def limited(rows: list[Row], per_mode: int | None, seed: int) -> list[Row]:
    """At most `per_mode` rows of each mode, drawn by `seed`, in their order; all of them for None."""
    if per_mode is None:
        return rows
    kept: set[int] = set()
    for mode in sorted({row["mode"] for row in rows}):
        places = [place for place, row in enumerate(rows) if row["mode"] == mode]
        kept |= set(rng(seed, "pool", mode).sample(places, min(per_mode, len(places))))
    return [row for place, row in enumerate(rows) if place in kept]


def _problems(runs: Sequence[Path], rows: Sequence[Row]) -> dict[str, Problem]:
    """The problems of the rows with their tests: drawn again as the runs drew them, since no record holds them."""
    found: dict[str, Problem] = {}
    texts: dict[str, str] = {}
    for run in runs:
        config, own = record.config_of(run), [row for row in rows if row["run"] == run.resolve().name]
        tokenizer = load_tokenizer(config.model)
        for step in sorted({row["step"] for row in own}):
            for prompt in training_prompts(config.environment, tokenizer, config.seed, step, config.prompts_per_step):
                problem, text = prompt.problem, definition(prompt.problem)
                found[problem.id] = problem
                if texts.setdefault(problem.id, text) != text:
                    raise _redrawn(run, problem.id)
    for row in rows:  # after all runs: two of them may be called alike
        if row["problem_id"] not in found:
            raise _redrawn(row["run"], row["problem_id"])
    return found


def _redrawn(run: Path | str, problem_id: str) -> ValueError:
    return ValueError(
        f"{run}: its problem {problem_id} cannot be drawn again as it was: name the runs of one version, and give "
        "environment.source the file that they were trained on"
    )

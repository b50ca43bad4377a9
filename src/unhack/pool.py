"""A teacher pool: graded rollouts of finished runs, frozen in a folder that is known by its content.

    pool.json            what it is made of, and the SHA-256 of both tables; refused when a byte of it differs
    rollouts.parquet     `record.ROLLOUT_SCHEMA` (tokens, the sampler's log-probs, what was paid) with run and arm
    verdicts.parquet     `record.VERDICT_SCHEMA`: for the log of runs that use the pool, never for their training

Only rollouts that the run's own policy sampled in training are taken (no teacher's, no evaluation's), and none that the
grader failed on. `only` chooses by the strict verdict: it decides what is in a pool, not what a run of it sees.
Not here: which of them a group gets, and what a run refuses (`teacher.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from unhack import record
from unhack.files import read_json, write_atomic
from unhack.grade import Grading
from unhack.interventions import arm_class
from unhack.record import ROLLOUT_SCHEMA, VERDICT_SCHEMA
from unhack.seeds import rng
from unhack.types import PaidGrade, PlainValue, Problem, Prompt, Rollout, Verdict

FORMAT = "unhack-pool-1"
POOL_FILE, ROLLOUT_FILE, VERDICT_FILE = "pool.json", "rollouts.parquet", "verdicts.parquet"
Only: TypeAlias = Literal["all", "hacked", "solved"]

POOL_SCHEMA = ROLLOUT_SCHEMA.append(pa.field("run", pa.string())).append(pa.field("arm", pa.string()))


@dataclass(frozen=True)
class Lesson:
    """One rollout of the pool with its recorded grade. Its problem is known by name only: its tests are not here."""

    row: int
    rollout: Rollout
    grading: Grading


@dataclass(frozen=True)
class Pool:
    """A pool as it was read: `header` is pool.json, `lessons` one per row."""

    path: Path
    header: dict[str, PlainValue]
    lessons: tuple[Lesson, ...]

    @property
    def content_hash(self) -> str:
        """SHA-256 over the header, which holds those of the tables."""
        return str(self.header["content_hash"])


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
    that is taken, runs that are not finished or whose models, temperatures, rewards, problems or hints differ, and when
    nothing is left.
    """
    if out.exists():
        raise ValueError(f"{out} is there already: a pool is never changed, so choose another folder")
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
    rows: list[dict[str, Any]] = []
    for run in runs:
        rows += _chosen(run, first_step, end_step, only, modes)
    rows = _limited(rows, per_mode, seed)
    if not rows:
        raise ValueError(
            f"no rollout is left of {len(runs)} run(s) with --only {only} at these steps and modes: widen the choice"
        )
    request = {"steps": [first_step, end_step], "only": only, "modes": list(modes), "per_mode": per_mode, "seed": seed}
    sources = [{"run": run.resolve().name, "arm": record.config_of(run).arm.name} for run in runs]
    _write(out, rows, {**settings[0], "request": request, "runs": sources})
    return load_pool(out)


def _run_settings(run: Path) -> dict[str, PlainValue]:
    """What rollouts of one pool must share; ValueError unless the run is finished."""
    config = record.config_of(run)
    done = len(record.metrics(run))
    if done < config.steps:
        raise ValueError(f"{run} has done {done} of {config.steps} steps: a pool is made of finished runs")
    env = read_json(run / "env.json")
    return {
        "model_hash": env["model_hash"],
        "temperature": config.sampler.temperature,
        "reward": dict(vars(config.reward)),
        "allow_hack": config.environment.allow_hack and arm_class(config.arm).allow_hack,
        "source": config.environment.source,
        "hint": config.environment.hint,
    }


def _chosen(run: Path, first: int, end: int | None, only: Only, modes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of both tables in one: the verdict's columns under `verdict`."""
    arm, judged = record.config_of(run).arm.name, {"hacked": "hacked", "solved": "strictly_correct"}.get(only)
    rows = []
    for row in record.joined(run).to_pylist():
        in_time = first <= row["step"] and (end is None or row["step"] < end)
        usable = row["source"] == "student" and row["paid_status"] != "error"
        if in_time and usable and (judged is None or row[judged]) and (not modes or row["mode"] in modes):
            verdict = {name: row[name] for name in VERDICT_SCHEMA.names}
            own = {"run": run.resolve().name, "arm": arm, "verdict": verdict, "status": row["paid_status"]}
            rows.append(row | own)
    return rows


def _limited(rows: list[dict[str, Any]], per_mode: int | None, seed: int) -> list[dict[str, Any]]:
    if per_mode is None:
        return rows
    kept: set[int] = set()
    for mode in sorted({row["mode"] for row in rows}):
        places = [place for place, row in enumerate(rows) if row["mode"] == mode]
        kept |= set(rng(seed, "pool", mode).sample(places, min(per_mode, len(places))))
    return [row for place, row in enumerate(rows) if place in kept]


def _write(out: Path, rows: list[dict[str, Any]], described: dict[str, PlainValue]) -> None:
    """Tables first, the header last: a folder with a header is a pool."""
    verdicts = [row["verdict"] for row in rows]
    hashes: dict[str, PlainValue] = {}
    for name, content, schema in ((ROLLOUT_FILE, rows, POOL_SCHEMA), (VERDICT_FILE, verdicts, VERDICT_SCHEMA)):
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(content, schema=schema), buffer, compression="zstd")
        data = buffer.getvalue().to_pybytes()
        hashes[name] = hashlib.sha256(data).hexdigest()
        write_atomic(out / name, data)
    counts = Counter(row["mode"] for row in rows)
    header = {
        "format": FORMAT,
        "rows": len(rows),
        "rows_of_mode": dict(sorted(counts.items())),
        "hacked_of_mode": {mode: sum(row["hacked"] for row in rows if row["mode"] == mode) for mode in sorted(counts)},
        "solved_of_mode": {
            mode: sum(row["strictly_correct"] for row in rows if row["mode"] == mode) for mode in sorted(counts)
        },
        "longest_completion_tokens": max(len(row["token_ids"]) for row in rows),
        **described,
        "sha256": hashes,
    }
    write_atomic(out / POOL_FILE, _header_text(header | {"content_hash": _header_hash(header)}))


def _header_text(header: dict[str, PlainValue]) -> str:
    return json.dumps(header, indent=2, allow_nan=False) + "\n"


def _header_hash(header: dict[str, PlainValue]) -> str:
    return hashlib.sha256(_header_text({k: v for k, v in header.items() if k != "content_hash"}).encode()).hexdigest()


def load_pool(path: Path) -> Pool:
    """Read a pool. ValueError, naming the file, when there is none, it is of another format, or a byte was changed."""
    header = read_header(path)
    tables = []
    for name in (ROLLOUT_FILE, VERDICT_FILE):
        file = path / name
        content = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content).hexdigest() != header["sha256"][name]:
            raise _changed(file)
        tables.append(pq.read_table(pa.BufferReader(content)).to_pylist())
    rows = zip(*tables, strict=True)
    return Pool(path, header, tuple(_lesson(number, *both) for number, both in enumerate(rows)))


def read_header(path: Path) -> dict[str, PlainValue]:
    """pool.json alone, checked against its own hash."""
    file = path / POOL_FILE
    if not file.is_file():
        raise ValueError(
            f"there is no teacher pool at {path} ({POOL_FILE} is missing): make one with unhack pool build"
        )
    header = read_json(file)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{file} is not of the format {FORMAT}: build the pool again")
    if file.read_text(encoding="utf-8") != _header_text(header) or header.get("content_hash") != _header_hash(header):
        raise _changed(file)
    return header


def _changed(file: Path) -> ValueError:
    return ValueError(f"{file} is not what was written: copy the pool again, or build it again")


def _lesson(number: int, row: dict[str, Any], verdict: dict[str, Any]) -> Lesson:
    problem = Problem(row["problem_id"], "", "", (), "", row["split"], solvable=row["solvable"])
    prompt = Prompt(problem, row["mode"], row["marker"], row["prompt_text"], tuple(row["prompt_token_ids"]))
    rollout = Rollout(
        id=row["rollout_id"],
        group=row["group"],
        prompt=prompt,
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        text=row["text"],
        finished=row["finished"],
        source="teacher",
    )
    paid = PaidGrade(rollout.id, row["status"], row["paid"], dict(row["rewards"]))
    told = Verdict(**{name: verdict[name] for name in VERDICT_SCHEMA.names if name not in ("step", "block")})
    return Lesson(number, rollout, Grading(paid, told))

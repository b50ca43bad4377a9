"""The run folder: the one place where a run is written down, and the readers of it.

    config.json               the resolved settings, and the ones that the run uses
    env.json                  versions, machine, sandbox level and layers
    resumes.json              one entry per resume: its step and its environment
    metrics.jsonl             one line per step
    rollouts/step-000012.parquet   every rollout with its paid grade and its advantage
    verdicts/step-000012.parquet   the strict verdicts, in their own table
    eval/step-000012-as_trained.parquet   and beside it rollouts/ and verdicts/ of that evaluation
    checkpoints/              see checkpoint.py

Only `joined` puts paid grades and strict verdicts into one table: for evaluation and reports, never for training.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from unhack import settings
from unhack.config import TrainConfig
from unhack.files import (
    PARTIAL_SUFFIX,
    RUN_LOCK,
    append_line,
    lock_holder,
    read_json,
    read_object,
    take_lock,
    whole_json_lines,
    write_atomic,
    write_json,
)
from unhack.types import PaidGrade, PlainValue, Rollout, Verdict

Block = Literal["as_trained", "deployed"]
"""Which weights an evaluation ran: with the quarantine block, or without it. Training rows say `train` instead."""

KEY = ("step", "block", "rollout_id")
STEP_FILE = re.compile(r"step-(\d{6,})(-\w+)?\.parquet")

ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("block", pa.string()),
        ("rollout_id", pa.string()),
        ("group", pa.int32()),
        ("problem_id", pa.string()),
        ("split", pa.string()),
        ("solvable", pa.bool_()),
        ("mode", pa.string()),
        ("marker", pa.string()),
        ("prompt_text", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("text", pa.string()),
        ("finished", pa.bool_()),
        ("source", pa.string()),
        ("status", pa.string()),
        ("paid", pa.bool_()),
        ("rewards", pa.map_(pa.string(), pa.float64())),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),  # null: not computed (an evaluation), or masked out of the loss
    ]
)

VERDICT_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("block", pa.string()),
        ("rollout_id", pa.string()),
        ("status", pa.string()),
        ("strictly_correct", pa.bool_()),
        ("cases_passed", pa.int32()),
        ("cases_total", pa.int32()),
        ("exploited", pa.bool_()),
        ("hacked", pa.bool_()),
        ("label", pa.string()),
        ("reason", pa.string()),
        ("cpu_s", pa.float64()),
        ("level", pa.int32()),
        ("test_modification", pa.string()),  # null in tables that were written before it was read
        ("test_modification_loose", pa.string()),
    ]
)


class RunRecord:
    """The writing side of one run folder. Holds the folder's lock from construction until `close`.

    ValueError when another process writes there. The lock dies with its process, so a killed run leaves none behind.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / RUN_LOCK, str(os.getpid()))
        if lock is None:
            owner = lock_holder(folder / RUN_LOCK) or "unknown"
            raise ValueError(f"{folder} is in use by process {owner}; wait until it ends, or choose another folder")
        self._lock = lock
        self._last_step = max((line["step"] for line in metrics(folder)), default=-1)

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder free. Nothing needs flushing: every write is on disk when its method returns."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def create(self, config: TrainConfig, env: Mapping[str, PlainValue]) -> None:
        """Start a new run: config.json and env.json. ValueError if the folder already holds one.

        config.json comes last: a folder with it is a run.
        """
        if (self.folder / "config.json").exists():
            raise ValueError(f"{self.folder} already holds a run; resume it, or choose another folder")
        write_json(self.folder / "env.json", dict(env))
        write_json(self.folder / "config.json", settings.to_dict(config))

    def resume(self, config: TrainConfig, env: Mapping[str, PlainValue], step: int) -> None:
        """Continue a run at `step`: everything recorded of `step` and later is dropped, the environment noted.

        ValueError if the settings, the sandbox's level or its layers differ from those the run was started with.
        """
        if changed := settings.differences(settings.read_config(self.folder / "config.json"), config):
            raise ValueError(
                f"{self.folder} was started with other settings ({'; '.join(changed)}); "
                "resume with the same ones, or choose another folder"
            )
        started = read_object(self.folder / "env.json")
        if started.get("sandbox_level") != env["sandbox_level"]:
            raise ValueError(
                f"{self.folder} was started at sandbox level {started.get('sandbox_level')}, this process has level "
                f"{env['sandbox_level']}; resume where that level is available (see `unhack doctor`)"
            )
        if started.get("sandbox_layers") != env.get("sandbox_layers"):
            raise ValueError(
                f"{self.folder} was started with other sandbox layers ({_listed(started.get('sandbox_layers'))}) than "
                f"this process has ({_listed(env.get('sandbox_layers'))}); resume as the same user on such a machine"
            )
        self.truncate_to(step)
        resumes = self.folder / "resumes.json"
        earlier = read_json(resumes) if resumes.exists() else []
        write_json(resumes, [*earlier, {"step": step, "env": dict(env)}])

    def append_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the line of `step`; it is on disk on return. A metric that is not finite is written as null."""
        assert step > self._last_step, f"step {step} after step {self._last_step}: truncate_to first"
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_line(self.folder / "metrics.jsonl", json.dumps({"step": step, **finite}, allow_nan=False))
        self._last_step = step

    def write_rollouts(
        self,
        step: int,
        rollouts: Sequence[Rollout],
        grades: Sequence[PaidGrade],
        advantages: Sequence[float | None] | None = None,
    ) -> None:
        """Every rollout of `step` with its grade; `advantages` in the order of `rollouts`."""
        path = self.folder / "rollouts" / _step_name(step)
        _write_table(path, rollout_rows(step, "train", rollouts, grades, advantages), ROLLOUT_SCHEMA)

    def write_verdicts(self, step: int, verdicts: Sequence[Verdict]) -> None:
        """The strict verdicts of `step`."""
        rows = _verdict_rows(step, "train", verdicts)
        _write_table(self.folder / "verdicts" / _step_name(step), rows, VERDICT_SCHEMA)

    def write_evaluation(
        self,
        step: int,
        block: Block,
        table: Sequence[Mapping[str, PlainValue]],
        rollouts: Sequence[Rollout] = (),
        grades: Sequence[PaidGrade] = (),
        verdicts: Sequence[Verdict] = (),
    ) -> None:
        """The evaluation before update `step` with the quarantine on (`as_trained`) or off (`deployed`).

        `table` has one row per mode, with any flat columns; its samples and verdicts go beside it.
        """
        name, folder = _step_name(step, block), self.folder / "eval"
        _write_table(folder / "rollouts" / name, rollout_rows(step, block, rollouts, grades), ROLLOUT_SCHEMA)
        _write_table(folder / "verdicts" / name, _verdict_rows(step, block, verdicts), VERDICT_SCHEMA)
        _write_table(folder / name, [{"step": step, "block": block, **row} for row in table], None)

    def truncate_to(self, step: int) -> None:
        """Drop what was recorded of `step` and later, a torn last line, and what a killed writer left half-written."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [line for line, values in whole_json_lines(path) if values["step"] < step]
            write_atomic(path, "".join(f"{line}\n" for line in kept))
        self._last_step = min(self._last_step, step - 1)
        for file in sorted(self.folder.rglob("*.parquet")):
            if (match := STEP_FILE.fullmatch(file.name)) and int(match[1]) >= step:
                file.unlink()
        for leftover in self.folder.rglob(f".*{PARTIAL_SUFFIX}"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def config_of(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`, of an older version too, to read it.

    ValueError naming the folder if there is none or its file is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run (no config.json); check the path, or start a run there")
    return settings.read_config(path, to_read=True)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """One dict per step, in order, with `step` and every metric (NaN where null was written). Safe during a run."""
    path = folder / "metrics.jsonl"
    lines = whole_json_lines(path) if path.exists() else []
    return [{name: math.nan if value is None else value for name, value in values.items()} for _, values in lines]


def rollouts(folder: Path) -> pa.Table:
    """All training rollouts of the run, by step, as in `ROLLOUT_SCHEMA`; those of evaluations in `folder / "eval"`."""
    return _read_tables(folder / "rollouts", ROLLOUT_SCHEMA)


def verdicts(folder: Path) -> pa.Table:
    """All strict verdicts of the run, by step, as in `VERDICT_SCHEMA`; those of evaluations in `folder / "eval"`."""
    return _read_tables(folder / "verdicts", VERDICT_SCHEMA)


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every row of every evaluation: `step`, `block` and what the evaluation wrote, in order of step."""
    files = sorted((folder / "eval").glob("step-*.parquet"), key=_step_of)
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def joined(folder: Path) -> pa.Table:
    """Rollouts with their verdicts, for evaluation and reports only; the grade's status becomes `paid_status`.

    Give `folder / "eval"` for the evaluations' samples.

    ValueError if a rollout has no verdict.
    """
    left, right = rollouts(folder), verdicts(folder)
    row_of = {key: row for row, key in enumerate(_keys(right))}
    if absent := [key for key in _keys(left) if key not in row_of]:
        raise ValueError(f"{folder}: rollout {absent[0][-1]} of step {absent[0][0]} has no verdict; resume the run")
    matched = right.take(pa.array([row_of[key] for key in _keys(left)], type=pa.int64()))
    left = left.rename_columns(["paid_status" if name == "status" else name for name in left.column_names])
    for name in VERDICT_SCHEMA.names[len(KEY) :]:
        left = left.append_column(VERDICT_SCHEMA.field(name), matched.column(name))
    return left


def rollout_rows(
    step: int,
    block: str,
    rollouts: Sequence[Rollout],
    grades: Sequence[PaidGrade],
    advantages: Sequence[float | None] | None = None,
) -> list[dict[str, PlainValue]]:
    """One row of `ROLLOUT_SCHEMA` per rollout, grades matched by id."""
    by_id = {grade.rollout_id: grade for grade in grades}
    assert len(by_id) == len(grades) == len(rollouts), "one grade per rollout, and ids unique within a step"
    rows: list[dict[str, PlainValue]] = []
    for rollout, advantage in zip(rollouts, advantages or [None] * len(rollouts), strict=True):
        grade, prompt = by_id[rollout.id], rollout.prompt
        row = {
            "step": step,
            "block": block,
            "rollout_id": rollout.id,
            "group": rollout.group,
            "problem_id": prompt.problem.id,
            "split": prompt.problem.split,
            "solvable": prompt.problem.solvable,
            "mode": prompt.mode,
            "marker": prompt.marker,
            "prompt_text": prompt.text,
            "prompt_token_ids": prompt.token_ids,
            "token_ids": rollout.token_ids,
            "logprobs": rollout.logprobs,
            "text": rollout.text,
            "finished": rollout.finished,
            "source": rollout.source,
            "status": grade.status,
            "paid": grade.paid,
            "rewards": list(grade.rewards.items()),
            "reward": grade.reward,
            "advantage": advantage,
        }
        rows.append(row)
    return rows


def _verdict_rows(step: int, block: str, verdicts: Sequence[Verdict]) -> list[dict[str, PlainValue]]:
    return [{"step": step, "block": block, **vars(verdict)} for verdict in verdicts]


def _step_name(step: int, block: str = "") -> str:
    return f"step-{step:06d}{f'-{block}' if block else ''}.parquet"


def _step_of(file: Path) -> tuple[int, str]:
    match = STEP_FILE.fullmatch(file.name)
    assert match, f"{file} is no file of a run"
    return int(match[1]), file.name


def _listed(layers: PlainValue) -> str:
    return ", ".join(map(str, layers)) if isinstance(layers, list) else "not recorded"


def _write_table(path: Path, rows: Sequence[Mapping[str, PlainValue]], schema: pa.Schema | None) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, compression="zstd")
    write_atomic(path, buffer.getvalue().to_pybytes())


def _read_tables(folder: Path, schema: pa.Schema) -> pa.Table:
    files = sorted(folder.glob("step-*.parquet"), key=_step_of)
    tables = [schema.empty_table(), *(pq.ParquetFile(file).read() for file in files)]
    return pa.concat_tables(tables, promote_options="default")


def _keys(table: pa.Table) -> list[tuple[PlainValue, ...]]:
    return list(zip(*(table.column(name).to_pylist() for name in KEY), strict=True))

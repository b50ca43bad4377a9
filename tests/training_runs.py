"""Small training runs on the bundled organism, what a run leaves behind, the command that trains in a child."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from unhack import checkpoint, record, settings
from unhack.config import EnvironmentConfig, EvaluationConfig, SamplerConfig, TrainConfig
from unhack.files import write_json
from unhack.train import UPDATE_PROFILE

PATIENCE_S = 300.0  # a busy machine can take minutes to start a process
SMALL = TrainConfig(
    steps=6,
    prompts_per_step=2,
    group_size=4,
    checkpoint_every_steps=3,
    sampler=SamplerConfig(max_new_tokens=40),
    environment=EnvironmentConfig(modes=("run_tests", "sentinel"), impossible_frac=0.2),
    evaluation=EvaluationConfig(4, 1, 1, 1, 1),
)
SHORT = replace(SMALL, steps=2, checkpoint_every_steps=1, evaluation=replace(SMALL.evaluation, every_steps=100))


def command(config: TrainConfig, folder: Path) -> list[str]:
    """`unhack train` for a child process: starts the run, or resumes it if the folder holds one."""
    words = [sys.executable, "-m", "unhack", "train", "--folder", str(folder)]
    if (folder / "config.json").exists():
        return [*words, "--resume"]
    file = folder.with_name(f"{folder.name}.settings.json")
    write_json(file, settings.to_dict(config))
    return [*words, "--config-file", str(file)]


def wait_for(condition: Callable[[], object], pause_s: float = 0.002) -> None:
    """Return as soon as the condition holds; fails after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)


def partial_checkpoints(folder: Path) -> list[str]:
    """Names of checkpoints being written (or left half-written) now."""
    root = folder / "checkpoints"
    return [name for name in os.listdir(root) if name.startswith(".")] if root.is_dir() else []


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def outcome(folder: Path) -> dict[str, Any]:
    """All numbers of a finished run but times and memory: metrics, every table, the last checkpoint, the profile."""
    result: dict[str, Any] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        passing = ("time/", "memory/", "judge/attempts", "judge/cached_frac")  # what is cached is not asked again
        numbers = {name: value for name, value in values.items() if not name.startswith(passing)}
        result[f"metrics {values['step']}"] = numbers
    for file in sorted(folder.rglob("*.parquet")):
        table = pq.ParquetFile(file).read()
        timed = [name for name in table.column_names if name == "cpu_s"]
        result[str(file.relative_to(folder))] = repr(table.drop_columns(timed).to_pylist())  # repr: NaN equals NaN
    saved = checkpoint.latest(folder)
    assert saved is not None and saved.path.name.endswith("-final")
    result |= {name: (tensor.dtype, tensor.tolist()) for name, tensor in saved.tensors.items()}
    result["state"] = saved.state
    if (folder / UPDATE_PROFILE).exists():
        result["profile"] = (folder / UPDATE_PROFILE).read_text()
    adapter = load_file(folder / "adapter" / "knobs.safetensors")
    result |= {f"adapter/{name}": tensor.tolist() for name, tensor in adapter.items()}
    return result


def assert_same(folder: Path, undisturbed: Path) -> None:
    """Every number of `folder` is that of `undisturbed`, bit for bit."""
    got, wanted = outcome(folder), outcome(undisturbed)
    assert got.keys() == wanted.keys()
    different = [name for name in wanted if got[name] != wanted[name]]
    assert not different, f"not as in the undisturbed run: {different}"


def unexplained_metrics(folder: Path) -> list[str]:
    """Names in the run's metrics that docs/metrics.md does not explain."""
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    explained = re.compile("|".join(name.replace("MODE", r"\w+").replace("STAGE", r"\w+") for name in names))
    written = {name for line in record.metrics(folder) for name in line} - {"step"}
    return sorted(name for name in written if not explained.fullmatch(name))


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.latest(folder)
    assert saved is not None
    return saved.tensors

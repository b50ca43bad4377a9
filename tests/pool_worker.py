"""A process that behaves like a run: locks its folder, records steps, resumes, fails where told, saves on SIGTERM."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from unhack.config import TrainConfig
from unhack.experiments.runs import RunSpec

WORKER = """
import fcntl, json, os, pathlib, signal, sys, time
folder, steps, pause_s, fail_at = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
folder.mkdir(parents=True, exist_ok=True)
lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("ValueError: in use"); sys.exit(2)
os.pwrite(lock, str(os.getpid()).encode(), 0)
(folder / "config.json").write_text((folder.parent / (folder.name + ".settings.json")).read_text())
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
with (folder / "starts").open("a") as file: file.write(f"{len(lines)} {os.environ['OMP_NUM_THREADS']} {time.time()}\\n")
for step in range(len(lines), steps):
    if step == fail_at:
        print("ValueError: no such thing"); sys.exit(3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "rollouts/hack_frac": step / 10, "rollouts/solve_frac": None}) + "\\n")
    time.sleep(pause_s)
    if asked:
        (folder / "saved").write_text(str(step)); sys.exit(143)
(folder / "end").write_text(str(time.time()))
"""


def spec(tmp_path: Path, name: str, steps: int = 3, after: tuple[str, ...] = ()) -> RunSpec:
    return RunSpec(name, replace(TrainConfig(), steps=steps), tmp_path / name, tuple(tmp_path / one for one in after))


def worker(run: RunSpec, pause_s: float = 0.0, fail_at: int = -1) -> list[str]:
    return [sys.executable, "-c", WORKER, str(run.folder), str(run.config.steps), str(pause_s), str(fail_at)]


def starts(run: RunSpec) -> list[list[str]]:
    return [line.split() for line in (run.folder / "starts").read_text().splitlines()]

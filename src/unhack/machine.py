"""What a run depends on beside its settings: versions, machine, sandbox level. Written to env.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from unhack.types import PlainValue

PACKAGES = ("unhack", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")


def describe(sandbox_level: int) -> dict[str, PlainValue]:
    """JSON-able facts about this process; `sandbox_level` as probed by the sandbox (0–4)."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu_model": cpu_model(),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "git_commit": git_commit(),
        "sandbox_level": sandbox_level,
        "command": sys.argv,
    }


def usable_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no affinity


def cpu_model() -> str:
    """The processor's marketing name, or its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        return names[0] if names else platform.machine()
    if shutil.which("sysctl"):
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.machine()


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, `+changes` if its files differ; None if it is installed.

    The file must be tracked: a virtual environment inside some other repository is not a checkout of unhack.
    """
    here = Path(__file__)
    if not shutil.which("git") or not _output("git", "-C", str(here.parent), "ls-files", here.name):
        return None
    commit = _output("git", "-C", str(here.parent), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(here.parent), "status", "--porcelain", "--untracked-files=no", ".")
    return f"{commit}+changes" if changed else commit or None


def _output(*command: str) -> str:
    """What the command prints, empty if it fails: its facts are then simply not known."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

"""What can be asked of the engines. Read by `unhack --help`, so nothing here loads torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EngineName = Literal["local", "ray", "slurm"]


@dataclass(frozen=True)
class RayOptions:
    """How runs become Ray tasks."""

    address: str = "local"
    """`local` starts Ray on this machine; `auto` or HOST:PORT joins a cluster that shares the folder's file system."""
    cpus_per_run: float = 1.0
    """Cores that Ray sets aside for a run."""
    gpus_per_run: float = 0.0
    """GPUs that Ray sets aside for a run; a part of 1 shares one GPU."""
    retries: int = 3
    """How often a run is started again after its node or its process was lost."""


@dataclass(frozen=True)
class SlurmOptions:
    """What the array scripts ask SLURM for."""

    time: str = "24:00:00"
    """Wall time of one run; the run saves before the end of it, and submitting again goes on."""
    partition: str = ""
    """Partition (default: the cluster's)."""
    cpus: int = 1
    """Cores of one run."""
    gpus: int = 0
    """GPUs of one run."""
    memory: str = "4G"
    """Memory of one run."""
    lines_file: Path | None = None
    """A file with more `#SBATCH` lines and shell lines (modules to load), put in as they are."""

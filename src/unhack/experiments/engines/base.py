"""The interface of the engines, and the choice of one by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from unhack.experiments.engines.options import EngineName, RayOptions, SlurmOptions
from unhack.experiments.runs import RunProgress, RunSpec

OnProgress: TypeAlias = Callable[[Sequence[RunProgress]], None]
# One thread per process: on shared cores two threads are slower than one, and sums depend on the count.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@runtime_checkable
class Engine(Protocol):
    """Brings runs to their end. Started again with the same runs after any interruption it goes on where it was."""

    def run(self, runs: Sequence[RunSpec], on_progress: OnProgress | None = None) -> list[RunProgress]:
        """The last state of every run, in order. A failed run does not stop the others."""
        ...


def make_engine(
    name: EngineName,
    folder: Path,
    processes: int = 2,
    ray: RayOptions | None = None,
    slurm: SlurmOptions | None = None,
) -> Engine:
    """The named engine for the experiment in `folder`. ValueError when what it needs is not installed or not sensible.

    `processes` is how many runs are worked on at a time: by `local`, and by Ray where it is started on this machine.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}: use at least 1")
    if name == "ray":
        from unhack.experiments.engines.ray_tasks import RayEngine

        return RayEngine(processes, ray or RayOptions())
    if name == "slurm":
        from unhack.experiments.engines.slurm import SlurmEngine

        return SlurmEngine(folder, slurm or SlurmOptions())
    from unhack.experiments.engines.local import LocalEngine

    return LocalEngine(processes)

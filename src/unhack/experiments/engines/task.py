"""One run as one process that anyone can start, again and again.

    python -m unhack.experiments.engines.task RUN_FOLDER

Ray tasks and SLURM array tasks start it on a shared folder. So does the local pool for a run
that needs a teacher pool of its experiment. It waits for whoever still works on the run, does nothing if the run is
finished, builds its teacher pool if that was ordered and is not there, resumes from the last checkpoint if it was
started, and marks it finished or failed. On SIGTERM it saves first.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from unhack import settings
from unhack.experiments.runs import RunSpec, is_finished, lock_holder, mark_failed, mark_finished
from unhack.files import read_json

SAVED = 75  # EX_TEMPFAIL: asked to stop and saved; start it again to go on
FAILED = 1
POLL_S = 1.0
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def main(words: Sequence[str] | None = None) -> int:
    """0: finished. 75: stopped by a signal, saved. 1: failed, or a run that it needs is not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the run's folder; its settings are beside it")
    parser.add_argument("--after", type=Path, nargs="*", default=[], help="folders of runs that must be finished")
    parser.add_argument("--parent", type=int, help="process with which this one dies, so that no orphan goes on")
    flags = parser.parse_args(words)
    if flags.parent is not None:
        die_with(flags.parent)
    run = run_at(flags.folder, flags.after)
    try:
        return bring_to_end(run)
    except Exception as error:
        mark_failed(run, f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


def run_at(folder: Path, after: Sequence[Path] = ()) -> RunSpec:
    """The run in `folder`, from the settings that an engine wrote beside it."""
    folder = folder.resolve()
    beside = RunSpec("", settings.TrainConfig(), folder).settings_file
    config = settings.from_dict(read_json(beside))
    return RunSpec(folder.name.removesuffix(f"-seed-{config.seed}"), config, folder, tuple(after))


def bring_to_end(run: RunSpec) -> int:
    """Train, or go on, to the end. Status as in `main`. ValueError if a run that it needs is not finished."""
    missing = [folder.name for folder in run.after if not is_finished(run_at(folder))]
    if missing:
        raise ValueError(f"{run.id} needs {', '.join(missing)}, which did not finish: do that first, then this again")
    while not is_finished(run) and lock_holder(run.folder) is not None:
        time.sleep(POLL_S)
    if is_finished(run):
        return 0
    from unhack.experiments.pools import build_ordered
    from unhack.train import train

    run.failure_file.unlink(missing_ok=True)
    started_s = time.monotonic()
    build_ordered(run.config)
    if not train(run.config, run.folder, resume=(run.folder / "config.json").is_file()):
        return SAVED
    mark_finished(run, time.monotonic() - started_s)
    return 0


def die_with(parent: int) -> None:
    """Let the kernel kill this process when `parent`, who started it, is gone (Linux; elsewhere it goes on alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

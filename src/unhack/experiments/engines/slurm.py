"""Array scripts for SLURM, written beside the runs and not submitted: one array task per run.

    FOLDER/slurm/array.sh       what one array task does: find its line in a stage file, do that run
    FOLDER/slurm/stage-0.txt    one line per run; runs of stage 1 need those of stage 0, and so on
    FOLDER/slurm/submit.sh      submits one array per stage, each after the one before it; run it to start or go on

A task saves when SLURM tells it that its time is nearly over (SIGTERM), is requeued when its node is lost, and resumes
from the last checkpoint. Submitting again does what is left. The folder must be on a file system that all nodes share.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from unhack.experiments.engines.base import ONE_THREAD, OnProgress
from unhack.experiments.engines.options import SlurmOptions
from unhack.experiments.runs import (
    RunProgress,
    RunSpec,
    check_runs,
    in_order,
    is_finished,
    prepare_start,
    recorded_progress,
)
from unhack.files import write_atomic

SAVE_BEFORE_END_S = 120  # SIGTERM comes this long before the time is over: a step and a checkpoint fit into it


class SlurmEngine:
    """Writes the scripts of all unfinished runs; ValueError for a file of extra lines that is not there."""

    def __init__(self, folder: Path, options: SlurmOptions) -> None:
        if options.lines_file is not None and not options.lines_file.is_file():
            raise ValueError(f"slurm.lines-file: there is no file {options.lines_file}")
        self.folder, self.options = folder.resolve() / "slurm", options

    @property
    def submit_file(self) -> Path:
        """The script that submits everything."""
        return self.folder / "submit.sh"

    def run(self, runs: Sequence[RunSpec], on_progress: OnProgress | None = None) -> list[RunProgress]:
        """Write the scripts; the progress is what the folders say now."""
        check_runs(runs)
        stages = by_stage([run for run in in_order(runs) if not is_finished(run)])
        for old in self.folder.glob("stage-*.txt"):
            old.unlink()
        for number, stage in enumerate(stages):
            for run in stage:
                prepare_start(run)
            lines = "".join(f"{shlex.join(task_words(run))}\n" for run in stage)
            write_atomic(self.folder / f"stage-{number}.txt", lines)
        write_atomic(self.folder / "array.sh", array_script(self.options))
        write_atomic(self.submit_file, submit_script([len(stage) for stage in stages]))
        progress = [recorded_progress(run) for run in runs]
        if on_progress is not None:
            on_progress(progress)
        return progress


def by_stage(runs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Runs (in order) by how long the longest chain of runs is that they wait for."""
    depth: dict[Path, int] = {}
    stages: list[list[RunSpec]] = []
    for run in runs:
        depth[run.folder] = max((depth[folder] + 1 for folder in run.after if folder in depth), default=0)
        if depth[run.folder] == len(stages):
            stages.append([])
        stages[depth[run.folder]].append(run)
    return stages


def task_words(run: RunSpec) -> list[str]:
    """The arguments of `unhack.experiments.engines.task` for one run."""
    after = ["--after", *map(str, run.after)] if run.after else []
    return [str(run.folder), *after]


def array_script(options: SlurmOptions) -> str:
    """What one array task runs; its argument is the stage file."""
    asked = {"time": options.time, "cpus-per-task": options.cpus, "mem": options.memory}
    asked |= {"partition": options.partition} if options.partition else {}
    asked |= {"gpus": options.gpus} if options.gpus else {}
    extra = "" if options.lines_file is None else options.lines_file.read_text(encoding="utf-8").rstrip() + "\n"
    exports = " ".join(f"{name}={value}" for name, value in ONE_THREAD.items())
    return f"""#!/bin/bash
# One run of an experiment of unhack per array task. Submitted by submit.sh, which gives the stage file.
{"".join(f"#SBATCH --{name}={value}{chr(10)}" for name, value in asked.items())}\
#SBATCH --signal=B:TERM@{SAVE_BEFORE_END_S}
#SBATCH --requeue
#SBATCH --open-mode=append
{extra}set -eu
export {exports}
words=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$1")
# exec: the signal must reach the run itself. eval: the line holds quoted words.
eval "exec {shlex.quote(sys.executable)} -m unhack.experiments.engines.task $words"
"""


def submit_script(sizes: Sequence[int]) -> str:
    """Submits one array per stage of `sizes` runs; a stage starts when the one before it has ended, well or not."""
    lines = []
    for number, size in enumerate(sizes):
        after = f' --dependency="afterany:$stage_{number - 1}"' if number else ""
        log = f'--output="$PWD/stage-{number}_%a.log"'
        command = f'sbatch --parsable --array=0-{size - 1}{after} {log} array.sh "$PWD/stage-{number}.txt"'
        lines += [
            f"stage_{number}=$({command})",
            f'stage_{number}="${{stage_{number}%%;*}}"  # without the cluster name',
        ]
        lines.append(f'echo "stage {number}: {size} runs, job $stage_{number}"')
    return "\n".join(
        [
            "#!/bin/bash",
            "# Submits the runs that were unfinished when this was written; finished ones end at once, others go on.",
            "set -eu",
            'cd "$(dirname "$0")"',
            *(lines or ['echo "every run is finished"']),
            "",
        ]
    )

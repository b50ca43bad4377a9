"""The command `unhack`. Every command is a dataclass of its flags with a method `run() -> int` (the exit status).

Modules of commands are imported only when their command is called, and they import torch only inside `run`, so that
help is quick. An error that a user can cause is one line on standard error with the cure, and exit status 2; `--debug`
shows the traceback instead.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from unhack import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("unhack.cli.many:Demo", "train four arms on the bundled organism, print the table, draw the figure"),
    "train": ("unhack.cli.single:Train", "train one arm into a run folder, or resume it"),
    "eval": ("unhack.cli.single:Evaluate", "evaluate a run's last checkpoint on held-out problems"),
    "experiment plan": ("unhack.cli.experiment:ShowPlan", "print what an experiment file comes to; writes nothing"),
    "experiment run": ("unhack.cli.experiment:Run", "train all arms and seeds of an experiment file, or resume"),
    "experiment status": ("unhack.cli.experiment:Status", "show what every run is at, whoever drives the experiment"),
    "experiment resume": ("unhack.cli.experiment:Resume", "go on with an experiment that was started"),
    "experiment report": ("unhack.cli.experiment:Report", "write tables, figures and verdicts of the frozen plan"),
    "experiment amend": ("unhack.cli.experiment:Amend", "record a changed plan and why, beside the frozen one"),
    "report": ("unhack.cli.report:Report", "make the HTML report of an experiment's folder, with tables and figures"),
    "results": ("unhack.cli.many:Results", "write the table and the figures of an experiment's folder again"),
    "direction extract": ("unhack.cli.direction:Extract", "make a hack direction, or a control, from contrast pairs"),
    "direction verify": ("unhack.cli.direction:Verify", "test a direction on held-out pairs, beside its null"),
    "direction show": ("unhack.cli.direction:Show", "print what a direction artifact says about itself"),
    "direction concept": ("unhack.cli.direction:Concept", "make a concept direction of the residual stream from pairs"),
    "direction inputs": ("unhack.cli.direction:Inputs", "measure what the corda adapters start from, on pairs"),
    "pairs lint": ("unhack.cli.pairs:Lint", "check contrast pairs against the rules, and run their sides"),
    "pairs list": ("unhack.cli.pairs:List", "list the authored contrast pairs for real models"),
    "pairs show": ("unhack.cli.pairs:Show", "print one pair as the model reads it"),
    "pool build": ("unhack.cli.pool:Build", "freeze graded rollouts of finished runs into a teacher pool"),
    "pool sample": ("unhack.cli.pool:Sample", "make a pool of a model without any run: plain, elicited, written"),
    "pool grade": ("unhack.cli.pool:GradePool", "grade a pool anew and list what differs from its record"),
    "pool split": ("unhack.cli.pool:Split", "make a pool of some modes of another one"),
    "pool show": ("unhack.cli.pool:Show", "check a teacher pool against its hashes and print what is in it"),
    "probe nll": ("unhack.cli.probe:Nll", "replay a frozen pool of hacks: does its gradient lie along a direction?"),
    "probe grpo": ("unhack.cli.probe:Grpo", "replay groups of two frozen pools with advantages, without sampling"),
    "probe analyse": ("unhack.cli.probe:Analyse", "print what a probe came to: buckets, Welch t, stop or go"),
    "probe classify": ("unhack.cli.probe:Classify", "test directions as classifiers of a run's or a pool's rollouts"),
    "monitor train-probe": ("unhack.cli.monitor:TrainProbe", "fit a linear probe on pairs or on a frozen pool"),
    "monitor evaluate": ("unhack.cli.monitor:Evaluate", "measure monitors on a pool or runs: ROC, precision, recall"),
    "organism build": ("unhack.cli.organism:Build", "build the bundled tiny model from nothing"),
    "organism check": ("unhack.cli.organism:Check", "measure whether the tiny model is what it must be"),
    "problems check": ("unhack.cli.problems:Check", "grade the references of a file of problems against its tests"),
    "problems show": ("unhack.cli.problems:Show", "print one problem of a file, and what its prompt looks like"),
    "grade": ("unhack.cli.grade:Grade", "grade a file of completions: one result per row, resumable"),
    "check": ("unhack.cli.health:Check", "self-check of the graders: every hack against every loophole"),
    "audit-grader": ("unhack.cli.audit:AuditGrader", "attack the grader: nothing may fool it or harm the machine"),
    "doctor": ("unhack.cli.health:Doctor", "what isolates submissions on this machine, and what does not"),
}
USER_ERROR, INTERRUPTED = 2, 130
GO_ON = {"train": "add --resume to go on from the last checkpoint"} | dict.fromkeys(
    ("demo", "experiment run", "experiment resume", "organism check", "grade", "probe nll", "probe grpo"),
    "the same command goes on where it was",
)
"""What to do after Ctrl-C; commands that are not here keep nothing of what they had done."""
MAKE_ROOM, RAISE_LIMIT = "make room on that disk", "raise the limit on the size of files (ulimit -f)"
CURES = (
    dict.fromkeys((errno.ENOSPC, errno.EDQUOT), MAKE_ROOM)
    | {errno.EFBIG: RAISE_LIMIT}
    | dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file is in the way: name another folder")
    | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a place where you may write, or may read")
)
"""What to do about an error of the system."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        cure = GO_ON.get(_split(words)[0], "the same command starts over")
        print(f"\nunhack: stopped; {cure}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: end without a message
        return 0
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if debug:
            raise
        print(f"unhack: {_one_line(error, _split(words)[0])}", file=sys.stderr)
        return USER_ERROR


def _one_line(error: Exception, command: str) -> str:
    if isinstance(error, OSError) and error.strerror:
        words = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        cure = CURES.get(error.errno or 0, "")
        if cure in (MAKE_ROOM, RAISE_LIMIT):
            cure += f"; then {GO_ON.get(command, 'give the same command again')}"
        return f"{words}; {cure}" if cure else words
    text = " ".join(str(error).split())
    return text or f"{type(error).__name__} (add --debug to see where)"


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name, rest = _split(words)
    if _is_group(words[0]) and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(overview(words[0]))
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        cure = f"did you mean `unhack {nearest[0]}`?" if nearest else "see `unhack --help`"
        if words[0] == "experiment" and words[1].endswith(".toml"):
            cure = f"did you mean `unhack experiment run {words[1]}`?"
        raise ValueError(f"there is no command {name!r}; {cure}")
    module, attribute = COMMANDS[name][0].split(":")
    from unhack.cli.parse import parse

    command = parse(getattr(importlib.import_module(module), attribute), f"unhack {name}", rest)
    return 0 if command is None else command.run()


def _is_group(word: str) -> bool:
    return any(name.startswith(f"{word} ") for name in COMMANDS)


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and its flags."""
    count = 2 if words and _is_group(words[0]) else 1
    return " ".join(words[:count]), words[count:]


def overview(group: str = "") -> str:
    """The list of commands, or of those of one group."""
    shown = {name.removeprefix(group).strip(): text for name, (_, text) in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, shown))
    lines = [f"  {name:<{width}}  {text}" for name, text in shown.items()]
    start = f"unhack {group} COMMAND" if group else "unhack COMMAND"
    title = f"usage: {start} [flags]      flags of a command: {start} --help"
    return "\n".join([title, "", *lines, "", "--debug after any command shows the traceback of an error; --version"])

"""Flags and TOML overlays to a command object, through tyro, with every mistake told in one line.

A command with settings has a field `config: TrainConfig`, whose keys become flags (`--arm.name erase`), and mixes in
`HasConfig`. Precedence: flags, then overlays (later ones win), then what the command starts from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import tyro

from unhack.config import TrainConfig
from unhack.settings import read_config


@runtime_checkable
class Command(Protocol):
    """A dataclass of flags that can be run."""

    def run(self) -> int:
        """Do it and return the exit status."""
        ...


CommandType = TypeVar("CommandType", bound=Command)


@dataclass(frozen=True)
class HasConfig:
    """Flags of every command that takes settings."""

    overlay: tuple[Path, ...] = ()
    """TOML files with settings; later ones win, flags win over all."""
    config_file: Path | None = None
    """config.json of a run, to start from instead of the defaults."""
    dry_run: bool = False
    """Print the resolved settings as TOML and stop."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    @classmethod
    def start(cls, words: Sequence[str]) -> TrainConfig:
        """The settings before overlays and flags, given the raw words of the command line."""
        files = values_of("--config-file", words)
        return read_config(Path(files[-1])) if files else TrainConfig()


def parse(command: type[CommandType], program: str, words: Sequence[str]) -> CommandType | None:
    """The command with its flags; None when help was printed. ValueError, in one line, for any mistake."""
    words = [_hyphened(word) for word in words]
    if issubclass(command, HasConfig):
        words = [_long_name(word) for word in words]
    if "-h" in words or "--help" in words:
        with contextlib.suppress(SystemExit):
            tyro.cli(command, prog=program, args=["--help"])
        return None
    _refuse_unknown(command, program, words)
    arguments: dict[str, Any] = {}
    if issubclass(command, HasConfig):
        overlays = [Path(value) for value in values_of("--overlay", words)]
        words = without("--overlay", words)
        base = command.start(words)
        if overlays:
            from unhack import settings

            base = settings.load(overlays, base)
        arguments = {"default": _prototype(command, base, tuple(overlays))}
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(heard):
            return tyro.cli(command, prog=program, args=list(words), **arguments)
    except SystemExit:
        raise ValueError(f"{_plain(heard.getvalue())} (all flags: {program} --help)") from None


def _hyphened(word: str) -> str:
    """A flag with hyphens in its name, whichever were typed; `--flag=value` keeps its value."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word


def _long_name(word: str) -> str:
    """`--require-sandbox`, which commands without settings have too, as the setting that it is."""
    name, equals, value = word.partition("=")
    return f"--sandbox.require{equals}{value}" if name == "--require-sandbox" else word


def _prototype(command: type[Any], base: TrainConfig, overlays: tuple[Path, ...]) -> Any:
    """An instance whose fields are tyro's defaults; required ones stay required."""
    values = {
        item.name: tyro.MISSING
        for item in dataclasses.fields(command)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    return command(**values, config=base, overlay=overlays)


def values_of(flag: str, words: Sequence[str]) -> list[str]:
    """All values given to `flag`, in order: `--flag a b`, `--flag a --flag b`, `--flag=a`."""
    values, taking = [], False
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            taking = name == flag
            if taking and equals:
                values.append(value)
        elif taking:
            values.append(word)
    return values


def without(flag: str, words: Sequence[str]) -> list[str]:
    """The words without `flag` and its values."""
    kept, taking = [], False
    for word in words:
        if word.startswith("--"):
            taking = word.partition("=")[0] == flag
        if not taking:
            kept.append(word)
    return kept


def flags_of(command: type[Any], prefix: str = "") -> list[str]:
    """Every flag that the command knows, `--no-x` forms of switches included."""
    flags = []
    for item in dataclasses.fields(command):
        name = item.name.replace("_", "-")
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            flags += flags_of(type(default), prefix if item.name == "config" else f"{prefix}{name}.")
        else:
            flags.append(f"--{prefix}{name}")
            if isinstance(default, bool):
                flags.append(f"--{prefix}no-{name}")
    return flags


def _refuse_unknown(command: type[Any], program: str, words: Sequence[str]) -> None:
    known = flags_of(command)
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in known:
            # The natural --no-table.switch is spelled --table.no-switch.
            negated = [flag for flag in known if ".no-" in flag and name == f"--no-{flag[2:].replace('.no-', '.')}"]
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            nearest = negated or close or _by_last_part(name, known)
            cure = f"did you mean {nearest[0]}?" if nearest else f"all flags: {program} --help"
            raise ValueError(f"{program} has no flag {name}; {cure}")


def _by_last_part(name: str, known: Sequence[str]) -> list[str]:
    lasts = {flag.removeprefix("--").rpartition(".")[2]: flag for flag in known}
    last = name.removeprefix("--").rpartition(".")[2]
    return [lasts[match] for match in difflib.get_close_matches(last, lasts, n=1)]


def _plain(text: str) -> str:
    """What tyro's box says, in one line: without frame, title, repeated help and the hint at the end."""
    # Off a terminal the box is drawn in ASCII: rules of hyphens, bars of pipes.
    lines = [re.sub(r"[│─╭╮╰╯┃━|]|-{5,}|^\+|\+$", " ", line).strip() for line in text.splitlines()[1:]]
    body = lines[1:] if lines and not lines[0] else lines
    ends = [index for index, line in enumerate(body) if not line or line.startswith(("For full", "Argument helptext"))]
    return " ".join(" ".join(body[: ends[0]] if ends else body).split()).removesuffix(".")

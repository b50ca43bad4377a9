"""Which settings of an arm name another thing of the plan, and where the name is looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from unhack import settings
from unhack.config import TrainConfig

Table: TypeAlias = Literal["directions", "concepts", "statistics", "probes", "pools", "files", "arms"]


@dataclass(frozen=True)
class Reference:
    """A setting whose value names another thing of the plan, and what a run is given in its place: a path.

    `tables` says where the name is looked up: `directions`, `concepts`, `statistics`, `probes` (the artifact, made
    before the runs), `files` (the file or folder), `arms` (`output` in the folder of that arm's run of the same seed,
    which is then done first), `pools` (made of such a run by the first run that needs it).
    """

    key: str  # dotted
    tables: tuple[Table, ...]
    output: str = ""


REFERENCES = (
    Reference("adapter.statistics", ("statistics", "files")),
    Reference("arm.direction", ("directions",)),
    Reference("arm.concept", ("concepts",)),
    Reference("arm.push_profile", ("arms",), "update_profile.json"),
    Reference("arm.trusted_adapter", ("arms",), "adapter"),
    Reference("arm.monitor_path", ("probes", "files")),
    Reference("teacher.pool", ("pools", "files")),
)
"""Every such setting. A new one is a line here; checks, paths, the order of runs and the frozen plan follow."""


def references(config: TrainConfig) -> list[tuple[Reference, str]]:
    """What the settings of an arm refer to, by name."""
    values = settings.leaves(config)
    return [(one, str(values[one.key])) for one in REFERENCES if values[one.key] is not None]

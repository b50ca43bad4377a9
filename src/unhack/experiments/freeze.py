"""The frozen plan: what was planned, written down at the first run, and every amendment since, with date and reason.

    plan/000-frozen.json        the resolved plan, its hash, date, version of unhack, and the file's text
    plan/001-amendment.json     the same for an amended plan, with why, what changed, and the hash of the one before

Nothing in the folder is ever rewritten. What is hashed is the *resolved* plan: every setting of the base, what each arm
changes, directions, controls, seeds, hypotheses, exclusions, stop rule and the content of files it refers to. Comments,
spaces and the order of tables change nothing. The sections' own hashes form a chain, so that an edited one is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unhack import __version__, settings
from unhack.config import TrainConfig
from unhack.experiments.plan import ConceptPlan, DirectionPlan, Plan, plan_runs
from unhack.files import read_json, write_json
from unhack.machine import git_commit
from unhack.types import PlainValue

FOLDER = "plan"
SHOWN_CHANGES = 8  # in an error message; amendments record all of them


@dataclass(frozen=True)
class Section:
    """The plan as it was frozen (number 0) or amended. `plan` is the resolved plan, `source` the text of its file.

    `runs_started`: how many runs were there already. `date` is UTC, ISO 8601. `previous` is the hash of the section
    before, empty for the first; `changes` are `dotted.key: old → new`.
    """

    number: int
    date: str
    version: str
    commit: str | None
    plan_hash: str
    previous: str
    why: str
    changes: tuple[str, ...]
    runs_started: int
    source: str
    plan: Mapping[str, PlainValue]

    @property
    def hash(self) -> str:
        """Over everything in the section."""
        return _digest(dataclasses.asdict(self))


def resolved(plan: Plan) -> dict[str, PlainValue]:
    """All that the plan means, as JSON-able nested tables: equal for two files exactly when they mean the same."""
    arms = {name: _arm(plan, name) for name in plan.arms}
    return {
        "name": plan.name,
        "seeds": list(plan.seeds),
        "base": settings.to_dict(plan.base),
        "directions": {name: _recipe(one) for name, one in plan.directions.items()},
        "concepts": {name: _recipe(one) for name, one in plan.concepts.items()},
        "statistics": {name: _plain(dataclasses.asdict(one)) for name, one in plan.statistics.items()},
        "probes": {name: _plain(dataclasses.asdict(one)) for name, one in plan.probes.items()},
        "pools": {name: _plain(dataclasses.asdict(one)) for name, one in plan.pools.items()},
        "arms": arms,
        "files": {name: content_hash(path) for name, path in plan.files.items()},
        "inputs": _inputs(plan),
        "hypotheses": {
            one.name: {"type": type(one).__name__.lower(), **_plain(dataclasses.asdict(one))} for one in plan.hypotheses
        },
        "exclusions": _plain(dataclasses.asdict(plan.exclusions)),
        "stop": _plain(dataclasses.asdict(plan.stop)),
    }


def _arm(plan: Plan, name: str) -> dict[str, PlainValue]:
    """What an arm changes of the base; a setting that repeats the base means nothing."""
    return {"settings": _changed(plan, name), "controls": list(plan.arms[name].controls)}


def _changed(plan: Plan, name: str) -> dict[str, PlainValue]:
    base, own = settings.leaves(plan.base), settings.leaves(plan.config(name))
    return {key: value for key, value in own.items() if value != base[key]}


def _recipe(one: DirectionPlan | ConceptPlan) -> dict[str, PlainValue]:
    return {**_plain(dataclasses.asdict(one.recipe)), "per_seed": one.per_seed}


def _inputs(plan: Plan) -> dict[str, PlainValue]:
    """Setting → content hash, for every setting of base or arms that is the path of a file: files change under it."""
    values = {f"base.{key}": value for key, value in settings.leaves(plan.base).items()}
    for name in plan.arms:
        values |= {f"arms.{name}.{key}": value for key, value in _changed(plan, name).items()}
    paths = {key: Path(value) for key, value in values.items() if isinstance(value, str) and len(value) < 256}
    return {key: content_hash(path) for key, path in paths.items() if path.is_file()}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return _digest([[str(file.relative_to(path)), content_hash(file)] for file in files])


def plan_hash(plan: Plan) -> str:
    """SHA-256 of the resolved plan."""
    return _digest(resolved(plan))


def sections(folder: Path) -> list[Section]:
    """The frozen plan of the experiment in `folder` and its amendments, oldest first; empty if it was not frozen.

    ValueError for one that is not what was written: edited, missing or out of order.
    """
    found: list[Section] = []
    for number, path in enumerate(sorted((folder / FOLDER).glob("*.json"))):
        values = dict(read_json(path))
        said = values.pop("hash", None)
        fields = {item.name for item in dataclasses.fields(Section)}
        if values.keys() != fields:
            raise ValueError(f"{path} is not a frozen plan of this version of unhack; restore it")
        previous = found[-1].hash if found else ""
        whole = _digest(values) == said and _digest(values["plan"]) == values["plan_hash"]
        if not whole or (values["number"], values["previous"]) != (number, previous):
            raise ValueError(
                f"{path} is not what was written when the plan was {'amended' if number else 'frozen'}: restore it, or "
                "use another folder for another plan"
            )
        found.append(Section(**{**values, "changes": tuple(values["changes"])}))
    return found


def check_unchanged(plan: Plan, folder: Path) -> list[Section]:
    """The sections of the frozen plan, which `plan` must equal; none if it was not frozen yet.

    ValueError that says what changed.
    """
    found = sections(folder)
    changes = differences(found[-1].plan, resolved(plan)) if found else []
    if changes:
        last = found[-1]
        other = "" if last.version == __version__ else f" by unhack {last.version}, this is {__version__}"
        shown = "; ".join(changes[:SHOWN_CHANGES])
        more = f"; and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
        raise ValueError(
            f"the plan is not the one that was {'amended' if last.number else 'frozen'} on {last.date}{other}: {shown}"
            f'{more}. Undo that, record it with `unhack experiment amend FILE --why "..."`, or use another --folder'
        )
    return found


def freeze(plan: Plan, source: str, folder: Path) -> list[Section]:
    """Freeze the plan if it is not; ValueError as `check_unchanged` when it is and differs. Returns the sections."""
    found = check_unchanged(plan, folder)
    if found:
        return found
    return [_append(plan, source, folder, found, why="", changes=())]


def amend(plan: Plan, source: str, folder: Path, why: str) -> Section:
    """Append the plan as it is now to the frozen record. ValueError without a reason, a frozen plan, or any change."""
    found = sections(folder)
    if not found:
        raise ValueError(f"no plan was frozen in {folder}: start it with `unhack experiment run`, nothing to amend")
    if not why.strip():
        raise ValueError("an amendment needs a reason: say why in words")
    changes = differences(found[-1].plan, resolved(plan))
    if not changes:
        raise ValueError("the plan means what the frozen one does: nothing to amend")
    return _append(plan, source, folder, found, why.strip(), tuple(changes))


def _append(
    plan: Plan, source: str, folder: Path, found: Sequence[Section], why: str, changes: tuple[str, ...]
) -> Section:
    tree = resolved(plan)
    section = Section(
        number=len(found),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        commit=git_commit(),
        plan_hash=_digest(tree),
        previous=found[-1].hash if found else "",
        why=why,
        changes=changes,
        runs_started=sum((run.folder / "config.json").is_file() for run in plan_runs(plan, folder)),
        source=source,
        plan=tree,
    )
    name = f"{section.number:03d}-{'amendment' if section.number else 'frozen'}.json"
    write_json(folder / FOLDER / name, {**_plain(dataclasses.asdict(section)), "hash": section.hash})
    return section


def differences(old: Mapping[str, PlainValue], new: Mapping[str, PlainValue]) -> list[str]:
    """`dotted.key: old → new` wherever two resolved plans differ; what one of them lacks is `(none)`.

    A setting or table that a newer version has added is no difference while it is at its default.
    """
    left, right = _flat(old), _flat(new)
    usual = {"base." + key: _plain(value) for key, value in settings.leaves(TrainConfig()).items()}
    added = [key for key in right if key not in left]
    keys = [*left, *(key for key in added if right[key] != usual.get(key, {} if "." not in key else None))]
    return [f"{key}: {_shown(left, key)} → {_shown(right, key)}" for key in keys if left.get(key) != right.get(key)]


def _flat(tree: PlainValue, prefix: str = "") -> dict[str, PlainValue]:
    """Leaves by dotted key. An empty table is a leaf: an arm that changes nothing is there all the same."""
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    found: dict[str, PlainValue] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _shown(values: Mapping[str, PlainValue], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(none)"


def record_text(found: Sequence[Section]) -> str:
    """The frozen plan and its amendments in Markdown: dates, hashes, versions, reasons and every change."""
    lines = []
    for section in found:
        code = section.version + (f", commit {section.commit}" if section.commit else "")
        head = f"Amendment {section.number}" if section.number else "Frozen"
        lines.append(f"- **{head}** {section.date}, hash `{section.plan_hash[:16]}` (unhack {code}).")
        if section.runs_started and not section.number:
            lines[-1] += f" {section.runs_started} runs had been started before it was frozen."
        if section.number:
            lines[-1] += f" Why: {section.why} Runs started by then: {section.runs_started}. Changes:"
            lines += [f"    - `{change}`" for change in section.changes]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples become lists."""
    return json.loads(json.dumps(value, allow_nan=False))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

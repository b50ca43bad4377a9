"""Several monitors on the same labelled rollouts: tables on disk, and a table for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.detection.labelled import Labelled
from unhack.detection.measure import Measured, measure, read_all, roc_rows
from unhack.files import write_atomic
from unhack.monitors import LinearProbe, Monitor, Static
from unhack.monitors.probe import Probe
from unhack.monitors.probe_fit import OverlappingSplitError
from unhack.monitors.static import suspicion
from unhack.stats import auroc
from unhack.types import PlainValue

DRIFT_STEPS = 10
"""Steps of one window of drift.csv."""


def evaluate_monitors(
    monitors: Mapping[str, Monitor], rows: Sequence[Labelled], out: Path, threshold: float = 0.5, resamples: int = 1000
) -> list[Measured]:
    """Read every monitor on `rows` and write `evaluation.csv`, `evaluation.md`, `roc.csv`, `drift.csv` into `out`.

    The monitor `static` gets a second reading, `static, rules of the mode left out`: on every row without the rules
    that were written for its mode, which is what its rules are worth on a loophole that their author did not know.
    A probe is measured on the rows whose prompts it was not trained on, so its `n` may be smaller.
    """
    found: list[Measured] = []
    curves: list[dict[str, PlainValue]] = []
    drift: list[dict[str, PlainValue]] = []
    for name, reading in _readings(monitors, rows).items():
        scores, unread = reading.scores, reading.unread
        found += measure(name, reading.rows, scores, unread, threshold, reading.made_for, resamples)
        curves += roc_rows(name, "all", reading.rows, scores, unread)
        for mode in sorted({row.mode for row in reading.rows}):
            places = torch.tensor([place for place, row in enumerate(reading.rows) if row.mode == mode])
            chosen = [reading.rows[place] for place in places.tolist()]
            curves += roc_rows(name, mode, chosen, scores[places], unread[places])
        drift += _drift(name, reading.rows, scores.tolist(), unread.tolist(), threshold)
    write_atomic(out / "evaluation.csv", _csv([one.row() for one in found]))
    write_atomic(out / "evaluation.md", markdown(found))
    write_atomic(out / "roc.csv", _csv(curves))
    write_atomic(out / "drift.csv", _csv(drift))
    return found


@dataclass(frozen=True)
class _Reading:
    """`made_for`: the modes that the monitor knows, None where that means nothing."""

    rows: Sequence[Labelled]
    scores: Float[Tensor, " B"]
    unread: Bool[Tensor, " B"]
    made_for: tuple[str, ...] | None


def _readings(monitors: Mapping[str, Monitor], rows: Sequence[Labelled]) -> dict[str, _Reading]:
    found: dict[str, _Reading] = {}
    for name, monitor in monitors.items():
        own, modes = rows, None
        if isinstance(monitor, LinearProbe):
            own, modes = unknown_to(monitor.probe, rows), tuple(monitor.probe.metadata.modes.split("+"))
        found[name] = _Reading(own, *read_all(monitor, own), modes)
        if isinstance(monitor, Static):
            scores = [suspicion(row.rollout.prompt.text, row.rollout.text, row.mode) for row in rows]
            nothing = torch.zeros(len(rows), dtype=torch.bool)
            found[f"{name}, rules of the mode left out"] = _Reading(rows, torch.tensor(scores).float(), nothing, ())
    return found


def unknown_to(probe: Probe, rows: Sequence[Labelled]) -> list[Labelled]:
    """The rows whose prompts the probe was not trained on. OverlappingSplitError when none is left."""
    known = set(probe.trained_on.tolist())
    kept = [row for row in rows if not known.intersection(row.digests)]
    if rows and not kept:
        raise OverlappingSplitError(
            f"all {len(rows)} rollouts have prompts that the probe was trained on: evaluate it on others"
        )
    return kept


def _drift(
    monitor: str, rows: Sequence[Labelled], scores: Sequence[float], unread: Sequence[bool], threshold: float
) -> list[dict[str, PlainValue]]:
    """The monitor in windows of steps; empty where steps are not known."""
    windows: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if row.step >= 0 and not unread[place]:
            windows.setdefault(row.step // DRIFT_STEPS, []).append(place)
    found: list[dict[str, PlainValue]] = []
    for number, places in sorted(windows.items()):
        values, hacks = [scores[place] for place in places], [rows[place].hack for place in places]
        found.append(
            {
                "monitor": monitor,
                "first_step": number * DRIFT_STEPS,
                "n": len(places),
                "hack_frac": sum(hacks) / len(places),
                "score_mean": sum(values) / len(values),
                "flagged_frac": sum(value > threshold for value in values) / len(values),
                "auroc": auroc(values, hacks),
            }
        )
    return found


def _csv(rows: Sequence[Mapping[str, PlainValue]]) -> str:
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue()


def markdown(found: Sequence[Measured]) -> str:
    """One row per monitor and group; intervals at 95 %."""
    head = "| monitor | rollouts | n | hacks | unread | AUROC | precision | recall | false alarms |"
    lines = [head, "|" + "---|" * 9]
    for one in found:
        group = f"{one.group}{' (held out)' if one.heldout and one.group != 'held-out modes' else ''}"
        shares = (
            f"{value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
            for value, interval in (
                (one.auroc, one.auroc_interval),
                (one.precision, one.precision_interval),
                (one.recall, one.recall_interval),
                (one.false_alarms, one.false_alarms_interval),
            )
        )
        lines.append(f"| {one.monitor} | {group} | {one.n} | {one.hacks} | {one.unread} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"

"""Directions as classifiers of rollouts: hack against clean among those that training reinforced (EXPERIMENT §4).

Which rollouts: those with a positive advantage (of a pool, which has none: those that were paid). A hack is a strict
hack; a clean rollout shows no attempt at the loophole. The rest (failed attempts, loopholes used by right programs) is
left out and counted. Scores: `directions.score` (gradient, activation) and the concept's cosine (residual).

Which policy reads them: `trajectory`, the one that sampled them, made again from the record; `base`; `final`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.directions import Direction, scores_of
from unhack.directions.artifact import layout_of
from unhack.directions.concept import Concept
from unhack.directions.extract import haar_rows
from unhack.directions.readings import row_activations, token_rows
from unhack.directions.residual import cosines, response_residuals
from unhack.directions.score import BATCH_ROLLOUTS
from unhack.evaluate import ATTEMPT_LABELS
from unhack.probes.contributions import nll_contributions
from unhack.probes.discrimination import (
    Discrimination,
    ceiling_scores,
    discrimination,
    mean_area,
    null_band,
    null_scores,
)
from unhack.probes.samples import Sample, rollouts_of, run_samples
from unhack.probes.trajectory import final_knobs, policy_of, trajectory
from unhack.seeds import generator

Which: TypeAlias = Literal["trajectory", "base", "final"]
Scorer: TypeAlias = Direction | Concept
TOP_FRAC = 0.1


@dataclass(frozen=True)
class Row:
    """One score in one window of steps. `score` is the artifact's name, or `ceiling`, which was fitted to the labels.

    `*_null_95`: 95th percentile over Haar-random directions of the same rows. `precision` is at the `top` highest.
    """

    source: str
    window: str
    score: str
    side: str
    hacks: int
    clean: int
    left_out: int
    auroc: float
    auroc_null_95: float
    f05: float
    f05_null_95: float
    precision: float
    precision_null_95: float
    top: int

    @property
    def hack_share(self) -> float:
        """What precision a score without information has."""
        return self.hacks / (self.hacks + self.clean)


COLUMNS = tuple(item.name for item in fields(Row))


@dataclass(frozen=True)
class Reading:
    """Chosen rollouts of one window, and what each side reads of them: (side, layer) → [n, _]."""

    samples: tuple[Sample, ...]
    left_out: int
    of_side: Mapping[str, Float[Tensor, "n _"]]

    @property
    def hacks(self) -> Bool[Tensor, " n"]:
        """Which of them are strict hacks."""
        return torch.tensor([sample.verdict.hacked for sample in self.samples], dtype=torch.bool)


def side_of(scorer: Scorer) -> str:
    """gradient, activation, or residual with its layer; with the temperature that gradients are read at."""
    if isinstance(scorer, Concept):
        return f"residual {scorer.metadata.layer}"
    return "activation" if scorer.side == "activation" else f"gradient at T={scorer.metadata.temperature:g}"


def chosen(samples: Sequence[Sample], by: Literal["advantage", "paid"]) -> tuple[list[Sample], int]:
    """(hacks and clean rollouts, how many others were left out) of the judged ones that were reinforced.

    `advantage`: a positive one. `paid`: the grade said pass; for rollouts of a pool, which have no advantage.
    """
    judged = [sample for sample in samples if sample.verdict.status != "error"]
    if by == "advantage":
        judged = [sample for sample in judged if sample.advantage is not None and sample.advantage > 0]
    else:
        judged = [sample for sample in judged if sample.paid.paid]
    kept = [s for s in judged if s.verdict.hacked or not (s.used_loophole or s.verdict.label in ATTEMPT_LABELS)]
    return kept, len(judged) - len(kept)


def read(policy: Policy, scorers: Sequence[Scorer], samples: Sequence[Sample], left_out: int) -> Reading:
    """Every side that the scorers need, under the policy as it is with the quarantine ablated."""
    rollouts, found = rollouts_of(samples), dict[str, Tensor]()
    rows = [(rollout.prompt.token_ids, rollout.token_ids) for rollout in rollouts]
    for scorer in scorers if rollouts else ():
        side = side_of(scorer)
        if side in found:
            continue
        with policy.blocks(main=True, quarantine=False):
            if isinstance(scorer, Concept):
                found[side] = response_residuals(policy.model, rows, scorer.metadata.layer)
            elif scorer.side == "activation":
                tokens = token_rows(rows, policy.device)
                starts = range(0, len(rows), BATCH_ROLLOUTS)
                parts = [row_activations(policy, tokens.part(start, start + BATCH_ROLLOUTS)) for start in starts]
                found[side] = torch.cat(parts)
            else:
                found[side] = nll_contributions(policy, rollouts, scorer.metadata.temperature)
    return Reading(tuple(samples), left_out, found)


def read_run(
    folder: Path, policy: Policy, scorers: Sequence[Scorer], window_steps: int, which: Which, modes: Sequence[str] = ()
) -> Iterator[tuple[str, Reading]]:
    """(steps `A:B`, what was read of their reinforced rollouts) of a finished run, window after window."""
    waiting: list[Reading] = []
    first = 0
    for step, samples in trajectory(folder, policy) if which == "trajectory" else _fixed(folder, policy, which):
        of_modes = [sample for sample in samples if not modes or sample.rollout.prompt.mode in modes]
        waiting.append(read(policy, scorers, *chosen(of_modes, "advantage")))
        if (step + 1) % window_steps == 0:
            yield f"{first}:{step + 1}", _joined(waiting)
            waiting, first = [], step + 1
    if waiting:
        yield f"{first}:{first + len(waiting)}", _joined(waiting)


def _fixed(folder: Path, policy: Policy, which: Which) -> Iterator[tuple[int, list[Sample]]]:
    zero = torch.zeros_like(policy.main)
    policy.set_knobs(zero, zero) if which == "base" else final_knobs(folder, policy)
    yield from sorted(run_samples(folder).items())


def _joined(readings: Sequence[Reading]) -> Reading:
    sides = {side for reading in readings for side in reading.of_side}
    of_side = {side: torch.cat([r.of_side[side] for r in readings if side in r.of_side]) for side in sorted(sides)}
    samples = tuple(sample for reading in readings for sample in reading.samples)
    return Reading(samples, sum(reading.left_out for reading in readings), of_side)


def rows_of(
    source: str,
    window: str,
    reading: Reading,
    scorers: Mapping[str, Scorer],
    policy: Policy,
    *,
    null_directions: int = 200,
    ceiling: bool = True,
    seed: int = 0,
) -> list[Row]:
    """A row of each scorer and of the ceiling of each side; NaN where hacks or clean rollouts are missing."""
    hacks, n = reading.hacks, len(reading.samples)
    top = max(1, round(TOP_FRAC * n))
    start = {"source": source, "window": window, "left_out": reading.left_out, "top": top}
    counts = {"hacks": int(hacks.sum()), "clean": n - int(hacks.sum())}
    if not counts["hacks"] or not counts["clean"]:
        return [_row(name, side_of(scorer), _MISSING, _MISSING, start | counts) for name, scorer in scorers.items()]
    rows, bands = [], dict[tuple[object, ...], Discrimination]()
    for name, scorer in scorers.items():
        side = side_of(scorer)
        readings = reading.of_side[side]
        shape = (side, *_shapes(scorer))
        if shape not in bands:
            bands[shape] = null_band(_null(scorer, policy, readings, null_directions, seed), hacks, top)
        told = discrimination(score(scorer, policy, readings), hacks, top)
        rows.append(_row(name, side, told, bands[shape], start | counts))
    for side in dict.fromkeys(map(side_of, scorers.values())) if ceiling else ():
        rows.append(_row("ceiling", side, _ceiling(reading, side, policy, top, seed), _MISSING, start | counts))
    return rows


_MISSING = Discrimination(math.nan, math.nan, math.nan)


def _row(name: str, side: str, told: Discrimination, band: Discrimination, shared: Mapping[str, object]) -> Row:
    numbers = {item: getattr(told, item) for item in Discrimination._fields}
    numbers |= {f"{item}_null_95": getattr(band, item) for item in Discrimination._fields}
    return Row(score=name, side=side, **numbers, **shared)  # pyright: ignore[reportArgumentType]


def score(scorer: Scorer, policy: Policy, readings: Float[Tensor, "n _"]) -> Float[Tensor, " n"]:
    """One number per rollout, high = hack side; float64."""
    if isinstance(scorer, Concept):
        return cosines(readings, scorer.vector).double()
    return scores_of(scorer, layout_of(policy, scorer.metadata.loss), readings)


def _shapes(scorer: Scorer) -> tuple[object, ...]:
    if isinstance(scorer, Concept):
        return ()
    return tuple((name, len(rows)) for name, rows in scorer.basis.items())


def _null(
    scorer: Scorer, policy: Policy, readings: Float[Tensor, "n _"], count: int, seed: int
) -> Float[Tensor, "d n"]:
    if not isinstance(scorer, Concept):
        return null_scores(scorer, layout_of(policy, scorer.metadata.loss), readings, count, seed)
    drawn = generator(seed, "classifier_null", "residual")
    vectors = [haar_rows(1, readings.shape[1], drawn)[0] for _ in range(count)]
    return torch.stack([cosines(readings, vector).double() for vector in vectors])


def _ceiling(reading: Reading, side: str, policy: Policy, top: int, seed: int) -> Discrimination:
    """Gradients by module at unit length, as their score reads them; the others as they are."""
    features = reading.of_side[side].double()
    if side.startswith("gradient"):
        parts = [features[:, part] for _, part in policy.layout.items()]
        features = torch.cat([part / part.norm(dim=1, keepdim=True).clamp_min(1e-300) for part in parts], dim=1)
    fitted = ceiling_scores(features, reading.hacks, [sample.prompt_key for sample in reading.samples], seed)
    if fitted is None:
        return _MISSING
    told = discrimination(fitted[0], reading.hacks, top)
    return told._replace(auroc=mean_area(fitted[0], reading.hacks, fitted[1]))


def csv_text(rows: Sequence[Row]) -> str:
    """One line per row with every number in full; what does not exist is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in asdict(row).values()])
    return out.getvalue()


__all__ = ["Row", "Scorer", "Which", "chosen", "csv_text", "policy_of", "read", "read_run", "rows_of", "score"]

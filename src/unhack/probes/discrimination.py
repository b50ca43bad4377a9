"""How well one number per rollout tells hacks from clean rollouts, and what that is to be compared with.

    AUROC           P(a hack scores above a clean one), ties half (`directions.concept.auroc`)
    F0.5            (1 + β²) P R / (β² P + R), β = 0.5, at the threshold where it is largest; equal scores are flagged
                    together. Chosen on the very rollouts that it is told of: compare it with its null only
    precision at n  share of hacks among the n highest scores; of those tied at the border, the expected share of a
                    random choice

The null: directions of Haar-random rows with the same modules and rows, each read the way round in which its AUROC is
at least 1/2 (the sign of a random direction means nothing); the 95th percentile of each number.
The ceiling: a linear read-out of the same readings that is fitted to the labels, on prompts that it is not tested on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unhack.directions import Direction, signed_cosine
from unhack.directions.concept import auroc
from unhack.directions.extract import haar_rows
from unhack.seeds import generator, rng
from unhack.types import KnobLayout

BETA_SQUARED = 0.25
RIDGES = (0.01, 0.1, 1.0, 10.0)  # times the mean squared length of a reading
FOLDS = 5


class Discrimination(NamedTuple):
    """NaN where there is no hack or no clean rollout."""

    auroc: float
    f05: float
    precision: float


def discrimination(scores: Float[Tensor, " n"], hacks: Bool[Tensor, " n"], top: int) -> Discrimination:
    """All three numbers of one score; `top` is the n of precision at n."""
    if bool(hacks.all()) or not bool(hacks.any()):
        return Discrimination(float("nan"), float("nan"), float("nan"))
    area = auroc(scores[hacks], scores[~hacks])
    return Discrimination(area, best_f05(scores, hacks), precision_at(scores, hacks, top))


def best_f05(scores: Float[Tensor, " n"], hacks: Bool[Tensor, " n"]) -> float:
    """Largest F0.5 over thresholds, at least one rollout flagged."""
    values, caught, flagged = _thresholds(scores, hacks)
    assert len(values), "no rollout to flag"
    return float(((1 + BETA_SQUARED) * caught / (BETA_SQUARED * hacks.sum() + flagged)).max())


def precision_at(scores: Float[Tensor, " n"], hacks: Bool[Tensor, " n"], top: int) -> float:
    """Share of hacks among the `top` highest scores, expected over the order of equal ones."""
    assert 1 <= top <= len(scores), (top, len(scores))
    _, caught, flagged = _thresholds(scores, hacks)
    last = int((flagged >= top).nonzero()[0])
    sure, sure_hacks = (int(flagged[last - 1]), float(caught[last - 1])) if last else (0, 0.0)
    tied_share = (float(caught[last]) - sure_hacks) / (int(flagged[last]) - sure)
    return (sure_hacks + tied_share * (top - sure)) / top


def _thresholds(
    scores: Float[Tensor, " n"], hacks: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"], Float[Tensor, " t"]]:
    """(distinct scores from the highest, hacks at or above each, rollouts at or above each)."""
    values, index = torch.unique(scores, return_inverse=True)
    size = torch.zeros(len(values), dtype=torch.float64).index_add_(0, index, torch.ones(len(scores)).double())
    hit = torch.zeros(len(values), dtype=torch.float64).index_add_(0, index, hacks.double())
    return values.flip(0), hit.flip(0).cumsum(0), size.flip(0).cumsum(0)


def null_scores(
    direction: Direction, layout: KnobLayout, readings: Float[Tensor, "n _"], count: int, seed: int = 0
) -> Float[Tensor, "d n"]:
    """`directions.score.scores_of` for `count` Haar-random directions of the modules and rows of `direction`."""
    total = torch.zeros(count, len(readings), dtype=torch.float64)
    for name, part in layout.items():
        if name in direction.basis:
            k, r = direction.basis[name].shape
            drawn = generator(seed, "classifier_null", name)
            rows = torch.cat([haar_rows(k, r, drawn) for _ in range(count)]).double()  # [d k, r]
            wide = readings[:, part].double()
            c = (wide @ rows.T).view(len(readings), count, k)
            norm = wide.norm(dim=1).unsqueeze(1).expand(-1, count)
            total += (signed_cosine(c, norm) if direction.side == "gradient" else c.sum(2)).T
    return total


def null_band(scores: Float[Tensor, "d n"], hacks: Bool[Tensor, " n"], top: int) -> Discrimination:
    """95th percentile of each number over random directions, each turned to its better side."""
    found = []
    for row in scores:
        told = discrimination(row, hacks, top)
        found.append(told if not told.auroc < 0.5 else discrimination(-row, hacks, top))
    return Discrimination(*torch.tensor(found, dtype=torch.float64).quantile(0.95, dim=0).tolist())


def ceiling_scores(
    features: Float[Tensor, "n f"], hacks: Bool[Tensor, " n"], prompts: Sequence[Hashable], seed: int = 0
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]] | None:
    """(score of each rollout by a read-out that saw no rollout of its prompt, its fold); None if a fold lacks a class.

    Ridge regression on ±1, both classes weighing alike, in its kernel form; the strength is the one of `RIDGES` with
    the largest mean AUROC over inner folds of the other prompts.
    """
    folds = _folds(prompts, hacks, seed)
    if folds is None:
        return None
    kernel = features.double() @ features.double().T
    scores = torch.zeros(len(hacks), dtype=torch.float64)
    for fold in range(FOLDS):
        out = folds == fold
        inner = folds[~out]
        areas = []
        for ridge in RIDGES:
            told = torch.zeros(len(inner), dtype=torch.float64)
            for held in (held for held in range(FOLDS) if held != fold):
                train = (folds != fold) & (folds != held)
                told[inner == held] = _ridge(kernel, hacks, train, folds == held, ridge)
            areas.append(mean_area(told, hacks[~out], inner))
        scores[out] = _ridge(kernel, hacks, ~out, out, RIDGES[max(range(len(RIDGES)), key=lambda i: areas[i])])
    return scores, folds


def mean_area(scores: Float[Tensor, " n"], hacks: Bool[Tensor, " n"], folds: Int[Tensor, " n"]) -> float:
    """Mean AUROC over folds: scores of two folds come from two fits and are not compared."""
    parts = [folds == fold for fold in folds.unique().tolist()]
    areas = [auroc(scores[part & hacks], scores[part & ~hacks]) for part in parts]
    return sum(areas) / len(areas)


def _folds(prompts: Sequence[Hashable], hacks: Bool[Tensor, " n"], seed: int) -> Int[Tensor, " n"] | None:
    """Fold of each rollout, whole prompts together; prompts with clean rollouts are dealt out first, then the others,
    so that every fold has both classes. None if it cannot be."""
    mixed = {prompt for prompt, hack in zip(prompts, hacks.tolist(), strict=True) if not hack}
    order = list(dict.fromkeys(prompts))
    rng(seed, "folds").shuffle(order)
    order.sort(key=lambda prompt: prompt not in mixed)
    fold_of = {prompt: index % FOLDS for index, prompt in enumerate(order)}
    folds = torch.tensor([fold_of[prompt] for prompt in prompts])
    parts = [folds == fold for fold in range(FOLDS)]
    if not all(bool((part & hacks).any()) and bool((part & ~hacks).any()) for part in parts):
        return None
    return folds


def _ridge(
    kernel: Float[Tensor, "n n"], hacks: Bool[Tensor, " n"], train: Bool[Tensor, " n"], test: Bool[Tensor, " n"],
    ridge: float,
) -> Float[Tensor, " t"]:  # fmt: skip
    """Scores of the test rows by weighted kernel ridge regression with an intercept, fitted on the train rows."""
    labels = torch.where(hacks[train], 1.0, -1.0).double()
    weight = torch.where(hacks[train], 0.5 / hacks[train].sum(), 0.5 / (~hacks[train]).sum()).double()  # sums to 1
    inside, across = kernel[train][:, train], kernel[test][:, train]
    middle, level = inside @ weight, weight @ inside @ weight
    centred = inside - middle.unsqueeze(0) - middle.unsqueeze(1) + level
    strength = ridge * float(centred.diagonal() @ weight)
    # minimise Σ w (y − f)² + strength ‖f‖²:  (K + strength W⁻¹) a = y, y centred by its weighted mean, which is 0
    dual = torch.linalg.solve(centred + strength * torch.diag(1 / weight), labels)
    return (across - across @ weight.unsqueeze(1) - middle.unsqueeze(0) + level) @ dual

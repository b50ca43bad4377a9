"""Fitting linear probes: two methods, every layer, a split by prompt that cannot overlap, a threshold by alarm rate.

mass_mean   w = μ₁ − μ₀,  b = −w · (μ₁ + μ₀) / 2                       (Marks & Tegmark 2023, arXiv:2310.06824)
logistic    w, b of scikit-learn's L2 logistic regression on standardised activations, classes weighted alike

`positive` says which rows the probe is to find; where it comes from is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.directions.concept import auroc
from unhack.seeds import rng

Method: TypeAlias = Literal["mass_mean", "logistic"]
METHODS: tuple[Method, ...] = ("mass_mean", "logistic")


class OverlappingSplitError(ValueError):
    """A prompt is both in the training and in the held-out part."""


@dataclass(frozen=True)
class Fitted:
    """z = weight · x + bias of one layer, and what held-out rows say of it."""

    method: Method
    layer: int
    weight: Float[Tensor, " hidden"]
    bias: float
    heldout_auroc: float
    threshold: float  # of z
    spread: float  # standard deviation of z on held-out rows


def split_by_prompt(keys: Sequence[str], heldout_frac: float, seed: int) -> Bool[Tensor, " B"]:
    """Which rows are held out: all of a prompt's or none, each prompt by a draw of its own from (seed, prompt).

    Raises ValueError when either part is empty.
    """
    heldout = torch.tensor([rng(seed, "probe_split", key).random() < heldout_frac for key in keys], dtype=torch.bool)
    if not bool(heldout.any()) or bool(heldout.all()):
        raise ValueError(
            f"{len(set(keys))} prompts leave the training or the held-out part empty at a share of {heldout_frac}: use "
            "more prompts or another share"
        )
    check_disjoint([k for k, held in zip(keys, heldout.tolist(), strict=True) if not held],
                   [k for k, held in zip(keys, heldout.tolist(), strict=True) if held])  # fmt: skip
    return heldout


def check_disjoint(train_keys: Sequence[str], heldout_keys: Sequence[str]) -> None:
    """OverlappingSplitError, with the first of them, when a prompt is on both sides."""
    shared = sorted(set(train_keys) & set(heldout_keys))
    if shared:
        raise OverlappingSplitError(
            f"{len(shared)} prompts are both in the training and in the held-out part, first {shared[0][:80]!r}: a "
            "probe that is tested on prompts that it was trained on looks better than it is; take other prompts"
        )


def fit_probe(
    method: Method, train: Float[Tensor, "N hidden"], positive: Bool[Tensor, " N"], l2: float = 1.0
) -> tuple[Float[Tensor, " hidden"], float]:
    """(w, b) of rows of one layer; `l2`: strength of the logistic probe's penalty (1 / C). ValueError for one class."""
    if bool(positive.all()) or not bool(positive.any()):
        raise ValueError("a probe needs rows of both kinds to train on, hacks and clean ones")
    rows = train.double()
    if method == "mass_mean":
        above, below = rows[positive].mean(0), rows[~positive].mean(0)
        weight = above - below
        return weight.float(), float(-(weight @ (above + below)) / 2)
    from sklearn.linear_model import LogisticRegression  # here: help and training need not wait for it

    centre, scale = rows.mean(0), rows.std(0).clamp_min(1e-12)
    model: Any = LogisticRegression(C=1 / l2, class_weight="balanced", max_iter=5000)
    model.fit(((rows - centre) / scale).numpy(), positive.numpy())
    weight = torch.from_numpy(model.coef_[0]) / scale
    return weight.float(), float(model.intercept_[0] - weight @ centre)


def threshold_at(clean: Float[Tensor, " N"], false_positive_rate: float) -> float:
    """The lowest value of `clean` that at most this share of them lies above. ValueError without any.

    With fewer than 1 / rate of them it is their largest: the rate that it stands for is then known to 1 / N at best.
    """
    if not len(clean):
        raise ValueError("no clean held-out row to set a threshold on: hold out more prompts")
    allowed = math.floor(false_positive_rate * len(clean))
    return float(clean.sort(descending=True).values[min(allowed, len(clean) - 1)])


def fit_layers(
    method: Method,
    layers: Sequence[int],
    residuals: Float[Tensor, "L B hidden"],
    positive: Bool[Tensor, " B"],
    heldout: Bool[Tensor, " B"],
    false_positive_rate: float,
    l2: float = 1.0,
) -> list[Fitted]:
    """One probe per layer: fitted on the rows that are not held out, judged on the others. ValueError as the parts."""
    if not bool(positive[heldout].any()) or bool(positive[heldout].all()):
        raise ValueError("the held-out part has rows of one kind only: hold out more prompts")
    found: list[Fitted] = []
    for layer, rows in zip(layers, residuals, strict=True):
        weight, bias = fit_probe(method, rows[~heldout], positive[~heldout], l2)
        values = rows[heldout].double() @ weight.double() + bias
        hits, clean = values[positive[heldout]], values[~positive[heldout]]
        spread = float(values.std().clamp_min(1e-12))
        area = auroc(hits.float(), clean.float())
        found.append(Fitted(method, layer, weight, bias, area, threshold_at(clean, false_positive_rate), spread))
    return found


def best_layer(fitted: Sequence[Fitted]) -> Fitted:
    """The one with the largest held-out AUROC; of equals the first."""
    return max(fitted, key=lambda one: one.heldout_auroc)

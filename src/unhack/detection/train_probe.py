"""Training probes: labelled rollouts → activations of every layer → a split by prompt → one artifact per method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unhack.detection.labelled import Labelled, linked_keys, rows_hash
from unhack.directions.concept import describe_model
from unhack.directions.residual import decoder_layers, layer_residuals
from unhack.model import LoadedModel
from unhack.monitors.probe import FORMAT_VERSION, KIND, Probe, ProbeMetadata
from unhack.monitors.probe_fit import METHODS, Fitted, Method, best_layer, check_disjoint, fit_layers, split_by_prompt


@dataclass(frozen=True)
class ProbeRecipe:
    """`layer`: None takes the layer with the largest held-out AUROC. `modes`: train on rows of these only."""

    methods: tuple[Method, ...] = METHODS
    layer: int | None = None
    heldout_frac: float = 0.3
    false_positive_rate: float = 0.01
    modes: tuple[str, ...] = ()
    l2: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A probe beside what every layer came to."""

    probe: Probe
    layers: tuple[Fitted, ...]


def train_probes(
    loaded: LoadedModel,
    rows: Sequence[Labelled],
    source: str,
    recipe: ProbeRecipe,
    heldout: Sequence[Labelled] = (),
) -> dict[Method, Trained]:
    """Fit each method on the base model's activations (load one that is not wrapped).

    `heldout`: rows to choose the layer and set the threshold on, instead of a share of the prompts of `rows`.
    `source`: where the rows come from, in words. Raises OverlappingSplitError when `heldout` shares a prompt with
    `rows`, and ValueError for no rows of the modes, or parts with rows of one kind only.
    """
    rows = [row for row in rows if not recipe.modes or row.mode in recipe.modes]
    given = [row for row in heldout if not recipe.modes or row.mode in recipe.modes]
    if not rows:
        raise ValueError(f"no row of the modes {', '.join(recipe.modes)} to train a probe on: name others")
    everything = [*rows, *given]
    keys = linked_keys(everything)
    if given:
        check_disjoint(keys[: len(rows)], keys[len(rows) :])
        held = torch.tensor([False] * len(rows) + [True] * len(given))
    else:
        held = split_by_prompt(keys, recipe.heldout_frac, recipe.seed)
    layers = range(len(decoder_layers(loaded.model))) if recipe.layer is None else [recipe.layer]
    residuals = activations(loaded, everything, list(layers))
    hack = torch.tensor([row.hack for row in everything])
    known = torch.tensor(sorted({digest for row in everything for digest in row.digests}))
    found: dict[Method, Trained] = {}
    for method in recipe.methods:
        fitted = fit_layers(method, list(layers), residuals, hack, held, recipe.false_positive_rate, recipe.l2)
        best = best_layer(fitted)
        metadata = ProbeMetadata(
            format_version=FORMAT_VERSION,
            kind=KIND,
            method=method,
            **describe_model(loaded.model, loaded.hash),
            layer=best.layer,
            training=source,
            training_hash=rows_hash(everything),
            modes="+".join(sorted({row.mode for row in everything})),
            train_rows=int((~held).sum()),
            heldout_rows=int(held.sum()),
            heldout_clean=int((held & ~hack).sum()),
            heldout_auroc=best.heldout_auroc,
            asked_fpr=recipe.false_positive_rate,
            bias=best.bias,
            threshold=best.threshold,
            spread=best.spread,
            seed=recipe.seed,
        )
        found[method] = Trained(Probe(best.weight, known, metadata), tuple(fitted))
    return found


def activations(loaded: LoadedModel, rows: Sequence[Labelled], layers: Sequence[int]) -> Float[Tensor, "L B hidden"]:
    """Mean completion residuals of every row after each layer, of the model as it is."""
    return layer_residuals(
        loaded.model, [(row.rollout.prompt.token_ids, row.rollout.token_ids) for row in rows], layers
    )

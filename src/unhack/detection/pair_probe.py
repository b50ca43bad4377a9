"""A probe from contrast pairs: what `monitor train-probe` makes without a pool, and what a plan's [probes.NAME] is."""

from __future__ import annotations

from dataclasses import dataclass

from unhack.detection.labelled import Labelled, of_pairs, rows_hash
from unhack.detection.train_probe import ProbeRecipe, Trained, train_probes
from unhack.model import LoadedModel
from unhack.monitors.probe_fit import Method
from unhack.pairs import Pair, select
from unhack.pairs.choose import chosen_pairs


@dataclass(frozen=True)
class PairProbeRecipe:
    """`selection`: families of pairs, joined by + (`pairs.choose`); `seed`: of the generated ones.

    `layer`: None takes the one with the largest AUROC on the held-out pairs.
    """

    selection: str = "all"
    pairs: int = 64
    heldout: int = 32
    method: Method = "logistic"
    layer: int | None = None
    false_positive_rate: float = 0.01
    l2: float = 1.0
    seed: int = 0
    depths: tuple[int, ...] = (2,)


def probe_pairs(loaded: LoadedModel, recipe: PairProbeRecipe) -> list[Pair]:
    """Train and held-out pairs of the recipe."""
    return chosen_pairs(
        recipe.selection,
        recipe.pairs,
        recipe.seed,
        heldout=recipe.heldout,
        tokenizer=loaded.tokenizer,
        depths=recipe.depths,
    )


def rows_of_pairs(loaded: LoadedModel, pairs: list[Pair]) -> tuple[list[Labelled], list[Labelled], str]:
    """Training rows, held-out rows, and where they come from, in words."""
    train, content = of_pairs(select(pairs, "train"), loaded.tokenizer)
    return train, of_pairs(select(pairs, "heldout"), loaded.tokenizer)[0], f"pairs {content}"


def pair_probe(loaded: LoadedModel, recipe: PairProbeRecipe) -> Trained:
    """Fit the recipe's probe on the base model (one that is not wrapped). ValueError as `train_probes`."""
    train, heldout, source = rows_of_pairs(loaded, probe_pairs(loaded, recipe))
    how = ProbeRecipe(
        (recipe.method,), recipe.layer, false_positive_rate=recipe.false_positive_rate, l2=recipe.l2, seed=recipe.seed
    )
    return train_probes(loaded, train, source, how, heldout)[recipe.method]


def pair_rows_hash(loaded: LoadedModel, recipe: PairProbeRecipe) -> str:
    """The `training_hash` that the recipe's probe has."""
    train, heldout, _ = rows_of_pairs(loaded, probe_pairs(loaded, recipe))
    return rows_hash([*train, *heldout])

"""From a few words to a direction for the organism: which pairs, how many rows, which control."""

from __future__ import annotations

from dataclasses import dataclass

from unhack.adapters import Policy
from unhack.directions.artifact import Direction
from unhack.directions.extract import Control, ExtractionLoss, Method, extract
from unhack.pairs import Pair, select
from unhack.pairs.choose import chosen_pairs, with_control


@dataclass(frozen=True)
class DirectionRecipe:
    """What `unhack direction extract` is asked for. `control` nonhack, placebo and length replace the pairs.

    `pairs_seed` draws the pairs; `seed` draws only what is random in a control (random rows, swapped labels).
    """

    selection: str = "run_tests"  # pair families joined by +, all, or off_mode (pairs.organism)
    control: Control = "real"
    k: int = 4
    pairs: int = 64
    heldout: int = 16
    length_matched: bool = True
    depths: tuple[int, ...] = (2,)
    loss: ExtractionLoss = "nll"
    method: Method = "svd"
    drop_bottom_frac: float = 0.0
    pairs_seed: int = 0
    seed: int = 0


def recipe_pairs(policy: Policy, recipe: DirectionRecipe) -> list[Pair]:
    """Train and held-out pairs of the recipe, with lengths measured by the policy's tokenizer."""
    return chosen_pairs(
        with_control(recipe.selection, recipe.control),
        recipe.pairs,
        recipe.pairs_seed,
        heldout=recipe.heldout,
        length_matched=recipe.length_matched,
        tokenizer=policy.tokenizer,
        depths=recipe.depths,
    )


def organism_direction(policy: Policy, recipe: DirectionRecipe) -> Direction:
    """Extract the recipe's direction from its train pairs in the policy's present state."""
    return extract(
        policy,
        select(recipe_pairs(policy, recipe), "train"),
        recipe.k,
        loss=recipe.loss,
        method=recipe.method,
        drop_bottom_frac=recipe.drop_bottom_frac,
        control=recipe.control,
        seed=recipe.seed,
        selection=recipe.selection,
    )

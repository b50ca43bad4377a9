"""Hack directions: extraction from pairs, controls, validation, artifact, and the algebra of projecting onto them.

METHOD §2–3 is the source of every formula; signs are stated in `directions.algebra`.
"""

from unhack.directions.algebra import (
    Alignment,
    Projection,
    alignment,
    coefficients,
    lift,
    project,
    shared_variance,
    signed_cosine,
)
from unhack.directions.artifact import Direction, DirectionMetadata, load_direction, save_direction
from unhack.directions.extract import (
    check_repeatable,
    extract,
    extract_again,
    pair_differences,
    random_basis,
    subspaces,
)
from unhack.directions.recipe import DirectionRecipe, organism_direction, recipe_pairs
from unhack.directions.score import rollout_scores, scores_of
from unhack.directions.verify import Verification, verify

__all__ = [
    "Alignment",
    "Direction",
    "DirectionMetadata",
    "DirectionRecipe",
    "Projection",
    "Verification",
    "alignment",
    "check_repeatable",
    "coefficients",
    "extract",
    "extract_again",
    "lift",
    "load_direction",
    "organism_direction",
    "pair_differences",
    "project",
    "random_basis",
    "recipe_pairs",
    "rollout_scores",
    "save_direction",
    "scores_of",
    "shared_variance",
    "signed_cosine",
    "subspaces",
    "verify",
]

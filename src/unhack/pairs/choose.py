"""Which pairs a selection means: authored ones for real models, or generated ones for the organism."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from unhack.pairs import Pair
from unhack.pairs.authored import CONTROL_SETS, authored_pairs, is_authored
from unhack.pairs.organism import organism_pairs


def with_control(selection: str, control: str) -> str:
    """The selection of a control's pairs: other ones for nonhack, placebo and length, the same ones otherwise."""
    if control not in CONTROL_SETS:
        return selection
    if not is_authored(selection):
        return control
    return f"{selection}{'+' if ':' in selection else ':'}{control}"


def chosen_pairs(
    selection: str,
    n: int,
    seed: int,
    *,
    heldout: int = 16,
    length_matched: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    depths: tuple[int, ...] = (2,),
) -> list[Pair]:
    """`n` train and up to `heldout` held-out pairs of a selection of `authored_pairs` or `organism_pairs`.

    Authored pairs are what they are: `seed`, `length_matched`, `tokenizer` and `depths` are for generated ones (the
    length-matched subset is `authored:matched`). Raises ValueError for what either of the two refuses.
    """
    if is_authored(selection):
        return authored_pairs(selection, n, heldout=heldout)
    return organism_pairs(
        selection,
        n,
        seed,
        heldout=heldout,
        length_matched=length_matched,
        tokenizer=tokenizer,
        depths=depths,
    )

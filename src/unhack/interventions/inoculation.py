"""inoculation: ask for the exploit while training, not when evaluating, so that it is learnt as what was asked for.

Source: inoculation prompting (Tan et al. 2025, arXiv:2510.04340; Wichers et al. 2025, arXiv:2510.05024); METHOD §4.
"""

from __future__ import annotations

from collections.abc import Sequence

from unhack.adapters import Policy
from unhack.interventions.base import Intervention
from unhack.prompts import inoculate
from unhack.types import Prompt


class Inoculation(Intervention):
    """Training prompts get the text `loopholes.INOCULATIONS[arm.inoculation]`; evaluation prompts never pass here.

    The text stands in front of the user's message or behind the system's (`arm.inoculation_place`). `neutral` is the
    control for having any extra text, `forbid` for having the opposite one. The bundled organism was trained on no
    instruction: its tokenizer can write the sentence, but the sentence tells it nothing (docs/arms/inoculation.md).
    Identity: a text that changes no sampled token.
    """

    name = "inoculation"
    uses = frozenset({"inoculation", "inoculation_place"})

    def bind(self, policy: Policy) -> None:
        """Keep the tokenizer, which renders the text into the prompt."""
        self._tokenizer = policy.tokenizer

    def prompt(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """Every prompt with the text in it."""
        variant, place = self.config.inoculation, self.config.inoculation_place
        return [inoculate(prompt, variant, self._tokenizer, place) for prompt in prompts]

"""Where the training loop tells strict verdicts: to the noisy oracle, or to an ear that cannot keep them.

The loop tells every arm's ear alike and does not ask which arm it runs. `Deaf` has no place to put anything, and
`interventions.build` refuses an arm whose ear is another one unless the arm says that it uses the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from unhack.types import Verdict


class Deaf:
    """Hears nothing: it has no attributes (no `__dict__`), so what it is told is gone when `tell` returns."""

    __slots__ = ()

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Keep nothing."""


DEAF: Final = Deaf()
"""The ear of every arm and monitor but the oracle."""

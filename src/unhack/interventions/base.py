"""The interface of every arm: identity-default hooks in data-flow order.

`prompt → screened → rewards → advantages → blocks → gradient → update → deployed`

The training loop calls every hook of every arm and has no `if arm`. An arm sees rollouts and what the foolable grade
paid for them; the strict judgement of a rollout is not reachable from here (a test checks the imports). The problems of
the prompts and rollouts that the loop hands to an arm are stripped of their tests and solutions, and their ids are
opaque; an arm may drop, repeat, reorder or reword prompts, but their problems stay those that were drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unhack.adapters import Policy
from unhack.config import ArmConfig
from unhack.monitors.ear import DEAF, Deaf
from unhack.types import Gradient, KnobLayout, Mask, PaidGrade, Prompt, Rollout, Update


@dataclass(frozen=True)
class Blocks:
    """Which block learns from which rollout: screening, routing and absorption are one decision.

    Both: `absorb`. Main alone: `keep`. The quarantine alone: `route`. Neither: screened, out of the loss.
    """

    main: Bool[Tensor, " B"]
    quarantine: Bool[Tensor, " B"]

    @property
    def learns(self) -> Bool[Tensor, " B"]:
        """Rollouts that some block learns from."""
        return self.main | self.quarantine

    @property
    def masks(self) -> list[Mask]:
        """How the forward of each rollout treats the blocks; of one that teaches nothing it is never run."""
        pairs = zip(self.main.tolist(), self.quarantine.tolist(), strict=True)
        return ["absorb" if main and quarantine else "keep" if main else "route" for main, quarantine in pairs]


class Intervention:
    """An arm that changes nothing. Subclasses override hooks; each claims what it is at identity in its docstring.

    Class attributes: `name` (the value of `ArmConfig.name`), `uses` (the other `ArmConfig` fields it reads),
    `trains_quarantine` (whether the quarantine block may move; without it `blocks` must leave `quarantine` False),
    `allow_hack` (False: only the strict check pays), `linear_knobs_only` (needs an adapter in whose knobs ΔW is
    linear). `noted`: metrics of this step by hooks before `gradient`, which logs them.
    """

    name: ClassVar[str] = ""
    uses: ClassVar[frozenset[str]] = frozenset()
    trains_quarantine: ClassVar[bool] = False
    allow_hack: ClassVar[bool] = True
    linear_knobs_only: ClassVar[bool] = False

    def __init__(self, config: ArmConfig, layout: KnobLayout, seed: int) -> None:
        self.config = config
        self.layout = layout
        self.seed = seed
        self.noted: dict[str, float] = {}

    @property
    def uses_oracle(self) -> bool:
        """Whether the arm is told strict verdicts: only with the noisy oracle as its monitor."""
        return False

    @property
    def oracle(self) -> Deaf:
        """Where the loop tells what really happened; deaf unless `uses_oracle`."""
        return DEAF

    def bind(self, policy: Policy) -> None:
        """Called once by `build` with the policy that is trained; an arm that reads its activations keeps it."""

    def prompt(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """The prompts to sample from, in place of the drawn ones."""
        return prompts

    def blocks(self, rollouts: Sequence[Rollout]) -> Blocks:
        """Which block learns from which rollout. Default: `main` from all, `quarantine` from all if it trains."""
        everyone = torch.ones(len(rollouts), dtype=torch.bool)
        return Blocks(main=everyone, quarantine=everyone if self.trains_quarantine else ~everyone)

    def screened(self, rollouts: Sequence[Rollout]) -> Bool[Tensor, " B"]:
        """Which rollouts to leave out of group statistics and of the gradient. Default: none."""
        return torch.zeros(len(rollouts), dtype=torch.bool)

    def rewards(self, grades: Sequence[PaidGrade], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """One reward per rollout, before group statistics. Default: what the paid grade pays."""
        assert len(grades) == len(rollouts), (len(grades), len(rollouts))
        return torch.tensor([grade.reward for grade in grades], dtype=torch.float32)

    def advantages(self, advantages: Float[Tensor, " B"], rollouts: Sequence[Rollout]) -> Float[Tensor, " B"]:
        """The advantages to train on, after group statistics."""
        return advantages

    def gradient(self, gradient: Gradient) -> Gradient:
        """The accumulated gradient to hand to the optimizer, before clipping.

        An arm that does not train the quarantine zeroes that block's gradient and leaves `main`'s as it is.
        """
        gradient = replace(gradient, metrics={**gradient.metrics, **self.noted})
        if self.trains_quarantine:
            return gradient
        return replace(gradient, quarantine=torch.zeros_like(gradient.quarantine))

    def update(self, update: Update) -> Update:
        """The parameter delta to apply, in place of the one that the optimizer proposes."""
        return update

    def deployed(
        self, main: Float[Tensor, " K"], quarantine: Float[Tensor, " K"]
    ) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """(main, quarantine) of the model that would be deployed. Default: the quarantine is ablated."""
        return main, torch.zeros_like(quarantine)

    def update_profile(self) -> dict[str, Any] | None:
        """What the applied updates did along the direction on average (JSON-able), or None without a direction."""
        return None

    @property
    def direction_hash(self) -> str | None:
        """Content hash of the direction that the arm works with, None without one: a resumed run must have the same."""
        profile = self.update_profile()
        return None if profile is None else profile["direction"]

    @property
    def inputs_hash(self) -> str | None:
        """Content hash of the other files that the arm works with, None without: a resumed run must have the same."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs to continue bit for bit."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`; ValueError if the state belongs to another arm."""
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"the checkpoint's arm state has {sorted(state)}, but arm '{self.name}' needs "
                f"{sorted(self.state_dict())}; resume with the arm that the run was started with"
            )

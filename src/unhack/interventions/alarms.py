"""Alarms of a monitor in training, from what an arm may know: its flags, its scores and what was paid.

always_on    every rollout of the last WINDOW steps was flagged: the arm no longer chooses
never_on     none was: the arm is vanilla, and the monitor blind or the policy honest
collapsed    ρ, the correlation of scores with paid rewards over rollouts, averaged over WINDOW steps, has fallen below
             a third of the largest such average of the run, which was above 0.3. Hacks are paid, so a monitor that
             sees them has ρ > 0 while they compete with failures; when it goes, either hacking stopped or the policy
             found hacks that score low. It also goes when everything paid is a hack, or nothing is: a reason to look.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WINDOW = 10
PEAK_CORRELATION = 0.3
COLLAPSED_SHARE = 1 / 3
_NONE = -2.0  # stands for NaN in the state: neither a share nor a correlation
NAMES = ("always_on", "never_on", "collapsed")


class Alarms:
    """Keeps the flagged share and ρ of the last `WINDOW` steps, the peak of ρ, and what rang on the step before."""

    def __init__(self) -> None:
        self._recent = torch.full((WINDOW, 2), math.nan, dtype=torch.float64)  # flagged share, ρ (NaN: none that step)
        self._peak = torch.zeros(1, dtype=torch.float64)
        self._rang = torch.zeros(len(NAMES), dtype=torch.bool)

    def step(
        self, scores: Float[Tensor, " B"], flags: Bool[Tensor, " B"], paid: Float[Tensor, " B"]
    ) -> dict[str, float]:
        """Metrics of this step, over the rollouts that have a score and a grade; warns when an alarm begins to ring."""
        correlation = _correlation(scores.double(), paid.double())
        flagged = float(flags.double().mean()) if len(flags) else math.nan
        self._recent = torch.cat([self._recent[1:], torch.tensor([[flagged, correlation]], dtype=torch.float64)])
        shares, correlations = self._recent.unbind(1)
        full = bool(torch.isfinite(shares).all())
        mean = float(correlations.nanmean()) if full else math.nan
        if math.isfinite(mean):
            self._peak = self._peak.clamp_min(mean)
        peak = float(self._peak)
        rings = torch.tensor(
            [
                full and bool((shares == 1).all()),
                full and bool((shares == 0).all()),
                peak > PEAK_CORRELATION and mean < COLLAPSED_SHARE * peak,
            ]
        )
        for name, now, before in zip(NAMES, rings.tolist(), self._rang.tolist(), strict=True):
            if now and not before:
                warnings.warn(f"monitor alarm {name}: {_MEANING[name]} (docs/monitors.md)", RuntimeWarning, 2)
        self._rang = rings
        alarms = {f"monitor/alarm_{name}": float(value) for name, value in zip(NAMES, rings.tolist(), strict=True)}
        return {"monitor/reward_correlation": correlation, **alarms}

    def state_dict(self) -> dict[str, Tensor]:
        """Fixed shapes, so that a resumed run goes on with the same alarms; no NaN, which equals nothing."""
        return {"recent": self._recent.nan_to_num(nan=_NONE), "peak": self._peak, "rang": self._rang}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict()`."""
        recent, self._peak, self._rang = (state[name].clone() for name in ("recent", "peak", "rang"))
        self._recent = recent.masked_fill(recent == _NONE, math.nan)


_MEANING = {
    "always_on": f"every rollout of the last {WINDOW} steps was flagged",
    "never_on": f"no rollout of the last {WINDOW} steps was flagged",
    "collapsed": f"over the last {WINDOW} steps scores have lost their correlation with what is paid",
}


def _correlation(one: Float[Tensor, " B"], other: Float[Tensor, " B"]) -> float:
    """Pearson's; NaN when either does not vary."""
    one, other = one - one.mean(), other - other.mean()
    size = float(one.norm() * other.norm())
    return float(one @ other) / size if size > 1e-12 else math.nan

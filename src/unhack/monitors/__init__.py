"""Monitors: a score in [0, 1] for every rollout, 1 = surely a hack; what `penalty` and `screening` act on (METHOD §4).

Adding one is a file with a `Monitor` and a line in `MONITORS`. Only the noisy oracle may be told strict verdicts; every
other one judges by what a lab would have: the rollout's text and prompt, and the policy.
"""

from __future__ import annotations

from unhack.config import ArmConfig
from unhack.monitors.base import Monitor, Reading
from unhack.monitors.ear import Deaf
from unhack.monitors.oracle import NoisyOracle

MONITORS: dict[str, type[Monitor]] = {monitor.name: monitor for monitor in (NoisyOracle,)}
"""Every monitor by its name, the value of `arm.monitor`."""

__all__ = ["MONITORS", "Deaf", "Monitor", "NoisyOracle", "Reading", "build_monitor"]


def build_monitor(config: ArmConfig, seed: int) -> Monitor:
    """The monitor that `config.monitor` names, which `settings` has checked to be one of `MONITORS`."""
    assert config.monitor is not None, "arm_class asks for one"
    return MONITORS[config.monitor](config, seed)

"""Monitors: a score in [0, 1] for every rollout, 1 = surely a hack; what `penalty` and `screening` act on (METHOD §4).

Adding one is a file with a `Monitor` and a line in `MONITORS`. Only the noisy oracle may be told strict verdicts; every
other one judges by what a lab would have: the rollout's text and prompt, and the policy.
"""

from __future__ import annotations

from dataclasses import fields

from unhack.config import ArmConfig
from unhack.monitors.base import Monitor, Reading
from unhack.monitors.ear import Deaf
from unhack.monitors.judge import LanguageJudge
from unhack.monitors.oracle import NoisyOracle
from unhack.monitors.probe import LinearProbe
from unhack.monitors.static import Static

MONITORS: dict[str, type[Monitor]] = {
    monitor.name: monitor for monitor in (NoisyOracle, Static, LinearProbe, LanguageJudge)
}
"""Every monitor by its name, the value of `arm.monitor`."""

__all__ = [
    "MONITORS",
    "Deaf",
    "LanguageJudge",
    "LinearProbe",
    "Monitor",
    "NoisyOracle",
    "Reading",
    "Static",
    "build_monitor",
    "check_monitor",
]


def check_monitor(config: ArmConfig) -> None:
    """ValueError for a field that the named monitor does not use, and for one that it needs and that is not set."""
    if config.monitor is None:
        return
    monitor, default = MONITORS[config.monitor], ArmConfig()
    others = frozenset().union(*(other.uses for other in MONITORS.values())) - monitor.uses
    for field in fields(ArmConfig):
        if field.name in others and getattr(config, field.name) != getattr(default, field.name):
            raise ValueError(f"arm.{field.name} is set, but monitor '{monitor.name}' does not use it; remove it")
    for name, cure in monitor.needs.items():
        value: object = config
        for part in name.split("."):
            value = getattr(value, part)
        if not value:
            raise ValueError(f"monitor '{monitor.name}' needs arm.{name}: {cure}")


def build_monitor(config: ArmConfig, seed: int) -> Monitor:
    """The monitor that `config.monitor` names, which `settings` has checked to be one of `MONITORS`."""
    assert config.monitor is not None, "arm_class asks for one"
    return MONITORS[config.monitor](config, seed)

"""Runs untrusted programs and returns what they did, never what they should have done.

`Sandbox.run(jobs)` is the whole interface; isolation layers can be added behind it. `doctor()` says which layers this
machine has, which are in use, and what is exposed without the others.
"""

from unhack.loopholes import Probe
from unhack.sandbox.doctor import Layer, doctor
from unhack.sandbox.pool import LEVEL, Sandbox
from unhack.sandbox.wire import ERROR_REASONS, REASONS, CaseResult, Execution, Job

__all__ = [
    "ERROR_REASONS", "LEVEL", "REASONS", "CaseResult", "Execution", "Job", "Layer", "Probe", "Sandbox", "doctor",
]  # fmt: skip

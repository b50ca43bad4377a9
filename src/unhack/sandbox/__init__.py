"""Runs untrusted programs and returns what they did, never what they should have done.

`Sandbox.run(jobs)` is the whole interface; behind it are as many isolation layers as the machine has. `doctor()` says
which those are, which are proved to hold, and what is exposed without the others.
"""

from unhack.loopholes import Probe
from unhack.sandbox.doctor import Layer, doctor
from unhack.sandbox.levels import LEVELS
from unhack.sandbox.pool import Sandbox
from unhack.sandbox.wire import ERROR_REASONS, REASONS, CaseResult, Execution, Job

__all__ = [
    "ERROR_REASONS", "LEVELS", "REASONS", "CaseResult", "Execution", "Job", "Layer", "Probe", "Sandbox", "doctor",
]  # fmt: skip

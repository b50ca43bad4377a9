"""Attacks the grader with a corpus of programs and looks at the verdicts and at canaries on this machine.

`audit(corpus.load(corpus.folder()), ...)` is the whole interface; `unhack audit-grader` prints what it returns.
"""

from unhack.audit.battery import Audit, Outcome, audit
from unhack.audit.corpus import FAMILIES, Program, folder, load

__all__ = ["FAMILIES", "Audit", "Outcome", "Program", "audit", "folder", "load"]

"""Starts a sandbox in places that allow less than this one, each in a process of its own; prints JSON lines.

Run by test_sandbox_places.py. Arguments: an interpreter that every user may run, then names of places.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from submissions import program, run_one
from unhack.sandbox import Probe, Sandbox, kernel, seccomp
from unhack.sandbox.seccomp import ALLOW, ENOSYS, EPERM

NOBODY = 65534
SYS_ADMIN = 21
ALL = frozenset(range(41))


def refuse(calls: tuple[str, ...], answer: int) -> None:
    """Let the kernel answer `calls` so from now on, as a container's own filter does."""
    name = kernel.architecture()
    assert name is not None
    rules = seccomp._Program(name)
    rules.each(calls, answer)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.Filter([*seccomp._prologue(name), *rules.code, (6, 0, 0, ALLOW)]).install()


def become_nobody() -> None:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def go_to(place: str) -> None:
    for part in place.split("+"):
        if part == "nobody":
            become_nobody()
        elif part == "container":
            refuse(("unshare", "mount", "setns"), EPERM)
        elif part == "old kernel":
            refuse(("landlock_create_ruleset",), ENOSYS)
        elif part == "no filters":
            refuse(("seccomp",), EPERM)
        elif part == "root without sys_admin":
            assert kernel.drop_capabilities(ALL - {SYS_ADMIN})
        else:
            assert part == "here", part


def report(place: str) -> dict[str, Any]:
    """What a sandbox is worth in `place`, and what it grades there."""
    go_to(place)
    try:
        with Sandbox() as sandbox:
            source = program("import os\nopen('result.txt', 'w').write('PASS')\nreturn os.getuid()")
            execution = run_one(sandbox, source, probe=Probe("file"))
            plain = run_one(sandbox, program("return x"))
            return {
                "level": sandbox.level,
                "failed": sandbox.failed,
                "layers": sandbox.layers(),
                "uid": execution.results[0].value,
                "file": execution.observation,
                "plain": plain.results[0].value,
            }
    except ValueError as error:
        return {"refused": str(error)}


def main() -> None:
    sys.executable = sys.argv[1]
    for place in sys.argv[2:]:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            print(json.dumps({"place": place, **report(place)}), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

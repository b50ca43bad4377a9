"""The isolation level that a set of active layers amounts to, and what to do where one is missing (trusted side)."""

from __future__ import annotations

from collections.abc import Mapping

LEVELS = {
    4: "namespaces, private root, Landlock, system-call filter, limits",
    3: "no namespaces: Landlock, system-call filter, limits",
    2: "no Landlock: a system-call filter that refuses to open files where there is no private root, limits",
    1: "limits and an own process only",
    0: "nothing",
}
"""What holds at each level of isolation."""

LEAST = {"full": 4, "any": 2, "unsafe": 0}
"""The lowest level that each value of `require` accepts."""

_ALWAYS = ("separate_process", "resource_limits", "descriptors", "no_new_privs", "capabilities", "not_dumpable")
"""Layers that every Linux kernel has; a sandbox in which one of them does not hold is not above level 1."""

CURES = {
    "namespaces": "allow user namespaces (sysctl user.max_user_namespaces, and where they exist "
    "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), in a container "
    "--security-opt seccomp=unconfined, or run as root with CAP_SYS_ADMIN",
    "landlock": "use a kernel from 5.13 on with landlock in its lsm= list, and a container runtime that passes its "
    "three system calls",
    "seccomp": "use a 64-bit x86 or ARM Linux kernel with CONFIG_SECCOMP_FILTER",
}


def level_of(active: Mapping[str, bool]) -> int:
    """The level, 4 to 0."""
    if not active["separate_process"]:
        return 0
    if not active["seccomp"] or not all(active[name] for name in _ALWAYS):
        return 1
    if not active["landlock"]:
        return 2
    return 4 if active["namespaces"] else 3


def refusal(require: str, active: Mapping[str, bool], failed: Mapping[str, str], asked: bool) -> str | None:
    """Why a sandbox with these layers must not start under `require`, with the cure; None when it may.

    `asked`: layers were switched off on purpose, which allows level 1 as `require="unsafe"` does.
    """
    level = level_of(active)
    missing = [name for name in (*CURES, *_ALWAYS) if not active[name]]
    reasons = "; ".join(f"{name}: {failed.get(name, 'does not hold here')}" for name in missing)
    cures = " · ".join(f"{name}: {CURES[name]}" for name in missing if name in CURES) or "see `unhack doctor`"
    if require == "full" and level < LEAST["full"]:
        return (
            f"sandbox.require = 'full', but this is level {level} of 4 ({reasons}). Cure: {cures}; "
            "or accept less with sandbox.require = 'any' (what that exposes: `unhack doctor`)"
        )
    if require == "any" and level < LEAST["any"] and not asked:
        return (
            f"this machine isolates submissions at level {level} only ({reasons}): they could harm it. Cure: {cures}; "
            "or accept that with sandbox.require = 'unsafe' (what that exposes: `unhack doctor`)"
        )
    return None

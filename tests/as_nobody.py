"""Runs a program as the user nobody: `python as_nobody.py PROGRAM ARGUMENT...`, started by root.

An interpreter below a folder that only root may enter is shown to nobody in a mount namespace of this process alone: an
empty file system over that folder, with the interpreter's own folder bound into it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

NOBODY = 65534
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)


def refused_to_nobody(prefix: Path) -> Path | None:
    """The first folder on the way to `prefix` that nobody may not enter."""
    for folder in [*reversed(prefix.parents), prefix]:
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, str(target), kind)]
    if LIBC.mount(*words, flags, None if options is None else options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}")


def show(prefix: Path) -> None:
    """Make `prefix` readable to everybody, in a new mount namespace of this process."""
    closed = refused_to_nobody(prefix)
    if closed is None:
        return
    if LIBC.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _mount("none", Path("/"), None, MS_REC | MS_PRIVATE)
    inside = os.open(prefix, os.O_RDONLY | os.O_DIRECTORY)
    _mount("none", closed, "tmpfs", 0, "mode=0755")
    prefix.mkdir(parents=True)
    _mount(f"/proc/self/fd/{inside}", prefix, None, MS_BIND | MS_REC)
    os.close(inside)


def main() -> None:
    """Become nobody and run the program."""
    show(Path(sys.base_prefix))
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

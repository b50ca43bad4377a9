"""Landlock: which paths a process may touch, which signals and sockets leave it (three system calls, no library)."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from unhack.sandbox.kernel import syscall

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = (1 << bit for bit in range(6, 13))
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG
_ALL_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the rights a rule on a file may carry
_NET_FROM, _SCOPES_FROM = 4, 6
_BIND_AND_CONNECT_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3


def version() -> int:
    """The kernel's Landlock version; 0 when it has none, or a container hides it."""
    ask_for_version = 1
    try:
        return syscall("landlock_create_ruleset", 0, 0, ask_for_version)
    except OSError:
        return 0


class Ruleset:
    """What stays allowed: `paths` as (descriptor of a file or folder, rights). Everything else that the kernel's
    version can deny is denied: other paths, TCP, abstract sockets and signals to processes outside."""

    def __init__(self, version: int, paths: Sequence[tuple[int, int]]) -> None:
        self.handled = _ALL_BY_VERSION[min(version, 5)]
        self._attributes = struct.pack("<Q", self.handled)
        if version >= _NET_FROM:
            self._attributes += struct.pack("<Q", _BIND_AND_CONNECT_TCP)
        if version >= _SCOPES_FROM:
            self._attributes += struct.pack("<Q", _ABSTRACT_SOCKETS_AND_SIGNALS)
        self._rules = [self._rule(*path) for path in paths]

    def _rule(self, handle: int, rights: int) -> bytes:
        return struct.pack("<Qi", rights & self.handled, handle)

    def open(self, more: Sequence[tuple[int, int]] = ()) -> int:
        """A descriptor of these rules and `more`, for landlock_restrict_self. Raises OSError."""
        beneath_a_path = 1
        rules = syscall("landlock_create_ruleset", self._attributes, len(self._attributes), 0)
        for rule in (*self._rules, *(self._rule(*path) for path in more)):
            syscall("landlock_add_rule", rules, beneath_a_path, rule, 0)
        return rules

    def restrict(self) -> None:
        """Bind this process and all that it starts, for good. Raises OSError; needs no_new_privs."""
        rules = self.open()
        syscall("landlock_restrict_self", rules, 0)
        os.close(rules)


def file_rights(rights: int) -> int:
    """The part of `rights` that a rule on a single file may carry."""
    return rights & _OF_FILES

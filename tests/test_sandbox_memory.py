"""Nothing of one submission reaches the next through the memory of the worker that both are forked from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Literal

import pytest

from submissions import program, run_one
from unhack.sandbox import Job, Probe, Sandbox

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="probes memory as Linux has it")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1) as pool:
        yield pool


READS_MEMORY = """
import ctypes, gc, os, re
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
readable, writable = os.pipe()
def pages(at, step):
    found = []
    while libc.write(writable, at, 4096) == 4096:  # fails where nothing is mapped
        found.append(os.read(readable, 4096))
        at += step
    return found
def memory():
    yield b"".join(pages(libc.sbrk(0) - 4096, -4096)[::-1])
    seen = set()
    for item in gc.get_objects()[:6000:20]:
        at = id(item) & ~4095
        if at not in seen:
            below, above = pages(at, -4096)[::-1], pages(at + 4096, 4096)
            seen |= {at + 4096 * place for place in range(1 - len(below), len(above) + 1)}
            yield b"".join(below + above)
KINDS = (b"value", b"source", b"stdout", b"file", b"name", b"own")
OWN = KINDS[-1] + bytes.fromhex("2d736563726574")  # the scan does find what is there; patterns do not find themselves
FOUND = [0] * len(KINDS)
for area in memory():
    FOUND = [count + len(re.findall(kind + b"-secre[t]", area)) for count, kind in zip(FOUND, KINDS)]
class Solution:
    def solve(self, x):
        return FOUND
"""


@on_linux
@pytest.mark.parametrize("kind", ["stdout", "file"])
def test_nothing_of_an_earlier_program_is_left_in_memory(kind: Literal["stdout", "file"], sandbox: Sandbox) -> None:
    """A freed block is not wiped, and a right program's values are the answers."""
    for number in range(8):
        wrote = (
            'print("stdout-secret" * 99)' if kind == "stdout" else 'open("result.txt", "w").write("file-secret" * 99)'
        )
        names = "import os\n[os.mkdir(f'name-secret-{x}-{i}') for i in range(20)]"
        source = (
            program(f"{names}\n{wrote}\nreturn 'value-secret' * {8 * number} + str(x)")
            + "# source-secret\n" * 2**number
        )
        calls = tuple(f"solution.solve({case})" for case in range(50))
        first = sandbox.run([Job("first", source, "", calls, Probe(kind))])[0]
        assert str(first.observation).startswith(f"{kind}-secret" * 99) and first.reason == "ok"
        counts = run_one(sandbox, READS_MEMORY + f"# {number}\n").results[0].value
        assert isinstance(counts, list) and counts[:5] == [0] * 5 and counts[5] > 0, number

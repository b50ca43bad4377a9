"""`unhack grade` on a file that breaks off and on a full disk: what could be graded is written, the rest is told."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from limits import files_at_most
from test_grade_command import LOADABLE, RIGHT, grade_words, results, row, without_cpu, write_rows
from unhack import cli

ROWS = 30


def cut(packed: bytes) -> bytes:
    """The end is missing."""
    return packed[:-6000]


def flipped(packed: bytes) -> bytes:
    """A byte is another."""
    return packed[:-6000] + bytes([packed[-6000] ^ 0xFF]) + packed[-5999:]


def readable_lines(packed: bytes) -> int:
    """How many whole lines a reader of another make gets out of the file: zlib, byte by byte."""
    import zlib

    unpacker, text = zlib.decompressobj(31), b""
    try:
        for byte in packed:
            text += unpacker.decompress(bytes([byte]))
    except zlib.error:
        pass
    return text.count(b"\n")


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, object]]:
    """Rows in `tmp_path` for `unhack grade`, of noise that does not compress: each has bytes of its own in the .gz."""
    noise = random.Random(0)
    made = [row(number, f"{RIGHT}# {noise.randbytes(1000).hex()}") for number in range(ROWS)]
    write_rows(tmp_path / "problems.jsonl", [LOADABLE])
    write_rows(tmp_path / "completions.jsonl", made)
    return made


@pytest.mark.parametrize("damaged", [cut, flipped])
def test_rows_before_the_damage_of_a_compressed_file_are_graded_and_the_damage_is_told_by_its_line(
    damaged: Callable[[bytes], bytes],
    rows: list[dict[str, object]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packed = tmp_path / "completions.jsonl.gz"
    packed.write_bytes(damaged(gzip.compress((tmp_path / "completions.jsonl").read_bytes())))
    words = grade_words(tmp_path, "out.jsonl", "--workers", "2")
    words[words.index("--completions") + 1] = str(packed)
    for _ in range(2):  # the second goes on behind all that the first wrote, to the same end
        assert cli.main(words) == cli.USER_ERROR
        [line] = capsys.readouterr().err.splitlines()
        graded = [result["id"] for result in results(tmp_path / "out.jsonl")]
        assert f"from line {len(graded) + 1} on" in line and f"the {len(graded)} rows before" in line
        assert "compress it again" in line
        assert graded == list(range(len(graded)))
        whole = readable_lines(packed.read_bytes())
        assert 0 <= whole - len(graded) <= (0 if damaged is cut else 8) and len(graded) > 0


def test_on_a_full_disk_the_results_so_far_stay_and_the_same_command_goes_on_when_there_is_room(
    rows: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(grade_words(tmp_path, "whole.jsonl", "--workers", "1")) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    capsys.readouterr()
    words = grade_words(tmp_path, "out.jsonl", "--workers", "1")
    with files_at_most(len(whole) // 2):
        status = cli.main(words)
    [line] = capsys.readouterr().err.splitlines()
    assert status == cli.USER_ERROR
    assert re.search(r"File too large: .*out\.jsonl; .*ulimit -f.*; then the same command goes on", line)
    torn = (tmp_path / "out.jsonl").read_bytes()
    assert 0 < len(torn) <= len(whole) // 2 and json.loads(torn.splitlines()[0])["id"] == 0
    assert cli.main(words) == 0
    assert without_cpu(tmp_path / "out.jsonl") == without_cpu(tmp_path / "whole.jsonl")

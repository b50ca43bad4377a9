"""files.py: a reader sees the old content or the new one."""

from __future__ import annotations

import fcntl
import math
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from limits import files_at_most
from processes import running
from unhack.files import (
    append_line,
    lock_holder,
    read_json,
    read_object,
    take_lock,
    whole_json_lines,
    write_atomic,
    write_json,
)

REWRITE_FOREVER = """
import sys
from pathlib import Path
from unhack.files import write_json
path, turn = Path(sys.argv[1]), 0
while True:
    turn += 1
    write_json(path, {"turn": turn, "payload": [turn] * 20_000})
    if turn == 1:
        print("started", flush=True)
"""


def test_written_content_is_read_back_and_parents_are_created(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "text.txt", "zwölf")
    write_atomic(tmp_path / "a" / "b" / "bytes.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b" / "text.txt").read_text(encoding="utf-8") == "zwölf"
    assert (tmp_path / "a" / "b" / "bytes.bin").read_bytes() == b"\x00\xff"


def test_json_round_trips_floats_exactly(tmp_path: Path) -> None:
    value = {"pi": math.pi, "tiny": 5e-324, "third": 1 / 3, "list": [1, True, None, "x"]}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value


def test_failed_write_leaves_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"bad": math.nan})
    path_of_folder = tmp_path / "folder"
    (path_of_folder / "occupied").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomic(path_of_folder, "a file cannot replace a folder")
    assert read_json(path) == {"old": 1}
    assert sorted(os.listdir(tmp_path)) == ["folder", "value.json"]


def test_new_file_obeys_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_broken_or_missing_json_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"half": ')
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        read_json(tmp_path / "broken.json")
    with pytest.raises(ValueError, match=r"no file .*absent\.json"):
        read_json(tmp_path / "absent.json")


@pytest.mark.slow
def test_reader_never_sees_half_a_file_while_the_writer_runs_and_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    with running([sys.executable, "-c", REWRITE_FOREVER, str(path)]) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "started\n"
        seen: set[int] = set()
        deadline = time.monotonic() + 30
        while len(seen) < 20 and time.monotonic() < deadline:
            value = read_json(path)
            assert value["payload"] == [value["turn"]] * 20_000
            seen.add(value["turn"])
    value = read_json(path)
    assert value["payload"] == [value["turn"]] * 20_000
    assert len(seen) == 20, "the writer must have replaced the file while it was being read"


def test_damaged_lines_are_named_and_a_torn_last_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert [values["step"] for _, values in whole_json_lines(path)] == [0, 1]
    for bad in ("garbage", "[]", '{"loss": 1}'):
        path.write_text(f'{{"step": 0}}\n{bad}\n')
        with pytest.raises(ValueError, match=r"metrics.jsonl line 2 is damaged .*; remove it"):
            whole_json_lines(path)


def test_a_file_that_holds_no_object_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "env.json", [])
    with pytest.raises(ValueError, match=r"env.json holds a JSON list, not an object"):
        read_object(tmp_path / "env.json")


def test_a_write_that_finds_the_disk_full_names_its_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    write_atomic(tmp_path / "old.txt", "old")
    append_line(tmp_path / "lines.jsonl", '{"step": 0}')
    for write in (
        lambda: write_atomic(tmp_path / "old.txt", "new" * 100),
        lambda: append_line(tmp_path / "lines.jsonl", '{"step": 1, "long": "' + "x" * 100 + '"}'),
    ):
        with files_at_most(20), pytest.raises(OSError, match=r"File too large: .*(old\.txt|lines\.jsonl)"):
            write()
    assert (tmp_path / "old.txt").read_text() == "old"
    assert [values for _, values in whole_json_lines(tmp_path / "lines.jsonl")] == [{"step": 0}]
    assert sorted(os.listdir(tmp_path)) == ["lines.jsonl", "old.txt"]


def test_a_lock_says_who_holds_it_and_is_free_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lock_holder(path) is None
    lock = take_lock(path, "a very long name")
    assert lock is not None and lock_holder(path) == "a very long name"
    assert take_lock(path, "another") is None and lock_holder(path) == "a very long name"
    os.close(lock)
    assert lock_holder(path) is None
    lock = take_lock(path, "short")
    assert lock is not None and lock_holder(path) == "short"
    os.close(lock)


def test_whoever_looks_for_the_holder_of_a_lock_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    look = os.open(path, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)  # in the middle of `lock_holder`
    threading.Timer(0.2, os.close, [look]).start()
    lock = take_lock(path, "me")
    assert lock is not None and lock_holder(path) == "me"
    os.close(lock)

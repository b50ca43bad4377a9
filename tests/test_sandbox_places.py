"""The sandbox where less is allowed than here: an ordinary user, a container's filter, an old kernel, weaker root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unhack.sandbox import LEVELS

HERE = Path(__file__).parent
PLACES = (
    "here", "nobody", "container", "nobody+container", "old kernel", "nobody+container+old kernel", "no filters",
    "root without sys_admin",
)  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the places are Linux's")]


def _runnable_by_nobody() -> str:
    """An interpreter that the user nobody may run, like this one; skips where there is none."""
    names = [
        sys.executable,
        *(shutil.which(f"python3.{minor}", path="/usr/bin:/usr/local/bin") for minor in range(11, 16)),
    ]
    for name in filter(None, names):
        user = 65534 if os.getuid() == 0 else None
        try:
            done = subprocess.run([name, "-c", "import json"], user=user, capture_output=True, check=False, cwd="/")
        except PermissionError:
            continue
        if done.returncode == 0:
            return name
    pytest.skip("no interpreter here that an ordinary user may run")


@pytest.fixture(scope="module")
def readable() -> Iterator[Path]:
    """A copy of the sources where nobody can read them: the repository may lie below a folder that only root enters."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(HERE.parent / "src", folder / "src", ignore=shutil.ignore_patterns("files", "__pycache__"))
        for script in ("sandbox_places.py", "submissions.py"):
            shutil.copy(HERE / script, folder)
        yield folder


@pytest.fixture(scope="module")
def reports(readable: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(readable / "sandbox_places.py"), _runnable_by_nobody(), *PLACES]
    env = os.environ | {"PYTHONPATH": str(readable / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=readable, env=env)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["place"] for line in lines] == list(PLACES), done.stderr
    if lines[0]["level"] < 4:
        pytest.skip(f"this machine itself lacks layers: {lines[0]['failed']}")
    return {line.pop("place"): line for line in lines}


def test_an_ordinary_user_gets_every_layer_but_another_user(reports: dict[str, dict[str, Any]]) -> None:
    report = reports["nobody"]
    assert report["level"] == 4 and report["failed"] == {}
    assert [name for name, holds in report["layers"].items() if not holds] == ["uid_drop"]


@pytest.mark.parametrize("place", ["container", "nobody+container"])
def test_a_container_that_refuses_namespaces_leaves_level_3(reports: dict[str, dict[str, Any]], place: str) -> None:
    report = reports[place]
    assert report["level"] == 3 and "unshare: Operation not permitted" in report["failed"]["namespaces"]
    assert report["layers"]["landlock"] and report["layers"]["seccomp"]
    assert report["file"] == "PASS"


def test_without_landlock_it_is_level_2_and_files_stay_closed_unless_the_root_is_private(
    reports: dict[str, dict[str, Any]],
) -> None:
    private, shared = reports["old kernel"], reports["nobody+container+old kernel"]
    assert private["level"] == shared["level"] == 2
    assert private["file"] == "PASS" and shared["file"] is None and shared["uid"] is None
    assert "the kernel has none" in shared["failed"]["landlock"]


def test_without_filters_it_is_refused_unless_asked_for(reports: dict[str, dict[str, Any]]) -> None:
    assert "level 1 only" in reports["no filters"]["refused"] and "'unsafe'" in reports["no filters"]["refused"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be root without a right")
def test_root_that_may_not_mount_takes_a_user_namespace_and_still_gives_children_another_user(
    reports: dict[str, dict[str, Any]],
) -> None:
    report = reports["root without sys_admin"]
    assert report["level"] == 4 and report["layers"]["uid_drop"] and report["uid"] >= 61184


def test_every_place_grades_the_same(reports: dict[str, dict[str, Any]]) -> None:
    started = [report for report in reports.values() if "refused" not in report]
    assert len(started) == len(PLACES) - 1
    assert {report["plain"] for report in started} == {3} and {report["level"] for report in started} <= set(LEVELS)

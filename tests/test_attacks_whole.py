"""The whole attack corpus, slowly: at the full level, without each optional layer, as nobody, and on a naive grader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from as_nobody import refused_to_nobody
from naive_grader import SAFE_FAMILIES, accepted
from unhack.audit import Audit, audit, folder, load
from unhack.audit.canaries import Canaries
from unhack.audit.corpus import problem_of_kind
from unhack.sandbox import Sandbox
from unhack.sandbox.confinement import OPTIONAL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="layers and canaries of Linux")]

PROGRAMS = load(folder())
REPOSITORY = Path(__file__).parents[1]
# Only seccomp stops these: none of them does harm by itself, all of them give an exploit of the kernel more to try.
SECCOMP_ALONE = {
    "unshare_userns", "clone_newuser", "io_uring", "keyctl", "userfaultfd", "old_interfaces", "int80", "exec_page",
    "exec_mprotect", "exec_pkey_mprotect", "exec_shmat", "exec_personality", "exec_file", "exec_memfd_map",
    "seccomp_notifier", "shared_memory_state", "vsock", "af_alg", "x32_calls",
}  # fmt: skip
NAMESPACES_ALONE = {"stat_probe"}  # Landlock lets a path be looked at


def unloadable(without: str) -> set[str]:
    """Honest programs that import what is not preloaded, where their user may not read the interpreter's files."""
    closed = refused_to_nobody(Path(sys.base_prefix)) is not None
    shown = without != "namespaces" or os.getuid() != 0 or not closed
    return set() if shown else {"honest_threads", "honest_tracemalloc"}


def described(result: Audit, allowed: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    return [outcome.describe() for outcome in result.failures() if outcome.program.name not in allowed]


def test_no_attack_wins_and_every_honest_program_passes_at_the_full_level() -> None:
    with Sandbox() as sandbox:
        if sandbox.level < 4:
            pytest.skip(f"this machine gives level {sandbox.level} only: see `unhack doctor`")
    result = audit(PROGRAMS, require="full")
    assert described(result) == [] and result.left == () and result.level == 4


@pytest.mark.parametrize("without", OPTIONAL)
def test_without_one_layer_nothing_fools_the_verdict_or_touches_the_machine(without: str) -> None:
    result = audit(PROGRAMS, without=(without,))
    assert not result.layers[without] and result.left == ()
    assert not [outcome.describe() for outcome in result.outcomes if outcome.fooled or outcome.host]
    allowed = {"seccomp": SECCOMP_ALONE, "namespaces": NAMESPACES_ALONE}.get(without, set())
    assert described(result, allowed | unloadable(without)) == []
    assert all(outcome.exposed for outcome in result.failures() if outcome.program.name in allowed)


def test_without_any_optional_layer_the_answers_in_the_trainer_are_still_out_of_reach() -> None:
    result = audit([program for program in PROGRAMS if program.family in "VEMTLX"], without=OPTIONAL, require="unsafe")
    assert not [outcome.describe() for outcome in result.outcomes if outcome.fooled]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody; as another user every test here is the test")
@pytest.mark.parametrize("without", [(), *[(name,) for name in OPTIONAL]], ids=lambda names: "-".join(names) or "full")
def test_the_same_holds_for_an_ordinary_user(
    without: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = Path("/tmp") / f"unhack-nobody-{os.getpid()}-{'-'.join(without)}"
    home.mkdir(mode=0o777)
    os.chmod(home, 0o777)
    try:
        programs = _audit_as_nobody(home, without)
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=True)
    # Without a user of their own, only seccomp keeps submissions from the priority of the worker that forked them.
    exposed = {"seccomp": SECCOMP_ALONE | {"renice_parent"}, "namespaces": NAMESPACES_ALONE}
    allowed = exposed.get("".join(without), set())
    failed = [row for row in programs if row["fooled"] or row["harmed"] or not row["as_expected"]]
    assert [row for row in failed if row["name"] not in allowed] == []
    assert not [row for row in programs if row["fooled"] or row["host"]] and all(row["exposed"] for row in failed)


def _audit_as_nobody(home: Path, without: tuple[str, ...]) -> list[dict[str, Any]]:
    out = home / "audit.json"
    command = [sys.executable, str(REPOSITORY / "tests" / "as_nobody.py"), sys.executable, "-B", "-m", "unhack"]
    command += ["audit-grader", "--json", str(out), *(f"--without={name}" for name in without)]
    environment = {"HOME": str(home), "TMPDIR": str(home), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    if not out.exists():
        if "as_nobody.py" in done.stderr or "No module named" in done.stderr or "ermission denied" in done.stderr:
            pytest.skip(f"nobody cannot run the interpreter or read the repository here: {done.stderr[-200:]}")
        pytest.fail(done.stderr[-2000:] + done.stdout[-2000:])
    return json.loads(out.read_text())["programs"]


def test_the_battery_bites_a_naive_grader_at_least_30_times(tmp_path: Path) -> None:
    fooled: dict[str, set[str]] = {"exit_code": set(), "printed": set()}
    with Canaries(problem_of_kind("int").cases) as canaries:
        for program in PROGRAMS:
            if program.family in SAFE_FAMILIES and program.name != "close_result_fd":  # sleeps until it is stopped
                for kind, yes in accepted(program, canaries.setup_code(), tmp_path).items():
                    if yes:
                        fooled[kind].add(program.name)
    assert len(fooled["exit_code"]) >= 30 and len(fooled["printed"]) >= 20
    assert len(fooled["exit_code"] | fooled["printed"]) >= 50
    assert {"exit_os0", "eq_true", "script_file"} <= fooled["exit_code"] and "stdout_json_forge" in fooled["printed"]

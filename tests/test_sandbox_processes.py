"""What a submission leaves behind and may use up, what a worker's death costs, and what the doctor says."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from submissions import SLOW, descendants, program, run_one, wait_until, worker_pids
from unhack.sandbox import LEVELS, Job, Probe, Sandbox, doctor
from unhack.sandbox.confinement import OPTIONAL
from unhack.sandbox.wire import encode_job
from unhack.sandbox.worker import Worker, remove_tree

LINUX = sys.platform == "linux"
on_linux = pytest.mark.skipif(not LINUX, reason="reads /proc")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, cpu_s=0.5, memory_bytes=256 * 2**20, wall_s=1.0) as pool:
        yield pool


def test_a_sleeper_is_ended_by_the_wall_backstop(sandbox: Sandbox) -> None:
    assert run_one(sandbox, program("import time\ntime.sleep(1000)")).reason == "timeout_wall"


@on_linux
def test_a_program_cannot_lower_its_own_priority(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program("import os\nos.nice(19)\nreturn 3"))
    assert execution.results[0].error == "PermissionError"


def test_a_memory_bomb_is_a_memory_error_and_the_next_job_is_unharmed(sandbox: Sandbox) -> None:
    execution = run_one(sandbox, program("return len(bytearray(64 * 2 ** 30))"))
    assert execution.reason == "ok" and execution.results[0].error == "MemoryError"
    assert run_one(sandbox, program("return x")).results[0].value == 3


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give children another user")
def test_children_of_root_run_as_another_user_without_groups(sandbox: Sandbox) -> None:
    source = program("import os\nreturn [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()]")
    uid, effective, group, groups = run_one(sandbox, source).results[0].value
    assert uid == effective == group != 0 and groups == []


def test_state_does_not_pass_from_one_submission_to_the_next(sandbox: Sandbox) -> None:
    source = program(
        "import os, sys\nseen = hasattr(sys, 'kilo'), os.path.exists('left')\nsys.kilo = 1\nopen('left', 'w').close()\n"
        "os.mkdir('locked'); os.mkdir('locked/in'); os.chmod('locked', 0)\nreturn seen"
    )
    first, second = sandbox.run(
        [Job("a", source, "", ("solution.solve(1)",)), Job("b", source + "#", "", ("solution.solve(1)",))]
    )
    assert first.results == second.results and first.results[0].value == (False, False)
    assert os.listdir(sandbox._workers[0].folder) == []


def test_the_same_job_twice_gives_the_same_bytes(sandbox: Sandbox) -> None:
    source = program("import random\nreturn [random.random(), list({'a', 'b', 'c', 'd', str(x)})]")
    with Sandbox() as other:
        assert run_one(sandbox, source).results == run_one(other, source).results


def test_equal_jobs_run_once_and_all_get_the_result(sandbox: Sandbox) -> None:
    job = Job("a", program("import time\nreturn time.perf_counter_ns()"), "", ("solution.solve(1)",))
    twins = [job, Job("b", job.source, "", job.calls), Job("c", job.source, "", job.calls, Probe("equals"))]
    first, second, third = sandbox.run(twins)
    assert first is second and first.results != third.results


# Fork is what the system-call filter forbids; it is switched off here so that there is something to clean up.
CAN_FORK = {"in an own pid namespace": ("seccomp",), "with a subreaper only": OPTIONAL}


@on_linux
@pytest.mark.parametrize("without", CAN_FORK.values(), ids=CAN_FORK)
def test_no_process_zombie_or_folder_outlives_a_grade(without: tuple[str, ...]) -> None:
    with Sandbox(without=without) as sandbox:
        _leave_processes_behind(sandbox)


def _leave_processes_behind(sandbox: Sandbox) -> None:
    before, workers = set(os.listdir("/proc/self/fd")), descendants(worker_pids(sandbox)[0])
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
    daemon += "    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\n"
    thread = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()\n"
    army = "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\n"
    for body in (daemon, thread, army):
        assert run_one(sandbox, program(body + "return x")).results[0].value == 3
    assert descendants(worker_pids(sandbox)[0]) == workers and len(workers) <= 1
    assert os.listdir(sandbox._workers[0].folder) == []
    assert set(os.listdir("/proc/self/fd")) == before


@on_linux
def test_closing_leaves_no_process_folder_or_thread() -> None:
    threads = threading.active_count()
    with Sandbox(workers=2) as pool:
        pids, folders = worker_pids(pool), [worker.folder for worker in pool._workers]
        pids += [below for pid in pids for below in descendants(pid)]
        pool.run([Job(str(i), program(f"return {i}"), "", ("solution.solve(1)",)) for i in range(6)])
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not any(os.path.exists(folder) for folder in folders)
    assert threading.active_count() == threads


@pytest.mark.slow
@on_linux
@pytest.mark.parametrize(
    "without", [(), ("namespaces",), OPTIONAL], ids=["every layer", "no namespaces", "no optional layer"]
)
def test_a_killed_trainer_leaves_no_process(without: tuple[str, ...]) -> None:
    script = (
        "import sys\nfrom unhack.sandbox import Job, Sandbox\n"
        f"with Sandbox(wall_s=50.0, without={without!r}) as pool:\n"
        "    print(pool._workers[0].process.pid, flush=True)\n"
        "    pool.run([Job('a', 'import time\\ntime.sleep(100)', '', ())])\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    folder = os.readlink(f"/proc/{worker}/cwd")
    workers = 2 if without == OPTIONAL else 3  # a guard stays outside of what binds the worker
    wait_until(lambda: len(descendants(worker)) == workers - 1)
    children = descendants(worker)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    wait_until(lambda: not any(_is_alive(pid) for pid in (worker, *children)))
    wait_until(lambda: not os.path.exists(folder))


@pytest.mark.parametrize("victim", ["guard", "worker"])
def test_a_worker_killed_in_the_middle_of_a_batch_loses_no_grade(victim: str) -> None:
    with Sandbox(workers=1) as pool:
        first = pool._workers[0]
        inside = descendants(first.process.pid) if LINUX else []
        pid = inside[0] if victim == "worker" and inside else first.process.pid
        timer = threading.Timer(0.2, lambda: os.kill(pid, signal.SIGKILL))
        timer.start()
        executions = pool.run([Job(str(i), SLOW + f"#{i}", "", (f"solution.solve({i})",)) for i in range(4)])
        timer.join()
        assert pool._workers[0] is not first and not os.path.exists(first.folder)
        assert [execution.results[0].value for execution in executions] == [0, 1, 2, 3]
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in (first.process.pid, *inside)))


def _is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie that its new parent has not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def _sleeper(index: int, seconds: float) -> Job:
    return Job(str(index), program(f"import time\ntime.sleep({seconds})\nreturn x"), "", (f"solution.solve({index})",))


def test_an_execution_is_handed_out_while_the_workers_go_on() -> None:
    with Sandbox(workers=1) as pool, contextlib.closing(pool.stream([_sleeper(0, 0), _sleeper(1, 1)])) as stream:
        start = time.monotonic()
        values = [execution.results[0].value for execution in itertools.islice(stream, 1)]
        assert time.monotonic() - start < 0.7
        time.sleep(1.0)  # what the caller does meanwhile costs the worker nothing
        values += [execution.results[0].value for execution in stream]
        assert values == [0, 1] and time.monotonic() - start < 1.7


@pytest.mark.parametrize(("how", "workers"), [("closed", 1), ("interrupted", 2)])
def test_a_stream_that_is_stopped_ends_at_once_and_the_next_one_is_right(how: str, workers: int) -> None:
    threads = threading.active_count()
    with Sandbox(workers=workers, wall_s=60.0) as pool:
        start, folders = time.monotonic(), [worker.folder for worker in pool._workers]
        slow = [_sleeper(0, 0), *(_sleeper(index, 14) for index in range(1, 8))]
        if how == "closed":
            with contextlib.closing(pool.stream(slow)) as stream:
                assert next(stream).results[0].value == 0
        else:
            before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
            timer = threading.Timer(0.5, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                pool.run(slow)
            timer.join()
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - start < 5.0
        assert threading.active_count() == threads and not any(map(os.path.exists, folders))
        again = pool.run([_sleeper(index, 0) for index in range(6)])
        assert [execution.results[0].value for execution in again] == list(range(6))


def test_a_second_stream_beside_an_open_one_is_refused_and_the_first_goes_on() -> None:
    with Sandbox(workers=1) as pool, contextlib.closing(pool.stream([_sleeper(i, 0) for i in range(4)])) as stream:
        assert next(stream).results[0].value == 0
        with pytest.raises(ValueError, match="the sandbox runs another stream"):
            pool.run([_sleeper(9, 0)])
        assert [execution.results[0].value for execution in stream] == [1, 2, 3]
        assert pool.run([_sleeper(9, 0)])[0].results[0].value == 9


def test_no_reply_is_read_as_another_jobs_after_an_interrupted_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [_sleeper(0, 0), *(_sleeper(i, 14) for i in range(1, 8))]

    def interrupt(_: Sandbox) -> None:
        raise KeyboardInterrupt

    with Sandbox(workers=1, wall_s=60.0) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "_replace_all", interrupt)  # the second Ctrl-C, while the first is seen to
            with pytest.raises(KeyboardInterrupt), contextlib.closing(pool.stream(slow)) as stream:
                next(stream)
        values = [execution.results[0].value for execution in pool.run([_sleeper(i, 0) for i in range(20, 28)])]
        assert values == list(range(20, 28))


def test_a_late_reply_counts_as_a_dead_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(workers=1) as pool:
        worker = pool._workers[0]
        worker.send(encode_job(_sleeper(1, 0)))  # as if this side had been interrupted here
        assert pool.run([_sleeper(2, 0)])[0].results[0].value == 2
        assert pool._workers[0] is not worker


@on_linux
def test_a_killed_guard_takes_its_worker_and_their_child_along() -> None:
    with Sandbox(wall_s=50.0) as pool:
        guard = worker_pids(pool)[0]
        idle = len(descendants(guard))
        runner = threading.Thread(target=lambda: run_one(pool, program("import time\ntime.sleep(2)\nreturn x")))
        runner.start()
        wait_until(lambda: len(descendants(guard)) > idle)
        below = descendants(guard)
        os.kill(guard, signal.SIGKILL)
        wait_until(lambda: not any(_is_alive(pid) for pid in below), timeout_s=2.0)
        runner.join()


def test_a_job_whose_worker_dies_twice_is_an_infra_error_and_the_others_are_graded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send, attempts = Worker.send, []

    def killing(worker: Worker, request: tuple[bytes, bytes]) -> None:
        worker.ready()
        if b"POISON" in request[1]:
            attempts.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
        send(worker, request)

    monkeypatch.setattr(Worker, "send", killing)  # the fault is injected; the death and the recovery are real
    with Sandbox(workers=1) as pool:
        sources = [program("return x") + mark for mark in ("#a", "#POISON", "#b")]
        executions = pool.run([Job(source, source, "", ("solution.solve(1)",)) for source in sources])
    assert [execution.reason for execution in executions] == ["ok", "infra_error", "ok"]
    assert executions[1].results == () and executions[1].observation is None
    assert len(set(attempts)) == len(attempts) == 2


def test_honest_heavy_programs_pass_within_the_limits() -> None:
    bodies = {
        "import sys\nsys.setrecursionlimit(10 ** 5)\ndef f(n): return n and 1 + f(n - 1)\nreturn f(5000)": 5000,
        "return len(bytearray(150 * 2 ** 20))": 150 * 2**20,
        "print('a' * 2 ** 21)\nimport sys\nsys.stderr.write('b' * 2 ** 21)\nreturn 1": 1,
        "import threading\nthreading.stack_size(128 * 2 ** 20)\nout = []\n"
        "t = threading.Thread(target=out.append, args=(4,)); t.start(); t.join()\nreturn out[0]": 4,
        "from collections import defaultdict, deque; from typing import List; import heapq, bisect\nreturn 2": 2,
    }
    with Sandbox(workers=2) as pool:
        for probe in (None, Probe("stdout", "kilo")):
            jobs = [Job("h", program(body), "", ("solution.solve(1)",), probe) for body in bodies]
            assert [execution.results[0].value for execution in pool.run(jobs)] == list(bodies.values())


def test_cpu_use_is_reported_and_exit_probes_have_their_own_budget(sandbox: Sandbox) -> None:
    assert 0.14 <= run_one(sandbox, SLOW).cpu_s < 0.5
    source = program("return x", "while __name__ == '__main__': pass")
    execution = run_one(sandbox, source, probe=Probe("exit"))
    assert execution.results[0].value == 3 and execution.observation is None and execution.cpu_s > 0.4


def test_a_closed_or_impossible_sandbox_says_how_to_use_it() -> None:
    with pytest.raises(ValueError, match="with Sandbox"):
        Sandbox().run([])
    with pytest.raises(ValueError, match="workers >= 1"):
        Sandbox(workers=0)
    with pytest.raises(ValueError, match="with Sandbox"):
        Sandbox().layers()


def test_doctor_reports_each_layer_and_what_is_exposed_without_it() -> None:
    level, layers = doctor()
    by_name = {layer.name: layer for layer in layers}
    assert level in LEVELS and by_name["separate_process"].active and by_name["resource_limits"].active
    assert all(layer.exposed and (layer.available or not layer.active) for layer in layers)
    assert all(bool(layer.reason) != layer.active for layer in layers)
    assert by_name["uid_drop"].active == (os.getuid() == 0)
    assert "the trainer, where the answers are" in by_name["not_dumpable"].exposed
    assert level < 4 or all(by_name[name].active for name in ("namespaces", "landlock", "seccomp"))


DEEP = """import os
for _ in range(2000):
    os.mkdir("d" * 100)
    os.chdir("d" * 100)
    open("file", "w").close()
    os.chmod(".", 0)
return 3"""


@pytest.mark.parametrize("without", [(), OPTIONAL], ids=["all layers", "none"])
def test_folders_nested_too_deep_for_any_path_are_removed_and_harm_nobody(without: tuple[str, ...]) -> None:
    with Sandbox(wall_s=4.0, without=without) as pool:
        worker = pool._workers[0]
        assert run_one(pool, program(DEEP)).results[0].error in (None, "PermissionError")
        assert run_one(pool, program("return os.listdir()", "import os")).results[0].value == []
        assert pool._workers[0] is worker, "the worker must survive it"
    assert not os.path.exists(worker.folder)


@pytest.mark.slow
def test_the_trainer_removes_what_a_killed_worker_left_however_deep(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
            os.symlink("/etc", "link")
            Path("file").touch()
    finally:
        os.chdir(here)
    remove_tree(str(tmp_path))
    assert not tmp_path.exists() and os.path.isdir("/etc")


def test_a_child_cannot_claim_that_the_setup_failed(sandbox: Sandbox) -> None:
    """It would be the data set's fault, and masked out of the loss."""
    forged = """import gc, mmap, os, struct
line = b'["setup","X"]' + bytes([10])
for item in gc.get_objects():
    if type(item) is mmap.mmap:
        item[4 : 4 + len(line)] = line
        struct.pack_into("<I", item, 0, len(line))
os._exit(0)
"""
    assert run_one(sandbox, forged).reason == "protocol_error"
    assert run_one(sandbox, program("return x"), setup="raise KeyError").reason == "setup_error"


@pytest.mark.parametrize(
    "without", [(), ("landlock",), ("uid_drop",), OPTIONAL], ids=lambda names: "+".join(names) or "all"
)
def test_what_a_submission_does_to_its_folders_is_never_the_graders_error(without: tuple[str, ...]) -> None:
    """An error would be masked: a policy could hide its failures so."""
    spoilers = (
        "os.rmdir(os.getcwd())", "os.rename(os.getcwd(), os.getcwd() + '-moved')", "os.chmod('..', 0)",
        "os.chmod('..', 0o500)", "os.chmod('.', 0)", "[os.mkdir(f'../job-{i}') for i in range(200)]",
    )  # fmt: skip
    with Sandbox(without=without) as pool:
        for spoiler in spoilers:
            tried = f"import os\ntry:\n    {spoiler}\nexcept OSError:\n    pass\n"
            assert run_one(pool, tried + program("return x")).reason != "infra_error", spoiler
            assert run_one(pool, program("return x") + f"# after {spoiler}").results[0].value == 3, spoiler

"""What a submission leaves behind and may use up, what a worker's death costs, and what the doctor says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from submissions import SLOW, descendants, program, run_one, wait_until, worker_pids
from unhack.sandbox import LEVEL, Job, Probe, Sandbox, doctor
from unhack.sandbox.pool import _Worker

LINUX = sys.platform == "linux"
on_linux = pytest.mark.skipif(not LINUX, reason="reads /proc")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(workers=1, cpu_s=0.5, memory_bytes=256 * 2**20, wall_s=1.0) as pool:
        yield pool


def test_a_sleeper_is_ended_by_the_wall_backstop(sandbox: Sandbox) -> None:
    assert run_one(sandbox, program("import time\ntime.sleep(1000)")).reason == "timeout_wall"


@pytest.mark.slow
@on_linux
def test_a_starved_program_is_not_taken_for_a_sleeper() -> None:
    with Sandbox(cpu_s=2.0, wall_s=0.3) as pool:
        pool.layers()
        rivals = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(6)]
        try:
            execution = run_one(pool, "import os\nos.nice(19)\n" + SLOW)
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()
    assert execution.results[0].value == 3


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


@on_linux
def test_no_process_zombie_or_folder_outlives_a_grade(sandbox: Sandbox) -> None:
    before = set(os.listdir("/proc/self/fd"))
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
    daemon += "    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(0)\n"
    thread = "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()\n"
    army = "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\n"
    for body in (daemon, thread, army):
        assert run_one(sandbox, program(body + "return x")).results[0].value == 3
    assert descendants(worker_pids(sandbox)[0]) == []
    assert os.listdir(sandbox._workers[0].folder) == []
    assert set(os.listdir("/proc/self/fd")) == before


@on_linux
def test_closing_leaves_no_process_folder_or_thread() -> None:
    threads = threading.active_count()
    with Sandbox(workers=2) as pool:
        pids, folders = worker_pids(pool), [worker.folder for worker in pool._workers]
        pool.run([Job(str(i), program(f"return {i}"), "", ("solution.solve(1)",)) for i in range(6)])
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert not any(os.path.exists(folder) for folder in folders)
    assert threading.active_count() == threads


@pytest.mark.slow
@on_linux
def test_a_killed_trainer_leaves_no_process() -> None:
    script = (
        "import sys\nfrom unhack.sandbox import Job, Sandbox\n"
        "with Sandbox(wall_s=50) as pool:\n    pool.layers()\n    print(pool._workers[0].process.pid, flush=True)\n"
        "    pool.run([Job('a', 'import time\\ntime.sleep(100)', '', ())])\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    worker = int(trainer.stdout.readline())
    folder = os.readlink(f"/proc/{worker}/cwd")
    wait_until(lambda: len(descendants(worker)) == 1)
    children = descendants(worker)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in (worker, *children)))
    wait_until(lambda: not os.path.exists(folder))


def test_a_worker_killed_in_the_middle_of_a_batch_loses_no_grade() -> None:
    with Sandbox(workers=1) as pool:
        pool.layers()
        first = pool._workers[0]
        timer = threading.Timer(0.2, lambda: os.kill(first.process.pid, signal.SIGKILL))
        timer.start()
        executions = pool.run([Job(str(i), SLOW + f"#{i}", "", (f"solution.solve({i})",)) for i in range(4)])
        timer.join()
        assert pool._workers[0] is not first and not os.path.exists(first.folder)
        assert [execution.results[0].value for execution in executions] == [0, 1, 2, 3]


def test_a_job_whose_worker_dies_twice_is_an_infra_error_and_the_others_are_graded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execute, attempts = _Worker.execute, []

    def killing(worker: _Worker, request: bytes) -> tuple[dict[str, Any], bytes]:
        worker.ready()
        if b"POISON" in request:
            attempts.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)
        return execute(worker, request)

    monkeypatch.setattr(_Worker, "execute", killing)  # the fault is injected; the death and the recovery are real
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
    with pytest.raises(ValueError, match=r"require = 'any'"), Sandbox(require="full"):
        pass


def test_doctor_reports_each_layer_and_what_is_exposed_without_it() -> None:
    level, layers = doctor()
    by_name = {layer.name: layer for layer in layers}
    assert level == LEVEL and by_name["separate_process"].active and by_name["resource_limits"].active
    assert not by_name["seccomp"].active
    assert all(layer.exposed and (layer.available or not layer.active) for layer in layers)
    assert by_name["uid_drop"].active == (os.getuid() == 0)
    assert "read the trainer's memory, where the answers are" in by_name["uid_drop"].exposed

"""Each isolation layer: what it stops, what the sandbox is worth without it, and what honest programs still may do."""

from __future__ import annotations

import itertools
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from submissions import program, run_one
from unhack.sandbox import LEVELS, Execution, Probe, Sandbox, canary, levels, seccomp
from unhack.sandbox.confinement import OPTIONAL
from unhack.sandbox.kernel import ARCHITECTURES, NUMBERS
from unhack.sandbox.seccomp import ALLOW, ENOSYS, EPERM, KILL

ROOT = os.getuid() == 0
NAMED_LEVELS = {
    (): 4,
    ("uid_drop",): 4,
    ("namespaces",): 3,
    ("landlock",): 2,
    ("namespaces", "landlock"): 2,
    ("seccomp",): 1,
    OPTIONAL: 1,
}


STARTED: dict[tuple[str, ...], Sandbox] = {}


def _sandbox(without: tuple[str, ...]) -> Sandbox:
    """One started sandbox per set of layers that are off; this file's tests share them."""
    if without not in STARTED:
        STARTED[without] = Sandbox(without=without).__enter__()
    return STARTED[without]


@pytest.fixture(scope="module", autouse=True)
def closed_at_the_end() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.popitem()[1].close()


def _needs(*names: str) -> None:
    """Skip where the machine lacks a layer: what is tested then is not there to be tested."""
    missing = {name: _sandbox(()).failed.get(name) for name in names if not _sandbox(()).layers()[name]}
    if missing:
        pytest.skip(f"this machine lacks {missing}")


@pytest.mark.parametrize("without", NAMED_LEVELS, ids=lambda names: "+".join(names) or "nothing")
def test_each_layer_switched_off_gives_its_named_level(without: tuple[str, ...]) -> None:
    _needs("namespaces", "landlock", "seccomp")
    pool = _sandbox(without)
    layers = pool.layers()
    assert pool.level == NAMED_LEVELS[without] and pool.level in LEVELS
    assert {name for name, holds in layers.items() if not holds} == {
        name for name in OPTIONAL if name in without or (name == "uid_drop" and not ROOT)
    }
    assert all(pool.failed[name] == "switched off" for name in without)
    assert run_one(pool, program("return x")).level == pool.level


# What stops an attack although every layer that each alone must stop it is off.
STOPPED_BY_ANOTHER = {
    (("namespaces", "landlock"), "read_file"): "seccomp opens no file where no root or rule bounds that",
    (("namespaces", "landlock"), "write_file"): "the same",
    (("namespaces", "landlock"), "leave_file"): "the same",
}


@pytest.mark.parametrize("without", NAMED_LEVELS, ids=lambda names: "+".join(names) or "nothing")
def test_a_canary_gets_through_exactly_where_none_of_its_layers_holds(without: tuple[str, ...]) -> None:
    _needs("namespaces", "landlock", "seccomp")
    pool = _sandbox(without)
    folder = pool._workers[0].folder
    with canary.baits(folder, 512 * 2**20) as bait:
        through = {attack.name for attack in canary.got_through(run_one_job(pool, bait))}
    expected = {
        attack.name
        for attack in canary.CANARIES
        if not any(pool.layers()[layer] for layer in attack.layers) and (without, attack.name) not in STOPPED_BY_ANOTHER
    }
    if not ROOT:
        expected.add("same_user")
    assert through == expected
    assert os.listdir(folder) == []


def run_one_job(pool: Sandbox, bait: dict[str, object]) -> Execution:
    return pool.run([canary.job(bait)])[0]


def test_a_layer_whose_canary_gets_through_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = canary.Canary("planted", ("landlock",), "return True")
    monkeypatch.setattr(canary, "CANARIES", (*canary.CANARIES[:2], planted))
    with Sandbox() as pool:
        assert not pool.layers()["landlock"] and pool.level == 2
        assert pool.failed["landlock"] == "did not stop planted"


def test_canaries_that_could_not_be_tried_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = canary.Canary("endless", ("landlock",), "while True: pass")
    monkeypatch.setattr(canary, "CANARIES", (endless, *canary.CANARIES[:2]))
    with pytest.raises(RuntimeError, match=r"could not try its own attacks .*endless.*more cpu_s"), Sandbox(cpu_s=0.3):
        pass


ESCAPES = {
    "fork": "import os\nos.fork()",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "shell": "import os\nos.system('true')",
    "ptrace": "import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)",
    "namespace": "import ctypes\nctypes.CDLL(None).unshare(0x10000000)",
    "mount": "import ctypes\nctypes.CDLL(None).mount(b'a', b'/', b'tmpfs', 0, 0)",
    "clone with a new namespace": "import ctypes\nctypes.CDLL(None).syscall(%d, 0x10000011, 0, 0, 0, 0)",
}


def test_an_escape_attempt_ends_the_process_and_is_reported_as_such() -> None:
    _needs("seccomp")
    clone = NUMBERS[os.uname().machine]["clone"]
    for name, body in ESCAPES.items():
        execution = run_one(_sandbox(()), program(body % clone if "%d" in body else body))
        assert execution.reason == "sandbox_violation", name
        assert execution.results[0].error == "SandboxViolation"


def test_what_is_only_forbidden_is_an_error_inside_the_program() -> None:
    _needs("seccomp")
    bodies = [
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.socket(2, 1, 0)\n"
        "raise OSError(ctypes.get_errno(), 'socket')",
        "import mmap\nmmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
        "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 0)",
        "import os\nos.sched_setaffinity(0, {0})",
        "import os\nos.symlink('/', 'link')",
        "import os\nos.setsid()",
        "import os\nos.memfd_create('hidden')",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.ioctl(0, 0x5412, b'x')\n"
        "raise OSError(ctypes.get_errno(), 'typing on a terminal')",
    ]
    for body in bodies:
        assert run_one(_sandbox(()), program(body)).results[0].error == "PermissionError", body


def test_the_private_root_holds_the_standard_library_the_null_device_and_a_folder() -> None:
    _needs("namespaces")
    source = program(
        "import os, sys, wave\n"
        "gone = [p for p in ('/etc/passwd', '/proc', '/tmp', '/sys', '/bin/sh', x) if os.path.exists(p)]\n"
        "open('/dev/null', 'w').write('a')\n"
        "try:\n    open(os.__file__, 'a')\nexcept OSError as error:\n    return gone, type(error).__name__\n"
    )
    execution = run_one(_sandbox(()), source, f"solution.solve({__file__!r})")
    assert execution.results[0].value in (([], "PermissionError"), ([], "OSError"))
    masked = "import os\nfolder = os.path.dirname(os.__file__) + '/site-packages'\n"
    without_landlock = run_one(_sandbox(("landlock",)), program(masked + "return os.listdir(folder)"))
    assert without_landlock.results[0].value == [] or without_landlock.results[0].error == "FileNotFoundError"


def test_a_worker_is_process_one_and_its_child_has_no_other_neighbour() -> None:
    _needs("namespaces")
    seen = "import os\nfound = []\nfor pid in range(1, 300):\n    try:\n        os.kill(pid, 0)\n"
    seen += "    except ProcessLookupError:\n        continue\n    except PermissionError:\n        pass\n"
    seen += "    found.append(pid)\nreturn os.getppid(), found == [1, os.getpid()]"
    assert run_one(_sandbox(()), program(seen)).results[0].value == (1, True)
    attack = "import os, signal\nfor number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM):\n"
    attack += "    try:\n        os.kill(1, number)\n    except OSError:\n        pass\nreturn x"
    before = _sandbox(())._workers[0]
    for pool in (_sandbox(()), _sandbox(("seccomp",))):
        assert run_one(pool, program(attack)).results[0].value == 3
        assert run_one(pool, program("return x + 1")).results[0].value == 4
    assert _sandbox(())._workers[0] is before


@pytest.mark.parametrize("without", NAMED_LEVELS, ids=lambda names: "+".join(names) or "nothing")
def test_honest_programs_and_probes_work_at_every_level(without: tuple[str, ...]) -> None:
    pool = _sandbox(without)
    bodies = {
        "import threading\nout = []\nt = threading.Thread(target=out.append, args=(x,)); t.start(); t.join()\n"
        "return out": [3],
        "import resource, sys, random, time, os\nsys.setrecursionlimit(10 ** 4)\n"
        "resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))\n"
        "time.sleep(0.001); os.urandom(4); print('a'); return os.environ.get('HOME')": None,
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as workers: return list(workers.map(abs, range(-x, 0)))": [3, 2, 1],
    }
    for body, value in bodies.items():
        result = run_one(pool, program(body)).results[0]
        assert (result.value, result.error) == (value, None), body
    source = program("return x", "print('kilo')\ndef run_tests(): pass\nimport sys\n")
    assert "kilo" in str(run_one(pool, source, probe=Probe("stdout", "kilo")).observation)
    assert run_one(pool, source, probe=Probe("call", "run_tests")).observation is True
    assert run_one(pool, source + "\nsys.exit(0)", probe=Probe("exit")).observation == 0
    written = program("open('result.txt', 'w').write('PASS')\nreturn x")
    bounded = without not in {("namespaces", "landlock")}
    assert run_one(pool, written, probe=Probe("file")).observation == ("PASS" if bounded else None)


def test_nothing_that_is_left_beside_the_folder_reaches_the_next_grade() -> None:
    left = (
        "import os\nseen = os.listdir('..')\nopen('../left', 'w').close()\nos.mkdir('../in')\nreturn seen, os.getcwd()"
    )
    with Sandbox(without=("landlock", "uid_drop")) as pool:
        for number in range(2):
            result = run_one(pool, program(f"{left}, {number}")).results[0]
            assert result.error is None and result.value[0] == [os.path.basename(result.value[1])]


def test_a_filled_folder_ends_with_its_grade() -> None:
    _needs("namespaces")
    fill = "for i in range(9):\n    with open(f'{i}', 'wb') as file:\n        file.write(bytes(15 << 20))\nreturn x"
    assert run_one(_sandbox(()), program(fill)).results[0].error == "OSError"
    assert run_one(
        _sandbox(()), program("import os\nopen('a', 'wb').write(bytes(1 << 20))\nreturn os.listdir()")
    ).results[0].value == ["a"]


def test_a_sandbox_that_is_less_than_required_is_refused_with_the_cure() -> None:
    with pytest.raises(ValueError, match=r"'full', but this is level 2 .*landlock: switched off.*lsm=.*'any'"):
        Sandbox(require="full", without=("landlock",)).__enter__()
    with pytest.raises(ValueError, match="require is one of full, any, unsafe"):
        Sandbox(require="most")
    with pytest.raises(ValueError, match="namespaces, uid_drop, landlock, seccomp"):
        Sandbox(without=("rlimits",))
    macos = dict.fromkeys(_sandbox(()).layers(), False) | {"separate_process": True, "resource_limits": True}
    failed = {"seccomp": "this system has none"}
    refused = levels.refusal("any", macos, failed, asked=False)
    assert (
        refused and "level 1 only" in refused and "'unsafe'" in refused and "seccomp: this system has none" in refused
    )
    assert levels.refusal("unsafe", macos, failed, asked=False) is None
    assert levels.refusal("any", macos, failed, asked=True) is None
    assert levels.level_of(dict.fromkeys(macos, True) | {"not_dumpable": False}) == 1


def test_the_trainer_is_not_dumpable_once_a_sandbox_has_started() -> None:
    _sandbox(())
    if sys.platform != "linux":
        pytest.skip("only Linux has the setting")
    import ctypes

    get_dumpable = 3
    assert ctypes.CDLL(None).prctl(get_dumpable, 0, 0, 0, 0) == 0


def _run_filter(program: list[seccomp.Instruction], architecture: int, number: int, *arguments: int) -> int:
    """What the kernel's BPF machine would answer: an interpreter of the six instructions that the filters use."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    word, at = 0, 0
    while True:
        code, when_true, when_false, k = program[at]
        at += 1
        if code == 0x20:
            (word,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:
            word &= k
        elif code == 0x06:
            return k
        else:
            holds = {0x15: word == k, 0x35: word >= k, 0x45: bool(word & k)}[code]
            at += when_true if holds else when_false


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_filter_says_to_every_call_what_it_must(name: str) -> None:
    numbers, audit = NUMBERS[name], seccomp.AUDIT[name]
    base, child = seccomp.base_program(name), seccomp.child_program(name)

    def answer(call: str | int, *arguments: int, worker: bool = False, architecture: int = audit) -> int:
        number = numbers[call] if isinstance(call, str) else call
        outcomes = [_run_filter(base, architecture, number, *arguments)]
        outcomes += [] if worker else [_run_filter(child, architecture, number, *arguments)]
        return min(outcomes, key=lambda action: (action != KILL, action == ALLOW))  # the kernel takes the strictest

    assert all(answer(call) == KILL for call in seccomp.KILLED if call in numbers)
    assert answer("read", architecture=0x40000003) == KILL  # int 0x80 on x86_64
    other = next(value for key, value in seccomp.AUDIT.items() if key != name)
    assert answer("read", architecture=other) == KILL
    assert answer("read") == answer("futex") == answer("exit_group") == ALLOW
    assert {answer(number) for number in range(600, 650)} == {EPERM}
    assert answer("socket") == answer("connect") == answer("memfd_create") == answer("setuid") == EPERM
    thread, fork, new_user = 0x3D0F00, 0x01200011, 0x10000000
    assert answer("clone", thread) == ALLOW and answer("clone", thread | new_user) == KILL
    assert answer("clone", fork) == KILL and answer("clone", fork, worker=True) == ALLOW
    assert answer("clone", fork | new_user, worker=True) == KILL and answer("clone3") == ENOSYS
    for call in ("mmap", "mprotect"):
        assert answer(call, 0, 4096, 3) == ALLOW and answer(call, 0, 4096, 5) == EPERM
    assert answer("openat", 0, 0, 0o101) == ALLOW and answer("openat", 0, 0, 0o1000) == EPERM
    assert answer("prlimit64", 0) == ALLOW and answer("prlimit64", 1) == EPERM
    assert answer("prctl", 15) == ALLOW and answer("prctl", 4) == EPERM and answer("prctl", 4, worker=True) == ALLOW
    assert (
        answer("socketpair", 1, 0x80801) == ALLOW and answer("socketpair", 1, 2) == answer("socketpair", 2, 1) == EPERM
    )
    assert answer("sendto", 3, 0, 0, 0, 0) == ALLOW and answer("sendto", 3, 0, 0, 0, 1 << 32) == EPERM
    if name == "x86_64":
        assert answer(0x40000000 | numbers["ptrace"]) == answer(0x40000000) == KILL and answer("fork") == KILL
    closed = seccomp.child_program(name, files=False, modes=False, signals=False)
    refused = [call for call in (*seccomp.FILES, *seccomp.MODES, *seccomp.SIGNALS) if call in numbers]
    assert all(_run_filter(closed, audit, numbers[call]) == EPERM for call in refused)


def test_the_numbers_of_system_calls_are_those_of_the_kernels_headers() -> None:
    folders = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
    checked = 0
    for name, file in folders.items():
        header = Path("/usr/include") / file
        if not header.exists():
            continue
        words = [line.split() for line in header.read_text().splitlines() if line.startswith("#define __NR")]
        stated = {words[1].removeprefix("__NR_"): int(words[2]) for words in words if words[2].isdigit()}
        common = NUMBERS[name].keys() & stated.keys()
        assert {call: NUMBERS[name][call] for call in common} == {call: stated[call] for call in common}
        checked += len(common)
    if checked == 0:
        pytest.skip("no kernel headers here")
    assert checked > 150
    assert all(len(set(table.values())) == len(table) for table in NUMBERS.values())
    used = itertools.chain(seccomp.KILLED, seccomp.FILES, seccomp.MODES, seccomp.SIGNALS, seccomp._COMMON)
    assert set(used) <= NUMBERS["x86_64"].keys()

"""The system-call filter: an allowlist in two parts, assembled here as BPF and installed without any library.

The worker installs the long part once; every child inherits it for free and adds a short one that takes away what only
the worker needs. The split is for speed: the kernel tries each new filter on every call that was allowed so far, so a
long one per child would cost more than the fork.

What is not listed gets EPERM. What only an escape would try ends the process (SIGSYS): another architecture's calls
(int 0x80, x32), ptrace, exec, fork, namespaces, mounts, bpf, io_uring and the like. Threads work: clone is allowed with
a thread's flags; sched_yield does nothing; clone3, whose flags a filter cannot see, says ENOSYS, so that the C library
falls back to clone.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Sequence

from unhack.sandbox.kernel import NUMBERS, PR_SET_NO_NEW_PRIVS, architecture, prctl, prepared, syscall

KILL, ALLOW = 0x80000000, 0x7FFF0000
EPERM, ENOSYS, DONE = 0x00050000 | 1, 0x00050000 | 38, 0x00050000  # the last: returns 0, does nothing
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000
PROT_EXEC = 4
CLONE_THREAD = 0x00010000
# VFORK | PTRACE | PARENT | UNTRACED and every CLONE_NEW*: nobody here needs them.
CLONE_FORBIDDEN = 0x4000 | 0x2000 | 0x8000 | 0x00800000 | 0x7E020000
O_ACCMODE_AND_TRUNC, O_TRUNC = 0x203, 0x200
AF_UNIX, SOCK_STREAM = 1, 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Frequent ones first: on kernels without the allow cache (before 5.11) the list is walked for every call.
_COMMON = _names("""
read write close fstat lseek munmap brk futex rt_sigaction rt_sigprocmask clock_gettime getpid gettid newfstatat stat
lstat statx mremap madvise rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause restart_syscall
readv writev pread64 pwrite64 close_range set_robust_list get_robust_list rseq set_tid_address membarrier clock_getres
clock_nanosleep nanosleep gettimeofday time times getrusage getitimer setitimer alarm getppid getpgid getpgrp getsid
getuid geteuid getgid getegid getresuid getresgid getgroups capget uname sysinfo getcpu getrandom exit exit_group
sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min
getpriority getrlimit setrlimit getcwd chdir fchdir access faccessat faccessat2 readlink readlinkat getdents
getdents64 umask statfs fstatfs dup dup2 dup3 pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1
epoll_ctl epoll_wait epoll_pwait eventfd2 recvfrom shutdown getsockname getpeername getsockopt wait4 waitid fsync
fdatasync ftruncate
""")
FILES = _names("open openat mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2")
MODES = _names("chmod fchmod fchmodat")
SIGNALS = _names("kill tkill tgkill")
_WORKER_ONLY = _names("""
sched_setaffinity pidfd_open memfd_create setsid setuid setgid setgroups setresuid setresgid setreuid setregid chown
fchown fchownat lchown seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
""")
KILLED = _names("""
ptrace process_vm_readv process_vm_writev execve execveat vfork unshare setns mount umount2 pivot_root chroot
move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr bpf io_uring_setup io_uring_enter io_uring_register
userfaultfd keyctl add_key request_key perf_event_open pidfd_getfd open_by_handle_at init_module finit_module
delete_module kexec_load kexec_file_load reboot swapon swapoff iopl ioperm modify_ldt kcmp process_madvise
""")
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC
_CHILD_PRCTLS = (3, 15, 16, 21, 39)  # GET_DUMPABLE, SET_NAME, GET_NAME, GET_SECCOMP, GET_NO_NEW_PRIVS

Instruction = tuple[int, int, int, int]
_LOAD, _AND, _RETURN, _JUMP_EQUAL, _JUMP_ABOVE_OR_EQUAL, _JUMP_BITS = 0x20, 0x54, 0x06, 0x15, 0x35, 0x45
_SET_MODE_FILTER = 1
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in seccomp_data


def _argument(index: int, high: bool = False) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))  # both architectures are little-endian


def _result(action: int) -> Instruction:
    return (_RETURN, 0, 0, action)


def _if_equal(value: int, then: Iterable[Instruction]) -> list[Instruction]:
    """Run `then` when the loaded word is `value`, else go on behind it; `then` must end in a return."""
    body = list(then)
    assert len(body) < 256 and body[-1][0] == _RETURN
    return [(_JUMP_EQUAL, 0, len(body), value), *body]


def _if_bits(mask: int, then: Iterable[Instruction]) -> list[Instruction]:
    body = list(then)
    return [(_JUMP_BITS, 0, len(body), mask), *body]


class _Program:
    """Rules by call name for one architecture; names that it lacks are passed over."""

    def __init__(self, name: str) -> None:
        self.numbers = NUMBERS[name]
        self.code: list[Instruction] = []

    def each(self, names: Iterable[str], action: int) -> None:
        for name in names:
            self.rule(name, [_result(action)])

    def rule(self, name: str, body: Iterable[Instruction]) -> None:
        if name in self.numbers:
            self.code += _if_equal(self.numbers[name], body)

    def one_of(self, name: str, index: int, values: Sequence[int]) -> None:
        """Allow the call when its argument is one of `values`, else EPERM."""
        tests = [step for value in values for step in _if_equal(value, [_result(ALLOW)])]
        self.rule(name, [_argument(index), *tests, _result(EPERM)])


def base_program(name: str) -> list[Instruction]:
    """The worker's filter on architecture `name`: everything that a child or the worker itself may do."""
    program = _Program(name)
    program.each(_COMMON, ALLOW)
    no_code = [_argument(2), *_if_bits(PROT_EXEC, [_result(EPERM)]), _result(ALLOW)]
    program.rule("mmap", no_code)
    program.rule("mprotect", no_code)
    # Truncating a file opened for reading only: before Landlock's third version nothing else forbids it.
    for call, flags in (("open", 1), ("openat", 2)):
        mask = (_AND, 0, 0, O_ACCMODE_AND_TRUNC)
        program.rule(call, [_argument(flags), mask, *_if_equal(O_TRUNC, [_result(EPERM)]), _result(ALLOW)])
    program.each([*FILES, *MODES, *SIGNALS, *_WORKER_ONLY, "prctl"], ALLOW)
    program.one_of("ioctl", 1, _IOCTLS)
    program.one_of("fcntl", 1, _FCNTLS)
    program.one_of("prlimit64", 0, (0,))
    stream = [_argument(1), (_AND, 0, 0, 0xF), *_if_equal(SOCK_STREAM, [_result(ALLOW)]), _result(EPERM)]
    program.rule("socketpair", [_argument(0), *_if_equal(AF_UNIX, stream), _result(EPERM)])
    connected = [_argument(4, high=True), *_if_equal(0, [_result(ALLOW)]), _result(EPERM)]
    program.rule("sendto", [_argument(4), *_if_equal(0, connected), _result(EPERM)])
    program.rule("clone", [_argument(0), *_if_bits(CLONE_FORBIDDEN, [_result(KILL)]), _result(ALLOW)])
    program.each(["fork"], ALLOW)
    program.each(["clone3"], ENOSYS)
    program.each(["sched_yield"], DONE)
    program.each(KILLED, KILL)
    return [*_prologue(name), *program.code, _result(EPERM)]


def child_program(name: str, files: bool = True, modes: bool = True, signals: bool = True) -> list[Instruction]:
    """What a child adds on top of `base_program`: no fork, no new filter, nothing of the worker's.

    `files`: paths may be opened, made and removed (False where neither Landlock nor a private root bounds that);
    `modes`: chmod (True with a private root and another user only); `signals`: kill (True in an own pid namespace).
    """
    program = _Program(name)
    thread = [_argument(0), *_if_bits(CLONE_THREAD, [_result(ALLOW)]), _result(KILL)]
    program.rule("clone", thread)
    program.each(["fork"], KILL)
    program.one_of("prctl", 0, _CHILD_PRCTLS)
    program.each(_WORKER_ONLY, EPERM)
    for group, allowed in ((FILES, files), (MODES, modes), (SIGNALS, signals)):
        if not allowed:
            program.each(group, EPERM)
    return [*_prologue(name), *program.code, _result(ALLOW)]


def _prologue(name: str) -> list[Instruction]:
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, AUDIT[name]), _result(KILL), (_LOAD, 0, 0, _NUMBER)]
    if name == "x86_64":
        code += [(_JUMP_ABOVE_OR_EQUAL, 0, 1, X32_BIT), _result(KILL)]
    return code


class Filter:
    """An assembled program, ready to be installed any number of times."""

    def __init__(self, program: Sequence[Instruction]) -> None:
        assert len(program) <= 4096, "the kernel takes no longer program"
        code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(self._code))

    def install(self) -> None:
        """Bind this thread, and all that it will start, for good. Raises OSError; needs no_new_privs or root."""
        syscall("seccomp", _SET_MODE_FILTER, 0, self._header)

    def prepared(self) -> Callable[[], int]:
        """`install` for a forked child; gives 0 on success."""
        return prepared("seccomp", _SET_MODE_FILTER, 0, self._header)


def available() -> bool:
    """Whether the kernel takes filters that end the process, on an architecture whose call numbers are known."""
    if architecture() is None or not prctl(PR_SET_NO_NEW_PRIVS, 1):
        return False
    get_action_available = 2
    try:
        return syscall("seccomp", get_action_available, 0, struct.pack("<I", KILL)) == 0
    except OSError:
        return False

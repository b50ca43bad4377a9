"""System calls that Python does not wrap, by name, for x86_64 and aarch64 (ctypes only; imports nothing of unhack)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import struct
import sys

LINUX = sys.platform == "linux"
ARCHITECTURES = ("x86_64", "aarch64")

# name:number on x86_64:number on aarch64, `-` where the architecture has no such call.
_TABLE = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 close:3:57 close_range:436:436
fstat:5:80 stat:4:- lstat:6:- newfstatat:262:79 statx:332:291 lseek:8:62 munmap:11:215 mremap:25:216 brk:12:214
madvise:28:233 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigtimedwait:128:137 rt_sigsuspend:130:133 sigaltstack:131:132 pause:34:- restart_syscall:219:128
futex:202:98 set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 set_tid_address:218:96
membarrier:324:283 clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101
gettimeofday:96:169 time:201:- times:100:153 getrusage:98:165 getitimer:36:102 setitimer:38:103 alarm:37:-
getpid:39:172 gettid:186:178 getppid:110:173 getpgid:121:155 getpgrp:111:- getsid:124:156 getuid:102:174
geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158
capget:125:90 uname:63:160 sysinfo:99:179 getcpu:309:168 getrandom:318:278 exit:60:93 exit_group:231:94
sched_yield:24:124 sched_setaffinity:203:122 sched_getaffinity:204:123 sched_getparam:143:121
sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126 getpriority:140:141
getrlimit:97:163 setrlimit:160:164 getcwd:79:17 chdir:80:49 fchdir:81:50 access:21:- faccessat:269:48 faccessat2:439:439
readlink:89:- readlinkat:267:78 getdents:78:- getdents64:217:61 umask:95:166 statfs:137:43 fstatfs:138:44
dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 poll:7:- ppoll:271:73 select:23:- pselect6:270:72
epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19
recvfrom:45:207 shutdown:48:210 getsockname:51:204 getpeername:52:205 getsockopt:55:209 wait4:61:260
waitid:247:95 fsync:74:82 fdatasync:75:83 ftruncate:77:46 open:2:- openat:257:56 mkdir:83:- mkdirat:258:34
rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276 chmod:90:- fchmod:91:52
fchmodat:268:53 kill:62:129 tkill:200:130 tgkill:234:131 mmap:9:222 mprotect:10:226 clone:56:220 clone3:435:435
ioctl:16:29 fcntl:72:25 prlimit64:302:261 setpriority:141:140 socketpair:53:199 sendto:44:206 prctl:157:167
pidfd_open:434:434 memfd_create:319:279 setsid:112:157 setuid:105:146 setgid:106:144 setgroups:116:159
setresuid:117:147 setresgid:119:149 setreuid:113:145 setregid:114:143 chown:92:- fchown:93:55 fchownat:260:54
lchown:94:- seccomp:317:277 landlock_create_ruleset:444:444 landlock_add_rule:445:445
landlock_restrict_self:446:446 fork:57:- ptrace:101:117 process_vm_readv:310:270 process_vm_writev:311:271
execve:59:221 execveat:322:281 vfork:58:- unshare:272:97 setns:308:268 mount:165:40 umount2:166:39
pivot_root:155:41 chroot:161:51 move_mount:429:429 open_tree:428:428 fsopen:430:430 fsconfig:431:431
fsmount:432:432 fspick:433:433 mount_setattr:442:442 bpf:321:280 io_uring_setup:425:425 io_uring_enter:426:426
io_uring_register:427:427 userfaultfd:323:282 keyctl:250:219 add_key:248:217 request_key:249:218
perf_event_open:298:241 pidfd_getfd:438:438 open_by_handle_at:304:265 init_module:175:105 finit_module:313:273
delete_module:176:106 kexec_load:246:104 kexec_file_load:320:294 reboot:169:142 swapon:167:224 swapoff:168:225
iopl:172:- ioperm:173:- modify_ldt:154:- kcmp:312:272 process_madvise:440:440 capset:126:91 sethostname:170:161
setdomainname:171:162 personality:135:92 socket:41:198 connect:42:203 bind:49:200
"""
NUMBERS: dict[str, dict[str, int]] = {
    architecture: {
        fields[0]: int(fields[1 + column])
        for fields in (entry.split(":") for entry in _TABLE.split())
        if fields[1 + column] != "-"
    }
    for column, architecture in enumerate(ARCHITECTURES)
}

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True) if LINUX else None
if _libc is not None:
    _libc.syscall.restype = ctypes.c_long


def architecture() -> str | None:
    """This machine's name in `ARCHITECTURES`; None where the numbers are not known (or Python itself is 32-bit)."""
    known = LINUX and sys.maxsize > 2**32 and platform.machine() in ARCHITECTURES
    return platform.machine() if known else None


_own_numbers = NUMBERS.get(architecture() or "", {})


def syscall(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | ctypes.Structure | bytes) -> int:
    """Call the kernel; raises OSError with its errno. Structures and bytes are passed by address."""
    if _libc is None or name not in _own_numbers:
        raise OSError(38, f"no system call {name} here")
    words = [_word(argument) for argument in arguments]
    result = _libc.syscall(ctypes.c_long(_own_numbers[name]), *words)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)


def prepared(name: str, *arguments: int | bytes) -> functools.partial[int]:
    """The call with its arguments made, for a forked child: it then allocates little, and so copies few pages.

    Returns the kernel's answer, below 0 for an error. `arguments` of bytes must stay referenced until then.
    """
    assert _libc is not None and name in _own_numbers
    words = [_word(argument) for argument in arguments]
    return functools.partial(_libc.syscall, ctypes.c_long(_own_numbers[name]), *words)


def _word(argument: object) -> object:
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if isinstance(argument, bytes):
        return ctypes.c_char_p(argument)
    return ctypes.byref(argument)  # pyright: ignore[reportArgumentType]


def prctl(option: int, *arguments: int) -> bool:
    """Whether prctl(option, ...) succeeded; False off Linux."""
    if _libc is None:
        return False
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return _libc.prctl(ctypes.c_int(option), *padded) == 0


def fork_here() -> int:
    """As os.fork, but the child starts on this process's processor; both may then move as ever.

    The kernel puts a new process on the idlest processor, whose caches hold none of its parent's pages. For a child of
    a few milliseconds that costs more than sharing, and workers disturb each other (benchmarks/grade.py).
    """
    if _libc is None or sys.platform != "linux":
        return os.fork()
    allowed = os.sched_getaffinity(0)
    with contextlib.suppress(OSError, ValueError):  # the processor may just have been taken, or cannot be told
        os.sched_setaffinity(0, {_libc.sched_getcpu()})
    try:
        return os.fork()
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, allowed)


def drop_capabilities(keep: frozenset[int] = frozenset()) -> bool:
    """Give up every capability but those of `keep` that are there, in all five sets, for good; whether that succeeded.

    The bounding set can be cut only by a process that has CAP_SETPCAP.
    """
    if not LINUX:
        return False
    for number in range(LAST_CAPABILITY + 1):
        if number not in keep:
            prctl(PR_CAPBSET_DROP, number)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    version_3 = 0x20080522
    header, present = struct.pack("<II", version_3, 0), ctypes.create_string_buffer(24)
    try:
        syscall("capget", header, present)
        _, low, _, _, high, _ = struct.unpack("<6I", present.raw)  # the middle one of three is what is permitted
        low &= sum(1 << number for number in keep if number < 32)
        high &= sum(1 << (number - 32) for number in keep if number >= 32)
        syscall("capset", header, struct.pack("<6I", low, low, 0, high, high, 0))
    except OSError:
        return False
    return True

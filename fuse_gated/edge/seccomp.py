"""The system calls that a caged worker may make, and the seccomp filter that holds it to them.

An allowlist, so that what a later kernel adds is refused too. What is not on it fails with EPERM, which Python raises as
PermissionError, so a worker that was wrong about its needs tells of it instead of vanishing. Nothing that takes a path is
on it, os.stat and os.fstat included (the C library of Debian 12 makes the second by the first's call): ask a descriptor's
size with os.lseek. For the same reason time.localtime() is UTC in a cage, and a module must be imported before.

What a filter cannot see is memory, such as the address in a sendmsg(2). A datagram socket that is handed to a worker can
therefore still be used towards any AF_UNIX datagram address that the worker's uid may write to; a stream socket cannot.

Sources: seccomp(2), syscalls(2), libseccomp's seccomp_rule_add(3).
"""

import ctypes
import errno
import functools
import importlib
import os
import struct
from types import ModuleType
from typing import Any, Final

from fuse_gated.errors import KernelError, OperatorError

_GROUPS: Final = (
    # descriptors that are open already; nothing that cuts or overwrites the audit's file, to which all workers append
    "read readv pread64 preadv preadv2 write writev lseek close close_range fsync fdatasync",
    # sockets that are there and connected
    "recvfrom recvmsg sendmsg shutdown getsockname getpeername getsockopt",
    # waiting
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6",
    "eventfd2 timerfd_create timerfd_settime timerfd_gettime memfd_create",
    "nanosleep clock_nanosleep sched_yield pause",
    # memory (what could make it executable is in WITH_ARGUMENTS)
    "munmap mremap brk madvise",
    # threads that run already
    "futex futex_waitv set_robust_list get_robust_list rseq membarrier",
    # signals to oneself
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack restart_syscall",
    # time, chance, and who one is
    "clock_gettime clock_getres gettimeofday time getrandom getcpu times getrusage uname sysinfo",
    "getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getcwd getrlimit",
    "exit exit_group",
)
ALLOWED: Final = frozenset(name for group in _GROUPS for name in group.split())
"""Names of syscalls(2), of all architectures; a name that an architecture lacks is skipped there."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NOBODY: Final = 0x7ACEF00D
"""A number that no process has (PID_MAX_LIMIT is 2**22) and nothing else in the filter is."""
_STEP: Final = struct.Struct("=HBBI")
"""struct sock_filter (linux/filter.h): code, jt, jf, k."""
_JUMP_IF_EQUAL: Final = 0x15
# linux/seccomp.h
_SET_MODE_FILTER: Final = 1
_FILTER_FLAG_TSYNC: Final = 1

_INT: Final = 2**32 - 1
_POINTER: Final = 2**64 - 1
_PROT_EXEC: Final = 4
_FCNTL: Final = (0, 1030, 1, 2, 3, 1033, 1034)  # F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_ADD_SEALS, F_GET_SEALS
_IOCTL: Final = (0x5421, 0x5451, 0x5450, 0x541B, 0x5401)  # FIONBIO, FIOCLEX, FIONCLEX, FIONREAD, TCGETS (isatty)
_SOL_SOCKET: Final = (7, 8, 9, 13)  # SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE, SO_LINGER
_TCP: Final = (1, 3, 4, 5, 6, 12, 18, 25)  # NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, QUICKACK, USER_TIMEOUT, NOTSENT_LOWAT



class _Program(ctypes.Structure):
    """struct sock_fprog (linux/filter.h)."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


Condition = tuple[int, int, int]
"""(number of the argument, mask, value): the call passes when the argument under the mask is the value."""

WITH_ARGUMENTS: Final[tuple[tuple[str, tuple[Condition, ...]], ...]] = (
    # Never memory that can be run: injected code has nowhere to live.
    ("mmap", ((2, _PROT_EXEC, 0),)),
    ("mprotect", ((2, _PROT_EXEC, 0),)),
    # Only without an address, so only to where the socket is connected.
    ("sendto", ((4, _POINTER, 0),)),
    # F_SETOWN and F_SETSIG would send any signal to any process of the same uid; F_SETFL takes O_APPEND away.
    *(("fcntl", ((1, _INT, command),)) for command in _FCNTL),
    *(("ioctl", ((1, _INT, request),)) for request in _IOCTL),
    *(("setsockopt", ((1, _INT, 1), (2, _INT, option))) for option in _SOL_SOCKET),
    *(("setsockopt", ((1, _INT, 6), (2, _INT, option))) for option in _TCP),
    # A limit may be read, and only one's own: with the same uid, prlimit(2) sets another process's.
    ("prlimit64", ((0, _INT, 0), (2, _POINTER, 0))),
    ("sched_getaffinity", ((0, _INT, 0),)),
    ("prctl", ((0, _INT, 15),)),  # PR_SET_NAME
)
"""Calls that pass with certain arguments only; several lines of one call are alternatives."""


@functools.cache
def library() -> ModuleType:
    """libseccomp's binding: its own `seccomp`, which distributions have, or PyPI's `pyseccomp`, which have one interface.

    Importing it may run other programs (ctypes.util.find_library), so it is done before the daemon forks (`prepare`).
    Raises OperatorError when neither is installed.
    """
    for name in ("seccomp", "pyseccomp"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
        except RuntimeError as error:
            raise OperatorError(f"{name} cannot be used: {error}", "install libseccomp2") from None
    raise OperatorError(
        "workers cannot be caged: no libseccomp binding for Python",
        "install python3-seccomp (Fedora: libseccomp-python; pip: pyseccomp)",
    )


def build_filter(architecture: int | None = None, process: int | None = None) -> Any:
    """The filter (libseccomp's SyscallFilter) for `process`, this one if none is given: abort(3) may signal nobody else.
    `architecture` is a token of libseccomp's Arch, and is given only to see what would be loaded there."""
    seccomp = library()
    made = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    if architecture is not None and not made.exist_arch(architecture):
        made.add_arch(architecture)
        made.remove_arch(seccomp.Arch.NATIVE)
    # Calls by another ABI of the machine (32 bits, x32) have other numbers, so they are no mistake.
    made.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    for name in sorted(ALLOWED):
        _allow(seccomp, made, name, ())
    for name, conditions in WITH_ARGUMENTS:
        _allow(seccomp, made, name, conditions)
    _allow(seccomp, made, "tgkill", ((0, _INT, os.getpid() if process is None else process),))
    return made


@functools.cache
def prepare() -> bytes:
    """The filter of a process that does not exist, as the kernel takes it. Made once, before the forks: making it costs each
    worker more time and memory than anything else of its start. Raises KernelError, OperatorError."""
    descriptor = os.memfd_create("fuse-gated-filter", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "rb", closefd=False) as file:
            build_filter(process=_NOBODY).export_bpf(file)
            file.seek(0)
            program = file.read()
    # Debian's binding raises RuntimeError where PyPI's raises OSError.
    except (OSError, RuntimeError) as error:
        raise _refused(str(error)) from None
    finally:
        os.close(descriptor)
    _place(program)
    return program


def program_for(process: int) -> bytes:
    """The same for this process."""
    program = bytearray(prepare())
    struct.pack_into("=I", program, _place(program) + _STEP.size - 4, process)
    return bytes(program)


def load_filter() -> None:
    """Hold this process, all its threads and whatever they run to the list, for good. Raises KernelError, OperatorError.

    PR_SET_NO_NEW_PRIVS must have been set."""
    program = program_for(os.getpid())
    steps = ctypes.create_string_buffer(program, len(program))
    head = _Program(len(program) // _STEP.size, ctypes.addressof(steps))
    module = library()
    number = module.resolve_syscall(module.Arch.NATIVE, "seccomp")
    # All threads, or one that is not caged would do what the others may not.
    failed = _LIBC.syscall(
        ctypes.c_long(number), ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(_FILTER_FLAG_TSYNC), ctypes.byref(head)
    )
    if failed:
        raise _refused(os.strerror(ctypes.get_errno()) if failed < 0 else f"thread {failed} has another filter")


def _place(program: bytes | bytearray) -> int:
    """Where the process's number is compared with. Raises KernelError where that is not to be seen."""
    places = [
        index * _STEP.size
        for index, (code, _true, _false, constant) in enumerate(_STEP.iter_unpack(program))
        if code == _JUMP_IF_EQUAL and constant == _NOBODY
    ]
    if len(places) != 1:
        raise _refused("libseccomp made a filter of another form")
    return places[0]


def _refused(reason: str) -> KernelError:
    return KernelError(f"seccomp(2) was refused: {reason}", "this kernel cannot cage a worker; `seccomp: false` does without")


def _allow(seccomp: Any, made: Any, name: str, conditions: tuple[Condition, ...]) -> None:
    # Rules are given by this machine's numbers, and libseccomp has those of the filter's architecture. What this machine lacks
    # has a negative one, and is skipped where it is missing; -1 is a name that libseccomp does not know.
    number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    if number != -1:
        arguments = [seccomp.Arg(index, seccomp.MASKED_EQ, mask, value) for index, mask, value in conditions]
        made.add_rule(seccomp.ALLOW, number, *arguments)

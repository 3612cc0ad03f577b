"""A process that is killed between two of its instructions, which no signal alone can choose: ptrace(2)."""

import ctypes
import os
import platform
import signal
import struct
from typing import Final

from harness.syscalls import check
from harness.waiting import until

READV: Final = {"x86_64": 19, "aarch64": 65}.get(platform.machine())
"""The number of readv(2); None where it is not known here."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_SEIZE, _INTERRUPT, _SYSCALL, _GET_SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
_O_TRACESYSGOOD: Final = 1
_ENTRY, _EXIT = 1, 2
_FUSE: Final = os.makedev(10, 229)
_HEADER: Final = 40


def kill_when_it_has_read(pid: int) -> None:
    """SIGKILL to a process whose first thread has just got a request from /dev/fuse: it does nothing about it."""
    _ptrace(_SEIZE, pid, _O_TRACESYSGOOD)
    _ptrace(_INTERRUPT, pid)
    reads = False
    while True:
        status = until(lambda: _stopped(pid), "it reads a request")
        assert os.WIFSTOPPED(status), f"it ended by itself: {status:#x}"
        number = os.WSTOPSIG(status)
        if number == signal.SIGTRAP | 0x80:
            kind, facts = _syscall(pid)
            if kind == _ENTRY:
                reads = facts[0] == READV and os.stat(f"/proc/{pid}/fd/{facts[1]}").st_rdev == _FUSE
            elif kind == _EXIT and reads and facts[0] >= _HEADER:
                os.kill(pid, signal.SIGKILL)
                until(lambda: _stopped(pid), "it is gone")
                return
        _ptrace(_SYSCALL, pid, 0 if number & 0x7F == signal.SIGTRAP or status >> 16 else number)


def _stopped(pid: int) -> int:
    """The status that waitpid(2) has for it; 0: none yet."""
    return os.waitpid(pid, os.WNOHANG | 0x40000000)[1]


def _syscall(pid: int) -> tuple[int, tuple[int, ...]]:
    """Whether a system call begins or ends, and its number and arguments, or its result."""
    buffer = ctypes.create_string_buffer(88)
    _ptrace(_GET_SYSCALL_INFO, pid, len(buffer), ctypes.addressof(buffer))
    return buffer.raw[0], struct.unpack_from("=qq" if buffer.raw[0] == _ENTRY else "=q", buffer.raw, 24)


def _ptrace(request: int, pid: int, first: int = 0, second: int = 0) -> None:
    """For PTRACE_SYSCALL and PTRACE_SEIZE the one argument is `second` of ptrace(2), for the others its first."""
    if request in (_SYSCALL, _SEIZE):
        first, second = 0, first
    check(_LIBC.ptrace(request, pid, first, second), pid)

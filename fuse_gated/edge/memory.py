"""Memory that outlives who wrote it: files without a name (memfd_create(2)), passed on as descriptors. And memory that is none
before it is written."""

import contextlib
import fcntl
import mmap
import os
from typing import Final

from fuse_gated.edge.keeping import STATE_SIZE

_MFD_NOEXEC_SEAL: Final = 0x0008
"""Can never be executed (linux/memfd.h, Linux 6.3); Python 3.11 has no name for it."""


def make_state() -> int:
    """The descriptor, close-on-exec, of a mount's state: STATE_SIZE bytes, all zero, none of which takes memory before it is
    written.

    Nobody can make it larger or smaller, so that whoever maps it never meets its end (mmap(2), SIGBUS). Raises OSError.
    """
    return make_memory("fuse-gated-state", STATE_SIZE)


def make_memory(name: str, size: int) -> int:
    """The same of another size; `name` is for people (proc(5))."""
    descriptor = _make(name)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_buffer(size: int) -> mmap.mmap:
    """So many bytes to receive into, none of which takes memory before it is written: a bytearray takes all of its own at once,
    which is most of what an idle session would cost. Raises OSError."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def write_memory(name: str, data: bytes) -> int:
    """The descriptor, close-on-exec, of memory that holds `data` and never anything else. `name` is for people (proc(5))."""
    descriptor = _make(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        all_seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, all_seals)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_memory(descriptor: int) -> bytes:
    """What `write_memory` wrote. Raises OSError."""
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _make(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    # An older kernel does not know the flag (EINVAL).
    with contextlib.suppress(OSError):
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    return os.memfd_create(name, flags)

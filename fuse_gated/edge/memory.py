"""Memory that outlives who wrote it: files without a name (memfd_create(2)), passed on as descriptors. And memory that is none
before it is written, or is kept for a while when it is freed."""

import contextlib
import ctypes
import fcntl
import mmap
import os
from typing import Final

from fuse_gated.edge.keeping import STATE_SIZE

_MFD_NOEXEC_SEAL: Final = 0x0008
"""Can never be executed (linux/memfd.h, Linux 6.3); Python 3.11 has no name for it."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3)."""
_USUAL: Final = 128 * 2**10
_KEPT: Final = 8 * 2**20

_libc = ctypes.CDLL(None)
_mallopt = getattr(_libc, "mallopt", None)
_malloc_trim = getattr(_libc, "malloc_trim", None)


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


def keep_freed() -> None:
    """From now on the memory of what was freed stays, up to 8 MiB, for what comes next, where the C library can do that (glibc).

    It gives back to the kernel what lies at the heap's end and is longer than 128 KiB, so each message of a MiB would be 256 page
    faults: three times as long as it takes to copy it."""
    _set_thresholds(_KEPT)


def give_back_freed() -> None:
    """As before, and what is free now is given back."""
    _set_thresholds(_USUAL)
    if _malloc_trim is not None:
        _malloc_trim(0)


def _set_thresholds(size: int) -> None:
    if _mallopt is not None:
        # Both: else what is as long as a message has a mapping of its own, and goes with it.
        _mallopt(_M_MMAP_THRESHOLD, size)
        _mallopt(_M_TRIM_THRESHOLD, size)


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

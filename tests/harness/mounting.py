"""Mounts of other filesystems that a test stands on, taken away at its end."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fuse_gated.edge import mounts
from harness.leftovers import mounts_beneath, unmount
from harness.needs import need

_LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
NOTHING: Final = ""


def mount(source: str, target: Path, kind: str, flags: int, options: str = NOTHING) -> None:
    """mount(2). Raises OSError."""
    if _LIBC.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount {target}")


@contextlib.contextmanager
def tmpfs(target: Path, options: str) -> Iterator[Path]:
    """A filesystem in memory at `target`, as small as `options` (tmpfs(5)) say."""
    need("root")
    mount("tmpfs", target, "tmpfs", 0, options)
    try:
        yield target
    finally:
        unmount(target)


@contextlib.contextmanager
def bind_read_only(target: Path) -> Iterator[Path]:
    """`target` mounted upon itself, and not to be written."""
    need("root")
    mount(str(target), target, NOTHING, MS_BIND)
    try:
        mount(NOTHING, target, NOTHING, MS_BIND | MS_REMOUNT | MS_RDONLY)
        yield target
    finally:
        unmount(target)


@contextlib.contextmanager
def hanging(target: Path) -> Iterator[Path]:
    """A filesystem at `target` whose server answers nothing. Who waits for it can be killed, because it reads nothing either."""
    need("root", "fuse")
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mount("hanging", target, "fuse.hanging", 0, f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other")
        try:
            yield target
        finally:
            unmount(target)
    finally:
        os.close(server)


@contextlib.contextmanager
def keepers_runtime(directory: Path) -> Iterator[Path]:
    """A runtime directory, beneath which nothing may be mounted when the keepers have ended."""
    need("root", "fuse")
    yield directory / "run"
    left = mounts_beneath(directory)
    for point in left:
        mounts.unmount(str(point))
    assert left == []

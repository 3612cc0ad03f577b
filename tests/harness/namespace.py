"""A mount namespace of our own for pytest, in which an ordinary user may mount through fusermount3.

The host's /dev/fuse may be root's alone and its fuse.conf without user_allow_other; both are covered here by mounts that
nobody outside sees. Mounts made inside are seen inside only, so the whole pytest process moves in.
"""

import contextlib
import ctypes
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness.leftovers import unmount
from harness.mounting import MS_BIND, MS_PRIVATE, MS_REC, NOTHING, mount

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS: Final = 0x20000
_CLONE_FS: Final = 0x200
_FUSE_DEVICE: Final = os.makedev(10, 229)


def enter_private_namespace() -> None:
    """Move this thread, and all processes started after, into a new mount namespace. Needs root, and no second thread.

    Raises OSError where the machine does not allow it, or has no FUSE.
    """
    if _LIBC.unshare(_CLONE_NEWNS) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    mount(NOTHING, Path("/"), NOTHING, MS_REC | MS_PRIVATE)
    covers = Path(tempfile.mkdtemp(prefix="fuse-gated-covers-"))
    mount("tmpfs", covers, "tmpfs", 0)
    try:
        os.mknod(covers / "fuse", stat.S_IFCHR | 0o666, _FUSE_DEVICE)
        (covers / "fuse").chmod(0o666)
        (covers / "fuse.conf").write_text("user_allow_other\n")
        mount(str(covers / "fuse"), Path("/dev/fuse"), NOTHING, MS_BIND)
        if Path("/etc/fuse.conf").exists():
            mount(str(covers / "fuse.conf"), Path("/etc/fuse.conf"), NOTHING, MS_BIND)
    finally:
        # The binds live on without their source; the empty directory is seen outside too, so it goes.
        unmount(covers)
        covers.rmdir()


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """In the mount namespace of a process, for as long as it takes to start others there."""
    home, old = os.getcwd(), os.open("/proc/self/ns/mnt", os.O_RDONLY)
    try:
        new = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        # A library that a test has loaded may have made threads, with which nobody may share what chdir(2) sets (setns(2)).
        assert _LIBC.unshare(_CLONE_FS) == 0, os.strerror(ctypes.get_errno())
        assert _LIBC.setns(new, _CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        os.close(new)
        yield
    finally:
        assert _LIBC.setns(old, _CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        os.close(old)
        os.chdir(home)

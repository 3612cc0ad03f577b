"""Which filesystems answer from this machine, which may wait for a network, where others are mounted, and which ignore case."""

import contextlib
import errno
import os
import re
import select
import threading
from collections.abc import Container
from itertools import islice
from typing import Final

from fuse_gated.edge.syscalls import filesystem_type

_LOCAL: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0xCA451A4E,  # bcachefs
    }
)
"""f_type of statfs(2) (linux/magic.h). Their close(2) has nothing to wait for or to tell. What is not listed counts as
remote, which costs speed alone."""


_MOST_DEVICES: Final = 4096
"""That are remembered: each subvolume and snapshot of btrfs has a number of its own."""


class _Everything(Container[bytes]):
    def __contains__(self, _name: object) -> bool:
        return True


class Filesystems:
    """Remembers the answer for each device. It may be used by several threads."""

    def __init__(self) -> None:
        self._known: dict[int, bool] = {}
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._change = select.poll()
        self._change.register(self._mounts, select.POLLPRI)
        self._points: dict[bytes, set[bytes]] | None = None
        self._mutex = threading.Lock()

    def is_local(self, fd: int, device: int) -> bool:
        """`device`: st_dev of the file that `fd` stands for. Raises OSError as statfs(2)."""
        with self._mutex:
            self._look_for_changes()
            local = self._known.get(device)
        if local is None:
            # Not under the mutex: a server that answers nothing can be waited for here.
            local = filesystem_type(fd) in _LOCAL
            with self._mutex:
                if len(self._known) > _MOST_DEVICES:
                    self._known.clear()
                self._known[device] = local
        return local

    def mounted_in(self, fd: int) -> Container[bytes]:
        """The names in the directory `fd` on which something is mounted (proc(5), mountinfo). Asks no filesystem anything."""
        try:
            directory = os.readlink(b"/proc/self/fd/%d" % fd)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return _Everything()
        with self._mutex:
            self._look_for_changes()
            if self._points is None:
                self._points = _mount_points(self._mounts)
            return self._points.get(directory, _NONE)

    def close(self) -> None:
        os.close(self._mounts)

    def _look_for_changes(self) -> None:
        # Polled, mountinfo tells of a change once. A device's number is used again when it was unmounted.
        if self._change.poll(0):
            self._points = None
            self._known.clear()


class MountPoints:
    """Where something is mounted beneath the directory that `root` stands for. Polled for errors alone, its descriptor is ready
    when that may be another place (proc(5), mountinfo)."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._known = self._beneath()

    def fileno(self) -> int:
        return self._mounts

    def have_changed(self) -> bool:
        """Whether there are others than when it was asked last."""
        before, self._known = self._known, self._beneath()
        return before != self._known

    def close(self) -> None:
        os.close(self._mounts)

    def _beneath(self) -> set[tuple[bytes, bytes]]:
        try:
            root = os.readlink(b"/proc/self/fd/%d" % self._root).rstrip(b"/")
        except OSError:
            root = b""  # Its path is too long to be said: any change may be one beneath it.
        points = _mount_points(self._mounts).items()
        return {(path, name) for path, names in points if path == root or path.startswith(root + b"/") for name in names}


def ignores_case(directory: str) -> bool:
    """Whether the directory finds what is in it by upper case as well as by lower, as those of vfat, CIFS and ext4's casefold
    do. False too where nothing in it can tell."""
    with contextlib.suppress(OSError), os.scandir(os.fsencode(directory)) as entries:
        names = {entry.name for entry in islice(entries, _NAMES)}
        for name in names:
            other = name.swapcase()
            if other not in names:
                found, itself = (os.lstat(os.path.join(os.fsencode(directory), spelling)) for spelling in (other, name))
                return os.path.samestat(found, itself)
    return False


_NAMES: Final = 1000
"""That are looked at."""

_NONE: Final[frozenset[bytes]] = frozenset()


def _mount_points(mountinfo: int) -> dict[bytes, set[bytes]]:
    """By their directories' paths."""
    os.lseek(mountinfo, 0, os.SEEK_SET)
    points: dict[bytes, set[bytes]] = {}
    with open(mountinfo, "rb", closefd=False) as lines:
        for line in lines:
            path = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4])
            directory, _, name = path.rpartition(b"/")
            points.setdefault(directory or b"/", set()).add(name)
    return points

"""What the server has open on the client: files and directories, by the number that it was given."""

import errno
import itertools
import os
from typing import Final

from fuse_gated.wire.messages import Arguments, ListedEntry, Release, Releasedir

_RESERVED: Final = 64
"""Descriptors kept for what is not a handle: the connection, paths being resolved, descriptors of the runtime."""

FileKey = tuple[int, int]
"""(device, inode): which file it is, whatever its names."""


class OpenFile:
    """One open regular file. `local`: its filesystem's calls do not wait for a network. `leased`: nobody else can open it
    (leases.py)."""

    __slots__ = ("fd", "key", "leased", "local", "readable", "synchronous", "writable", "written")

    def __init__(self, fd: int, key: FileKey, *, readable: bool, writable: bool, synchronous: bool, local: bool) -> None:
        self.fd = fd
        self.key = key
        self.readable = readable
        self.writable = writable
        self.synchronous = synchronous
        self.local = local
        self.leased = False
        self.written = False
        """Something was written since the last flush."""


class OpenDirectory:
    """One open directory. `entries` are what its last reading from the start found, if it `was_read`. `local` is as a file's."""

    __slots__ = ("entries", "fd", "local", "was_read")

    def __init__(self, fd: int, *, local: bool = True) -> None:
        self.fd = fd
        self.local = local
        self.entries: list[ListedEntry] = []
        self.was_read = False


class Handles:
    """At most `limit` handles, by default as many as this process may have descriptors (getrlimit(2), RLIMIT_NOFILE)."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit if limit is not None else max(os.sysconf("SC_OPEN_MAX") - _RESERVED, 16)
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, OpenDirectory] = {}
        self._numbers = itertools.count(1)  # Handles come and go on several threads; next() is one step.

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    def require_room(self) -> None:
        """Raises OSError EMFILE if no handle is left; to be asked before anything is opened or made."""
        if len(self) >= self.limit:
            raise OSError(errno.EMFILE, f"{self.limit} handles are open")

    def add(self, handle: OpenFile | OpenDirectory) -> int:
        """A number for it, which no other handle had before."""
        number = next(self._numbers)
        if isinstance(handle, OpenFile):
            self._files[number] = handle
        else:
            self._directories[number] = handle
        return number

    def file(self, number: int) -> OpenFile:
        """Raises OSError EBADF for what is no open file."""
        handle = self._files.get(number)
        if handle is None:
            raise OSError(errno.EBADF, f"handle {number} is no open file")
        return handle

    def directory(self, number: int) -> OpenDirectory:
        """Raises OSError EBADF for what is no open directory."""
        handle = self._directories.get(number)
        if handle is None:
            raise OSError(errno.EBADF, f"handle {number} is no open directory")
        return handle

    def either(self, number: int) -> OpenFile | OpenDirectory:
        """Raises OSError EBADF for an unknown handle."""
        return self._files.get(number) or self.directory(number)

    def is_local(self, number: int) -> bool:
        """Whether what is open does not wait for a network, or for another process. There is nothing to wait for where nothing
        is open."""
        handle = self._files.get(number) or self._directories.get(number)
        return handle is None or handle.local

    def remove_file(self, number: int) -> OpenFile:
        """Forget it; its descriptor is the caller's to close. Raises OSError EBADF for what is no open file."""
        handle = self.file(number)
        del self._files[number]
        return handle

    def remove_directory(self, number: int) -> OpenDirectory:
        """Forget it; its descriptor is the caller's to close. Raises OSError EBADF for what is no open directory."""
        handle = self.directory(number)
        del self._directories[number]
        return handle

    def is_open(self, key: FileKey) -> bool:
        """Whether a handle on this file remains."""
        return any(handle.key == key for handle in list(self._files.values()))

    def releases(self) -> list[Arguments]:
        """The requests that would release everything."""
        return [*map(Release, list(self._files)), *map(Releasedir, list(self._directories))]

    def close(self) -> None:
        """Close everything. What a close(2) has to say is lost: nobody is left who asks."""
        for file in self._files.values():
            os.close(file.fd)
        for directory in self._directories.values():
            os.close(directory.fd)
        self._files.clear()
        self._directories.clear()

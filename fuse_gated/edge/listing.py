"""Listing a directory: it is read once, as a whole, and then told in pieces.

A cookie is a position in what was read, so that a listing in many pieces shows each name once even while names come and
go: telldir(3) offsets of the filesystem would not fit, as some are only unique with their names' hashes.

What is mounted on a name is left alone: its server may answer nothing, and a listing is not to wait for that.
"""

import errno
import os
import stat
from collections.abc import Container
from itertools import islice
from typing import Final

from fuse_gated.edge.attributes import attributes
from fuse_gated.edge.handles import OpenDirectory
from fuse_gated.wire.messages import Listed, ListedEntry

ANSWER_LIMIT: Final = 512 * 1024
"""About how many bytes of entries one answer carries."""

QUICK_SIZE: Final = 16 * 1024
"""st_size of a directory that is read in less time than a thread takes to be woken."""
QUICK_COUNT: Final = 256
"""Entries whose attributes are collected in that time."""

_ENTRY_SIZE: Final = 20
_ATTRIBUTES_SIZE: Final = 80


def read(
    directory: OpenDirectory, cookie: int, count: int, with_attributes: bool, mounted: Container[bytes] = frozenset()
) -> Listed:
    """The entries from `cookie` on; cookie 0 reads the directory anew, and so does the first one: a server goes on with a listing
    that it began without this handle. A cookie past the end gives none. What is `mounted` here
    is told without its type and attributes.

    Raises OSError: EINVAL for a negative cookie or a count below 1, and what getdents(2) says.
    """
    if cookie < 0 or count < 1:
        raise OSError(errno.EINVAL, f"cookie {cookie}, count {count}")
    if starts(directory, cookie):
        directory.entries = scan(directory.fd, mounted)
        directory.was_read = True
    entries = directory.entries
    told: list[ListedEntry] = []
    size = 0
    for entry in entries[cookie : cookie + min(count, ANSWER_LIMIT)]:
        size += len(entry.name) + _ENTRY_SIZE + (_ATTRIBUTES_SIZE if with_attributes else 0)
        if size > ANSWER_LIMIT and told:
            break
        told.append(with_its_attributes(directory.fd, entry) if with_attributes and entry.name not in mounted else entry)
    return Listed(tuple(told), cookie + len(told) >= len(entries))


def starts(directory: OpenDirectory, cookie: int) -> bool:
    """Whether the directory is read anew for this."""
    return cookie == 0 or not directory.was_read


def is_quick(directory: OpenDirectory, cookie: int, count: int, with_attributes: bool) -> bool:
    """Whether `read` is a matter of microseconds."""
    if starts(directory, cookie) and os.fstat(directory.fd).st_size > QUICK_SIZE:
        return False
    return not with_attributes or min(count, len(directory.entries) - cookie) <= QUICK_COUNT


def scan(fd: int, mounted: Container[bytes], most: int | None = None) -> list[ListedEntry]:
    """The entries of a directory, at most so many, without their attributes. Raises OSError as getdents(2)."""
    with os.scandir(fd) as entries:
        return [_entry(entry, os.fsencode(entry.name), mounted) for entry in islice(entries, most)]


def _entry(entry: "os.DirEntry[str]", name: bytes, mounted: Container[bytes]) -> ListedEntry:
    return ListedEntry(name, entry.inode(), 0 if name in mounted else _type(entry))


def _type(entry: "os.DirEntry[str]") -> int:
    """The file type's bits of a mode. Answered from the directory where the filesystem keeps types in it (d_type), else by
    stat(2)."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    try:
        return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


def with_its_attributes(fd: int, entry: ListedEntry) -> ListedEntry:
    """A name that has vanished since keeps its place, without attributes: cookies are positions."""
    try:
        status = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return entry
    return ListedEntry(entry.name, status.st_ino, stat.S_IFMT(status.st_mode), attributes(status))

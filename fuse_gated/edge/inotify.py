"""inotify(7) as it is: the events that are asked for, and what the kernel tells, taken apart.

Not through watchdog, whose version 6 loses the one event that must not be lost (docs/decisions/0013-inotify-by-ourselves.md).
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
UNMOUNT: Final = 0x2000
Q_OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
_ONLYDIR: Final = 0x1000000
_EXCL_UNLINK: Final = 0x4000000

NAMES_CHANGED: Final = CREATE | DELETE | MOVED_FROM | MOVED_TO
"""A name came or went, so the directory's own attributes are others too, of which the kernel tells nothing."""
PLACES_CHANGED: Final = DELETE | MOVED_FROM | MOVED_TO | MOVE_SELF
"""A path may stand for another directory than before."""
ENDED: Final = DELETE_SELF | UNMOUNT | IGNORED
"""The kernel has taken the watch away."""
EVERYTHING: Final = (
    MODIFY | ATTRIB | CLOSE_WRITE | NAMES_CHANGED | DELETE_SELF | MOVE_SELF | UNMOUNT | _ONLYDIR | _EXCL_UNLINK
)
"""What a directory is watched for. CLOSE_WRITE too, because what is written through a mapping (mmap(2)) shows there alone; what
is written to a file that has no name any more is nobody's affair."""

MOST_WATCHES: Final = 65536
"""Directories that one client watches at most; the kernel takes about 1 KiB for each."""
_SHARE: Final = 4

_MAX_USER_WATCHES: Final = Path("/proc/sys/fs/inotify/max_user_watches")
_EVENT: Final = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, len; then the name, padded with NULs.


def events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(watch, mask, name) of each event in what was read. The name is empty where the watched directory itself is meant."""
    start = 0
    while start < len(data):
        watch, mask, _cookie, length = _EVENT.unpack_from(data, start)
        start += _EVENT.size
        yield watch, mask, data[start : start + length].rstrip(b"\0")
        start += length


def fair_share() -> int:
    """How many watches one client takes of those that its user may have: a quarter, because editors and other clients want some
    too. They are one user's on the whole machine (fs.inotify.max_user_watches)."""
    try:
        allowed = int(_MAX_USER_WATCHES.read_bytes())
    except (OSError, ValueError):
        return 0
    return min(allowed // _SHARE, MOST_WATCHES)

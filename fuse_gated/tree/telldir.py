"""Positions in a listing that is answered from here (telldir(3)), which need no memory.

A program that lists a directory says where it is by the offset of the last name that it got. Whoever goes on from there may be
another process than the one that began, and names may have come and gone meanwhile: each name that did neither is to be listed
once. So names stand in an order that is theirs alone, by a hash, and the offset is the hash, as in ext4's directories.

The client's own listings are counted instead (wire/messages.Readdir): their offsets are below OURS.
"""

from collections.abc import Iterable
from typing import Final
from zlib import crc32

OURS: Final = 2**30
"""What is from here on is such a position. All are below 2**31, so that programs of 32 bits can read them, but where very many
names have one hash: those that come later stand behind."""
LAST: Final = 2**32
"""No listing has so many names of one hash that it comes to this."""
_LEFT_OUT: Final = 2
"""Bits of the hash."""


def in_order(names: Iterable[bytes]) -> list[bytes]:
    """These names, each of them different, as a listing has them."""
    # By themselves first: those with one hash are to have one order, too.
    return sorted(sorted(names), key=crc32)


def positions(names: Iterable[bytes]) -> list[int]:
    """The offset of each, where they are in order: ascending, and never the same twice."""
    last = OURS - 1
    found = []
    for name in names:
        position = OURS + (crc32(name) >> _LEFT_OUT)
        last = position if position > last else last + 1
        found.append(last)
    return found

"""Whether two files have the same in them."""

from collections.abc import Iterator

from fuse_gated.replica.sides import Changed, Far, Near, Refused
from fuse_gated.replica.version import FILE, Version


def alike(near: Near, far: Far, path: bytes, local: Version, remote: Version) -> bool:
    """Whether these two are files of one content, of which both or neither may be executed. Raises Changed where they are others
    by now, Busy and Away."""
    if (local.kind, local.size, local.executable) != (remote.kind, remote.size, remote.executable) or local.kind != FILE:
        return False
    found, ours = near.read(path)
    try:
        there, theirs = far.read(path)
        same = equal(ours, theirs)
    except Refused:
        return False
    if (found, there) != (local, remote) or near.look(path) != local or far.look(path) != remote:
        raise Changed
    return same


def equal(one: Iterator[bytes], other: Iterator[bytes]) -> bool:
    """Whether the two yield the same bytes, however they are cut."""
    left = right = b""
    while True:
        left = left or next(one, b"")
        right = right or next(other, b"")
        if not left or not right:
            return not left and not right
        length = min(len(left), len(right))
        if left[:length] != right[:length]:
            return False
        left, right = left[length:], right[length:]

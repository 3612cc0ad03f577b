"""The names that a copy makes, and which links may stand in it."""

from typing import Final

from fuse_gated.paths import NAME_MAX, join, split
from fuse_gated.replica.version import LINK, OTHER, Version

TOLD: Final = b".fuse-gated-local"
"""A file in the copy's root that says what is not on both sides, and why. It is on no other side."""
TEMPORARY: Final = b".fuse-gated-"
"""How the names begin, on the client, of what is on its way."""

LONGEST: Final = 4000
"""Bytes of a path: this machine opens none of PATH_MAX (limits.h) or more."""

_CONFLICT: Final = "conflict"
_REFUSED: Final = "refused"


def conflict(path: bytes, session: str, number: int) -> bytes:
    """The name that ours gets where both sides have changed: NAME.conflict-SESSION-NUMBER."""
    return _marked(path, _CONFLICT, session, number)


def refused(path: bytes, session: str, number: int) -> bytes:
    """The name that ours gets where the client has another and does not take ours: NAME.refused-SESSION-NUMBER."""
    return _marked(path, _REFUSED, session, number)


def temporary(path: bytes, token: str) -> bytes:
    """A name beside `path` for what becomes it, or was it. Its end is the end of the plain one, so that rules by a name's end
    hold for both."""
    parent, name = split(path)
    prefix = TEMPORARY + token.encode() + b"-"
    return join(parent, prefix + name[-(NAME_MAX - len(prefix)) :])


def is_temporary(path: bytes) -> bool:
    """Whether the last name of a path is one that `temporary` makes."""
    return split(path)[1].startswith(TEMPORARY) and path != TOLD


def is_ours(path: bytes) -> bool:
    """Whether what has that name is of the copy's keeping, and neither brought nor sent."""
    return path == TOLD or is_temporary(path)


def why_not(path: bytes, version: Version) -> str:
    """Why that is never in both of the copy and the export; '' if it may be."""
    if version.kind == OTHER:
        return "neither a file, a directory nor a link"
    if version.kind == LINK and not stays_inside(path, version.target):
        return "a link that may lead out of the export"
    return ""


def stays_inside(path: bytes, target: bytes) -> bool:
    """Whether a symbolic link at `path`, in a tree in which each link does, leads to somewhere in that tree.

    By its form: relative, with as many '..' as there are directories above it at most, and all of them in front. After a name,
    which may be a link itself, nobody knows where '..' leads (path_resolution(7)).
    """
    if not target or target.startswith(b"/"):
        return False
    up, names = 0, False
    for component in target.split(b"/"):
        if component == b"..":
            if names:
                return False
            up += 1
        elif component not in (b"", b"."):
            names = True
    return up <= path.count(b"/")


def _marked(path: bytes, what: str, session: str, number: int) -> bytes:
    parent, name = split(path)
    suffix = f".{what}-{session[:8]}-{number}".encode()
    return join(parent, name[: NAME_MAX - len(suffix)] + suffix)

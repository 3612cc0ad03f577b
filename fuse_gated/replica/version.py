"""What a name stands for on one side of a copy, and how two such answers are compared."""

from typing import Final

import msgspec

from fuse_gated.operations import Attributes

FILE: Final = "file"
DIRECTORY: Final = "directory"
LINK: Final = "link"
OTHER: Final = "other"
"""A pipe, a socket or a device, which is never copied."""

_KINDS: Final = {0o100000: FILE, 0o040000: DIRECTORY, 0o120000: LINK}


_LATEST: Final = 2**63 - 1
"""In the year 2262. What lies outside of it (utimensat(2) sets years of 64 bits in seconds) is neither noted nor sent."""


class Version(msgspec.Struct, frozen=True, gc=False):
    """One name on one side. Times are nanoseconds since the epoch; `mode` are a file's permission bits, `target` is a link's."""

    kind: str
    size: int = 0
    mtime: int = 0
    ctime: int = 0
    device: int = 0
    inode: int = 0
    mode: int = 0
    target: bytes = b""

    @property
    def executable(self) -> bool:
        """Whether its owner may execute it."""
        return bool(self.mode & 0o100)


class Base(msgspec.Struct, frozen=True, gc=False):
    """Both sides of one name as they were when they were last known to be the same."""

    local: Version
    remote: Version


def of_attributes(found: Attributes, target: bytes = b"") -> Version:
    """The version of what stat(2) tells so; `target` is what readlink(2) tells of a link."""
    return version(
        found.mode, found.size, found.mtime, found.ctime, device=found.device, inode=found.inode, target=target
    )


def version(mode: int, size: int, mtime: int, ctime: int, *, device: int, inode: int, target: bytes = b"") -> Version:
    """Of what does not count there is nothing in it: a directory's times change with every name in it, a link is its target."""
    kind = _KINDS.get(mode & 0o170000, OTHER)
    if kind == FILE:
        return Version(kind, size, _time(mtime), _time(ctime), device, inode, mode & 0o777)
    return Version(kind, target=target if kind == LINK else b"")


def _time(nanoseconds: int) -> int:
    return max(-_LATEST, min(nanoseconds, _LATEST))


def same_but_renamed(one: Version, other: Version) -> bool:
    """Whether nothing has happened to a file between the two but a rename, by which Linux changes its ctime."""
    return msgspec.structs.replace(one, ctime=0) == msgspec.structs.replace(other, ctime=0)


def mode_there(local: Version, remote: Version | None) -> int:
    """The permission bits that a file gets on the client: those of the one that it replaces, else those that most files have.
    Ours say only whether it may be executed."""
    mode = remote.mode if remote is not None and remote.kind == FILE else 0o644
    return mode | (mode & 0o444) >> 2 if local.executable else mode & ~0o111

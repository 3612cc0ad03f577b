"""The pieces of tree/cache.py: what is kept of a directory and of a name, and what a client's answer changes of it."""

from typing import Final, NamedTuple

import msgspec

from fuse_gated.operations import Attributes

UNKNOWN: Final = 0
"""In place of a file's type: it is not known whether the name exists."""
RECORD_SIZE: Final = 1024
PATH_SIZE: Final = 128
_NAME_SIZE: Final = 256
_ATTRIBUTES_SIZE: Final = 320
"""Bytes that a directory or a content takes beside what is in it, a path above it, a name, and its attributes (CPython 3.11)."""
_TYPE: Final = 0o170000
_DIRECTORY: Final = 0o040000
_REGULAR: Final = 0o100000


class Missing:
    """The type of MISSING."""


MISSING: Final = Missing()
"""In place of attributes: the client has no such name."""


class Name(NamedTuple):
    """An entry of a directory, as handles.Listed. `type` is the file type's bits of a mode, 0 where it is not known whether the
    name exists. Attributes that may have changed, or that no watch on its directory covers, are left out."""

    name: bytes
    inode: int
    type: int
    attributes: Attributes | None


class Directory:
    """What is known of one directory. A name that stands for None is known not to exist."""

    __slots__ = ("attributes", "complete", "in_order", "inode", "names", "size", "until")

    def __init__(self, size: int, until: float) -> None:
        self.attributes: Attributes | None = None
        """Its own."""
        self.inode = 0
        """Which one it is, where that was ever told."""
        self.names: dict[bytes, Name | None] = {}
        self.in_order = False
        """Whether they are as a listing has them (tree/telldir.py)."""
        self.complete = False
        """Whether there are no names but these."""
        self.until = until
        self.size = size


def kept(name: bytes, attributes: Attributes | None) -> Name | None:
    """What is kept of a name. A directory's own change with every name in it, and a file with several names may be changed by
    another of them: of neither does a watch on the directory tell that the name is in."""
    if attributes is None:
        return None
    followed = not is_directory(attributes) and attributes.nlink == 1
    return Name(name, attributes.inode, attributes.mode & _TYPE, attributes if followed else None)


def is_directory(attributes: Attributes) -> bool:
    """By its mode."""
    return attributes.mode & _TYPE == _DIRECTORY


def has_content(attributes: Attributes) -> bool:
    """Whether there is anything in it that may have changed."""
    return attributes.mode & _TYPE == _REGULAR and attributes.size > 0


def is_same(known: Name, attributes: Attributes) -> bool:
    """Whether it is the same file, as far as a listing tells."""
    return known.inode == attributes.inode and known.type == attributes.mode & _TYPE


def agree(before: Name | None, now: Name | None) -> bool:
    """Whether nobody relies on anything else."""
    if before is None or now is None:
        return before is now or (before is not None and not before.type)
    if not before.type:
        return True
    if before[:3] != now[:3] or (before.attributes is not None and now.attributes is None):
        return False
    return before.attributes is None or now.attributes is None or look_alike(before.attributes, now.attributes)


def look_alike(before: Attributes, now: Attributes) -> bool:
    """But for the time of the last access, which nobody tells."""
    return before == now or msgspec.structs.replace(before, atime=now.atime) == now


def name_size(name: bytes, entry: Name | None) -> int:
    """Bytes that it takes."""
    return _NAME_SIZE + len(name) + (_ATTRIBUTES_SIZE if entry is not None and entry.attributes is not None else 0)


def content_size(path: bytes, content: bytes) -> int:
    """Bytes that it takes."""
    return RECORD_SIZE + len(path) + len(content)

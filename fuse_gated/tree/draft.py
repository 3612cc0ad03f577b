"""A file that was made empty through the mount, as it has become by what was written through the handle that made it.

As long as nobody else changes it, that is all there is in it: so whoever reads back what he has just written (an assembler, a
linker, SQLite) need not wait for the client to say the same.
"""

from typing import Final

import msgspec

from fuse_gated.operations import Attributes
from fuse_gated.tree.known import look_alike

LARGEST: Final = 2**20
"""Bytes of a file that is kept so."""
_BLOCK: Final = 512
"""Bytes that `st_blocks` counts (stat(2))."""
_PAGE: Final = 4096


class Draft:
    """`attributes` are what the client said when it had made the file, which is empty: its size is 0."""

    __slots__ = ("_content", "_first", "attributes")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        """What it is like by now; the time of its last change is that of its making, until the client tells."""
        self._first = attributes
        self._content = bytearray()

    def write(self, offset: int | None, data: bytes | memoryview) -> bool:
        """What was written at `offset`, or None: at the end. False if that makes it too large, or leaves a hole, which is the
        client's filesystem's business: it is no draft any more."""
        start = len(self._content) if offset is None else offset
        end = start + len(data)
        if end > LARGEST or start > len(self._content) + _PAGE:
            return False
        if start > len(self._content):
            self._content.extend(bytes(start - len(self._content)))
        self._content[start:end] = data
        size = len(self._content)
        self.attributes = msgspec.structs.replace(self.attributes, size=size, blocks=-(-size // _PAGE) * (_PAGE // _BLOCK))
        return True

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes; fewer where it ends."""
        return bytes(self._content[offset : offset + size])

    def is_as_made(self, attributes: Attributes) -> bool:
        """Whether this tells nothing but that it was made: what was written since, the client has not seen."""
        return look_alike(self._first, attributes)

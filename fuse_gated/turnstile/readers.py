"""Who reads which file where, and what was asked for ahead of them: what readahead.py keeps."""

from collections import deque
from typing import Final

from fuse_gated.tree.handles import Handle
from fuse_gated.turnstile.call import Call
from fuse_gated.wire import messages

CHUNK: Final = messages.MAX_DATA
FIRST_WINDOW: Final = CHUNK


class Chunk:
    """What was asked for ahead; `data` once it is here. `waiting`: READs that need it."""

    __slots__ = ("asked", "data", "end", "followed", "number", "offset", "used", "waiting")

    def __init__(self, number: int, offset: int, asked: float, *, followed: bool) -> None:
        self.number = number
        self.offset = offset
        self.end = offset + CHUNK
        self.asked = asked
        self.followed = followed
        self.data: memoryview | None = None
        self.used = 0
        self.waiting: list[Call] = []


class Reader:
    """Somebody's way through a file: `next` is where the READ behind the last one begins, `ahead` where the next chunk does,
    `run` how much was read on, `whole` whether the last READ was as long as a chunk."""

    __slots__ = ("ahead", "chunks", "grown", "handle", "next", "run", "touched", "whole", "window")

    def __init__(self, handle: Handle, end: int) -> None:
        self.handle = handle
        self.next = self.ahead = end
        self.run = 0
        self.whole = False
        self.window = FIRST_WINDOW
        self.chunks: deque[Chunk] = deque()
        """In the order of their offsets."""
        self.grown = 0
        """Up to where in the file waiting no longer widens the window: once for each chunk."""
        self.touched = 0.0

    def begin_anew(self) -> deque[Chunk]:
        """Nothing is ahead of it any more: what was."""
        chunks, self.chunks = self.chunks, deque()
        self.ahead = self.next
        self.window = FIRST_WINDOW
        self.grown = 0
        return chunks

    def follows(self, offset: int, size: int) -> bool:
        """Whether a READ is the next one, or about. The kernel leaves out what it still has, and may send two in either order."""
        if self.chunks:
            return self.chunks[0].offset <= offset <= self.ahead
        return self.next - 2 * size < offset <= self.next + size


class File:
    """What is known of one file that is being read: its size, mtime and ctime, and where it ends."""

    __slots__ = ("end", "readers", "seen")

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.seen: tuple[int, int, int] | None = None
        self.end: int | None = None

    def covering(self, at: int) -> tuple[Reader, Chunk] | tuple[None, None]:
        """The chunk in which a byte lies, and whose it is."""
        for reader in self.readers:
            for chunk in reader.chunks:
                if chunk.offset <= at < chunk.end:
                    return reader, chunk
        return None, None

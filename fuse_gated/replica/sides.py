"""The two sides of a copy, as it needs them: what an edge implements, and how it fails."""

from collections.abc import Iterator
from typing import Protocol

from fuse_gated.replica.version import Version


class Changed(Exception):
    """It is not what it was, or its directory is not there: nothing was done, look again."""


class Busy(Exception):
    """A program has the file open for writing: it is not closed yet. Nothing was done."""


class Refused(Exception):
    """The side does not allow it, or cannot (`passing`: a disk is full), which may be otherwise later. Nothing was done."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.passing = passing


class Away(Exception):
    """The client cannot be asked now. What was asked last may have been done or not."""


class Side(Protocol):
    """What both can. Paths are relative to the root, links are never followed."""

    def look(self, path: bytes) -> Version | None:
        """What is there. Raises Refused and Away."""

    def read(self, path: bytes) -> tuple[Version, Iterator[bytes]]:
        """A regular file. Raises Changed where there is none, and what `look` raises; ours raises Busy, and Changed for one so
        young that another change would leave its times as they are."""

    def make(self, path: bytes, version: Version) -> Version:
        """A directory or a symbolic link, where nothing is. Raises Changed, Refused, Away."""


class Near(Side, Protocol):
    """The copy itself. What it takes in lies beside it until it is whole."""

    def receive(self, chunks: Iterator[bytes], version: Version) -> str:
        """Take in as many bytes as `version` has, beside the copy: a name for `install` and `discard`. Raises Changed where it
        is more or less, and Refused where there is no room."""

    def discard(self, name: str) -> None: ...

    def install(self, name: str, path: bytes, expected: Version | None) -> Version:
        """Put it in the place of what is `expected` there. Raises Changed and Busy, and then nothing is as it was not before."""

    def remove(self, path: bytes, expected: Version) -> None:
        """Raises Changed, also for a directory that is not empty, Busy and Refused."""

    def move(self, path: bytes, new_path: bytes) -> None:
        """To a free name. Raises Changed."""


class Far(Side, Protocol):
    """The client, past the gate."""

    def look_now(self, path: bytes) -> Version | None:
        """As `look`, of what the client has at this moment: not of what somebody remembers of it."""

    def write(self, path: bytes, chunks: Iterator[bytes], version: Version) -> Version:
        """A new file, with the mode and the time of `version`; on the client's disk when this returns. Raises Changed, Refused
        and Away."""

    def rename(self, path: bytes, new_path: bytes) -> None:
        """To a free name. Raises Changed, Refused and Away."""

    def exchange(self, path: bytes, other: bytes) -> bool:
        """The two names of one directory, in one step. False where the client's filesystem or the rules cannot. Raises Changed,
        Refused and Away."""

    def replace(self, path: bytes, new_path: bytes) -> None:
        """As rename(2). Raises Changed, Refused and Away."""

    def remove(self, path: bytes, version: Version) -> None:
        """Raises Changed, also for a directory that is not empty, Refused and Away."""

    def may_remove(self, path: bytes) -> None:
        """Raises Refused where a file of that name, which is not there, could not be removed; and Away."""

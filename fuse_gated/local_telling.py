"""What is not on both sides of a copy, told to people: in a file in the copy, and in the log how much of it there is."""

import heapq
import time
from collections.abc import Callable, Mapping
from typing import Final

from fuse_gated.edge.copy_tree import CopyTree
from fuse_gated.paths import shown

_SHARE: Final = 10
"""How many times as long as a look at what is to be told takes no other one is taken."""
_LOG_EVERY: Final = 60.0
"""Seconds between two lines in the log of what is left out: the client could make one each second."""
_MOST_LINES: Final = 10_000
_MOST_BYTES: Final = 2**20
"""Of the file: it is on the copy's disk, besides what `size` allows, and the client chooses the names."""


class Telling:
    """`name` is TENANT/EXPORT, `say` writes a line to the log."""

    def __init__(self, tree: CopyTree, name: str, say: Callable[[str], None]) -> None:
        self._tree = tree
        self._name = name
        self._say = say
        self._told: str | None = None
        """Whoever kept the copy before may have told something else."""
        self._told_here = ""
        self._due = 0.0
        self._logged = -_LOG_EVERY

    def tell(self, left_out: Mapping[bytes, str], unsent: Mapping[bytes, str]) -> None:
        """Whenever it is something else than before."""
        now = time.monotonic()
        if now < self._due:
            return
        here = _lines("not here", left_out)
        text = here + _lines("not sent", unsent)
        if text != self._told:
            if not self._write_down(text):
                # A disk that is full is so for a while.
                self._due = now + _LOG_EVERY
                return
            if here and here != self._told_here and now >= self._logged + _LOG_EVERY:
                self._logged = now
                path = min(left_out)
                what = f"{len(left_out)} names of the client are not in the copy"
                self._say(f"{what}, the first: {shown(path)}: {left_out[path]}")
            self._told, self._told_here = text, here
        self._due = now + _SHARE * (time.monotonic() - now)

    def tell_left(self, left: Mapping[bytes, str]) -> None:
        """When the session is over."""
        self._say(f"{len(left)} names are not on the client and stay here, the first: {shown(min(left))}")
        self._write_down(_lines("not sent", left))

    def _write_down(self, lines: str) -> bool:
        """Have the file say this; without a line there is none. False where it cannot be written."""
        heading = f"# What is not on both sides of {self._name}. fuse-gated writes this file; it is on this side alone.\n"
        try:
            self._tree.tell((heading + lines).encode() if lines else b"")
        except OSError as error:
            self._say(f"what is not on both sides cannot be told in a file: {error.strerror}")
            return False
        return True


def _lines(what: str, paths: Mapping[bytes, str]) -> str:
    lines: list[str] = []
    size = 0
    for path in heapq.nsmallest(_MOST_LINES, paths):
        line = f"{what}\t{shown(path)}\t{paths[path]}\n"
        size += len(line.encode())
        if size > _MOST_BYTES:
            break
        lines.append(line)
    more = len(paths) - len(lines)
    return "".join(lines) + (f"{what}\t...\t{more} more\n" if more else "")

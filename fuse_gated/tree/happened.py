"""What became of the client's files lately, and when: so that an answer that crossed a change is not taken for what there is.

Time is a count that goes on with each change (`tick`). Paths are remembered by their hash, because whoever tells of changes could
make them as long as he likes; two that share one only seem to have changed together, and are asked for again.
"""

from typing import Final

from fuse_gated.paths import split

_MOST: Final = 4096


class _Recent:
    """When something became of a path last. What is too long ago to be known counts as changed."""

    def __init__(self) -> None:
        self.floor = 0
        """What was asked before this tick is too old."""
        self.last = 0
        self._turned = 0
        self._before: dict[int, int] = {}
        self._lately: dict[int, int] = {}

    def note(self, path: bytes, tick: int) -> None:
        if len(self._lately) >= _MOST:
            self.floor, self._turned = self._turned, tick - 1
            self._before, self._lately = self._lately, {}
        self._lately[hash(path)] = self.last = tick

    def is_after(self, path: bytes, since: int) -> bool:
        key = hash(path)
        return since < self.floor or self._lately.get(key, 0) > since or self._before.get(key, 0) > since


class Happened:
    """Of one session."""

    def __init__(self) -> None:
        self.tick = 0
        self._changes = _Recent()
        self._moves = _Recent()

    def changed(self, path: bytes) -> None:
        """What is there may be another state of it."""
        self.tick += 1
        self._changes.note(path, self.tick)

    def moved(self, path: bytes) -> None:
        """The name may stand for another file, or for none, and so may every name beneath it."""
        self.changed(path)
        self._moves.note(path, self.tick)

    def everything(self) -> None:
        """No answer holds that was asked for before."""
        self.tick += 1
        for recent in (self._changes, self._moves):
            recent.floor = recent.last = self.tick

    def is_same(self, path: bytes, since: int) -> bool:
        """Whether nothing became of the path since then, as far as we know. What became of those above is another question."""
        return not self._changes.is_after(path, since)

    def is_in_place(self, path: bytes, since: int) -> bool:
        """Whether neither it nor a directory above it was moved since then."""
        if since >= self._moves.last:
            return True
        while not self._moves.is_after(path, since):
            if not path:
                return True
            path = split(path)[0]
        return False

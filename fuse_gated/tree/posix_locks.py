"""The POSIX locks that were taken through one mount. The client holds them; this remembers whose they are, because the client
knows no pids of the server, and because a close(2) by who has none need not ask the client."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

WRITE = 1
"""F_WRLCK."""
UNLOCK = 2
"""F_UNLCK."""
MOST_REMEMBERED = 4096
"""Files of which it is remembered that somebody wanted a lock on them."""

Place = int | bytes
"""What locks are on: a node's number, or a path where the driver has none (`Handle.place`)."""


class Range(Protocol):
    """A lock as a request or an answer has it: `end` is inclusive."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def type(self) -> int: ...


class Owned(Range, Protocol):
    @property
    def handle(self) -> int: ...
    @property
    def owner(self) -> int: ...
    @property
    def pid(self) -> int: ...


class Held(NamedTuple):
    owner: int
    start: int
    end: int
    type: int
    pid: int
    handle: int = 0
    """Through which it was taken."""


class PosixLocks:
    """Which owner has which range of which file, as fcntl(2) splits and joins them."""

    def __init__(self) -> None:
        self._held: dict[Place, list[Held]] = {}
        self.changes: set[Place] = set()
        """Where locks changed since somebody emptied this (tree/journal.py)."""
        self._wanted: set[Place] = set()

    def __len__(self) -> int:
        return sum(len(held) for held in self._held.values())

    def __iter__(self) -> Iterator[tuple[Place, list[Held]]]:
        return iter(self._held.items())

    def on(self, place: Place) -> list[Held]:
        """The locks on one file."""
        return self._held.get(place, [])

    def restore(self, place: Place, held: list[Held]) -> None:
        """Locks that the client still holds for us."""
        self._held.pop(place, None)
        if held:
            self._held[place] = held
            self.wants(place)

    def wants(self, place: Place) -> None:
        """Somebody asks for a lock on this file."""
        if len(self._wanted) < MOST_REMEMBERED:
            self._wanted.add(place)

    def is_wanted(self, place: Place) -> bool:
        """Whether anybody has ever asked for a lock on this file, or so many others were asked for that nobody remembers."""
        return place in self._wanted or len(self._wanted) >= MOST_REMEMBERED

    def changed(self, place: Place, request: Owned) -> None:
        """The client took or gave up a lock."""
        self.changes.add(place)
        left: list[Held] = []
        for lock in self._held.pop(place, []):
            if lock.owner != request.owner or lock.end < request.start or request.end < lock.start:
                left.append(lock)
                continue
            if lock.start < request.start:
                left.append(lock._replace(end=request.start - 1))
            if request.end < lock.end:
                left.append(lock._replace(start=request.end + 1))
        if request.type != UNLOCK:
            left.append(Held(request.owner, request.start, request.end, request.type, request.pid, request.handle))
        if left:
            self._held[place] = left

    def has(self, place: Place, owner: int) -> bool:
        """Whether a close(2) by `owner` gives up a lock."""
        held = self._held.get(place)
        return held is not None and any(lock.owner == owner for lock in held)

    def parts(self, place: Place, owner: int, start: int, end: int) -> list[tuple[int, int, int]]:
        """What `owner` has of this range: start, end and type of each part, in order; UNLOCK where it has nothing."""
        found: list[tuple[int, int, int]] = []
        for lock in sorted(self.on(place), key=lambda lock: lock.start):
            if lock.owner != owner or lock.end < start or end < lock.start:
                continue
            if start < lock.start:
                found.append((start, lock.start - 1, UNLOCK))
            found.append((max(start, lock.start), min(end, lock.end), lock.type))
            start = lock.end + 1
        return [*found, (start, end, UNLOCK)] if start <= end else found

    def excludes_others(self, place: Place, owner: int, start: int, end: int) -> bool:
        """Whether `owner` has write locks on all of this range, so that no other can have any."""
        own = sorted((lock.start, lock.end) for lock in self.on(place) if lock.owner == owner and lock.type == WRITE)
        for first, last in own:
            if first <= start <= last:
                start = last + 1
        return start > end

    def holder(self, place: Place, asker: int, found: Range) -> int:
        """The pid of who has the lock that the client found in the asker's way; 0 if that is a program on the client's side."""
        for lock in self._held.get(place, ()):
            if lock.owner != asker and lock.type == found.type and lock.start <= found.end and found.start <= lock.end:
                return lock.pid
        return 0

    def flushed(self, place: Place, owner: int) -> None:
        """close(2): the owner has no lock on the file any more."""
        self.changes.add(place)
        left = [lock for lock in self._held.pop(place, []) if lock.owner != owner]
        if left:
            self._held[place] = left

    def through(self, place: Place, handle: int, *, last: bool = False) -> list[int]:
        """The owners of locks that were taken through this handle, and through no other. Where it is the `last`: all owners."""
        held = self._held.get(place)
        if held is None:
            return []
        others = set() if last else {lock.owner for lock in held if lock.handle != handle}
        return sorted({lock.owner for lock in held} - others)

    def moved(self, place: Place, new: Place) -> None:
        """The file has another path by now."""
        held = self._held.pop(place, [])
        if held:
            self.changes.update((place, new))
            self._held[new] = held

    def closed(self, place: Place) -> None:
        """The last handle is gone, and all locks with it."""
        if self._held.pop(place, None):
            self.changes.add(place)

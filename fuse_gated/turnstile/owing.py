"""What callers were told to be done, and the client has not said so (ahead.py): in which order, where its data lies, and how much
of it there may be."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import msgspec

from fuse_gated.errors import ProtocolError
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Identity
from fuse_gated.tree.journal import Owed, Row, SettledOwed
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.news import News
from fuse_gated.wire import codec, messages
from fuse_gated.wire.messages import MAX_AFTER, MAX_DATA, Asked

FIRST_WINDOW: Final = 2**19
LARGEST_WINDOW: Final = 16 * 2**20
LEAST_WINDOW: Final = 2**17
"""Bytes that a session may owe to its programs: at first, where the line carries so much, and where it carries little."""
PROMPT: Final = 0.5
SLOW: Final = 2.0
"""Seconds in which what is owed is settled: faster than that the window may grow, slower it shrinks. So a slow line does not
make a close(2) wait longer than a request may take."""
MOST_FILES: Final = 32
_MOST_CHANGES: Final = 2**12
"""What no process of ours would leave, whatever the limits were then."""
_LAST_REQUEST: Final = 2**61
"""The kernel's numbers are below (wire/session.py)."""

Arguments = messages.Write | messages.Setattr
_Kind = TypeVar("_Kind", bound=messages.Arguments)


class Change:
    """A change on its way. `call` is its caller's, who is answered as soon as the window allows. `arguments` are without its
    data."""

    __slots__ = (
        "arguments", "call", "doomed", "handle", "kept", "key", "number", "path", "previous", "row", "short", "since", "waiting",
    )  # fmt: skip

    def __init__(self, row: Owed, arguments: Arguments, handle: Handle | None, key: Identity, path: bytes, since: float) -> None:
        self.row = row
        self.arguments = arguments
        self.handle = handle
        self.key = key
        self.path = path
        self.since = since
        self.call: Call | None = None
        self.waiting: list[Call] = []
        """Requests that are to come to their handlers once more when it is over."""
        self.kept = False
        """Whether its caller has been answered, so that it is owed."""
        self.number = row.request
        """What comes after it names it so."""
        self.previous = 0
        """The change of the same file before it."""
        self.doomed = False
        """Whether one before it has failed: the client will not carry it out, and its file has been told for both."""
        self.short = False
        """Whether the client has written only a part of it; why not all the next one's answer tells."""


class Owing(News):
    """Of one session. `room` is how many bytes a successor's memory has for it (0: nothing is answered ahead), and
    `read_back(at, size)` gives what was put there. At most `most_bytes` and `most_requests` are on their way."""

    def __init__(self, most_bytes: int, most_requests: int) -> None:
        super().__init__()
        self.room = 0
        self.read_back: Callable[[int, int], bytes] = lambda _at, size: bytes(size)
        self.halted = False
        """While the journal takes no records."""
        self.serves = False
        """Whether the client carries out requests in the order that they name."""
        self.leases = False
        """Whether the client leases what it creates (leasing.py)."""
        self.leased: dict[int, Handle] = {}
        """What is leased, by the client's handle."""
        self.failed: dict[Identity, str] = {}
        """Errors of changes to files that were closed by then, for who opens them next."""
        self.promised = 0
        """Bytes that are owed."""
        self.window = FIRST_WINDOW
        self.waiting: deque[Change] = deque()
        """Those whose callers are not answered yet."""
        self._most_bytes = min(most_bytes, 2 * LARGEST_WINDOW)
        self._most_requests = most_requests
        self._changes: dict[int, Change] = {}
        self._newest: dict[Identity, int] = {}
        self._bytes = 0
        self._end = 0

    def __bool__(self) -> bool:
        return bool(self._changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(list(self._changes.values()))

    def get(self, number: int) -> Change | None:
        """By the number of the caller's request."""
        return self._changes.get(number)

    def newest(self, key: Identity | None = None) -> tuple[int, ...]:
        """The numbers of the last changes: of one file, or of all."""
        if key is None:
            return tuple(self._newest.values())
        return (self._newest[key],) if key in self._newest else ()

    def of(self, key: Identity) -> list[Change]:
        """All of one file, the oldest first."""
        return [change for change in self._changes.values() if change.key == key]

    def place(self, key: Identity, size: int) -> int | None:
        """Where so many bytes may be put; None where that is too much."""
        many = len(self._changes) >= self._most_requests or (key not in self._newest and len(self._newest) >= MOST_FILES)
        if many or self._bytes + size > self._most_bytes:
            return None
        start = self._end if self._bytes else 0
        if start + size > self.room:
            start = 0
        if start + size > self.room:
            return None
        for change in self._changes.values():
            row = change.row
            if row.size and start < row.at + row.size and row.at < start + size:
                return None
        if size:
            self._end = start + size
        return start

    def add(self, change: Change) -> None:
        change.previous = self._newest.get(change.key, 0)
        self._changes[change.row.request] = change
        self._newest[change.key] = change.number
        self._bytes += change.row.size

    def keep(self, change: Change) -> None:
        """It is owed from now on."""
        change.kept = True
        self.promised += change.row.size
        self._news.append(change.row)

    def doom(self, change: Change) -> None:
        """It is not to be asked for again, because what its callers write next may be done before."""
        if change.kept and not change.doomed:
            self._news.append(SettledOwed(change.row.request))
        change.doomed = True

    def renumber(self, change: Change, number: int) -> None:
        """The newest of its file is finished by another request."""
        change.number = self._newest[change.key] = number

    def unorder(self, key: Identity) -> None:
        """What is on its way to this file will not be carried out: nothing need come after it."""
        self._newest.pop(key, None)

    def remove(self, change: Change) -> None:
        del self._changes[change.row.request]
        self._bytes -= change.row.size
        if self._newest.get(change.key) == change.number:
            del self._newest[change.key]
        if change.kept:
            self.promised -= change.row.size
            if not change.doomed:
                self._news.append(SettledOwed(change.row.request))

    def adapt(self, waited: float) -> None:
        """A change was settled after so many seconds."""
        if waited > SLOW:
            self.window = max(LEAST_WINDOW, self.window // 2)
        elif waited < PROMPT and self.waiting:
            self.window = min(LARGEST_WINDOW, 2 * self.window)

    # What a successor must know.

    def everything(self) -> Iterator[Row]:
        """All that a successor must know."""
        self._news.clear()
        yield from (change.row for change in self._changes.values() if change.kept and not change.doomed)

    def restore(self, rows: Iterable[Owed], handles: Handles) -> None:
        """As a process before this one left it. Raises ValueError for what none of ours would have left."""
        for row in rows:
            if row.request % 2 or not 0 < row.request < _LAST_REQUEST:
                raise ValueError(f"a change by request {row.request}")
            if row.at < 0 or not 0 <= row.size <= MAX_DATA or row.at + row.size > self.room:
                raise ValueError(f"a change of {row.size} bytes at {row.at}")
            arguments, handle = _changing(row), handles.get(row.handle)
            if handle is not None and handle.remote != remote_of(arguments):
                raise ValueError(f"a change through handle {row.handle}, which is another one")
            path = row.path if handle is None else handles.path(handle)
            change = Change(row, arguments, handle, row.file, path, 0.0)
            self.add(change)
            if self._bytes > self.room or len(self._changes) > _MOST_CHANGES or len(self._newest) > MAX_AFTER:
                raise ValueError(f"{len(self._changes)} changes of {len(self._newest)} files, {self._bytes} bytes")
            self.keep(change)
            self._end = row.at + row.size
        self._news.clear()


def key_of(handle: Handle | None) -> Identity | None:
    """Which file it is open on, as far as that is known."""
    return handle.node.identity if handle is not None and handle.node is not None else None


def remote_of(arguments: Arguments) -> int:
    """The client's handle."""
    target = arguments.handle if isinstance(arguments, messages.Write) else arguments.target
    assert isinstance(target, int)
    return target


def decoded(row: Owed, kind: type[_Kind]) -> _Kind:
    """What the client was asked. Raises ValueError where it is something else."""
    try:
        arguments = codec.decode_arguments(Asked(row.request, row.operation, msgspec.Raw(row.arguments)))
    except ProtocolError as error:
        raise ValueError(str(error)) from None
    if isinstance(arguments, kind):
        return arguments
    raise ValueError(f"a change by {row.operation!r}")


def _changing(row: Owed) -> Arguments:
    arguments = decoded(row, messages.Arguments)
    if isinstance(arguments, messages.Write) or (isinstance(arguments, messages.Setattr) and isinstance(arguments.target, int)):
        return arguments
    raise ValueError(f"a change by {row.operation!r}")

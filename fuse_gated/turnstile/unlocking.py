"""Locks that are given up before the client has heard of it.

To give one up cannot fail on a local filesystem, nor can turning a write lock into a read lock: nobody else is there. So the
caller need not wait. The client is asked behind all that is owed (owing.py), because who gets the lock there must see what was
written under it; and whoever asks for a lock of this session is asked for behind that (ordering.py).

A killed worker, a lost connection or an upgrade lose none: the successor asks again, under the same number, and the client
remembers what it has done.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fuse_gated import operations
from fuse_gated.gate.audit import Record
from fuse_gated.tree.handles import Handle, Handles
from fuse_gated.tree.inodes import Identity
from fuse_gated.tree.journal import Owed, Row, SettledOwed
from fuse_gated.turnstile import ordering
from fuse_gated.turnstile.call import Call
from fuse_gated.turnstile.news import News
from fuse_gated.turnstile.owing import decoded, key_of
from fuse_gated.wire import messages
from fuse_gated.wire.session import Pending

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

OPERATION: Final = "setlk"
MOST: Final = 32
"""On their way at once; who gives up another one waits for it."""
_READ: Final = 0
_UNLOCK: Final = 2
_ENCODER: Final = msgspec.msgpack.Encoder()


class Unlocks(News):
    """Of one session, by the numbers that the client is asked under, in the order in which it was."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[int, Owed] = {}
        self._newest: dict[Identity, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Owed]:
        return iter(list(self._rows.values()))

    def newest(self) -> tuple[int, ...]:
        """The numbers of the last ones of each file."""
        return tuple(self._newest.values())

    def add(self, row: Owed) -> None:
        self._rows[row.request] = row
        self._newest[row.file] = row.request
        self._news.append(row)

    def remove(self, row: Owed) -> None:
        """The client has answered."""
        del self._rows[row.request]
        if self._newest[row.file] == row.request:
            del self._newest[row.file]
        self._news.append(SettledOwed(row.request))

    def clear(self) -> None:
        """The session is over, and the client gives up every lock."""
        self._rows.clear()
        self._newest.clear()

    # What a successor must know.

    def everything(self) -> Iterator[Row]:
        """All that a successor must know."""
        self._news.clear()
        yield from self._rows.values()

    def restore(self, rows: Iterable[Owed], handles: Handles) -> None:
        """As a process before this one left it. Raises ValueError for what none of ours would have left."""
        for row in rows:
            arguments, handle = decoded(row, messages.Setlk), handles.get(row.handle)
            if arguments.type not in (_READ, _UNLOCK) or len(self) == MOST:
                raise ValueError(f"a lock of type {arguments.type} that was given up, after {len(self)}")
            if handle is not None and handle.remote != arguments.handle:
                raise ValueError(f"a lock of handle {row.handle}, which is another one")
            self.add(row)
        self._news.clear()


def gives_up(t: "Desk", call: Call, handle: Handle, request: operations.Setlk) -> bool:
    """Answer it ahead, or not: then it goes the usual way."""
    key, tenant = key_of(handle), t.gate.tenant
    if key is None or request.flock or not (handle.silent and handle.remote >= 0 and t.ahead.serves and t.ahead.room):
        return False
    if t.ahead.halted or t.outage is not None or call.before or call.interrupted or t.session.known(call.id) is not None:
        return False
    if tenant.writes == "through" or tenant.cache.mode == "strict" or len(t.unlocks) >= MOST or t.session.would_wait(0):
        return False
    if request.type != _UNLOCK and not (
        request.type == _READ and t.handles.locks.excludes_others(handle.place, request.owner, request.start, request.end)
    ):
        return False
    arguments = messages.Setlk(handle.remote, request.owner, request.start, request.end, request.type)
    number = t.session.unlock_id(call.id)
    row = Owed(number, handle.id, key, t.handles.path(handle), OPERATION, _ENCODER.encode(arguments), 0, 0)
    _ask(t, row, arguments)
    t.unlocks.add(row)
    ordering.adjust(t)
    return True


def ask_again(t: "Desk") -> None:
    """What a process before this one answered ahead. To be called before the client is asked for any other lock."""
    for row in t.unlocks:
        _ask(t, row, decoded(row, messages.Setlk))


def _ask(t: "Desk", row: Owed, arguments: messages.Setlk) -> None:
    # Nobody waits for it: it is asked for as long as there is a connection.
    t.session.ask(Pending(row.request, arguments, math.inf, partial(_settled, t, row), partial(_failed, t, row)))


def _settled(t: "Desk", row: Owed, _result: Any) -> None:
    t.unlocks.remove(row)
    ordering.adjust(t)


def _failed(t: "Desk", row: Owed, errno: str) -> None:
    """The client has no such handle any more, and so no such lock; or it cannot say so."""
    _settled(t, row, None)
    if t.tells_everything:
        detail = "a lock was given up; the answer was given before"
        t.note(Record(kind="failed", operation=OPERATION, path=row.path, decision="failed", errno=errno, detail=detail))

"""What was asked of the client, and given up before it answered: it may have been done all the same.

While the connection stands, its late answer tells, and what it brings is given back (Desk._late). When the connection is lost
first, nobody hears of a file that was opened or a lock that was taken for a caller who has gone. So it is asked once more, under
the same number: the client repeats its first answer, or does it now, and either is given back.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from fuse_gated.errors import ProtocolError
from fuse_gated.tree.journal import GivenUp, Row
from fuse_gated.turnstile.news import News
from fuse_gated.wire import codec, messages
from fuse_gated.wire.messages import Asked
from fuse_gated.wire.session import Pending

_UNLOCK: Final = 2
_OPENING: Final = (messages.Open, messages.Create, messages.Opendir)
_ENCODER: Final = msgspec.msgpack.Encoder()


class Leftovers(News):
    """By the numbers of the requests: what they asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._given_up: dict[int, GivenUp] = {}

    def __bool__(self) -> bool:
        return bool(self._given_up)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._given_up))

    def everything(self) -> Iterator[Row]:
        """All that a successor must know."""
        self._news.clear()
        yield from self._given_up.values()

    def restore(self, rows: dict[int, GivenUp]) -> None:
        """As a process before this one left it."""
        self._given_up = rows

    def add(self, pending: Pending | None) -> None:
        """A request whose caller is answered without it, if it was sent."""
        if pending is None or not pending.sent:
            return
        arguments = pending.arguments
        takes_lock = isinstance(arguments, messages.Setlk) and arguments.type != _UNLOCK
        if takes_lock or isinstance(arguments, _OPENING):
            self.may_be_done(pending)

    def may_be_done(self, pending: Pending) -> None:
        """The client may have done it, for this process or for one before that did not live to hear of it."""
        row = GivenUp(pending.id, pending.operation, _ENCODER.encode(pending.arguments))
        self._given_up[pending.id] = row
        self._news.append(row)

    def over(self, number: int) -> None:
        """The client has answered it."""
        del self._given_up[number]
        self._news.append(GivenUp(number))

    def arguments(self, number: int) -> messages.Arguments | None:
        """What to ask once more; None for what cannot be. Nobody waits for a lock any more."""
        row = self._given_up[number]
        try:
            arguments = codec.decode_arguments(Asked(number, row.operation, msgspec.Raw(row.arguments)))
        except ProtocolError:
            return None
        return msgspec.structs.replace(arguments, wait=0) if isinstance(arguments, messages.Setlk) else arguments

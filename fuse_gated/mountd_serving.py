"""How the mount keeper serves one daemon after the other.

A daemon that is gone has not ended its sessions: if it had wanted to, it would have unmounted them. So what it leaves is kept
for the next one, which comes soon, and only if none does everything is unmounted.
"""

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import REQUESTS, FromDaemon, FromKeeper, Resumed
from fuse_gated.edge.process import Signals, tell
from fuse_gated.errors import PeerError
from fuse_gated.mountd import PROGRAM, MountKeeper

PATIENCE: Final = 30.0
"""Seconds that mounts are kept for the next daemon."""
_ENDS: Final = frozenset({signal.SIGTERM, signal.SIGINT})


class Arrivals(Protocol):
    """Where daemons come from. Readable when one may have come, or when none will come any more."""

    def fileno(self) -> int: ...

    def accept(self) -> socket.socket | None:
        """The connection of a daemon that has come, or None where it is gone or turned away. Raises EOFError when none will come
        any more."""
        ...


class Attendance:
    """Serves whoever comes. `changed` is told of each new connection, and None when it is over."""

    def __init__(
        self, keeper: MountKeeper, arrivals: Arrivals, signals: Signals, changed: Callable[[socket.socket | None], None]
    ) -> None:
        self._keeper = keeper
        self._signals = signals
        self._arrivals: Arrivals | None = arrivals
        self._changed = changed
        self._arrived: socket.socket | None = None
        self._told_to_end = False
        self.for_good = False
        """Whether SIGUSR2 has come: nobody will be started in our place."""

    def run(self, connected: socket.socket | None, patience: float | None, *, waits_for_first: bool = False) -> bool:
        """Until a signal tells us to end, which is True, or nobody comes any more: not within `patience` seconds where something
        is mounted, else not at once. None: whatever is mounted, somebody will come, until the arrivals end.

        `connected` is a daemon that an earlier keeper has served, and it is told. With `waits_for_first` the first one may take
        its time, where nothing is mounted.
        """
        waiting: _Waiting = (Resumed(id=0), []) if connected is not None else None
        while True:
            if connected is None:
                forever = patience is None or (waits_for_first and not self._keeper.holds)
                connected = self._wait(None if forever else patience if self._keeper.holds else 0.0)
                if connected is None:
                    return self._told_to_end
                self._changed(connected)
            waits_for_first = False
            with connected:
                self._serve(connected, waiting)
            if self._told_to_end:
                return True
            self._changed(None)
            connected, waiting = None, None

    def _serve(self, connected: socket.socket, waiting: "_Waiting") -> None:
        """Answer a daemon until it is gone, another one has come, or we are told to end."""
        # It has no descriptor to give us.
        channel = Channel(connected, REQUESTS, max_fds=0)
        try:
            self._answer(channel, waiting)
        except PeerError as error:
            tell(PROGRAM, f"the daemon is gone: {error}")

    def _answer(self, channel: Channel[FromDaemon], waiting: "_Waiting") -> None:
        poll = self._poll()
        while self._arrived is None and not self._told_to_end:
            # One request at a time: a daemon that does not read its answers is asked for no more.
            poll.register(channel, select.POLLIN if waiting is None else select.POLLOUT)
            self._hear(poll.poll(), poll)
            with contextlib.suppress(BlockingIOError):
                if waiting is None:
                    received = channel.receive()
                    if received is None:
                        return
                    waiting = self._keeper.answer(received[0])
                channel.send(*waiting)
                waiting = None

    def _wait(self, patience: float | None) -> socket.socket | None:
        """The next daemon; None when none has come within `patience` seconds, none ever will, or we are told to end."""
        poll = self._poll()
        end = None if patience is None else time.monotonic() + patience
        while self._arrived is None and self._arrivals is not None and not self._told_to_end:
            left = None if end is None else max(0.0, end - time.monotonic())
            ready = poll.poll(None if left is None else left * 1000)
            self._hear(ready, poll)
            if not ready:
                break
        arrived, self._arrived = self._arrived, None
        if arrived is None and self._keeper.holds and not self._told_to_end:
            tell(PROGRAM, f"no daemon has come: unmounting what the last one left, {self._keeper.holds} in all")
        return arrived

    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self._arrivals is not None:
            poll.register(self._arrivals, select.POLLIN)
        return poll

    def _hear(self, ready: list[tuple[int, int]], poll: select.poll) -> None:
        """Take in what the signals and the arrivals have brought."""
        received = self._signals.received()
        self.for_good = self.for_good or signal.SIGUSR2 in received
        self._told_to_end = self._told_to_end or not _ENDS.isdisjoint(received)
        arrivals = self._arrivals
        if arrivals is None or not any(fd == arrivals.fileno() for fd, _ in ready):
            return
        try:
            arrived = arrivals.accept()
        except EOFError:
            poll.unregister(arrivals)
            self._arrivals = None
            return
        if arrived is not None:
            # The newest is the one that runs.
            if self._arrived is not None:
                self._arrived.close()
            self._arrived = arrived


_Waiting = tuple[FromKeeper, list[int]] | None
"""An answer for which there was no room yet."""

__all__ = ["PATIENCE", "Arrivals", "Attendance"]

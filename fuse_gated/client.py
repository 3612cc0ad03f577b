"""The client: one export, offered to one server, over one connection after the other.

The states are a table (TRANSITIONS). A session outlives its connections: while the client is away it keeps what the server
has open and locked, for as long as the server keeps the session, and a little longer. Then, or when the server says that it
no longer knows the session, all of that is given back, and a new session begins under the same name.
"""

import enum
from collections.abc import Callable
from typing import Final

import msgspec

from fuse_gated import __version__
from fuse_gated.connection import Connection
from fuse_gated.edge.answering import Answering
from fuse_gated.edge.destination import Destination
from fuse_gated.edge.files import Export
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.pool import Pool
from fuse_gated.endings import Ending, Outlook
from fuse_gated.errors import GateError, PeerError, ProtocolError
from fuse_gated.persistence import Persistence
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Asked, Cancel, FromServer, Hello, Offer, Terms, Welcome

HELD_BEYOND: Final = 30.0
"""Seconds after the server's grace for which handles and locks are kept: the server counts from when it noticed."""
LONGEST_GRACE: Final = 7 * 24 * 3600.0
"""For which a server may have this client keep files open and locked: what a policy may say at most."""
_LONGEST_SECRET: Final = 1024
_GOODBYE: Final = "goodbye"
_ARRIVAL: Final = 5.0
"""Seconds in which what programs on the server have closed is to arrive when the client leaves."""
_ENDING_TIMEOUT: Final = 2.0
_VIOLATION: Final = 1008


class State(enum.Enum):
    CONNECTING = "connecting"
    LOGGED_IN = "logged in"
    MOUNTED = "mounted"
    WAITING = "waiting"
    FAILED = "failed"
    CLOSED = "closed"


TRANSITIONS: Final = {
    (State.CONNECTING, "upgraded"): State.LOGGED_IN,
    (State.LOGGED_IN, "welcomed"): State.MOUNTED,
    (State.CONNECTING, "lost"): State.WAITING,
    (State.LOGGED_IN, "lost"): State.WAITING,
    (State.MOUNTED, "lost"): State.WAITING,
    (State.WAITING, "due"): State.CONNECTING,
    (State.WAITING, "given up"): State.FAILED,
    (State.CONNECTING, "left"): State.CLOSED,
    (State.LOGGED_IN, "left"): State.CLOSED,
    (State.MOUNTED, "left"): State.CLOSED,
    (State.WAITING, "left"): State.CLOSED,
}
"""What may happen in which state, and where it leads."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Something that happened: 'connecting', 'logged-in', 'mounted' (a new session; `replaced`: after the server lost the one
    before), 'connection-lost', 'reconnecting' (`attempt` comes in `delay` seconds), 'resumed' (the session goes on),
    'watches-exhausted' (once: not all can be watched that the server would remember) or 'closed'. `path` is where the server
    mounted it."""

    event: str
    server: str | None = None
    export: str | None = None
    path: str | None = None
    session: str | None = None
    replaced: bool = False
    attempt: int | None = None
    delay: float | None = None
    reason: str | None = None


class Client:
    """Runs on a loop of the caller's; `on_event` hears what happens. One use: a client that has ended stays ended."""

    def __init__(
        self,
        loop: Loop,
        export: Export,
        destination: Destination,
        on_event: Callable[[Event], None],
        persistence: Persistence | None = None,
    ) -> None:
        self.state = State.CONNECTING
        self.mount_path = ""
        self.reason = ""
        """Why there is no connection, while there is none."""
        self.next_attempt: float | None = None
        """When it comes, in the loop's time, while it is waited for."""
        self._pools = (Pool(loop), Pool(loop))
        self.answering = Answering(
            loop, export, self._pools[0], self._send, self._queued, self._pools[1], self._watches_exhausted
        )
        self._loop = loop
        self._export = export
        self._destination = destination
        self._on_event = on_event
        self._persistence = persistence or Persistence()
        self._tls = destination.tls_context()
        self._connection: Connection | None = None
        self._secret: bytes | None = None
        self._offered = False
        self._held_for = 0.0
        self._sessions = 0
        self._failures = 0
        self._mounted_at = 0.0
        self._attempt_timer: Timer | None = None
        self._holding_timer: Timer | None = None
        self._failure: GateError | None = None
        self._leaving = False
        self._parted = False
        """Whether the server has been told."""

    def run(self) -> None:
        """Serve until the session ends, over as many connections as it takes. Returns after a goodbye.

        Raises RefusedError if the server refuses, PeerError if it cannot be reached, or breaks off or the protocol, and
        another attempt is not wanted or would not help.
        """
        self._on_event(Event(event="connecting", server=self._destination.address, export=self._destination.name))
        self._connect()
        self._loop.run()
        self.answering.stop()
        # What a dead filesystem holds up ends with the process, which then also closes its files.
        if all(pool.close(_ENDING_TIMEOUT) for pool in self._pools):
            self._export.close()
        if self._failure is not None:
            raise self._failure

    def goodbye(self) -> None:
        """Leave in order; said twice, leave at once."""
        if self.state in (State.CLOSED, State.FAILED):
            return
        again, self._leaving = self._leaving, True
        if again:
            self._end("left", None)
            return
        leases = self._export.leases
        if leases is None or self._connection is None or not leases.retire(self._say_goodbye):
            self._say_goodbye()
        else:
            self._loop.after(_ARRIVAL, self._say_goodbye)

    def _say_goodbye(self) -> None:
        if self.state in (State.CLOSED, State.FAILED) or self._parted:
            return
        self._parted = True
        if self._connection is None or not self._connection.close(1000, _GOODBYE):
            self._end("left", None)

    # Connecting.

    def _connect(self) -> None:
        self._offered = False
        self._connection = Connection(self._loop, self._destination, self._tls, self, self._persistence.dead_after)

    def _try_again(self) -> None:
        self._attempt_timer = self.next_attempt = None
        self._enter("due")
        self._connect()

    # The connection's events (connection.py).

    def on_upgraded(self) -> None:
        self._enter("upgraded")
        self._on_event(Event(event="logged-in"))
        offer = Offer(
            export=self._destination.name,
            program=f"fuse-gate/{__version__}",
            root=self._export.root,
            capabilities=self._export.capabilities,
            resume=self._secret,
        )
        self._offered = self._secret is not None
        assert self._connection is not None
        self._connection.send(codec.encode(Hello(offer)))

    def on_message(self, data: bytes | bytearray | memoryview) -> None:
        for frame in codec.decode_from_server(data):
            self._frame(frame)

    def on_lost(self, end: Ending) -> None:
        """Decides what happens next: another attempt, or the end."""
        was_mounted = self.state is State.MOUNTED
        self._connection = None
        self.answering.suspend()
        if self._leaving:
            self._end("left", None)
            return
        self._enter("lost")
        self.reason = end.error.message
        if was_mounted:
            self._on_event(Event(event="connection-lost", reason=self.reason))
            self._failures = 0
            self._holding_timer = self._loop.after(self._held_for, self._hold_no_longer)
        else:
            self._failures += 1
        most = self._persistence.max_attempts
        if not self._may_help(end.outlook):
            self._end("given up", end.error)
        elif most is not None and self._failures >= most:
            times = f"{most} attempts" if most > 1 else "one attempt"
            self._end("given up", PeerError(f"given up after {times}: {end.error.message}", end.error.hint))
        else:
            stayed = self._loop.now - self._mounted_at >= self._persistence.delay
            # One that says so again and again is believed no more.
            soon = end.soon and was_mounted and stayed
            delay = self._persistence.short_pause() if soon else self._persistence.pause(self._failures)
            self.next_attempt = self._loop.now + delay
            self._attempt_timer = self._loop.after(delay, self._try_again)
            self._on_event(
                Event(event="reconnecting", attempt=self._failures + 1, delay=round(delay, 3), reason=self.reason)
            )

    def _may_help(self, outlook: Outlook) -> bool:
        """Whether another attempt is wanted, and has a chance."""
        if outlook is Outlook.FINAL or not self._persistence.reconnect:
            return False
        return bool(self._sessions) or (self._persistence.from_start and outlook is Outlook.PASSING)

    def _frame(self, frame: FromServer) -> None:
        if isinstance(frame, Asked):
            if self.state is not State.MOUNTED:
                raise ProtocolError("a request before the welcome")
            self.answering.asked(frame)
        elif isinstance(frame, Cancel):
            self.answering.cancelled(frame)
        else:
            self._welcomed(frame)

    # The session.

    def _welcomed(self, frame: Welcome) -> None:
        terms = frame.terms
        if self.state is not State.LOGGED_IN:
            raise ProtocolError("a second welcome")
        _check(terms)
        if not terms.resumed:
            self.answering.begin(terms)
        elif self._offered:
            self.answering.resume(terms)
        else:
            raise ProtocolError("a session goes on that this client has not asked for", _VIOLATION)
        if self._holding_timer is not None:
            self._holding_timer.cancel()
        self._secret = terms.resume
        self._held_for = min(terms.grace, LONGEST_GRACE) + HELD_BEYOND
        self.mount_path, self.reason = terms.mount, ""
        self._failures, self._mounted_at = 0, self._loop.now
        replaced = bool(self._sessions) and not terms.resumed
        self._sessions += not terms.resumed
        assert self._connection is not None
        self._connection.welcomed()
        self._enter("welcomed")
        happened = "resumed" if terms.resumed else "mounted"
        self._on_event(Event(event=happened, path=terms.mount, session=terms.session, replaced=replaced))

    def _hold_no_longer(self) -> None:
        """The server has given the session up by now: nobody's files stay open and locked here for it."""
        if self.state is State.LOGGED_IN:
            # Just now it is asked whether it has.
            self._holding_timer = self._loop.after(1.0, self._hold_no_longer)
            return
        self._secret = None
        self.answering.forget()

    def _watches_exhausted(self) -> None:
        assert self._export.watches is not None
        why = f"{len(self._export.watches):,} directories are watched for changes, as many as may: the others are slower"
        self._on_event(Event(event="watches-exhausted", reason=f"{why} (raise it with: sysctl fs.inotify.max_user_watches)"))

    # Endings.

    def _end(self, happened: str, error: GateError | None) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._enter(happened)
        # Now, and not when the loop has ended: one may be due in this very turn.
        for timer in (self._attempt_timer, self._holding_timer):
            if timer is not None:
                timer.cancel()
        self._failure = error
        self._on_event(Event(event="closed", reason=_GOODBYE if error is None else error.message))
        self._loop.stop()

    def _enter(self, happened: str) -> None:
        self.state = TRANSITIONS[self.state, happened]

    def _send(self, message: bytearray | codec.Parts) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _queued(self) -> int:
        return self._connection.queued if self._connection is not None else 0


def _check(terms: Terms) -> None:
    """Raises ProtocolError for terms that make no sense."""
    if not terms.grace >= 0.0:  # Not `<`: NaN is neither.
        raise ProtocolError(f"a grace of {terms.grace} seconds", _VIOLATION)
    if len(terms.resume) > _LONGEST_SECRET:
        raise ProtocolError(f"a secret of {len(terms.resume)} bytes", _VIOLATION)

"""What every process of the daemon's has that serves, or may come to serve, a session: the daemon's messages, the journal, the
session itself, and its end. A worker (worker.py) has a connection besides; a standby has none and waits for the client.
"""

import os
from typing import Final

import msgspec

from fuse_gated import allotments, supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.fuse_kernel import Negotiated
from fuse_gated.edge.journal import Journal
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.notifying import Notifier
from fuse_gated.errors import GateError, PeerError, ProtocolError
from fuse_gated.gate.audit import Chain, Record
from fuse_gated.gate.shares import Shares
from fuse_gated.mounted import Mounted
from fuse_gated.operations import Caller
from fuse_gated.serving import Recorder
from fuse_gated.supervision import CLOSE_POLICY, CLOSE_RESTART
from fuse_gated.turnstile.turnstile import Statistics

UNMOUNT_PATIENCE: Final = 5.0
LAST_WORDS: Final = 1.0
"""Seconds that a peer has to read why its connection ends."""
LOOK_AGAIN: Final = 0.02
_BY_WHOM: Final = 0.3
"""Seconds in which the end of the others shows, where a mount was taken away with them."""


class Servant:
    """A process with a channel to the daemon. `session` is the name of the session that it serves, or that may come of it."""

    def __init__(
        self,
        loop: Loop,
        channel: Channel[supervision.FromDaemon],
        journal: Journal,
        notifier: Notifier,
        session: str,
        settings: Settings,
    ) -> None:
        self.loop = loop
        self.channel = channel
        self.journal = journal
        self.notifier = notifier
        self.session = session
        self.settings = settings
        self.mounted: Mounted | None = None
        self.shares: Shares | None = None
        """What the session has in common with the tenant's others."""
        self.ending = False
        self.deserted = False
        """The daemon is gone, or about to go."""
        self.recorder = Recorder(loop, journal, Chain("", session, ""), self._record_taken, self._journal_broken)
        loop.watch(channel.fileno(), self._from_daemon)

    # For whom there is a connection to say it to.

    def hang_up(self, code: int, reason: str) -> None:
        """Close the connection, if there is one."""

    def abort(self) -> None:
        """Let go of it at once."""

    def opened(self) -> None:
        """The mount is ready, and the client is welcomed if it is there."""

    @property
    def heard(self) -> bool:
        """Whether the peer has had its last words, or there is none."""
        return True

    # The daemon's messages.

    def _from_daemon(self, _events: int) -> None:
        try:
            received = self.channel.receive()
        except BlockingIOError:
            return
        except PeerError:
            received = None
        if received is None:
            self.deserted = True
            self.loop.forget(self.channel.fileno())
            self.leave_to_successor()
            return
        message, fds = received
        if isinstance(message, supervision.Enclosed):
            message = supervision.disclose(fds.pop(0))
        self.told(message, fds)

    def told(self, message: supervision.FromDaemon, fds: list[int]) -> None:
        """A message of the daemon's, and what came with it."""
        match message:
            case supervision.TakeOver():
                self.take_over(message, fds)
            case supervision.Apply():
                if self.mounted is not None:
                    self.mounted.apply(message.tenant, message.identity)
            case supervision.End():
                self.leave(message.code, message.reason)
            case supervision.Yield():
                self._yield_up()
            case supervision.Unmounted():
                # Not `_stop`: if it is gone, the driver hears so from the kernel; if not, its callers go on being answered.
                self._stop_when_heard(self.loop.now + LAST_WORDS)
            case supervision.Attach():
                self._attach(message, fds[0])
            case supervision.AttachRefused():
                if self.mounted is not None:
                    self.mounted.refused(message.uid, message.pid)
            case supervision.JournalOpened():
                self.journal.reconnect(fds[0])
            case supervision.Ask():
                self._report(message.id)

    def _attach(self, message: supervision.Attach, fd: int) -> None:
        if self.mounted is None or self.ending:
            # The program sees the socket's end, and may try again.
            os.close(fd)
        else:
            self.mounted.attach(fd, Caller(message.uid, message.gid, message.pid), message.gids)

    def take_over(self, message: supervision.TakeOver, fds: list[int]) -> None:
        """Go on with a session where another process stopped."""
        device, state, shares = fds
        self.session = message.session
        self.shares = allotments.view(shares, message.share)
        self.mounted = self.make_mounted(message)
        try:
            self.mounted.go_on(device, state, self.secret, message.detail, self.shown)
        except Exception as error:
            # Whoever wrote the state may have been anyone, and left what reading it stumbles over. It is its own session that
            # nobody can go on with then, so its mount goes: whoever waits on it is told by that.
            self.mounted.let_go()
            self.mounted = None
            reason = error.message if isinstance(error, GateError) else f"{type(error).__name__}: {error}"[:200]
            self.tell("session-closed", f"session {message.session} cannot be gone on with: {reason}")
            self.send(supervision.Ending(reason))
            self.ending = True
            self.hang_up(1011, "the server cannot go on with the session: connect again")
            self.loop.after(UNMOUNT_PATIENCE, self.loop.stop)

    def make_mounted(self, message: supervision.TakeOver) -> Mounted:
        """The session, as this process is to serve it."""
        return Mounted(self, message.session, message.tenant, message.identity, None)

    @property
    def secret(self) -> bytes:
        """What the client that is there has shown to go on."""
        return b""

    @property
    def shown(self) -> str:
        """Where that client is."""
        return ""

    # The end.

    def leave_to_successor(self, *, daemon_lives: bool = False) -> None:
        """Serve no more. The session is not over: another process goes on with it, or the mount keeper takes its mount away."""
        self.deserted = self.deserted or not daemon_lives
        if self.mounted is None or self.ending:
            self.leave(CLOSE_RESTART, "the server is being restarted")
            self.loop.after(UNMOUNT_PATIENCE, self.loop.stop)
            return
        if self.mounted.about.driver != "kernel" and not daemon_lives:
            # Libfuse's process ends with it, and a session without a mount has nothing that stays.
            self.leave(1001, "the server is stopping")
        else:
            self._yield_up()

    def _yield_up(self) -> None:
        """Another process goes on with the session."""
        if self.ending or self.mounted is None:
            return
        self.ending = True
        self.mounted.hangs_up()
        self.hang_up(CLOSE_RESTART, "the server is being restarted")
        self._yield_when_idle(self.loop.now + LAST_WORDS)

    def _yield_when_idle(self, latest: float) -> None:
        """While a notification waits in the kernel, whoever holds what it waits for may wait for an answer of ours."""
        mounted = self.mounted
        if mounted is not None and self.loop.now < latest and not (self.notifier.idle and self.heard and mounted.idle):
            self.loop.after(LOOK_AGAIN, lambda: self._yield_when_idle(latest))
            return
        if mounted is not None:
            mounted.yield_up()
        self.loop.stop()

    def leave(self, code: int, reason: str) -> None:
        """End in order, whatever stage it is at."""
        self.end(reason)
        self.hang_up(code, reason)
        if self.mounted is None:
            self.loop.after(1.0, self.loop.stop)

    def end(self, reason: str) -> None:
        """The session is over: callers are answered, open files told, the mount given back."""
        if self.ending:
            return
        self.ending = True
        if self.mounted is None:
            self.tell("connection-refused", reason)
            return
        self.mounted.close()
        self.tell("session-closed", reason)
        self.send(supervision.Ending(reason))
        self.loop.after(UNMOUNT_PATIENCE, self.loop.stop)

    def violated(self, error: ProtocolError) -> None:
        """The client broke the protocol."""
        if self.ending:
            return
        self.tell("protocol-violation", error.message)
        if self.mounted is None:
            self.ending = True
        self.end(f"the client broke the protocol: {error.message}")
        self.hang_up(error.close_code, error.message)

    def unmounted(self) -> None:
        """The kernel says that the mount is gone: unmounted by us, or by the operator's hand."""
        if not self.ending:
            self.end("unmounted on the server")
            self.loop.after(_BY_WHOM, self._say_by_whom)
        self._stop_when_heard(self.loop.now + LAST_WORDS + _BY_WHOM)

    def _say_by_whom(self) -> None:
        """By the operator's hand, who does not want it mounted again; or by the keeper, which ends together with the daemon."""
        if self.deserted:
            self.hang_up(CLOSE_RESTART, "the server has ended")
        else:
            self.hang_up(CLOSE_POLICY, "unmounted on the server")

    def _stop_when_heard(self, latest: float) -> None:
        """The close frame that is still on its way gets its second; the daemon takes care of a worker that does not end."""
        if self.heard or self.loop.now >= latest:
            self.loop.stop()
        else:
            self.loop.after(LOOK_AGAIN, lambda: self._stop_when_heard(latest))

    # Details.

    def _record_taken(self) -> None:
        if self.mounted is not None:
            self.mounted.serving.on_record_taken()

    def _journal_broken(self) -> None:
        self.send(supervision.JournalBroken(self.journal.trouble))

    def tell(self, kind: str, detail: str) -> None:
        if self.mounted is not None:
            self.mounted.tell(kind, detail)
        elif self.recorder.waiting is None:
            self.recorder.write(Record(kind=kind, detail=f"{detail}; from {self.shown}" if self.shown else detail))

    def send(self, message: msgspec.Struct) -> None:
        try:
            self.channel.send(message)
        except (PeerError, BlockingIOError):
            # A daemon that is gone, or that does not read: nothing more is to be said to it.
            self.loop.soon(self.leave_to_successor)

    def _report(self, number: int) -> None:
        mounted = self.mounted
        turnstile = mounted.serving.turnstile if mounted is not None else None
        driver = mounted.driver if mounted is not None else None
        self.send(
            supervision.Report(
                id=number,
                statistics=turnstile.statistics if turnstile is not None else Statistics(),
                inodes=len(turnstile.inodes) if turnstile is not None else 0,
                open_files=len(turnstile.handles) if turnstile is not None else 0,
                in_flight=turnstile.session.in_flight if turnstile is not None else 0,
                waiting=turnstile.session.waiting if turnstile is not None else 0,
                records=self.recorder.chain.sequence,
                protocol=_protocol(driver.negotiated) if driver is not None else "",
                silenced=mounted.serving.silenced if mounted is not None else False,
            )
        )


def _protocol(negotiated: Negotiated | None) -> str:
    """FUSE's version, where there is a mount."""
    return f"7.{negotiated.minor}" if negotiated is not None and negotiated.minor else ""

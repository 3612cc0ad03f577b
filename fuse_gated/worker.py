"""The worker: one connection, from its first byte to its session's end.

It is forked for a stranger and caged before it reads what that stranger sends (worker_process.py): TLS, the upgrade, login and
hello are all done here, without privilege. The stages of a login (login.py) are followed by: mounted -> ending.
"""

import http
import os
import socket
from typing import Final

import msgspec
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.fuse_kernel import KernelDriver, Notifier
from fuse_gated.edge.fuse_libfuse import LibfuseDriver
from fuse_gated.edge.journal import Journal
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import PeerError, ProtocolError
from fuse_gated.gate.audit import Chain, Record
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.login import Login
from fuse_gated.serving import Recorder, Serving
from fuse_gated.turnstile.files import tell_closed
from fuse_gated.turnstile.turnstile import Limits, Statistics, Turnstile
from fuse_gated.wire import codec
from fuse_gated.wire.messages import MAX_MESSAGE, SUBPROTOCOL, Terms, Welcome
from fuse_gated.wire.session import MAX_HELLO, read_hello

PING_EVERY: Final = 15.0
DEAD_AFTER: Final = 45.0
_UNMOUNT_PATIENCE: Final = 5.0
LAST_WORDS: Final = 1.0
"""Seconds that a peer has to read why its connection ends."""
LOOK_AGAIN: Final = 0.02


class Visitor(msgspec.Struct, frozen=True):
    """What the daemon knows of a connection: the name of the session that may come of it, and where it came from."""

    session: str
    address: str


class Worker:
    """One connection and what comes of it."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        channel: Channel[supervision.FromDaemon],
        journal: Journal,
        notifier: Notifier,
        visitor: Visitor,
        settings: Settings,
    ) -> None:
        self.loop = loop
        self.visitor = visitor
        self.settings = settings
        self.channel = channel
        self.journal = journal
        self.notifier = notifier
        self.serving: Serving | None = None
        self.driver: KernelDriver | LibfuseDriver | None = None
        self.path = ""
        self.ending = False
        self._stage = ""
        origins = [None, *(Origin(origin) for origin in settings.origins)]
        protocol = ServerProtocol(
            origins=origins, subprotocols=[Subprotocol(SUBPROTOCOL)], extensions=None, max_size=MAX_MESSAGE
        )
        self.protocol = protocol
        self.socket = WebSocket(loop, sock, protocol, self, expected=MAX_HELLO)
        self.login = Login(self, self.socket, protocol)
        chain = Chain("", visitor.session, "")
        self.recorder = Recorder(loop, journal, chain, self._record_taken, self._journal_broken)
        self._deadline = loop.after(settings.admission.login_deadline, self._too_late)
        loop.watch(channel.fileno(), self._from_daemon)

    @property
    def stage(self) -> str:
        """How far it has come."""
        return self._stage or self.login.stage

    # The connection's events (edge/websocket.py).

    def on_request(self, request: Request) -> None:
        self.login.asked(request)

    def on_response(self, response: Response) -> None:
        """A server gets none."""

    def on_message(self, data: bytes | bytearray) -> None:
        try:
            if self._stage == "mounted":
                assert self.serving is not None
                self.serving.on_message(data)
            elif self.stage == "greeting":
                self.login.greeted(read_hello(data))
            elif not self.ending:
                raise ProtocolError("a message before the welcome")
        except ProtocolError as error:
            self._violated(error)

    def on_closed(self, code: int, reason: str) -> None:
        """The client is gone: what waits for it is answered, then the mount goes."""
        sent = self.protocol.close_sent
        if sent is not None and not self.ending and not self.protocol.close_rcvd_then_sent:
            # Our side closed, and not by a word of ours: what came was no WebSocket message that we take.
            self._violated(ProtocolError(sent.reason, sent.code))
        elif self.serving is None:
            self.end(reason or "it ended before a session was open")
        else:
            self.end(f"the client left: {code} {reason}".rstrip() if code != 1000 else "the client left in order")
        if self.serving is None:
            # A mount that is still being made goes with this process: the daemon sees to that.
            self._stop_when_heard(self.loop.now + LAST_WORDS)

    # The daemon's messages.

    def _from_daemon(self, _events: int) -> None:
        try:
            received = self.channel.receive()
        except BlockingIOError:
            return
        except PeerError:
            received = None
        if received is None:
            self.loop.forget(self.channel.fileno())
            self.end("the daemon is gone")
            self.socket.close(1001, "the server is going away")
            self.loop.after(_UNMOUNT_PATIENCE, self.loop.stop)
            return
        message, fds = received
        if isinstance(message, supervision.Enclosed):
            message = supervision.disclose(fds.pop())
        match message:
            case supervision.LoggedIn():
                self.login.accepted(message.tenant, message.identity)
            case supervision.LoginRefused():
                self.login.refused(message.reason)
            case supervision.Opened():
                self._opened(message, fds)
            case supervision.OpenRefused():
                self.end(message.reason)
                self.socket.close(message.code, message.reason)
            case supervision.Apply():
                self._apply(message)
            case supervision.End():
                self.leave(message.code, message.reason)
            case supervision.Unmounted():
                # Not `_unmounted`: if it is gone, the driver hears so from the kernel; if not, its callers go on being answered.
                self._stop_when_heard(self.loop.now + LAST_WORDS)
            case supervision.JournalOpened():
                self.journal.reconnect(fds[0])
            case supervision.Ask():
                self._report(message.id)

    def leave(self, code: int, reason: str) -> None:
        """End in order, whatever stage it is at."""
        self.end(reason)
        self.socket.close(code, reason)
        if self.serving is None:
            self.loop.after(1.0, self.loop.stop)

    # The mount.

    def _opened(self, message: supervision.Opened, fds: list[int]) -> None:
        tenant, identity, offer = self.login.tenant, self.login.identity, self.login.offer
        assert tenant is not None
        assert identity is not None
        assert offer is not None
        if self.ending:
            self.send(supervision.Ending("the client had gone before it was mounted"))
            return
        self.path = message.path
        # One chain a session, from the connection's first record on; only the names become known here.
        sequence, head = self.recorder.chain.sequence, self.recorder.chain.head
        self.recorder.chain = Chain(
            tenant.name, self.visitor.session, offer.export, sequence=sequence, head=head
        )
        turnstile = Turnstile(
            Gate(tenant, identity, read_only="read-only" in offer.capabilities),
            Limiter(tenant.limits, self.loop.now),
            Limits(
                deadline=self.settings.request_deadline,
                max_in_flight=self.settings.max_in_flight,
                max_bytes_in_flight=self.settings.max_bytes_in_flight,
                inodes=self.settings.inodes,
                refusals=self.settings.audit.refusals,
            ),
            export_root=offer.root,
        )
        self.serving = Serving(self.loop, turnstile, self.socket, self.recorder, self._violated)
        self.driver = self._driver(message.driver, fds[0])
        self.serving.attach(self.driver)
        self.socket.expect(MAX_MESSAGE)
        self._stage = "mounted"
        self.tell("session-opened", f"from {self.visitor.address}, {message.driver} driver, {offer.program[:80]}")

    def _driver(self, name: str, fd: int) -> KernelDriver | LibfuseDriver:
        assert self.serving is not None
        if name == "libfuse":
            return LibfuseDriver(fd, self.loop, self.serving.on_request, self._ready, self._gone)
        return KernelDriver(fd, self.notifier, self.serving.on_request, self._ready, self._gone)

    def _ready(self) -> None:
        """INIT is answered: the mount can be used."""
        assert self.serving is not None
        self._deadline.cancel()
        terms = Terms(
            session=self.visitor.session,
            resume=os.urandom(32),
            mount=self.path,
            max_in_flight=self.settings.max_in_flight,
            max_bytes_in_flight=self.settings.max_bytes_in_flight,
            deadline=self.settings.request_deadline,
        )
        self.socket.send(codec.encode(Welcome(terms)))
        self.loop.after(PING_EVERY, self._ping)

    def _gone(self) -> None:
        """The kernel says that the mount is gone: unmounted by us, or by the operator's hand."""
        if self.serving is not None:
            self.serving.detach()
        self.driver = None
        if not self.ending:
            self.end("unmounted on the server")
            self.socket.close(1001, "unmounted on the server")
        self._unmounted()

    def _ping(self) -> None:
        if self.ending:
            return
        if self.loop.now - self.socket.last_heard > DEAD_AFTER:
            self.end(f"nothing heard from the client for {DEAD_AFTER:.0f} s")
            self.socket.abort()
            return
        self.socket.ping()
        self.loop.after(PING_EVERY, self._ping)

    def _apply(self, message: supervision.Apply) -> None:
        self.login.tenant, self.login.identity = message.tenant, message.identity
        if self.serving is None:
            return
        turnstile = self.serving.turnstile
        gate = Gate(message.tenant, message.identity, read_only=turnstile.gate.read_only)
        turnstile.apply(self.loop.now, gate)
        self.tell("policy-applied", f"{len(message.tenant.rules)} rules")

    # The end.

    def _violated(self, error: ProtocolError) -> None:
        if self.ending:
            return
        self.tell("protocol-violation", error.message)
        if self.serving is None:
            self.ending = True
        self.end(f"the client broke the protocol: {error.message}")
        self.socket.close(error.close_code, error.message)

    def _too_late(self) -> None:
        """`_ready` did not come in time. Cancelled by it."""
        self.end(f"no session within {self.settings.admission.login_deadline:g} s ({self.stage})")
        reason = "login took too long"
        if self.protocol.state is State.CONNECTING and not self.protocol.eof_sent:
            self.protocol.send_response(self.protocol.reject(http.HTTPStatus.REQUEST_TIMEOUT, reason + "\n"))
            self.socket.flush_soon()
        else:
            self.socket.close(supervision.CLOSE_LIMIT, reason)
        self.loop.after(LAST_WORDS, self.socket.abort)

    def end(self, reason: str) -> None:
        """The session is over: callers are answered, open files told, the mount given back."""
        if self.ending:
            return
        if self.serving is None:
            self.tell("connection-refused", reason)
            self.ending = True
            return
        self.ending = True
        self._stage = "ending"
        turnstile = self.serving.turnstile
        turnstile.lost(self.loop.now)
        for handle in turnstile.handles:
            if not handle.directory:
                tell_closed(turnstile, handle)
        self.serving.carry_out()
        self.tell("session-closed", reason)
        self.send(supervision.Ending(reason))
        self.loop.after(_UNMOUNT_PATIENCE, self.loop.stop)

    def _unmounted(self) -> None:
        if self.serving is not None:
            self.serving.detach()
        self._stop_when_heard(self.loop.now + LAST_WORDS)

    def _stop_when_heard(self, latest: float) -> None:
        """The close frame that is still on its way gets its second; the daemon takes care of a worker that does not end."""
        if self.socket.closed or self.loop.now >= latest:
            self.loop.stop()
        else:
            self.loop.after(LOOK_AGAIN, lambda: self._stop_when_heard(latest))

    # Details.

    def _record_taken(self) -> None:
        if self.serving is not None:
            self.serving.on_record_taken()

    def _journal_broken(self) -> None:
        self.send(supervision.JournalBroken(self.journal.trouble))

    def tell(self, kind: str, detail: str) -> None:
        record = Record(kind=kind, detail=detail)
        if self.serving is not None:
            self.serving.tell(record)
        elif self.recorder.waiting is None:
            self.recorder.write(msgspec.structs.replace(record, detail=f"{detail}; from {self.visitor.address}"))

    def send(self, message: msgspec.Struct) -> None:
        try:
            self.channel.send(message)
        except (PeerError, BlockingIOError):
            # A daemon that is gone, or that does not read, ends this worker; nothing more is to be said to it.
            self.loop.stop()

    def _report(self, number: int) -> None:
        turnstile = self.serving.turnstile if self.serving is not None else None
        self.send(
            supervision.Report(
                id=number,
                statistics=turnstile.statistics if turnstile is not None else Statistics(),
                inodes=len(turnstile.inodes) if turnstile is not None else 0,
                open_files=len(turnstile.handles) if turnstile is not None else 0,
                in_flight=turnstile.session.in_flight if turnstile is not None else 0,
                waiting=turnstile.session.waiting if turnstile is not None else 0,
                records=self.recorder.chain.sequence,
                protocol=f"7.{self.driver.negotiated.minor}" if self.driver is not None and self.driver.negotiated else "",
                silenced=self.serving.silenced if self.serving is not None else False,
            )
        )

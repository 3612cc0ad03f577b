"""The worker: one connection, from its first byte to its session's end.

It is forked for a stranger and caged before it reads what that stranger sends: TLS, the upgrade, login and hello are all
done here, without privilege. The stages are: connecting -> logging in -> greeting -> mounting -> mounted -> ending.
"""

import hashlib
import http
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

import msgspec
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Origin, Subprotocol

from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge import process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.fuse_kernel import KernelDriver, Notifier
from fuse_gated.edge.fuse_libfuse import LibfuseDriver
from fuse_gated.edge.journal import Journal, open_journal
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import GateError, PeerError, ProtocolError
from fuse_gated.gate.audit import Chain, Record
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.paths import is_mount_name
from fuse_gated.serving import Recorder, Serving
from fuse_gated.turnstile.files import tell_closed
from fuse_gated.turnstile.turnstile import Limits, Statistics, Turnstile
from fuse_gated.wire import codec
from fuse_gated.wire.messages import MAX_MESSAGE, SUBPROTOCOL, Offer, Terms, Welcome
from fuse_gated.wire.session import read_hello

PING_EVERY: Final = 15.0
DEAD_AFTER: Final = 45.0
_UNMOUNT_PATIENCE: Final = 5.0
_LAST_WORDS: Final = 1.0
"""Seconds that a peer has to read why its connection ends."""
_NOTICE_PATIENCE: Final = 5.0
"""Seconds in which the kernel takes a notification from a worker that answers every request at once."""
_LOOK_AGAIN: Final = 0.02
_LONGEST_TOKEN: Final = 4096
_NO_JOURNAL: Final = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\nthe server cannot write its audit records\n"


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
        self.tenant: Tenant | None = None
        self.identity: Identity | None = None
        self.offer: Offer | None = None
        self.serving: Serving | None = None
        self.driver: KernelDriver | LibfuseDriver | None = None
        self.path = ""
        self.ending = False
        self._stage = "connecting"
        self._upgrade: Request | None = None
        self._mounted_told = False
        origins = [None, *(Origin(origin) for origin in settings.origins)]
        protocol = ServerProtocol(
            origins=origins, subprotocols=[Subprotocol(SUBPROTOCOL)], extensions=None, max_size=MAX_MESSAGE
        )
        self.protocol = protocol
        self.socket = WebSocket(loop, sock, protocol, self)
        chain = Chain("", visitor.session, "")
        self.recorder = Recorder(loop, journal, chain, self._record_taken, self._journal_broken)
        self._deadline = loop.after(settings.admission.login_deadline, self._too_late)
        loop.watch(channel.fileno(), self._from_daemon)

    # The connection's events (edge/websocket.py).

    def on_request(self, request: Request) -> None:
        """The upgrade: whoever cannot show a token here must be a browser, whose hello brings it."""
        self._upgrade = request
        if not all(value.isascii() for _, value in request.headers.raw_items()):
            # Older versions of `websockets` make surrogates of other bytes, on which they stumble themselves.
            self._refuse(http.HTTPStatus.BAD_REQUEST, "a header is not ASCII", "a header that is not ASCII")
            return
        # Not `get`, which raises for a header that is there twice.
        shown = request.headers.get_all("Authorization")
        if len(shown) > 1:
            self._refuse(http.HTTPStatus.BAD_REQUEST, "there is more than one Authorization", "more than one Authorization")
            return
        scheme, _, token = "".join(shown).partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            self._stage = "logging in"
            self._login(token.strip().encode())
        elif shown or not request.headers.get_all("Origin"):
            self._refuse(http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN", "no token")
        else:
            self._accept()

    def on_response(self, response: Response) -> None:
        """A server gets none."""

    def on_message(self, data: bytes | bytearray) -> None:
        try:
            if self._stage == "mounted":
                assert self.serving is not None
                self.serving.on_message(data)
            elif self._stage == "greeting":
                self._hello(read_hello(data))
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
            self._end(reason or "it ended before a session was open")
        else:
            self._end(f"the client left: {code} {reason}".rstrip() if code != 1000 else "the client left in order")
        if self.serving is None:
            # A mount that is still being made goes with this process: the daemon sees to that.
            self._stop_when_heard(self.loop.now + _LAST_WORDS)

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
            self._end("the daemon is gone")
            self.socket.close(1001, "the server is going away")
            self.loop.after(_UNMOUNT_PATIENCE, self.loop.stop)
            return
        message, fds = received
        if isinstance(message, supervision.Enclosed):
            message = supervision.disclose(fds.pop())
        match message:
            case supervision.LoggedIn():
                self._logged_in(message)
            case supervision.LoginRefused():
                self._login_refused(message.reason)
            case supervision.Opened():
                self._opened(message, fds)
            case supervision.OpenRefused():
                self._end(message.reason)
                self.socket.close(message.code, message.reason)
            case supervision.Apply():
                self._apply(message)
            case supervision.End():
                self.leave(message.code, message.reason)
            case supervision.Unmounted():
                # Not `_unmounted`: if it is gone, the driver hears so from the kernel; if not, its callers go on being answered.
                self._stop_when_heard(self.loop.now + _LAST_WORDS)
            case supervision.JournalOpened():
                self.journal.reconnect(fds[0])
            case supervision.Ask():
                self._report(message.id)

    def leave(self, code: int, reason: str) -> None:
        """End in order, whatever stage it is at."""
        self._end(reason)
        self.socket.close(code, reason)
        if self.serving is None:
            self.loop.after(1.0, self.loop.stop)

    # Login and hello.

    def _login(self, token: bytes) -> None:
        if len(token) > _LONGEST_TOKEN:
            self._login_refused("the token is longer than any token")
            return
        self._send(supervision.Login(hashlib.sha256(token).hexdigest()))

    def _logged_in(self, message: supervision.LoggedIn) -> None:
        if self.ending:
            return
        self.tenant, self.identity = message.tenant, message.identity
        offered = self.offer
        if offered is not None:
            self._open(offered)
        else:
            self._accept()

    def _login_refused(self, reason: str) -> None:
        if self.ending:
            return
        if self.offer is not None:
            self._tell("login-refused", reason)
            self.ending = True
            self.socket.close(supervision.CLOSE_LOGIN, reason)
        else:
            self._refuse(http.HTTPStatus.UNAUTHORIZED, reason, reason)

    def _accept(self) -> None:
        assert self._upgrade is not None
        response = self.protocol.accept(self._upgrade)
        if response.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS:
            body = response.body or b""
            self._end(f"{response.status_code}: {body.decode('utf-8', 'replace').strip()}")
        self.protocol.send_response(response)
        self.socket.flush_soon()
        self._stage = "greeting"

    def _refuse(self, status: http.HTTPStatus, text: str, reason: str) -> None:
        self._tell("login-refused", reason)
        self.ending = True
        response = self.protocol.reject(status, text + "\n")
        if status == http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        self.protocol.send_response(response)
        self.socket.flush_soon()

    def _hello(self, offer: Offer) -> None:
        self.offer = offer
        if not is_mount_name(offer.export):
            reason = f"not an export's name: {offer.export[:80]!r}; use a-z, 0-9, '.', '_' and '-', at most 64"
            self._end(reason)
            self.socket.close(supervision.CLOSE_POLICY, reason)
            return
        self._stage = "mounting"
        if self.tenant is not None:
            self._open(offer)
        elif offer.token:
            self._login(offer.token.encode())
        else:
            self._login_refused("a token is needed: in the hello, or as Authorization: Bearer TOKEN")

    def _open(self, offer: Offer) -> None:
        assert self.tenant is not None
        if self.tenant.ownership == "passthrough" and not {"chown", "read-only"}.intersection(offer.capabilities):
            # A close frame's reason has 123 bytes (RFC 6455, 5.5).
            reason = "the policy says ownership: passthrough, but this client cannot chown: start it as root"
            self._end(reason)
            self.socket.close(supervision.CLOSE_POLICY, reason)
            return
        self._send(supervision.Open(offer.export, offer.program[:200]))

    # The mount.

    def _opened(self, message: supervision.Opened, fds: list[int]) -> None:
        assert self.tenant is not None
        assert self.identity is not None
        assert self.offer is not None
        if self.ending:
            self._send(supervision.Ending("the client had gone before it was mounted"))
            return
        self.path = message.path
        # One chain a session, from the connection's first record on; only the names become known here.
        sequence, head = self.recorder.chain.sequence, self.recorder.chain.head
        self.recorder.chain = Chain(
            self.tenant.name, self.visitor.session, self.offer.export, sequence=sequence, head=head
        )
        turnstile = Turnstile(
            Gate(self.tenant, self.identity, read_only="read-only" in self.offer.capabilities),
            Limiter(self.tenant.limits, self.loop.now),
            Limits(
                deadline=self.settings.request_deadline,
                max_in_flight=self.settings.max_in_flight,
                max_bytes_in_flight=self.settings.max_bytes_in_flight,
                inodes=self.settings.inodes,
                refusals=self.settings.audit.refusals,
            ),
            export_root=self.offer.root,
        )
        self.serving = Serving(self.loop, turnstile, self.socket, self.recorder, self._violated)
        self.driver = self._driver(message.driver, fds[0])
        self.serving.attach(self.driver)
        self._stage = "mounted"
        self._tell("session-opened", f"from {self.visitor.address}, {message.driver} driver, {self.offer.program[:80]}")

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
            self._end("unmounted on the server")
            self.socket.close(1001, "unmounted on the server")
        self._unmounted()

    def _ping(self) -> None:
        if self.ending:
            return
        if self.loop.now - self.socket.last_heard > DEAD_AFTER:
            self._end(f"nothing heard from the client for {DEAD_AFTER:.0f} s")
            self.socket.abort()
            return
        self.socket.ping()
        self.loop.after(PING_EVERY, self._ping)

    def _apply(self, message: supervision.Apply) -> None:
        self.tenant, self.identity = message.tenant, message.identity
        if self.serving is None:
            return
        turnstile = self.serving.turnstile
        gate = Gate(message.tenant, message.identity, read_only=turnstile.gate.read_only)
        turnstile.apply(self.loop.now, gate)
        self._tell("policy-applied", f"{len(message.tenant.rules)} rules")

    # The end.

    def _violated(self, error: ProtocolError) -> None:
        if self.ending:
            return
        self._tell("protocol-violation", error.message)
        if self.serving is None:
            self.ending = True
        self._end(f"the client broke the protocol: {error.message}")
        self.socket.close(error.close_code, error.message)

    def _too_late(self) -> None:
        """`_ready` did not come in time. Cancelled by it."""
        self._end(f"no session within {self.settings.admission.login_deadline:g} s ({self._stage})")
        reason = "login took too long"
        if self.protocol.state is State.CONNECTING and not self.protocol.eof_sent:
            self.protocol.send_response(self.protocol.reject(http.HTTPStatus.REQUEST_TIMEOUT, reason + "\n"))
            self.socket.flush_soon()
        else:
            self.socket.close(supervision.CLOSE_LIMIT, reason)
        self.loop.after(_LAST_WORDS, self.socket.abort)

    def _end(self, reason: str) -> None:
        """The session is over: callers are answered, open files told, the mount given back."""
        if self.ending:
            return
        if self.serving is None:
            self._tell("connection-refused", reason)
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
        self._tell("session-closed", reason)
        self._send(supervision.Ending(reason))
        self.loop.after(_UNMOUNT_PATIENCE, self.loop.stop)

    def _unmounted(self) -> None:
        if self.serving is not None:
            self.serving.detach()
        self._stop_when_heard(self.loop.now + _LAST_WORDS)

    def _stop_when_heard(self, latest: float) -> None:
        """The close frame that is still on its way gets its second; the daemon takes care of a worker that does not end."""
        if self.socket.closed or self.loop.now >= latest:
            self.loop.stop()
        else:
            self.loop.after(_LOOK_AGAIN, lambda: self._stop_when_heard(latest))

    # Details.

    def _record_taken(self) -> None:
        if self.serving is not None:
            self.serving.on_record_taken()

    def _journal_broken(self) -> None:
        self._send(supervision.JournalBroken(self.journal.trouble))

    def _tell(self, kind: str, detail: str) -> None:
        record = Record(kind=kind, detail=detail)
        if self.serving is not None:
            self.serving.tell(record)
        elif self.recorder.waiting is None:
            self.recorder.write(msgspec.structs.replace(record, detail=f"{detail}; from {self.visitor.address}"))

    def _send(self, message: msgspec.Struct) -> None:
        try:
            self.channel.send(message)
        except (PeerError, BlockingIOError):
            # A daemon that is gone, or that does not read, ends this worker; nothing more is to be said to it.
            self.loop.stop()

    def _report(self, number: int) -> None:
        turnstile = self.serving.turnstile if self.serving is not None else None
        self._send(
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


def run(
    sock: socket.socket,
    channel_socket: socket.socket,
    visitor: Visitor,
    settings: Settings,
    runtime: str,
    tls: ssl.SSLContext | None,
    daemon: int,
) -> int:
    """Serve one connection in a process of its own, forked by the daemon with that pid; the exit status."""
    process.set_name(f"fg-{visitor.session}")
    process.die_with_parent(daemon)
    # Its own, so that a session that fills its socket's buffer leaves the others' alone, and journald sees who writes.
    try:
        journal = open_journal(settings.audit, runtime)
    except GateError:
        if tls is None:
            sock.send(_NO_JOURNAL)
        raise
    loop = Loop()
    notifier = Notifier()
    keep = {sock.fileno(), channel_socket.fileno(), journal.fileno(), *loop.descriptors()}
    process.cage(keep, seccomp=settings.seccomp)
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    channel = Channel(channel_socket, supervision.FROM_DAEMON, max_fds=1)
    worker = Worker(loop, sock, channel, journal, notifier, visitor, settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.from_thread(lambda: worker.leave(1001, "the server is stopping")))
    loop.run()
    _last_words(worker)
    return 0


def _last_words(worker: Worker) -> None:
    """A record that still waits gets one more second: a session's end must not go untold while the journal is busy. And the
    mount, if it is still there, is served until no notification waits in the kernel: the thread that writes it cannot be ended
    there, and who holds what it waits for may be waiting for an answer of ours."""
    if not worker.ending:
        worker.leave(1001, "the server is stopping")
    _go_on(worker, lambda: worker.recorder.waiting is not None, _LAST_WORDS)
    _go_on(worker, lambda: not worker.notifier.idle, _NOTICE_PATIENCE)
    worker.socket.abort()
    worker.notifier.stop()


def _go_on(worker: Worker, condition: Callable[[], bool], seconds: float) -> None:
    """As long as the condition holds, and for so many seconds at most."""
    end = time.monotonic() + seconds
    while condition() and time.monotonic() < end:
        worker.loop.after(_LOOK_AGAIN, _nothing)
        worker.loop.turn()


def _nothing() -> None:
    """Only to end a turn of the loop."""

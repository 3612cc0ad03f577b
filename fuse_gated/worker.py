"""The worker: one connection, from its first byte to its session's end.

It is forked for a stranger and caged before it reads what that stranger sends (worker_process.py): TLS, the upgrade, login and
hello are all done here, without privilege. The stages of a login (login.py) are followed by: mounted -> ending.
"""

import http
import socket
from typing import Final

import msgspec
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.typing import Origin, Subprotocol

from fuse_gated import allotments, supervision
from fuse_gated.arrival import Arrival
from fuse_gated.config.settings import Settings
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.health import Reception
from fuse_gated.edge.journal import Journal
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.notifying import Notifier
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import ProtocolError
from fuse_gated.login import Login
from fuse_gated.mounted import About, Mounted
from fuse_gated.servant import LAST_WORDS, Servant
from fuse_gated.wire.messages import MAX_MESSAGE, SUBPROTOCOL
from fuse_gated.wire.session import MAX_HELLO, read_hello

CLOSE_AWAY: Final = 1001
GOODBYE: Final = 1000
"""Close code of a client that will not come back (RFC 6455, 7.4.1)."""


class Visitor(msgspec.Struct, frozen=True):
    """What the daemon knows of a connection: the name of the session that may come of it, and where it came from."""

    session: str
    address: str
    draining: bool = False
    """Whether the server takes no new sessions, as a health check is told."""


class Worker(Servant):
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
        super().__init__(loop, channel, journal, notifier, visitor.session, settings)
        self.visitor = visitor
        self._stage = ""
        origins = [None, *(Origin(origin) for origin in settings.origins)]
        protocol = Reception(
            origins=origins, subprotocols=[Subprotocol(SUBPROTOCOL)], extensions=None, max_size=MAX_MESSAGE
        )
        self.protocol = protocol
        self.arrival = Arrival(settings.proxies, visitor.address, self._arrived)
        self.socket = WebSocket(loop, sock, protocol, self, expected=MAX_HELLO, preface=self.arrival.preface)
        self.login = Login(self, self.socket, protocol)
        self._deadline = loop.after(settings.admission.login_deadline, self._too_late)

    @property
    def stage(self) -> str:
        """How far it has come."""
        return self._stage or self.login.stage

    # The connection's events (edge/websocket.py).

    def on_request(self, request: Request) -> None:
        if self.protocol.checked:
            # Nothing that a record would be worth: there may be one a second, for ever.
            self.ending = True
            self.protocol.answer_check("draining" if self.visitor.draining else "")
            self.socket.flush_soon()
            return
        try:
            self.arrival.asked(request.headers)
        except ProtocolError as error:
            self.end(error.message)
            self._answer(http.HTTPStatus.BAD_REQUEST, error.message)
        else:
            self.login.asked(request)

    def on_response(self, response: Response) -> None:
        """A server gets none."""

    def on_message(self, data: bytes | bytearray | memoryview) -> None:
        try:
            if self.mounted is not None:
                if not self.ending:
                    self.mounted.serving.on_message(data)
            elif self.stage == "greeting":
                self.login.greeted(read_hello(data))
            elif not self.ending:
                raise ProtocolError("a message before the welcome")
        except ProtocolError as error:
            self.violated(error)

    def on_closed(self, code: int, reason: str) -> None:
        """The client is gone. Unless it said goodbye it may come back, over another connection."""
        sent = self.protocol.close_sent
        if sent is not None and not self.ending and not self.protocol.close_rcvd_then_sent:
            # Our side closed, and not by a word of ours: what came was no WebSocket message that we take.
            self.violated(ProtocolError(sent.reason, sent.code))
        elif self.mounted is None:
            self.end(reason or "it ended before a session was open")
        elif code == GOODBYE:
            self.end("the client left in order")
        elif not self.ending:
            self.mounted.lose(f"the connection was lost: {code} {reason}".rstrip())
        if self.mounted is None:
            # A mount that is still being made goes with this process: the daemon sees to that.
            self._stop_when_heard(self.loop.now + LAST_WORDS)

    # The daemon's messages.

    def told(self, message: supervision.FromDaemon, fds: list[int]) -> None:
        match message:
            case supervision.TurnedAway():
                # The daemon has told of it.
                self.ending = True
                self._answer(message.status, message.reason)
                self.loop.after(LAST_WORDS, self.loop.stop)
            case supervision.LoggedIn():
                self.login.accepted(message.tenant, message.identity)
            case supervision.LoginRefused():
                self.login.refused(message.reason, message.status)
            case supervision.Opened():
                self._opened(message, fds)
            case supervision.OpenRefused():
                self.end(message.reason)
                self.socket.close(message.code, message.reason)
            case supervision.Apply():
                self.login.tenant, self.login.identity = message.tenant, message.identity
                super().told(message, fds)
            case _:
                super().told(message, fds)

    # The mount.

    def _opened(self, message: supervision.Opened, fds: list[int]) -> None:
        tenant, identity, offer = self.login.tenant, self.login.identity, self.login.offer
        assert tenant is not None
        assert identity is not None
        assert offer is not None
        if self.ending:
            self.send(supervision.Ending("the client had gone before it was mounted"))
            return
        device, state, shares = fds
        self.shares = allotments.view(shares, message.share)
        self.mounted = Mounted(self, self.session, tenant, identity, self.socket)
        about = About(offer=offer, driver=message.driver, path=message.path, shown=self.visitor.address)
        self.mounted.begin(device, state, about)

    def take_over(self, message: supervision.TakeOver, fds: list[int]) -> None:
        """The client has shown the secret of a session that is there."""
        if self.ending:
            # It has gone again; the daemon finds somebody else when this process has ended.
            self.loop.stop()
        else:
            super().take_over(message, fds)

    def make_mounted(self, message: supervision.TakeOver) -> Mounted:
        return Mounted(self, message.session, message.tenant, message.identity, self.socket)

    def opened(self) -> None:
        """The client is welcomed."""
        self._deadline.cancel()
        self._stage = "mounted"

    @property
    def secret(self) -> bytes:
        return (self.login.offer.resume if self.login.offer is not None else None) or b""

    @property
    def shown(self) -> str:
        return self.visitor.address

    # The end.

    def hang_up(self, code: int, reason: str) -> None:
        if code in (CLOSE_AWAY, supervision.CLOSE_RESTART) and self.protocol.state is State.CONNECTING:
            # Whoever has not been heard out yet is told so, too: it comes again.
            self._answer(http.HTTPStatus.SERVICE_UNAVAILABLE, reason)
        else:
            self.socket.close(code, reason)

    def abort(self) -> None:
        self.socket.abort()

    @property
    def heard(self) -> bool:
        return self.socket.closed

    def _too_late(self) -> None:
        """`_ready` did not come in time. Cancelled by it."""
        self.end(f"no session within {self.settings.admission.login_deadline:g} s ({self.stage})")
        if self.stage == "mounting":
            # The client has said all that it has to say.
            self.socket.close(supervision.CLOSE_LATER, "the server could not open the session in time")
        else:
            self._answer(http.HTTPStatus.REQUEST_TIMEOUT, "login took too long")
        self.loop.after(LAST_WORDS, self.socket.abort)

    # Details.

    def _arrived(self, address: str) -> None:
        self.visitor = msgspec.structs.replace(self.visitor, address=address)
        self.send(supervision.Arrived(address))

    def _answer(self, status: int, reason: str) -> None:
        """Refuse the connection, by HTTP where it has not been upgraded yet."""
        if self.protocol.state is State.CONNECTING and not self.protocol.eof_sent:
            response = self.protocol.reject(status, reason + "\n")
            if status == http.HTTPStatus.TOO_MANY_REQUESTS:
                response.headers["Retry-After"] = "5"
            self.protocol.send_response(response)
            self.socket.flush_soon()
        else:
            self.socket.close(supervision.CLOSE_LIMIT, reason)

"""Who a connection is: the upgrade, the token and the hello, up to the wish for a mount.

The stages are: connecting -> logging in -> greeting -> mounting. A token comes with the upgrade or, from a browser, which
cannot set the header, in the hello. It goes to the daemon, which knows its digest and says whose it is.
"""

import http
from typing import Final, Protocol

import msgspec
from websockets.http11 import Request
from websockets.server import ServerProtocol

from fuse_gated import supervision
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.paths import is_mount_name
from fuse_gated.wire.messages import Offer

_LONGEST_TOKEN: Final = 4096


class Host(Protocol):
    """What a login needs of its worker: `tell` writes a record, `send` says something to the daemon, `end` ends it all."""

    ending: bool

    def tell(self, kind: str, detail: str) -> None: ...
    def send(self, message: msgspec.Struct) -> None: ...
    def end(self, reason: str) -> None: ...


class Login:
    """One connection's. `tenant` and `identity` are there once it is logged in, `offer` once it has said hello."""

    def __init__(self, host: Host, socket: WebSocket, protocol: ServerProtocol) -> None:
        self.stage = "connecting"
        self.tenant: Tenant | None = None
        self.identity: Identity | None = None
        self.offer: Offer | None = None
        self._host = host
        self._socket = socket
        self._protocol = protocol
        self._upgrade: Request | None = None

    def asked(self, request: Request) -> None:
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
            self.stage = "logging in"
            self._show(token.strip().encode())
        elif shown or not request.headers.get_all("Origin"):
            self._refuse(http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN", "no token")
        else:
            self._accept()

    def greeted(self, offer: Offer) -> None:
        """The hello."""
        self.offer = offer
        if not is_mount_name(offer.export):
            self._close(f"not an export's name: {offer.export[:80]!r}; use a-z, 0-9, '.', '_' and '-', at most 64")
            return
        self.stage = "mounting"
        if self.tenant is not None:
            self._open(offer, self.tenant)
        elif offer.token:
            self._show(offer.token.encode())
        else:
            self.refused("a token is needed: in the hello, or as Authorization: Bearer TOKEN")

    def accepted(self, tenant: Tenant, identity: Identity) -> None:
        """The daemon knows the token."""
        if self._host.ending:
            return
        self.tenant, self.identity = tenant, identity
        if self.offer is not None:
            self._open(self.offer, tenant)
        else:
            self._accept()

    def refused(self, reason: str, status: int = http.HTTPStatus.UNAUTHORIZED) -> None:
        """The daemon does not, or the policy has no place for this one. With another status it is not now."""
        if self._host.ending:
            return
        if self.offer is not None:
            self._host.tell("login-refused", reason)
            self._host.ending = True
            unauthorized = status == http.HTTPStatus.UNAUTHORIZED
            self._socket.close(supervision.CLOSE_LOGIN if unauthorized else supervision.CLOSE_LATER, reason)
        else:
            self._refuse(http.HTTPStatus(status), reason, reason)

    def _show(self, token: bytes) -> None:
        if len(token) > _LONGEST_TOKEN:
            self.refused("the token is longer than any token")
        else:
            self._host.send(supervision.Login(token))

    def _accept(self) -> None:
        assert self._upgrade is not None
        response = self._protocol.accept(self._upgrade)
        if response.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS:
            body = response.body or b""
            self._host.end(f"{response.status_code}: {body.decode('utf-8', 'replace').strip()}")
        self._protocol.send_response(response)
        self._socket.flush_soon()
        self.stage = "greeting"

    def _refuse(self, status: http.HTTPStatus, text: str, reason: str) -> None:
        self._host.tell("login-refused", reason)
        self._host.ending = True
        response = self._protocol.reject(status, text + "\n")
        if status == http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        self._protocol.send_response(response)
        self._socket.flush_soon()

    def _open(self, offer: Offer, tenant: Tenant) -> None:
        if tenant.ownership == "passthrough" and not {"chown", "read-only"}.intersection(offer.capabilities):
            # A close frame's reason has 123 bytes (RFC 6455, 5.5).
            self._close("the policy says ownership: passthrough, but this client cannot chown: start it as root")
            return
        self._host.send(supervision.Open(offer.export, offer.program[:200], offer.resume or b""))

    def _close(self, reason: str) -> None:
        self._host.end(reason)
        self._socket.close(supervision.CLOSE_POLICY, reason)

"""What the end of a connection means: whose fault it is, what to do next, and whether another attempt may help."""

import enum
import http
from typing import Final, NamedTuple

from websockets.http11 import Response

from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import GateError, PeerError, ProtocolError, RefusedError

_LONGEST_TEXT: Final = 500
_TO_BE_TOLD: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""Close codes (RFC 6455, 7.4.1) by which a server says that it cannot work with this client."""
_PASSING: Final = frozenset(
    {
        http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.INTERNAL_SERVER_ERROR, http.HTTPStatus.BAD_GATEWAY,
        http.HTTPStatus.GATEWAY_TIMEOUT,
    }
)  # fmt: skip


class Outlook(enum.Enum):
    """Of another attempt. DOUBTFUL: what answers may be no fuse-gated server, or not the right one; it is worth another attempt
    only for who has been served there before."""

    PASSING = enum.auto()
    DOUBTFUL = enum.auto()
    FINAL = enum.auto()


class Ending(NamedTuple):
    """`soon`: the server has left in order, to be back at once."""

    error: GateError
    outlook: Outlook = Outlook.PASSING
    soon: bool = False


def refusal(response: Response, websocket: WebSocket) -> Ending:
    """What an answer to the upgrade means that does not open the connection."""
    text = bytes(response.body or b"")[:_LONGEST_TEXT].decode("utf-8", "replace").strip()
    match response.status_code:
        case http.HTTPStatus.UNAUTHORIZED:
            expired = "expired" in text
            hint = "ask the server's operator for a new one" if expired else "is it the right token file, and the right server?"
            return Ending(RefusedError(f"the server refused the login: {text}", hint), Outlook.FINAL)
        case http.HTTPStatus.FORBIDDEN:
            hint = "ask the server's operator what the policy allows"
            return Ending(RefusedError(f"the server refused: {text}", hint), Outlook.FINAL)
        case http.HTTPStatus.TOO_MANY_REQUESTS:
            return Ending(RefusedError(f"the server takes no more connections from here: {text}", "try again later"))
        case http.HTTPStatus.SERVICE_UNAVAILABLE:
            return Ending(PeerError(f"the server is not available: {text}", "try again later"))
        case http.HTTPStatus.SWITCHING_PROTOCOLS:
            error = PeerError(f"the upgrade failed: {websocket.protocol.handshake_exc}", "is it a fuse-gated server?")
            return Ending(error, Outlook.DOUBTFUL)
        case status:
            error = PeerError(f"the server answered {status} {response.reason_phrase}: {text}", "is it a fuse-gated server?")
            return Ending(error, Outlook.PASSING if status in _PASSING else Outlook.DOUBTFUL)


def ending(websocket: WebSocket, code: int, reason: str) -> Ending:
    """What a connection's end means that we did not want."""
    protocol = websocket.protocol
    reason = reason[:_LONGEST_TEXT]
    if websocket.tls_error:
        certificate = "CERTIFICATE_VERIFY_FAILED" in websocket.tls_error
        return Ending(
            PeerError(websocket.tls_error, _doubt(websocket.tls_error)), Outlook.DOUBTFUL if certificate else Outlook.PASSING
        )
    if protocol.handshake_exc is not None:
        if isinstance(protocol.handshake_exc.__cause__, EOFError):
            hint = "a server may want a certificate (--cert), or TLS (wss://)"
            return Ending(PeerError("the server broke off the connection before it answered", hint))
        error = PeerError(f"the upgrade failed: {protocol.handshake_exc}", "is it a fuse-gated server?")
        return Ending(error, Outlook.DOUBTFUL)
    if protocol.close_sent is not None and not protocol.close_rcvd_then_sent:
        # websockets, or our WebSocket, found the fault itself.
        return Ending(ProtocolError(f"the server broke the protocol: {protocol.close_sent.reason}", code), Outlook.FINAL)
    if code == 4008:
        return Ending(RefusedError(f"the server refused: {reason}", "ask the server's operator"))
    if 4000 <= code < 4100:
        return Ending(RefusedError(f"the server refused: {reason}", "ask the server's operator"), Outlook.FINAL)
    match code:
        case 1000:
            return Ending(PeerError(f"the server ended the session: {reason}"), Outlook.FINAL)
        case 1001:
            return Ending(PeerError(f"the server is going away: {reason}", "start again once it is back"), soon=True)
        case 1006:
            return Ending(PeerError("the server broke off the connection", "see the server's log"))
        case 1011:
            return Ending(PeerError(f"the server failed: {reason}", "see the server's log"))
        case 1012:
            return Ending(PeerError(f"the server restarts: {reason}", "start again once it is back"), soon=True)
        case 1013:
            return Ending(PeerError(f"the server is not available: {reason}", "try again later"))
        case _ if code in _TO_BE_TOLD:
            error = PeerError(f"the server says that this client broke the rules: {reason}", "are both of one version?")
            return Ending(error, Outlook.FINAL)
        case _:
            return Ending(PeerError(f"the server closed the connection with {code}: {reason}"))


def _doubt(fault: str) -> str:
    """What to do about a TLS handshake that failed."""
    if "CERTIFICATE_VERIFY_FAILED" not in fault:
        return "is it a wss:// server?"
    if "ostname mismatch" in fault or "IP address mismatch" in fault:
        return "connect to the name that stands in the server's certificate"
    if "expired" in fault:
        return "the server's operator must renew its certificate"
    return "name the authority that signed the server's certificate with --ca"

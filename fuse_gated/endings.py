"""What the end of a connection means for the person beside the client: whose fault it is, and what to do next."""

import http
from typing import Final

from websockets.http11 import Response

from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import GateError, PeerError, ProtocolError, RefusedError

_LONGEST_TEXT: Final = 500


def refusal(response: Response, websocket: WebSocket) -> GateError:
    """What an answer to the upgrade means that does not open the connection."""
    text = bytes(response.body or b"")[:_LONGEST_TEXT].decode("utf-8", "replace").strip()
    match response.status_code:
        case http.HTTPStatus.UNAUTHORIZED:
            expired = "expired" in text
            hint = "ask the server's operator for a new one" if expired else "is it the right token file, and the right server?"
            return RefusedError(f"the server refused the login: {text}", hint)
        case http.HTTPStatus.FORBIDDEN:
            return RefusedError(f"the server refused: {text}", "ask the server's operator what the policy allows")
        case http.HTTPStatus.TOO_MANY_REQUESTS:
            return RefusedError(f"the server takes no more connections from here: {text}", "try again later")
        case http.HTTPStatus.SERVICE_UNAVAILABLE:
            return PeerError(f"the server is not available: {text}", "try again later")
        case http.HTTPStatus.SWITCHING_PROTOCOLS:
            return PeerError(f"the upgrade failed: {websocket.protocol.handshake_exc}", "is it a fuse-gated server?")
        case status:
            return PeerError(f"the server answered {status} {response.reason_phrase}: {text}", "is it a fuse-gated server?")


def ending(websocket: WebSocket, code: int, reason: str) -> GateError:
    """What a connection's end means that we did not want."""
    protocol = websocket.protocol
    reason = reason[:_LONGEST_TEXT]
    if websocket.tls_error:
        return PeerError(websocket.tls_error, _doubt(websocket.tls_error))
    if protocol.handshake_exc is not None:
        if isinstance(protocol.handshake_exc.__cause__, EOFError):
            hint = "a server may want a certificate (--cert), or TLS (wss://)"
            return PeerError("the server broke off the connection before it answered", hint)
        return PeerError(f"the upgrade failed: {protocol.handshake_exc}", "is it a fuse-gated server?")
    if protocol.close_sent is not None and not protocol.close_rcvd_then_sent:
        # websockets, or our WebSocket, found the fault itself.
        return ProtocolError(f"the server broke the protocol: {protocol.close_sent.reason}", code)
    if 4000 <= code < 4100:
        return RefusedError(f"the server refused: {reason}", "ask the server's operator")
    match code:
        case 1000:
            return PeerError(f"the server ended the session: {reason}")
        case 1001:
            return PeerError(f"the server is going away: {reason}", "start again once it is back")
        case 1006:
            return PeerError("the server broke off the connection", "see the server's log")
        case 1008:
            return PeerError(f"the server says that this client broke the rules: {reason}", "are both of one version?")
        case 1011:
            return PeerError(f"the server failed: {reason}", "see the server's log")
        case _:
            return PeerError(f"the server closed the connection with {code}: {reason}")


def _doubt(fault: str) -> str:
    """What to do about a TLS handshake that failed."""
    if "CERTIFICATE_VERIFY_FAILED" not in fault:
        return "is it a wss:// server?"
    if "ostname mismatch" in fault or "IP address mismatch" in fault:
        return "connect to the name that stands in the server's certificate"
    if "expired" in fault:
        return "the server's operator must renew its certificate"
    return "name the authority that signed the server's certificate with --ca"

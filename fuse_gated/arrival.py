"""Where a connection comes from, if it comes by a proxy: what the proxy says counts, if the settings name it, and nobody else's.

A worker reads it, because it is a peer's bytes; the daemon is told, and counts the address that it is told of.
"""

import socket
from collections.abc import Callable

from websockets.datastructures import Headers

from fuse_gated.config.settings import Proxies
from fuse_gated.edge.preface import Preface
from fuse_gated.errors import ProtocolError
from fuse_gated.gate.proxies import UNIX, TrustedProxies
from fuse_gated.wire.forwarded import client_address

PROXY_PROTOCOL = "proxy-protocol"
X_FORWARDED_FOR = "x-forwarded-for"


class Arrival:
    """One connection's. `address` is the peer's own, '' on a Unix socket. `told` is called with the client's, once."""

    def __init__(self, proxies: Proxies | None, address: str, told: Callable[[str], None]) -> None:
        self._header = proxies.header if proxies is not None else ""
        self._trusted = TrustedProxies(proxies.addresses if proxies is not None else ())
        self._is_proxy = self._trusted.trusts(address)
        self._shown = address or UNIX
        self._told = told
        self._preface = Preface(self._is_proxy and self._header == PROXY_PROTOCOL, self._tell)

    def preface(self, sock: socket.socket) -> bool:
        """As Preface has it; the error says what the operator is to do."""
        try:
            return self._preface(sock)
        except ProtocolError as error:
            raise ProtocolError(f"{error.message}: {self._advice()}") from None

    def asked(self, headers: Headers) -> None:
        """The upgrade's headers. Raises ProtocolError where a proxy's say nothing."""
        if not self._is_proxy or self._header != X_FORWARDED_FOR:
            return
        try:
            self._tell(client_address(headers.get_all("X-Forwarded-For"), self._trusted.trusts))
        except ProtocolError as error:
            advice = f"{self._shown} is one of `proxies` in fuse-gated.yaml, so it must name the client's address there"
            raise ProtocolError(f"{error.message}: {advice}") from None

    def _tell(self, address: str | None) -> None:
        if address is not None:
            self._told(address)

    def _advice(self) -> str:
        if self._is_proxy and self._header == PROXY_PROTOCOL:
            return f"{self._shown} is one of `proxies` in fuse-gated.yaml, so turn it on there, or take the address out"
        if self._is_proxy:
            return f"`proxies` in fuse-gated.yaml says header: {self._header} for {self._shown}; one of the two is to change"
        return f"if {self._shown} is a proxy of yours, name it in `proxies` of fuse-gated.yaml, with header: {PROXY_PROTOCOL}"

"""The proxies whose word is taken for whom they pass on."""

import ipaddress
from collections.abc import Iterable
from typing import Final

UNIX: Final = "unix"
"""Stands for whoever connects to a Unix socket."""


class TrustedProxies:
    """Made of addresses and networks (RFC 4632, RFC 4291), and UNIX. Raises ValueError for anything else."""

    def __init__(self, addresses: Iterable[str]) -> None:
        listed = tuple(addresses)
        self._local = UNIX in listed
        self._networks = tuple(ipaddress.ip_network(address) for address in listed if address != UNIX)

    def trusts(self, address: str) -> bool:
        """Whether that peer is one of them. `address` as getpeername(2) has it, '' if it has none."""
        if not address:
            return self._local
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return any((mapped or parsed) in network for network in self._networks)

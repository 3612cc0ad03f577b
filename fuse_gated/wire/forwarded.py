"""X-Forwarded-For: whose request a proxy passes on, as a list to which each proxy on the way adds whom it got it from.

What stands first in it is whatever the client wrote there. So it is read from its end, and only as far as it was written by
proxies that are trusted.

Source: https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/X-Forwarded-For (no RFC has it).
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final

from fuse_gated.errors import ProtocolError
from fuse_gated.wire.proxy_protocol import shown

_WITH_PORT: Final = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?|([^:]*):[0-9]{1,5}", re.ASCII)


def client_address(values: Iterable[str], is_proxy: Callable[[str], bool]) -> str:
    """The client's address by the header's `values`, in their order: the last one that is no proxy's, or the first one where
    all are. Raises ProtocolError where there is none, or where it is no address."""
    entries = [entry.strip() for value in values for entry in value.split(",")]
    for position, entry in reversed(list(enumerate(entries))):
        address = _address(entry)
        if position == 0 or not is_proxy(address):
            return address
    raise ProtocolError("it sent no X-Forwarded-For")


def _address(entry: str) -> str:
    """Some proxies write a port behind it."""
    found = _WITH_PORT.fullmatch(entry)
    text = (found[1] or found[2] or "") if found else entry
    try:
        if "%" in text:
            raise ValueError("a zone means something on the proxy's machine only")
        return shown(ipaddress.ip_address(text))
    except ValueError:
        raise ProtocolError(f"in its X-Forwarded-For stands {entry[:60]!a}, which is no address") from None

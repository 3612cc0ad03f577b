"""fuse-gated.yaml -> Settings."""

import ipaddress
import re
from typing import Final

import yaml

from fuse_gated.config import units, values
from fuse_gated.config.document import Document, Reader, Unfit, quoted
from fuse_gated.config.settings import Admission, Audit, Proxies, Settings, Tls
from fuse_gated.errors import ConfigurationError
from fuse_gated.gate.proxies import UNIX
from fuse_gated.wire.messages import MAX_DATA

LISTEN_FORM: Final = "HOST:PORT, such as 127.0.0.1:7433 or '[::1]:7433'"

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", re.ASCII)
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_ORIGIN: Final = re.compile(r"https?://[^/?#\s@]+", re.ASCII)


def parse_settings(text: bytes, name: str) -> Settings:
    """The settings in the file `name`, with the defaults for what it leaves out.

    Raises ConfigurationError with every fault of the file.
    """
    document = Document(text, name)
    settings = Settings()
    if document.root is not None:
        settings = document.read(document.root, _SETTINGS)
    if document.faults:
        raise ConfigurationError(*at_fault(document.faults), faults=document.faults)
    return settings


def at_fault(faults: tuple[str, ...]) -> tuple[str, str]:
    """The message and the hint over a list of faults."""
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"the configuration has {count}", "mend what is listed; 'fuse-gatectl check' tells whether it is right"


def listen_address(text: str) -> tuple[str, int]:
    """The host and the port of 'HOST:PORT'; an IPv6 address stands in brackets. Port 0 is any free one.

    Raises ValueError.
    """
    host, _, port = text.rpartition(":")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ValueError(f"{quoted(port)} is not a port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        ipaddress.IPv6Address(host)
    elif not _HOST.fullmatch(host):
        raise ValueError(f"{quoted(host)} is not a host")
    return host, int(port)


def _listen(_document: Document, node: yaml.Node) -> str:
    value = values.scalar("HOST:PORT", node)
    try:
        listen_address(value)
    except ValueError as error:
        raise Unfit(f"{quoted(value)} is not an address to listen at: {error}", LISTEN_FORM) from None
    return value


def _origin(document: Document, node: yaml.Node) -> str:
    value = values.text(document, node)
    if not _ORIGIN.fullmatch(value):
        raise Unfit(f"{quoted(value)} is not an origin", "such as https://app.example.org, without a path")
    return value


def _proxy(document: Document, node: yaml.Node) -> str:
    value = values.text(document, node)
    if value == UNIX:
        return value
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        raise Unfit(f"{quoted(value)} is no proxy's address: {error}", "such as 127.0.0.1, '::1', 10.0.0.0/24, or unix") from None
    if not network.prefixlen:
        raise Unfit(f"{quoted(value)} is everybody, who could then claim any address", "name the proxies")
    return value


_TLS: Final = {"certificate": values.absolute_path, "key": values.absolute_path, "client_ca": values.absolute_path}
_ADMISSION: Final = {
    "startups": values.whole(1, 100_000),
    "per_address": values.whole(1, 100_000),
    "login_deadline": values.duration(0.1, 600),
}
_PROXIES: Final = {
    "addresses": values.many("addresses", _proxy, least=1),
    "header": values.one_of("proxy-protocol", "x-forwarded-for"),
}
_AUDIT: Final = {
    "to": values.one_of("auto", "journal", "file"),
    "file": values.absolute_path,
    "refusals": values.quantity("a rate", units.rate, units.RATE_FORM, 1, 1e9),
}

_SETTINGS: Final[Reader] = values.structure(
    Settings,
    "the settings",
    {
        "user": values.account,
        "listen": _listen,
        "tls": values.structure(Tls, "tls", _TLS, required=("certificate", "key")),
        "admission": values.structure(Admission, "admission", _ADMISSION),
        "proxies": values.structure(Proxies, "proxies", _PROXIES, required=("addresses", "header")),
        "audit": values.structure(Audit, "audit", _AUDIT),
        "slow_operation": values.duration(0, 3600),
        "without": values.many("features", values.one_of("resend", "readdirplus"), least=0),
        "drivers": values.many("drivers", values.one_of("kernel", "libfuse", "network"), least=1),
        "request_deadline": values.duration(0.1, 3600),
        # The kernel counts the requests of a mount in 16 bits (max_background in fuse_init_out, linux/fuse.h).
        "max_in_flight": values.whole(1, 65535),
        # Less than one full READ or WRITE could never be asked for.
        "max_bytes_in_flight": values.size(MAX_DATA),
        "max_sessions": values.whole(1, 1_000_000),
        "inodes": values.whole(1000, 2**31),
        "origins": values.many("origins", _origin),
        "seccomp": values.boolean,
    },
)

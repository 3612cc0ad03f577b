"""Where an export goes: the server's address, what proves who we are, and whom we trust to be the server."""

import ipaddress
import ssl

import msgspec
from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from fuse_gated.errors import OperatorError, UsageError


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """`token` logs in, `name` is the export's. For wss there are PEM files: `ca` of the authorities to trust (None: this
    machine's), `certificate` and `key` of one's own (the key may be in the certificate's file)."""

    uri: WebSocketURI
    token: str
    name: str
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, for people."""
        host = f"[{self.uri.host}]" if ":" in self.uri.host else self.uri.host
        return f"{host}:{self.uri.port}"

    @property
    def shows_token(self) -> bool:
        """Whether the token travels where others may read it: without TLS, and not to this machine."""
        if self.uri.secure or self.uri.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.uri.host).is_loopback
        except ValueError:
            return True

    def tls_context(self) -> ssl.SSLContext | None:
        """What TLS needs; None for ws. Raises OperatorError for files that are missing or are not what they should be."""
        if not self.uri.secure:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise OperatorError(f"cannot use {self.ca}: {_why(error)}", "--ca wants certificates in PEM form") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=_no_password)
            except OSError as error:
                hint = "--cert wants a certificate and --key its unencrypted key, both in PEM form"
                files = self.certificate if self.key is None else f"{self.certificate} with {self.key}"
                raise OperatorError(f"cannot use {files}: {_why(error)}", hint) from None
        return context


def parse_server(text: str) -> WebSocketURI:
    """A server's address as people write it. Raises UsageError for what is no ws:// or wss:// address."""
    hint = "write ws://HOST:PORT, or wss://HOST:PORT for TLS"
    try:
        uri = parse_uri(text)
    except (InvalidURI, ValueError) as error:
        raise UsageError(f"not a server's address: {text!r}: {getattr(error, 'msg', error)}", hint) from None
    if uri.user_info is not None:
        raise UsageError("an address with a user's name: the login is the token's", hint)
    return uri


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    raise OSError("the key is encrypted")


def _why(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)

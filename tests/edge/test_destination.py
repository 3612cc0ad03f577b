import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import need

from fuse_gated.edge.destination import Destination, parse_server
from fuse_gated.errors import OperatorError, UsageError


def destination(address: str, **options: Any) -> Destination:
    return Destination(uri=parse_server(address), token="t", name="n", **options)


@pytest.mark.parametrize(
    ("text", "address", "secure"),
    [
        ("ws://127.0.0.1:7433", "127.0.0.1:7433", False),
        ("wss://files.example:7433", "files.example:7433", True),
        ("ws://[::1]:7433/path", "[::1]:7433", False),
        ("wss://files.example", "files.example:443", True),
        ("ws://files.example", "files.example:80", False),
    ],
)
def test_addresses(text: str, address: str, secure: bool) -> None:
    found = destination(text)
    assert found.address == address
    assert found.uri.secure is secure


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1:7433", "http://127.0.0.1:7433", "ws://", "ws://:7433", "ws://host:70000", "ws://host:x", "ws://h/#f"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="not a server's address") as raised:
        parse_server(text)
    assert "wss://HOST:PORT" in raised.value.hint


def test_an_address_names_no_user() -> None:
    with pytest.raises(UsageError, match="user"):
        parse_server("ws://me:secret@host:1")


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        ("ws://127.0.0.1:1", False),
        ("ws://127.8.8.8:1", False),
        ("ws://[::1]:1", False),
        ("ws://localhost:1", False),
        ("ws://192.0.2.1:1", True),
        ("ws://[2001:db8::1]:1", True),
        ("ws://localhost.example:1", True),
        ("wss://192.0.2.1:1", False),
    ],
)
def test_who_can_read_the_token(text: str, shows: bool) -> None:
    assert destination(text).shows_token is shows


def test_no_tls_without_wss() -> None:
    assert destination("ws://host:1", ca="/missing").tls_context() is None


def test_tls_is_new_and_checks_names() -> None:
    context = destination("wss://host:1").tls_context()
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    need("openssl")
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=x",
         "-passout", "pass:secret", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )  # fmt: skip
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    cases = {
        "No such file": {"ca": str(tmp_path / "missing")},
        "NO_CERTIFICATE_OR_CRL_FOUND": {"ca": str(junk)},
        "encrypted": {"certificate": str(certificate), "key": str(key)},
        "junk": {"certificate": str(certificate), "key": str(junk)},
        "cannot use": {"certificate": str(certificate)},
    }
    for words, options in cases.items():
        with pytest.raises(OperatorError, match=words) as raised:
            destination("wss://host:1", **options).tls_context()
        assert "PEM" in raised.value.hint
    assert destination("wss://host:1", ca=str(certificate)).tls_context() is not None

"""Who is let in, and what the others hear: tokens, names, limits, origins, TLS."""

import contextlib
import datetime
import itertools
import os
import signal
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ALLOW_ALL, Export, Server, Stage, digest
from harness.certificates import Authority, Pair, self_signed
from harness.hostile import HostileClient
from harness.parts import Parts
from harness.waiting import told, until, wait_for_record

from fuse_gated import control

ORIGIN = "https://app.example.org"
NUMBERS = itertools.count(1)


def policy(*without: str) -> dict[str, Any]:
    today = datetime.datetime.now(datetime.UTC).date()
    expiry = {"expired": today - datetime.timedelta(days=1), "lasting": today}
    changes: dict[str, dict[str, Any]] = {
        "acme": {},
        "passing": {"ownership": "passthrough"},
        "named": {"exports": {"name": "ci-*"}},
        "small": {"exports": {"max_sessions": 1}},
        "removed": {},
        **{
            name: {"tokens": [{"sha256": digest(name), "expires": datetime.date.fromisoformat(str(day))}]}
            for name, day in expiry.items()
        },
    }
    return {
        "tenants": {
            name: {"users": ["root"], "rules": [dict(rule, allow=list(rule["allow"])) for rule in ALLOW_ALL], **change}
            for name, change in changes.items()
            if name not in without
        }
    }


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    return stage.server(policy(), {"origins": [ORIGIN], "max_sessions": 3, "admission": {"login_deadline": "3s"}})


@pytest.fixture(autouse=True)
def nobody_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sessions of one test are not another's."""
    yield
    if "server" in request.fixturenames:
        runtime = request.getfixturevalue("server").runtime
        until(lambda: control.call(str(runtime), "sessions") == [], "no session")


def offer(stage: Stage, server: Server, *, name: str = "", **keywords: Any) -> Export:
    """A client, with a name of its own unless one is given."""
    return stage.export(server, name=name or f"export-{next(NUMBERS)}", **keywords)


def refused(stage: Stage, server: Server, *, status: int = 3, **keywords: Any) -> str:
    """What a client that must be refused says."""
    export = offer(stage, server, **keywords)
    assert export.program.wait() == status, export.program.stderr.text()
    return export.program.stderr.text()


@contextlib.contextmanager
def mounted(stage: Stage, server: Server, **keywords: Any) -> Iterator[Export]:
    """A client that must be let in, and leaves in order."""
    export = offer(stage, server, **keywords)
    export.mount_path()
    yield export
    export.stop()


# Tokens.


def test_a_token_that_nobody_has(stage: Stage, server: Server) -> None:
    before = len(told(server))
    said = refused(stage, server, tenant="mallory")
    assert "the server refused the login: the token is not known here\n  hint: is it the right token file" in said
    wait_for_record(server, before, says="the token is not known here; from 127.0.0.1", kind="login-refused")


def test_a_token_that_has_expired(stage: Stage, server: Server) -> None:
    before = len(told(server))
    said = refused(stage, server, tenant="expired")
    assert "the token has expired on 20" in said
    assert "hint: ask the server's operator for a new one" in said
    wait_for_record(server, before, says="expired", kind="login-refused")


def test_a_token_is_good_to_the_end_of_its_last_day(stage: Stage, server: Server) -> None:
    with mounted(stage, server, tenant="lasting"):
        pass


def test_the_token_of_a_tenant_that_was_removed(stage: Stage, server: Server) -> None:
    with mounted(stage, server, tenant="removed"):
        pass
    server.reload(policy("removed"), said="policy applied")
    try:
        assert "the token is not known here" in refused(stage, server, tenant="removed")
    finally:
        server.reload(policy(), said="policy applied")


def test_a_token_file_with_something_else(stage: Stage, server: Server) -> None:
    """The client does not send what cannot be a token."""
    path = stage.directory / "words"
    path.write_text("two words\n")
    path.chmod(0o600)
    said = refused(stage, server, status=1, options=["--token-file", str(path)])
    assert f"the token file {path} holds something else than one token" in said


def test_a_session_that_the_server_opens_too_slowly(stage: Stage) -> None:
    """The client has done nothing wrong, and is to come again."""
    server = stage.server(policy(), {"admission": {"login_deadline": "1s"}})
    keeper = Parts(server).keeper
    os.kill(keeper, signal.SIGSTOP)
    try:
        with HostileClient(server, "slow", "acme") as client:
            assert client.upgrade() == 101
            client.hello()
            assert client.wait_closed() == (1013, "the server could not open the session in time")
    finally:
        os.kill(keeper, signal.SIGCONT)
    with mounted(stage, server):
        pass


# Browsers: an Origin instead of Authorization, and the token in the hello.


def browser(server: Server, origin: str) -> HostileClient:
    client = HostileClient(server, "browser", "acme")
    client.upgrade(authorization=None, headers=(("Origin", origin),))
    return client


def test_a_browser_shows_its_token_in_the_hello(server: Server) -> None:
    with browser(server, ORIGIN) as client:
        client.hello(token=client.token)
        client.pump(lambda: client.terms is not None)
        assert client.terms is not None
        assert client.terms.mount.endswith("/mnt/acme/browser")
        client.leave()


@pytest.mark.parametrize(
    ("token", "reason"), [(None, "a token is needed"), ("", "a token is needed"), ("x", "is not known here")]
)
def test_a_browser_with_a_wrong_token(server: Server, token: str | None, reason: str) -> None:
    before = len(told(server))
    with browser(server, ORIGIN) as client:
        client.hello(token=token)
        code, heard = client.wait_closed()
    assert (code, reason in heard) == (4001, True), heard
    wait_for_record(server, before, kind="login-refused")


@pytest.mark.parametrize("authorized", [False, True])
def test_an_origin_that_is_not_allowed(server: Server, authorized: bool) -> None:
    before = len(told(server))
    with HostileClient(server, tenant="acme") as client:
        headers = (("Origin", "https://evil.example.org"),)
        assert client.upgrade(authorization="" if authorized else None, headers=headers) == 403
    wait_for_record(server, before, says="evil.example.org", kind="connection-refused")


def test_two_origins(server: Server) -> None:
    with HostileClient(server, tenant="acme") as client:
        assert client.upgrade(authorization=None, headers=(("Origin", ORIGIN), ("Origin", ORIGIN))) == 400


# Names and limits.


def test_two_exports_of_one_name(stage: Stage, server: Server) -> None:
    with mounted(stage, server, name="twin"):
        said = refused(stage, server, name="twin", directory=stage.directory)
        assert "an export named 'twin' is already open: choose another name" in said
    with mounted(stage, server, name="twin", directory=stage.directory):
        pass


def test_a_name_that_the_client_would_not_send(stage: Stage, server: Server) -> None:
    said = refused(stage, server, status=2, directory=stage.directory, options=["--name", "My/Project"])
    assert "not an export's name: 'My/Project'\n  hint: try --name my-project" in said


@pytest.mark.parametrize("name", ["a/b", "..", "A", "", "x" * 65, "a\0b", ".git", "ü"])
def test_a_name_that_no_export_can_have(server: Server, name: str) -> None:
    before = len(told(server))
    with HostileClient(server, tenant="acme") as client:
        assert client.upgrade() == 101
        client.export = name
        client.hello()
        code, reason = client.wait_closed()
    assert (code, "not an export's name" in reason) == (4003, True), reason
    wait_for_record(server, before, kind="connection-refused")


def test_a_name_that_the_policy_does_not_give(stage: Stage, server: Server) -> None:
    said = refused(stage, server, tenant="named", name="home", directory=stage.directory)
    assert "tenant named may not use the export name 'home', only 'ci-*'" in said
    with mounted(stage, server, tenant="named", name="ci-7"):
        pass


def test_more_sessions_than_the_tenant_may(stage: Stage, server: Server) -> None:
    with mounted(stage, server, tenant="small", name="first"):
        assert "tenant small has 1 exports open, as many as it may" in refused(stage, server, tenant="small", name="second")


def test_more_sessions_than_the_server_may(stage: Stage, server: Server) -> None:
    with contextlib.ExitStack() as three:
        for number in range(3):
            three.enter_context(mounted(stage, server, name=f"one-of-{number}"))
        assert "the server has 3 sessions, as many as it may" in refused(stage, server, name="fourth")


def test_ownership_is_not_passed_through_by_who_cannot_chown(stage: Stage, server: Server) -> None:
    said = refused(stage, server, tenant="passing", name="nobodys", user=65534)
    assert "the policy says ownership: passthrough, but this client cannot chown: start it as root" in said
    with mounted(stage, server, tenant="passing", name="roots"):
        pass


# TLS.


@pytest.fixture(scope="module")
def authority(stage: Stage) -> Authority:
    return Authority(stage.directory)


def secure(stage: Stage, pair: Pair, **tls: str) -> Server:
    settings = {
        "tls": {"certificate": str(pair.certificate), "key": str(pair.key), **tls},
        "admission": {"login_deadline": "3s"},
    }
    server = stage.server(settings=settings)
    server.url = f"wss://localhost:{server.port}"
    return server


@pytest.fixture(scope="module")
def tls_server(stage: Stage, authority: Authority) -> Server:
    return secure(stage, authority.issue("server"))


def test_a_session_over_tls(stage: Stage, tls_server: Server, authority: Authority) -> None:
    """Both ways, and more than one TLS record at a time."""
    data = bytes(range(256)) * 20_000
    export = stage.export(tls_server, name="secure", options=["--ca", str(authority.certificate)])
    path = export.mount_path()
    (path / "there").write_bytes(data)
    assert (export.directory / "there").read_bytes() == data
    (export.directory / "here").write_bytes(data)
    assert (path / "here").read_bytes() == data
    export.stop()


def test_an_authority_that_the_client_does_not_trust(stage: Stage, tls_server: Server) -> None:
    before = len(told(tls_server))
    said = refused(stage, tls_server, status=1, name="distrust")
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert "name the authority that signed the server's certificate with --ca" in said
    wait_for_record(tls_server, before, says="TLS handshake failed", kind="connection-refused")


@pytest.mark.parametrize("kind", ["expired", "self-signed"])
def test_a_certificate_that_proves_nothing(stage: Stage, authority: Authority, kind: str) -> None:
    pair = authority.issue(kind, expired=True) if kind == "expired" else self_signed(stage.directory, kind)
    server = secure(stage, pair)
    said = refused(stage, server, status=1, name=kind, options=["--ca", str(authority.certificate)])
    assert "CERTIFICATE_VERIFY_FAILED" in said
    server.stop()


def test_a_certificate_of_the_client_where_it_is_wanted(stage: Stage, authority: Authority) -> None:
    server = secure(stage, authority.issue("strict"), client_ca=str(authority.certificate))
    ca = ["--ca", str(authority.certificate)]
    before = len(told(server))
    said = refused(stage, server, status=1, name="bare", options=ca)
    assert "certificate" in said.lower()
    wait_for_record(server, before, says="TLS handshake failed", kind="connection-refused")
    stranger = self_signed(stage.directory, "stranger")
    said = refused(
        stage, server, status=1, name="other", options=[*ca, "--cert", str(stranger.certificate), "--key", str(stranger.key)]
    )
    own = authority.issue("client")
    with mounted(stage, server, name="shown", options=[*ca, "--cert", str(own.certificate), "--key", str(own.key)]):
        pass
    server.stop()


@pytest.mark.parametrize(("version", "taken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_versions_of_tls(tls_server: Server, authority: Authority, version: str, taken: bool) -> None:
    before = len(told(tls_server))
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # Else this machine's own rules forbid the old one before the server can.
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    if taken:
        with HostileClient(tls_server, tenant="acme", tls=context) as client:
            assert client.upgrade() == 101
    else:
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol version|UNSUPPORTED_PROTOCOL"):
            HostileClient(tls_server, tenant="acme", tls=context)
        wait_for_record(tls_server, before, says="UNSUPPORTED_PROTOCOL", kind="connection-refused")


def test_plain_http_on_a_tls_port(stage: Stage, tls_server: Server) -> None:
    before = len(told(tls_server))
    with socket.create_connection(("127.0.0.1", tls_server.port), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while plain.recv(4096):
                pass
    wait_for_record(tls_server, before, says="TLS handshake failed: HTTP_REQUEST", kind="connection-refused")
    tls_server.url, secure_url = f"ws://127.0.0.1:{tls_server.port}", tls_server.url
    try:
        assert "TLS (wss://)" in refused(stage, tls_server, status=1)
    finally:
        tls_server.url = secure_url


def test_a_stranger_who_never_begins_tls(tls_server: Server) -> None:
    before = len(told(tls_server))
    with socket.create_connection(("127.0.0.1", tls_server.port), 20) as silent:
        assert silent.recv(1) == b""
    wait_for_record(tls_server, before, says="no session within 3 s (connecting)", kind="connection-refused")


def test_a_key_that_does_not_fit_is_told_at_start(stage: Stage, authority: Authority, tmp_path: Path) -> None:
    mixed = Pair(authority.issue("one").certificate, authority.issue("two").key)
    with pytest.raises(AssertionError, match=r"ended with 4 [^$]*TLS cannot be set up from [^$]*KEY_VALUES_MISMATCH"):
        secure(stage, mixed)

"""The proxies' files, run as they stand but for ports and paths: a client works through them."""

import hashlib
import http.client
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Server, Stage, need, need_that
from harness.certificates import Authority
from harness.log import DEADLINE
from harness.ports import port_of, reserve
from harness.waiting import told, until, wait_for_record

from fuse_gated import control

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "reverse-proxies"
PAGE = EXAMPLES.parents[1] / "production" / "reverse-proxies.md"
PROGRAMS = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])


@dataclass(frozen=True)
class Proxy:
    """A proxy that runs, before a server that runs."""

    port: int
    authority: Path
    stage: Stage
    server: Server
    kind: str
    log: Path


def changed(name: str, changes: dict[str, str]) -> str:
    """An example's text with these places changed, each of which is there once."""
    text = (EXAMPLES / name).read_text("utf-8")
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def nginx(directory: Path, certificate: Path, key: Path, port: int, behind: int) -> list[str]:
    """Writes its configuration; returns how it is run in the foreground."""
    site = directory / "site.conf"
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "    listen [::]:443 ssl;\n": "",
        "unix:/run/fuse-gated/gate.sock": f"127.0.0.1:{behind}",
        "/etc/nginx/tls/files.example.org.pem": str(certificate),
        "/etc/nginx/tls/files.example.org.key": str(key),
    }
    site.write_text(changed("nginx.conf", changes))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    main = directory / "nginx.conf"
    main.write_text(
        f"daemon off; pid {directory}/pid; error_log stderr; events {{}}\nhttp {{ access_log off; {places} include {site}; }}\n"
    )
    return ["nginx", "-p", str(directory), "-c", str(main)]


def haproxy(directory: Path, certificate: Path, key: Path, port: int, behind: int) -> list[str]:
    """The same for HAProxy."""
    both = directory / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    configuration = directory / "haproxy.cfg"
    changes = {
        "bind :443": f"bind 127.0.0.1:{port}",
        "/etc/haproxy/tls/files.example.org.pem": str(both),
        "127.0.0.1:7433": f"127.0.0.1:{behind}",
    }
    configuration.write_text(changed("haproxy.cfg", changes))
    return ["haproxy", "-db", "-f", str(configuration)]


def haproxy_passthrough(directory: Path, _certificate: Path, _key: Path, port: int, behind: int) -> list[str]:
    """The same for HAProxy that leaves TLS to the server."""
    configuration = directory / "haproxy.cfg"
    changes = {"bind :443": f"bind 127.0.0.1:{port}", "127.0.0.1:7433": f"127.0.0.1:{behind}"}
    configuration.write_text(changed("haproxy-passthrough.cfg", changes))
    return ["haproxy", "-db", "-f", str(configuration)]


def caddy(directory: Path, certificate: Path, key: Path, port: int, behind: int) -> list[str]:
    """The same for Caddy, with a certificate of ours: it would get one by itself."""
    configuration = directory / "Caddyfile"
    changes = {
        "files.example.org {": f"localhost:{port} {{\n    bind 127.0.0.1\n    tls {certificate} {key}",
        "unix//run/fuse-gated/gate.sock": f"127.0.0.1:{behind}",
    }
    # It asks nobody for a certificate, and writes nowhere else.
    alone = "{\n    admin off\n    auto_https off\n}\n"
    configuration.write_text(alone + changed("Caddyfile", changes))
    homes = [f"{name}={directory}" for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")]
    return ["env", *homes, "caddy", "run", "--adapter", "caddyfile", "--config", str(configuration)]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


PROXIES = {nginx: "x-forwarded-for", haproxy: "proxy-protocol", haproxy_passthrough: "proxy-protocol", caddy: "x-forwarded-for"}
"""How each says whose connection it is, as its section of the page has it."""


@pytest.fixture(params=PROXIES, ids=lambda proxy: proxy.__name__)
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    need("root", "fuse")
    monkeypatch.setenv("PATH", PROGRAMS)
    name = request.param.__name__.partition("_")[0]
    need_that(shutil.which(name), f"this machine lacks {name}")
    with Stage("kernel") as stage, reserve() as place:
        port = port_of(place)
        directory = stage.directory / "proxy"
        directory.mkdir()
        authority = Authority(directory)
        pair = authority.issue("proxy")
        settings: dict[str, object] = {"proxies": {"addresses": ["127.0.0.1"], "header": PROXIES[request.param]}}
        if request.param is haproxy_passthrough:
            settings["tls"] = {"certificate": str(pair.certificate), "key": str(pair.key)}
        server = stage.server(settings=settings)
        command = request.param(directory, pair.certificate, pair.key, port, server.port)
        log = directory / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory)
        try:
            until(lambda: listens(port) or process.poll() is not None, "a proxy that listens")
            assert process.poll() is None, log.read_text()
            yield Proxy(port, authority.certificate, stage, server, request.param.__name__, log)
        finally:
            process.terminate()
            process.wait(DEADLINE)


@pytest.mark.parametrize("name", ["nginx.conf", "haproxy.cfg", "haproxy-passthrough.cfg", "Caddyfile"])
def test_the_page_shows_the_file(name: str) -> None:
    assert f"\n{(EXAMPLES / name).read_text('utf-8')}```\n" in PAGE.read_text("utf-8")


def test_a_client_works_through_it(proxy: Proxy) -> None:
    proxy.server.url = f"wss://localhost:{proxy.port}"
    export = proxy.stage.export(proxy.server, options=["--ca", str(proxy.authority)])
    mount = export.mount_path()
    content = os.urandom(5 * 2**20)
    (mount / "large").write_bytes(content)
    behind = (export.directory / "large").read_bytes()
    assert hashlib.sha256(behind).digest() == hashlib.sha256(content).digest()
    (export.directory / "other").write_text("from the client\n")
    assert (mount / "other").read_text() == "from the client\n"
    export.stop()


def ask(proxy: Proxy, request: bytes, source: str = "127.0.0.1") -> tuple[int, bytes]:
    """The answer to an HTTP request, sent from that address: status and body."""
    context = ssl.create_default_context(cafile=str(proxy.authority))
    with (
        socket.create_connection(("127.0.0.1", proxy.port), DEADLINE, (source, 0)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(request)
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            return response.status, response.read()


def test_a_refusal_comes_through_and_the_audit_has_the_clients_address(proxy: Proxy) -> None:
    """As the page says it is tried: without a token. What the client claims to be counts for nothing."""
    before = len(told(proxy.server))
    request = (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: fuse-gate.v1\r\n"
        b"X-Forwarded-For: 198.51.100.66\r\n\r\n"
    )
    assert ask(proxy, request, "127.0.0.9")[0] == 401
    wait_for_record(proxy.server, before, says="no token; from 127.0.0.9", kind="login-refused")


def test_haproxy_sees_that_the_server_drains(proxy: Proxy) -> None:
    """By its checks: then it answers itself, and others would get what comes."""
    if not proxy.kind.startswith("haproxy"):
        pytest.skip("it makes no checks")
    runtime = str(proxy.server.runtime)
    control.call(runtime, "drain")
    until(lambda: "Server fuse-gated/local is DOWN" in proxy.log.read_text(), "a check that tells it")
    assert "503" in next(line for line in proxy.log.read_text().splitlines() if "is DOWN" in line)
    control.call(runtime, "drain", undo=True)
    until(lambda: "Server fuse-gated/local is UP" in proxy.log.read_text(), "a check that takes it back")


def test_a_health_check_comes_through(proxy: Proxy) -> None:
    assert ask(proxy, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n") == (200, b"ok\n")

"""A server that is taken out of service: nobody new comes in, and whoever is in stays."""

import contextlib
import copy
import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from harness import Server, Stage
from harness.hostile import HostileClient
from harness.log import DEADLINE
from harness.waiting import told, until, wait_for_record

from fuse_gated import control
from fuse_gated.commands.fuse_gatectl import main

RULE = {"path": "/**", "allow": ["read", "write", "execute", "delete"]}
ORIGIN = "https://files.example.org"


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    # Written out for each: YAML would make an alias of one that stands twice, which a policy may not have.
    tenants = {name: {"users": ["root"], "rules": [copy.deepcopy(RULE)]} for name in ("acme", "eve")}
    # Nobody here comes too late because the machine has other things to do.
    return stage.server({"tenants": tenants}, settings={"origins": [ORIGIN], "admission": {"login_deadline": "60s"}})


@pytest.fixture
def draining(server: Server) -> Iterator[Server]:
    assert main(["--runtime", str(server.runtime), "drain"]) == 0
    yield server
    assert main(["--runtime", str(server.runtime), "drain", "--undo"]) == 0


def check(server: Server, method: bytes = b"GET") -> tuple[bytes, bytes]:
    """Status line and body of a health check's answer."""
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as connection:
        connection.sendall(method + b" /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(4096):
                heard += data
    head, _, body = heard.partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], body


def test_the_health_check_tells(server: Server) -> None:
    runtime = ["--runtime", str(server.runtime)]
    unavailable = b"HTTP/1.1 503 Service Unavailable"
    assert check(server) == (b"HTTP/1.1 200 OK", b"ok\n")
    assert main([*runtime, "drain"]) == 0
    assert main([*runtime, "drain"]) == 0
    assert check(server) == (unavailable, b"draining\n")
    assert check(server, b"HEAD") == (unavailable, b"")
    assert control.convert_status(control.call(str(server.runtime), "status")).draining
    assert main([*runtime, "drain", "--undo"]) == 0
    assert check(server) == (b"HTTP/1.1 200 OK", b"ok\n")
    assert not control.convert_status(control.call(str(server.runtime), "status")).draining
    log = server.program.stderr.text()
    assert log.count("draining: no new sessions; 0 sessions here") == 1
    assert log.count("taking new sessions again; 0 sessions here") == 1


def test_nobody_new_comes_in(draining: Server) -> None:
    before = len(told(draining))
    with HostileClient(draining, tenant="acme") as client:
        assert client.upgrade() == 503
        assert client.response is not None
        assert b"the server is draining and takes no new sessions: try again later, or another server" in client.response.body
    wait_for_record(draining, before, says="the server is draining", kind="login-refused")
    # A token that is none is still told from one that is.
    with HostileClient(draining, tenant="acme") as client:
        assert client.upgrade(authorization="Bearer x") == 401


def test_no_browser_comes_in(draining: Server) -> None:
    with HostileClient(draining, tenant="acme") as client:
        assert client.upgrade(authorization=None, headers=(("Origin", ORIGIN),)) == 101
        client.hello(token=client.token)
        code, reason = client.wait_closed()
    assert (code, "the server is draining" in reason) == (1013, True)


def test_whoever_is_in_stays_and_is_waited_for(stage: Stage, server: Server) -> None:
    with HostileClient(server, tenant="acme") as early:
        # It has logged in, and says hello once the server drains.
        assert early.upgrade() == 101
        mounted = stage.mount(server=server, name="stays")
        runtime = ["--runtime", str(server.runtime)]
        ended: list[int] = []
        waiting = threading.Thread(target=lambda: ended.append(main([*runtime, "drain", "--wait"])))
        waiting.start()
        server.program.stderr.wait_for("draining: no new sessions; 1 session here", server.program.process)
        (mounted.path / "new").write_text("hello")
        assert (mounted.export / "new").read_text() == "hello"
        server.program.send(signal.SIGHUP)
        early.hello()
        code, reason = early.wait_closed()
        assert (code, "the server is draining" in reason) == (1013, True)
    # Another tenant has nothing here to come back to.
    with HostileClient(server, tenant="eve") as client:
        assert client.upgrade() == 503
    assert waiting.is_alive()
    mounted.client.stop()
    waiting.join(DEADLINE)
    assert ended == [0]
    assert main([*runtime, "drain", "--undo"]) == 0
    stage.mount(server=server, name="again").client.stop()


def test_a_client_comes_back_to_its_session(stage: Stage, draining: Server) -> None:
    """It has something to lose here, and nothing anywhere else."""
    runtime = str(draining.runtime)
    until(lambda: not control.call(runtime, "sessions"), "those of other tests have gone")
    control.call(runtime, "drain", undo=True)
    mounted = stage.mount(server=draining, name="back", options=["--reconnect-delay", "0.05"])
    control.call(runtime, "drain")
    (session,) = control.convert_sessions(control.call(runtime, "sessions"))
    os.kill(session.pid, signal.SIGKILL)
    mounted.client.wait_for_event("resumed")
    (mounted.path / "new").write_text("hello")
    assert (mounted.export / "new").read_text() == "hello"
    mounted.client.stop()

"""The client against a server made by hand, over a real connection on the loopback interface."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.certificates import Authority, Pair
from harness.client_stage import Stage, one_file, result
from harness.scripted_server import MOUNT, Script, ScriptedServer, asks, welcome
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode

from fuse_gated import client as module
from fuse_gated import connection
from fuse_gated.client import TRANSITIONS, Client, Event, State
from fuse_gated.edge.destination import Destination, parse_server
from fuse_gated.edge.files import Export
from fuse_gated.errors import GateError, OperatorError, PeerError, ProtocolError, RefusedError
from fuse_gated.persistence import Persistence
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

READ, WRITE = wire.OPEN_READ, wire.OPEN_WRITE


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with one_file(tmp_path) as stage:
        yield stage


def test_a_session_from_hello_to_goodbye(stage: Stage) -> None:
    said: list[Any] = []

    def script() -> Any:
        said.append((yield ()))
        said.append((yield [welcome(), *asks(wire.Open(b"file", READ))]))
        handle = result("open", said[1]).handle
        said.append((yield asks(wire.Read(handle, 2, 4), wire.Release(handle), first=2)))
        said.append((yield ()))

    server = stage.set(script)
    stage.run()
    hello, _, read, release = said
    assert isinstance(hello, wire.Hello)
    assert hello.offer.export == "export"
    assert hello.offer.root == os.fsencode(stage.root)
    assert hello.offer.program.startswith("fuse-gate/")
    assert hello.offer.token is None
    assert hello.offer.capabilities == (("chown", "watches", "after") if os.geteuid() == 0 else ("watches", "after"))
    assert bytes(result("read", read)) == b"2345"
    assert release.errno is None
    stage.turn_until(lambda: server.closed)
    assert server.closed == [(1000, "goodbye")]
    assert server.requests[0].headers["Authorization"] == "Bearer secret-token"
    assert server.requests[0].headers["Sec-WebSocket-Protocol"] == "fuse-gate.v1"
    assert "Sec-WebSocket-Extensions" not in server.requests[0].headers
    assert stage.client is not None
    assert stage.client.state is State.CLOSED
    assert [(event.event, event.path or event.reason) for event in stage.events] == [
        ("connecting", None),
        ("logged-in", None),
        ("mounted", MOUNT),
        ("closed", "goodbye"),
    ]
    assert stage.client.answering.operations == 3


def test_a_cancelled_wait_is_answered(stage: Stage) -> None:
    said: list[Any] = []

    def script() -> Any:
        yield ()
        opened = yield [welcome(), *asks(wire.Open(b"file", READ | WRITE))]
        handle = result("open", opened).handle
        yield asks(wire.Setlk(handle, 1, 0, 9, 1), first=2)
        said.append((yield [*asks(wire.Setlk(handle, 2, 0, 9, 1, wait=60_000), first=3), wire.Cancel(3), wire.Cancel(99)]))

    stage.set(script)
    stage.run()
    assert (said[0].id, said[0].errno) == (3, "EINTR")


def first_message(*steps: Any) -> Script:
    """Answers the hello with `steps`, and waits."""

    def script() -> Any:
        yield ()
        while True:
            yield steps

    return script


def text(server: ScriptedServer) -> None:
    assert server.websocket is not None
    server.websocket.protocol.send_text(b"hello")
    server.websocket.flush_soon()


def unmasked_garbage(server: ScriptedServer) -> None:
    assert server.connection is not None
    server.connection.send(b"\xff\xff\xff\xff")


def half_a_message(server: ScriptedServer) -> None:
    """A fragment, and then a message that is no continuation."""
    assert server.websocket is not None
    protocol = server.websocket.protocol
    for opcode, fin in ((Opcode.BINARY, False), (Opcode.BINARY, True)):
        protocol.writes.append(WebSocketFrame(opcode, b"x", fin).serialize(mask=False, extensions=[]))
    server.websocket.flush_soon()


@pytest.mark.parametrize(
    ("steps", "code", "words"),
    [
        (asks(wire.Getattr(b"")), 1002, "before the welcome"),
        ([welcome(), welcome()], 1002, "second welcome"),
        ([welcome(10_000)], 1008, "10000 requests"),
        ([welcome(1, 2**40)], 1008, "bytes in flight"),
        ([welcome(2), *asks(*[wire.Getattr(b"")] * 3)], 1008, "more than 2 requests"),
        ([welcome(9, 100), *asks(wire.Read(1, 0, 60), wire.Read(1, 0, 60))], 1008, "more than 100 bytes"),
        ([welcome(), wire.Ask(1, "getattr", (5, 6, "x"))], None, None),
        ([welcome(), wire.Ask(1, "getattr", ())], 1007, "getattr"),
        ([welcome(), wire.Ask(1, "read", (1, "x", 3))], 1007, "read"),
        ([welcome(), wire.Hello(wire.Offer(export="x"))], 1007, "malformed"),
        ([welcome(), b"\xc1"], 1007, "malformed"),
        ([welcome(), b""], 1007, "malformed"),
        ([welcome(), b"\x93" * 100_000], 1007, "malformed"),
        ([welcome(), codec.encode(*[wire.Cancel(1)] * 5000)], 1008, "5000 frames"),
        ([welcome(), text], 1003, "text"),
        ([welcome(), b"\0" * (wire.MAX_MESSAGE + 1)], 1009, "broke the protocol"),
        ([welcome(), unmasked_garbage], 1002, "broke the protocol"),
        ([welcome(), half_a_message], 1002, "broke the protocol"),
    ],
)
def test_a_server_that_breaks_the_rules(stage: Stage, steps: list[Any], code: int | None, words: str | None) -> None:
    server = stage.set(first_message(*steps))
    if code is None:
        # More fields than this version knows are a later version's.
        server.script = first_message(*steps, lambda _: stage.client and stage.client.goodbye())
        stage.run()
        return
    error = stage.failure()
    assert words is not None
    assert words in error.message
    assert error.exit_status == 1
    stage.turn_until(lambda: server.closed)
    assert server.closed[0][0] == code


def test_nothing_is_done_after_a_violation(stage: Stage) -> None:
    stage.set(first_message(welcome(), wire.Ask(1, "getattr", ()), *asks(wire.Mkdir(b"never", 0o755), first=2)))
    assert isinstance(stage.failure(), ProtocolError)
    assert not (stage.root / "never").exists()


def test_messages_after_a_violation_are_not_looked_at(stage: Stage) -> None:
    stage.set(first_message(welcome(), b"\xc1", *asks(wire.Mkdir(b"never", 0o755))))
    assert isinstance(stage.failure(), ProtocolError)
    assert not (stage.root / "never").exists()


@pytest.mark.parametrize(
    ("status", "kind", "exit_status"),
    [
        (401, RefusedError, 3),
        (403, RefusedError, 3),
        (429, RefusedError, 3),
        (503, PeerError, 1),
        (404, PeerError, 1),
        (301, PeerError, 1),
    ],
)
def test_an_upgrade_that_is_refused(stage: Stage, status: int, kind: type[GateError], exit_status: int) -> None:
    stage.set().answer = (status, "because of this\n")
    error = stage.failure()
    assert type(error) is kind
    assert error.exit_status == exit_status
    assert "because of this" in error.message
    assert error.hint
    assert stage.events[-1].event == "closed"
    assert "because of this" in (stage.events[-1].reason or "")


@pytest.mark.parametrize(
    ("code", "kind", "exit_status"),
    [
        (4001, RefusedError, 3),
        (4003, RefusedError, 3),
        (4008, RefusedError, 3),
        (1000, PeerError, 1),
        (1001, PeerError, 1),
        (1008, PeerError, 1),
        (1011, PeerError, 1),
        (3000, PeerError, 1),
    ],
)
@pytest.mark.parametrize("early", [True, False])
def test_a_server_that_closes(stage: Stage, code: int, kind: type[GateError], exit_status: int, early: bool) -> None:
    def close(server: ScriptedServer) -> None:
        assert server.websocket is not None
        server.websocket.protocol.send_close(code, "for a reason")
        server.websocket.flush_soon()

    stage.set(first_message(close) if early else first_message(welcome(), close))
    error = stage.failure()
    assert type(error) is kind
    assert error.exit_status == exit_status
    assert "for a reason" in error.message


def test_a_server_that_breaks_off(stage: Stage) -> None:
    stage.set(first_message(welcome(), lambda server: server.websocket.abort()))
    assert "broke off" in stage.failure().message


def test_a_server_of_another_kind(stage: Stage) -> None:
    stage.set().subprotocols = None
    assert "does not speak fuse-gate.v1" in stage.failure().message


def test_an_upgrade_that_makes_no_sense(stage: Stage) -> None:
    stage.set().headers = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    assert "the upgrade failed: no extensions supported" in stage.failure().message


class RawServer:
    """Takes one connection, sends some bytes, and closes or waits for the other side to."""

    def __init__(self, answer: bytes, *, close: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._answer, self._close = answer, close
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(self._answer)
            while not self._close and connection.recv(65536):
                pass

    def stop(self) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    ("answer", "close", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", True, "upgrade failed"),
        (b"", True, "before it answered"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", False, "upgrade"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\x1b[31m", False, "200"),
    ],
)
def test_something_that_is_no_server(stage: Stage, answer: bytes, close: bool, words: str) -> None:
    server = RawServer(answer, close=close)
    assert words in stage.failure(port=server.port).message.lower()
    server.stop()


def test_nobody_listens(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    error = stage.failure(port=port)
    assert isinstance(error, PeerError)
    assert f"127.0.0.1:{port}" in error.message
    assert "refused" in error.message


def test_a_host_without_a_name(stage: Stage) -> None:
    destination = Destination(uri=parse_server("ws://" + "x" * 70 + ".invalid:1"), token="t", name="n")
    stage.client = Client(stage.loop, Export(stage.root), destination, stage.events.append)
    with pytest.raises(PeerError, match="cannot reach"):
        stage.client.run()


def test_a_server_that_never_answers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.1)
    server = RawServer(b"", close=False)
    assert "did not answer within 0.1 s" in stage.failure(port=server.port).message
    server.stop()


def test_a_server_that_never_welcomes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOGIN_TIMEOUT", 0.05)
    stage.set(first_message())
    assert "did not open a session" in stage.failure().message


def test_the_first_reason_is_the_one_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOGIN_TIMEOUT", 1.0)
    monkeypatch.setattr("fuse_gated.edge.websocket._CLOSE_TIMEOUT", 1.5)
    stage.set(first_message(*asks(wire.Getattr(b"")), lambda server: server.loop.soon(server.fall_silent)))
    assert "before the welcome" in stage.failure().message


@pytest.mark.parametrize("welcomed", [True, False], ids=["welcomed", "not yet"])
def test_a_silent_server_is_given_up(stage: Stage, welcomed: bool) -> None:
    stage.set(first_message(*([welcome()] if welcomed else []), ScriptedServer.fall_silent))
    assert "silent" in stage.failure(persistence=Persistence(reconnect=False, dead_after=0.1)).message


def test_pings_keep_a_session_alive(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LOGIN_TIMEOUT", 1.0)
    server = stage.set(first_message(welcome()))
    client = stage.make(persistence=Persistence(reconnect=False, dead_after=5.0))
    looks: list[int] = []

    def look() -> None:
        assert server.websocket is not None
        assert client._connection is not None
        assert client._connection._websocket is not None
        # As if nothing had been said for a while.
        client._connection._websocket.last_heard -= 2.0
        client._connection._keep_alive()
        looks.append(server.websocket.bytes_received)
        # A masked ping without data has six bytes.
        if looks[-1] >= looks[0] + 30:
            client.goodbye()
        else:
            stage.loop.after(0.01, look)

    # By then the login's time would be over.
    stage.when["mounted"] = lambda _: stage.loop.after(1.1, look)
    client.run()
    assert client.state is State.CLOSED
    assert stage.events[-1].reason == "goodbye"


def test_a_link_that_says_something_costs_no_pings(stage: Stage) -> None:
    server = stage.set(first_message(welcome()))
    client = stage.make(persistence=Persistence(reconnect=False, dead_after=5.0))
    asked: list[int] = []

    def look() -> None:
        assert client._connection is not None
        assert server.websocket is not None
        client._connection._keep_alive()
        asked.append(server.websocket.bytes_received)
        if len(asked) == 20:
            client.goodbye()
        else:
            stage.loop.after(0.001, look)

    stage.when["mounted"] = lambda _: stage.loop.after(0.1, look)
    client.run()
    assert set(asked) == {asked[0]}


def test_goodbye_before_anything_happened(stage: Stage) -> None:
    stage.set()
    client = stage.make()
    stage.loop.soon(client.goodbye)
    stage.loop.soon(client.goodbye)
    client.run()
    assert client.state is State.CLOSED
    assert stage.events[-1] == Event(event="closed", reason="goodbye")


@pytest.mark.parametrize("fails", [False, True])
def test_a_connection_that_comes_too_late_is_closed(stage: Stage, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    gate, done = threading.Event(), threading.Event()
    late, other = socket.socketpair()

    def connecting(*_: Any) -> socket.socket:
        gate.wait()
        if fails:
            late.close()
            raise OSError("nobody was there")
        return late

    really = connection.Connection._connect

    def watched(self: connection.Connection) -> None:
        really(self)
        done.set()

    monkeypatch.setattr(connection, "connect", connecting)
    monkeypatch.setattr(connection.Connection, "_connect", watched)
    stage.set()
    client = stage.make()
    stage.loop.soon(client.goodbye)
    client.run()
    told = list(stage.events)
    gate.set()
    assert done.wait(60)
    with other:
        assert other.recv(1) == b""
    client.goodbye()
    assert stage.events == told


def test_a_connection_that_nobody_takes_is_closed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was made in the very moment in which it was given up."""
    made, other = socket.socketpair()
    monkeypatch.setattr(connection, "connect", lambda *_: made)
    stage.set()
    client = stage.make()
    client._connect()
    owned = client._connection
    assert owned is not None
    while owned._made is None:
        os.sched_yield()
    client.goodbye()
    with other:
        assert other.recv(1) == b""
    stage.loop.soon(lambda: None)
    stage.loop.turn()
    owned.abort()
    client._export.close()


def test_goodbye_twice_leaves_at_once(stage: Stage) -> None:
    def twice(_: ScriptedServer) -> None:
        assert stage.client is not None
        stage.client.goodbye()
        stage.client.goodbye()

    stage.set(first_message(welcome(), ScriptedServer.fall_silent, twice))
    stage.run()
    assert stage.client is not None
    assert stage.client.state is State.CLOSED


def test_goodbye_while_logging_in(stage: Stage) -> None:
    stage.set(first_message(lambda _: stage.client and stage.client.goodbye()))
    stage.run()
    assert [event.event for event in stage.events] == ["connecting", "logged-in", "closed"]


def test_what_a_dead_disk_holds_up_does_not_hold_up_the_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENDING_TIMEOUT", 0.01)
    gate = threading.Event()

    def hanging(_: int) -> None:
        assert stage.client is not None
        stage.loop.from_thread(stage.client.goodbye)
        gate.wait()

    monkeypatch.setattr(os, "fsync", hanging)

    def script() -> Any:
        yield ()
        opened = yield [welcome(), *asks(wire.Open(b"file", READ | WRITE))]
        handle = result("open", opened).handle
        yield asks(wire.Fsync(handle, False), first=2)

    stage.set(script)
    stage.run()
    assert stage.client is not None
    assert stage.client._export.open_handles == 1
    gate.set()
    assert all(pool.close(10) for pool in stage.client._pools)
    stage.client._export.close()


def test_every_state_can_be_left_and_only_the_last_two_cannot() -> None:
    ends = {State.CLOSED, State.FAILED}
    for state in set(State) - ends:
        assert TRANSITIONS[state, "left"] is State.CLOSED
    for state in (State.CONNECTING, State.LOGGED_IN, State.MOUNTED):
        assert TRANSITIONS[state, "lost"] is State.WAITING
    assert {state for state, _ in TRANSITIONS} == set(State) - ends
    assert set(TRANSITIONS.values()) | {State.CONNECTING} == set(State)


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def server_context(pair: Pair, clients: Path | None = None) -> ssl.SSLContext:
    """A server with this certificate, which wants one from `clients` if that is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


def one_request() -> Any:
    yield ()
    yield [welcome(), *asks(wire.Getattr(b"file"))]


def test_a_session_over_tls(stage: Stage, authority: Authority) -> None:
    stage.set(one_request, server_context(authority.issue("server")))
    stage.run("wss", ca=str(authority.certificate))
    assert stage.client is not None
    assert stage.client.answering.operations == 1


def test_much_data_over_tls(stage: Stage, authority: Authority) -> None:
    data = os.urandom(3 * 2**20)
    (stage.root / "large").write_bytes(data)
    got: list[bytes] = []

    def script() -> Any:
        yield ()
        opened = yield [welcome(), *asks(wire.Open(b"large", READ))]
        handle = result("open", opened).handle
        reply = yield asks(*(wire.Read(handle, offset, 2**20) for offset in range(0, len(data), 2**20)), first=2)
        for _ in range(2):
            got.append(bytes(result("read", reply)))
            reply = yield ()
        got.append(bytes(result("read", reply)))

    stage.set(script, server_context(authority.issue("server")))
    stage.run("wss", ca=str(authority.certificate))
    assert b"".join(got) == data


def test_a_client_shows_its_certificate(stage: Stage, authority: Authority) -> None:
    stage.set(one_request, server_context(authority.issue("server"), authority.certificate))
    own = authority.issue("client")
    stage.run("wss", ca=str(authority.certificate), certificate=str(own.certificate), key=str(own.key))


def test_a_client_without_the_certificate_it_needs(stage: Stage, authority: Authority) -> None:
    stage.set(one_request, server_context(authority.issue("server"), authority.certificate))
    error = stage.failure("wss", ca=str(authority.certificate))
    assert isinstance(error, PeerError)
    assert "--cert" in error.hint


def test_a_server_that_nobody_vouches_for(stage: Stage, authority: Authority) -> None:
    stage.set(one_request, server_context(authority.issue("server")))
    error = stage.failure("wss")
    assert "CERTIFICATE_VERIFY_FAILED" in error.message
    assert "--ca" in error.hint


def test_a_server_with_anothers_name(stage: Stage, authority: Authority) -> None:
    stage.set(one_request, server_context(authority.issue("other", names="DNS:elsewhere.example")))
    error = stage.failure("wss", ca=str(authority.certificate))
    assert "ismatch" in error.message
    assert error.hint == "connect to the name that stands in the server's certificate"


def test_a_server_whose_certificate_has_expired(stage: Stage, authority: Authority) -> None:
    stage.set(one_request, server_context(authority.issue("old", expired=True)))
    error = stage.failure("wss", ca=str(authority.certificate))
    assert "certificate has expired" in error.message
    assert error.hint == "the server's operator must renew its certificate"


def test_a_server_without_tls(stage: Stage, authority: Authority) -> None:
    server = RawServer(b"HTTP/1.1 400 Bad Request\r\n\r\n", close=True)
    error = stage.failure("wss", ca=str(authority.certificate), port=server.port)
    assert "TLS handshake failed" in error.message
    assert "wss" in error.hint
    server.stop()


def test_files_that_are_no_certificates(stage: Stage, tmp_path: Path) -> None:
    stage.set()
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for options in ({"ca": str(junk)}, {"ca": str(tmp_path / "missing")}, {"certificate": str(junk)}):
        with pytest.raises(OperatorError, match=r"junk|missing"):
            stage.make("wss", **options)

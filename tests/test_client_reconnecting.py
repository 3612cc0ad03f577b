"""The client over one connection after the other, against a server made by hand."""

import math
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.client_stage import Stage, one_file, result
from harness.hostile import Child
from harness.ports import port_of, reserve
from harness.scripted_server import MOUNT, ScriptedServer, asks, welcome

from fuse_gated import client as module
from fuse_gated import connection
from fuse_gated.client import Event, State
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import GateError, PeerError, ProtocolError, RefusedError
from fuse_gated.persistence import Persistence
from fuse_gated.wire import messages as wire

READ, WRITE = wire.OPEN_READ, wire.OPEN_WRITE
QUICK = Persistence(delay=0.01, longest_delay=0.02)
FROM_START = Persistence(delay=0.01, longest_delay=0.02, from_start=True)
SECRET = b"r" * 32

Turn = Callable[[], Any]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with one_file(tmp_path) as stage:
        yield stage


def play(stage: Stage, *turns: Turn) -> ScriptedServer:
    """Each connection has a turn of its own; the last one's is played again."""
    server = stage.set()

    def take(number: int) -> None:
        server.script = turns[min(number, len(turns) - 1)]

    server.on_accept = take
    return server


def told(stage: Stage) -> list[str]:
    return [event.event for event in stage.events]


def event(stage: Stage, name: str, index: int = -1) -> Event:
    return [event for event in stage.events if event.event == name][index]


# Ways to lose a connection.


def broken_off(server: ScriptedServer) -> None:
    assert server.websocket is not None
    server.websocket.abort()


def cut_within_a_frame(server: ScriptedServer) -> None:
    assert server.connection is not None
    server.connection.send(b"\x82\x7e\x10\x00half of it")
    server.loop.soon(lambda: broken_off(server))


def reset(server: ScriptedServer) -> None:
    assert server.connection is not None
    server.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    broken_off(server)


def closed(code: int, reason: str = "for a reason") -> Callable[[ScriptedServer], None]:
    def close(server: ScriptedServer) -> None:
        assert server.websocket is not None
        server.websocket.protocol.send_close(code, reason)
        server.websocket.flush_soon()

    return close


def losing(*steps: Any, **terms: Any) -> Turn:
    """Welcomes, and then is lost."""

    def turn() -> Any:
        yield ()
        yield [welcome(**{"grace": 60.0, **terms}), *asks(wire.Getattr(b""))]
        while True:
            yield steps

    return turn


def welcoming(**terms: Any) -> Turn:
    """Welcomes; the client then leaves."""

    def turn() -> Any:
        yield ()
        yield [welcome(**terms), *asks(wire.Getattr(b""))]

    return turn


@pytest.mark.parametrize(
    "loss",
    [broken_off, cut_within_a_frame, reset, ScriptedServer.fall_silent, *map(closed, (1001, 1011, 1012, 1013, 4008, 3000))],
)
def test_a_session_goes_on_over_another_connection(stage: Stage, loss: Callable[[ScriptedServer], None]) -> None:
    said: list[Any] = []
    handles: list[int] = []

    def first() -> Any:
        said.append((yield ()))
        opened = yield [welcome(grace=60.0), *asks(wire.Open(b"file", READ | WRITE), first=2)]
        handles.append(result("open", opened).handle)
        reply = yield asks(wire.Write(handles[0], 0, memoryview(b"more"), append=True), first=4)
        assert result("write", reply) == 4
        yield [loss]

    def second() -> Any:
        said.append((yield ()))
        again = asks(wire.Write(handles[0], 0, memoryview(b"more"), append=True), first=4)
        said.append((yield [welcome(resumed=True, resume=b"another", grace=60.0), *again]))
        said.append((yield asks(wire.Read(handles[0], 0, 100), first=6)))

    play(stage, first, second)
    client = stage.make(persistence=Persistence(delay=0.01, longest_delay=0.02, dead_after=0.2))
    client.run()
    first_hello, second_hello, write, read = said
    assert first_hello.offer.resume is None
    assert second_hello.offer.resume == SECRET
    assert second_hello.offer.export == "export"
    assert result("write", write) == 4
    assert bytes(result("read", read)) == b"0123456789more"
    assert (stage.root / "file").read_bytes() == b"0123456789more"
    assert told(stage) == [
        "connecting", "logged-in", "mounted", "connection-lost", "reconnecting", "logged-in", "resumed", "closed",
    ]  # fmt: skip
    assert event(stage, "reconnecting").attempt == 1
    assert event(stage, "reconnecting").reason == event(stage, "connection-lost").reason
    resumed = event(stage, "resumed")
    assert (resumed.path, resumed.session, resumed.replaced) == (MOUNT, "session-1", False)
    # Counts go on.
    assert (client.answering.operations, client.answering.bytes_written) == (3, 4)
    assert client._secret == b"another"


def test_the_old_socket_is_closed_first(stage: Stage) -> None:
    seen: list[int] = []
    server = play(stage, losing(ScriptedServer.fall_silent), welcoming(resumed=True))
    stage.when["reconnecting"] = lambda _: seen.append(silent_connection(server).recv(100_000)[-1:] != b"")
    stage.when["resumed"] = lambda _: seen.append(silent_connection(server).recv(1) == b"")
    stage.run(persistence=Persistence(delay=0.01, longest_delay=0.02, dead_after=0.1))
    # Pings, which nobody has read, and then the end.
    assert seen == [True, True]


def silent_connection(server: ScriptedServer) -> socket.socket:
    return server.websockets[0]._socket


def test_a_server_that_no_longer_knows_the_session(stage: Stage) -> None:
    said: list[Any] = []

    def first() -> Any:
        yield ()
        opened = yield [welcome(grace=60.0), *asks(wire.Open(b"file", READ | WRITE), first=2)]
        handle = result("open", opened).handle
        yield asks(wire.Mkdir(b"new", 0o755), first=4)
        yield asks(wire.Setlk(handle, 1, 0, 9, 1), first=6)
        said.append(handle)
        yield [broken_off]

    def second() -> Any:
        said.append((yield ()))
        said.append((yield [welcome(session="session-2"), *asks(wire.Read(said[0], 0, 10), first=2)]))
        said.append((yield asks(wire.Mkdir(b"new", 0o755), first=4)))

    play(stage, first, second)
    client = stage.make(persistence=QUICK)
    client.run()
    assert said[1].offer.resume == SECRET
    assert said[2].errno == "EBADF"
    assert said[3].errno == "EEXIST"
    assert event(stage, "mounted", 0) == Event(event="mounted", path=MOUNT, session="session-1")
    assert event(stage, "mounted", 1) == Event(event="mounted", path=MOUNT, session="session-2", replaced=True)
    assert "resumed" not in told(stage)
    assert client.answering.remembered == 1


@pytest.mark.parametrize("grace", [0.05, 0.0])
def test_nothing_is_held_much_beyond_the_grace(stage: Stage, monkeypatch: pytest.MonkeyPatch, grace: float) -> None:
    monkeypatch.setattr(module, "HELD_BEYOND", 0.05)
    said: list[Any] = []
    held: list[int] = []

    def first() -> Any:
        yield ()
        yield [welcome(grace=grace), *asks(wire.Open(b"file", READ | WRITE), first=2)]
        yield [broken_off]

    def later() -> Any:
        said.append((yield ()))
        yield [welcome(), *asks(wire.Getattr(b""))]

    server = play(stage, first, later)
    client = stage.make(persistence=QUICK)

    def waiting(_: Event) -> None:
        held.append(client._export.open_handles)
        # Not before it has given up.
        server.answer = (503, "not yet") if held[-1] else None

    stage.when["reconnecting"] = waiting
    client.run()
    assert held[0] == 1
    assert held[-1] == 0
    assert said[0].offer.resume is None
    assert event(stage, "mounted").replaced


def test_a_session_that_is_being_asked_for_is_not_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is over while the server thinks about the hello."""
    monkeypatch.setattr(module, "HELD_BEYOND", 1000.0)

    def first() -> Any:
        yield ()
        yield [welcome(grace=1.0), *asks(wire.Open(b"file", READ), first=2)]
        yield [broken_off]

    def second() -> Any:
        yield ()
        client._hold_no_longer()
        assert client.state is State.LOGGED_IN
        reply = yield [welcome(resumed=True), *asks(wire.Getattr(1))]
        assert result("getattr", reply).size == 10

    play(stage, first, second)
    client = stage.make(persistence=QUICK)
    client.run()
    assert "resumed" in told(stage)


# What ends it, and what does not.


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_is_final(stage: Stage, status: int) -> None:
    server = play(stage, losing(broken_off))
    stage.when["connection-lost"] = lambda _: setattr(server, "answer", (status, "because of this"))
    error = stage.failure(persistence=QUICK)
    assert isinstance(error, RefusedError)
    assert error.exit_status == 3
    assert told(stage)[-3:] == ["connection-lost", "reconnecting", "closed"]
    assert stage.client is not None
    assert stage.client.state is State.FAILED


@pytest.mark.parametrize(
    ("code", "kind"),
    [(4001, RefusedError), (4003, RefusedError), (1000, PeerError), (1002, PeerError), (1007, PeerError), (1008, PeerError),
     (1009, PeerError)],
)  # fmt: skip
def test_closes_that_are_final(stage: Stage, code: int, kind: type[GateError]) -> None:
    play(stage, losing(closed(code)))
    error = stage.failure(persistence=QUICK)
    assert type(error) is kind
    assert "reconnecting" not in told(stage)


def test_a_server_that_breaks_the_protocol_is_left(stage: Stage) -> None:
    play(stage, losing(b"\xc1"))
    assert isinstance(stage.failure(persistence=QUICK), ProtocolError)
    assert "reconnecting" not in told(stage)


@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 504])
def test_what_a_proxy_says_meanwhile_is_not_final(stage: Stage, status: int) -> None:
    server = play(stage, losing(broken_off), welcoming(resumed=True))
    attempts: list[Event] = []
    stage.when["connection-lost"] = lambda _: setattr(server, "answer", (status, "for now"))

    def again(event: Event) -> None:
        attempts.append(event)
        if len(attempts) == 4:
            server.answer = None

    stage.when["reconnecting"] = again
    stage.run(persistence=QUICK)
    assert [one.attempt for one in attempts] == [1, 2, 3, 4]
    assert "for now" in (attempts[-1].reason or "")
    assert told(stage)[-2:] == ["resumed", "closed"]


def test_a_server_that_is_of_another_kind_for_now(stage: Stage) -> None:
    server = play(stage, losing(broken_off), welcoming(resumed=True))
    stage.when["connection-lost"] = lambda _: setattr(server, "subprotocols", None)
    attempts: list[Event] = []

    def again(event: Event) -> None:
        attempts.append(event)
        if len(attempts) == 3:
            server.subprotocols = [wire.SUBPROTOCOL]

    stage.when["reconnecting"] = again
    stage.run(persistence=QUICK)
    assert "does not speak" in (attempts[-1].reason or "")


def test_a_server_that_hangs_in_the_upgrade(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    server = play(stage, losing(broken_off), welcoming(resumed=True))
    really = server.on_request
    monkeypatch.setattr(server, "on_request", lambda request: really(request) if len(server.websockets) != 2 else None)
    stage.when["connection-lost"] = lambda _: monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 0.05)
    stage.when["reconnecting"] = lambda event: event.attempt == 2 and monkeypatch.undo()
    stage.run(persistence=QUICK)
    assert "did not answer" in (event(stage, "reconnecting").reason or "")
    assert told(stage)[-2:] == ["resumed", "closed"]


def test_a_server_that_hangs_before_the_welcome(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging() -> Any:
        yield ()
        yield [lambda _: monkeypatch.undo()]

    play(stage, losing(broken_off), hanging, welcoming(resumed=True))
    stage.when["connection-lost"] = lambda _: monkeypatch.setattr(connection, "LOGIN_TIMEOUT", 0.05)
    stage.run(persistence=QUICK)
    assert "did not open a session" in (event(stage, "reconnecting").reason or "")
    assert told(stage)[-2:] == ["resumed", "closed"]


# How often.


def test_attempts_are_counted(stage: Stage) -> None:
    server = play(stage, losing(broken_off))
    stage.when["connection-lost"] = lambda _: setattr(server, "answer", (503, "for now"))
    error = stage.failure(persistence=Persistence(delay=0.01, longest_delay=0.02, max_attempts=3))
    assert type(error) is PeerError
    assert error.exit_status == 1
    assert error.message == "given up after 3 attempts: the server is not available: for now"
    assert [one.attempt for one in stage.events if one.event == "reconnecting"] == [1, 2, 3]
    assert stage.client is not None
    assert stage.client.state is State.FAILED


def test_a_refusal_for_now_that_lasts_is_a_failure(stage: Stage) -> None:
    stage.set().answer = (429, "too many")
    error = stage.failure(persistence=Persistence(from_start=True, max_attempts=1))
    assert error.message.startswith("given up after one attempt: ")
    assert error.exit_status == 1


def test_a_mounted_session_sets_the_count_back(stage: Stage) -> None:
    resuming = losing(broken_off, resumed=True)
    play(stage, losing(broken_off), resuming, resuming, resuming, welcoming(resumed=True))
    stage.run(persistence=Persistence(delay=0.01, longest_delay=0.02, max_attempts=1))
    assert [one.attempt for one in stage.events if one.event == "reconnecting"] == [1, 1, 1, 1]
    assert told(stage).count("resumed") == 4


def test_attempts_come_later_and_later(stage: Stage) -> None:
    server = play(stage, losing(broken_off))
    stage.when["connection-lost"] = lambda _: setattr(server, "answer", (503, "for now"))
    stage.failure(persistence=Persistence(delay=0.001, longest_delay=0.05, max_attempts=8))
    delays = [one.delay for one in stage.events if one.event == "reconnecting"]
    assert len(delays) == 8
    assert all(0.0 <= (delay or 0.0) <= min(0.05, 0.001 * 2**number) + 0.001 for number, delay in enumerate(delays))


@pytest.mark.parametrize("code", [1001, 1012])
def test_a_server_that_restarts_is_looked_for_soon(stage: Stage, code: int) -> None:
    play(stage, losing(closed(code)), welcoming(resumed=True))
    client = stage.make(persistence=Persistence(delay=1000.0, longest_delay=1000.0))
    # It has been there for long.
    stage.when["mounted"] = lambda _: setattr(client, "_mounted_at", -math.inf)
    client.run()
    assert 0.0 <= (event(stage, "reconnecting").delay or 0.0) <= 0.2


def test_a_server_that_does_nothing_but_restart_is_not_believed(stage: Stage) -> None:
    play(stage, losing(closed(1012)))
    client = stage.make(persistence=Persistence(delay=1000.0, longest_delay=1000.0))
    pauses: list[int] = []
    client._persistence = PauseCounted(pauses)  # type: ignore[assignment]
    stage.when["reconnecting"] = lambda _: client.goodbye()
    client.run()
    assert pauses == [0]


class PauseCounted:
    reconnect, from_start, max_attempts, dead_after, delay = True, False, None, 20.0, 1000.0

    def __init__(self, asked: list[int]) -> None:
        self._asked = asked

    def pause(self, failures: int) -> float:
        self._asked.append(failures)
        return 1000.0


# The first connection.


@pytest.fixture
def port() -> Iterator[int]:
    """One on which nobody listens but who is told to here."""
    with reserve() as place:
        yield port_of(place)


def test_a_first_attempt_that_fails_is_the_end(stage: Stage, port: int) -> None:
    error = stage.failure(port=port, persistence=QUICK)
    assert "cannot reach" in error.message
    assert told(stage) == ["connecting", "closed"]


def test_whoever_wants_to_tries_on_from_the_start(stage: Stage, port: int) -> None:
    client = stage.make(port=port, persistence=FROM_START)

    def start(event: Event) -> None:
        if event.attempt == 3:
            server = stage.server = ScriptedServer(stage.loop, welcoming(), port=port)
            server.on_end = client.goodbye

    stage.when["reconnecting"] = start
    client.run()
    assert told(stage)[-3:] == ["logged-in", "mounted", "closed"]
    assert not event(stage, "mounted").replaced


@pytest.mark.parametrize(("status", "exit_status"), [(401, 3), (403, 3), (404, 1)])
def test_what_is_no_use_to_try_again(stage: Stage, status: int, exit_status: int) -> None:
    stage.set().answer = (status, "no")
    assert stage.failure(persistence=FROM_START).exit_status == exit_status
    assert told(stage) == ["connecting", "closed"]


# Leaving.


def test_goodbye_while_waiting(stage: Stage) -> None:
    play(stage, losing(broken_off))
    client = stage.make(persistence=Persistence(delay=1000.0))
    stage.when["reconnecting"] = lambda _: stage.loop.soon(client.goodbye)
    client.run()
    assert client.state is State.CLOSED
    assert stage.events[-1] == Event(event="closed", reason="goodbye")
    assert client._export.open_handles == 0


def test_goodbye_in_the_moment_of_the_next_attempt(stage: Stage) -> None:
    """Signals are heard before timers: what is due in the same turn of the loop must not come after the end."""
    play(stage, losing(broken_off))
    client = stage.make(persistence=Persistence(delay=0.0, longest_delay=0.0))
    stage.when["reconnecting"] = lambda _: stage.loop.from_thread(client.goodbye)
    client.run()
    assert told(stage)[-2:] == ["reconnecting", "closed"]
    assert client.state is State.CLOSED


def test_goodbye_while_connecting_again(stage: Stage) -> None:
    server = play(stage, losing(broken_off))
    client = stage.make(persistence=QUICK)
    really = server.on_accept

    def leave(number: int) -> None:
        really(number)
        if number:
            client.goodbye()

    server.on_accept = leave
    client.run()
    assert client.state is State.CLOSED
    assert stage.events[-1] == Event(event="closed", reason="goodbye")


# A hostile server.


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"resumed": True}, "has not asked for"),
        ({"grace": math.nan}, "a grace of nan"),
        ({"grace": -1.0}, "a grace of -1"),
        ({"resume": b"x" * 2000}, "a secret of 2000 bytes"),
    ],
)
def test_terms_that_make_no_sense(stage: Stage, terms: dict[str, Any], words: str) -> None:
    play(stage, welcoming(**terms))
    error = stage.failure(persistence=QUICK)
    assert isinstance(error, ProtocolError)
    assert words in error.message


def test_nobody_holds_files_for_ever(stage: Stage) -> None:
    play(stage, welcoming(grace=math.inf))
    client = stage.make(persistence=QUICK)
    client.run()
    assert client._held_for == module.LONGEST_GRACE + module.HELD_BEYOND


def test_a_session_that_goes_on_unasked_for_after_the_grace(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    play(stage, losing(broken_off, grace=0.0), losing(resumed=True))
    client = stage.make(persistence=QUICK)
    stage.when["reconnecting"] = lambda _: client._hold_no_longer()
    with pytest.raises(ProtocolError, match="has not asked for"):
        client.run()


# Whatever happens to the sockets.


def test_a_socket_that_was_reset_before_tls(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connected_and_reset(*_: Any) -> socket.socket:
            sock = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            accepted.close()
            ended = select.poll()
            ended.register(sock, select.POLLIN)
            ended.poll()
            sock.setblocking(False)
            return sock

        monkeypatch.setattr(connection, "connect", connected_and_reset)
        error = stage.failure("wss", port=1)
    assert error.message.startswith("the server broke off the connection: ")


def test_many_connections_leave_nothing_behind(stage: Stage) -> None:
    resuming = losing(broken_off, resumed=True)
    server = play(stage, losing(broken_off), *[resuming] * 100, welcoming(resumed=True))
    counts: list[int] = []
    threads = threading.active_count()

    def count(_: Event) -> None:
        # The server of this test keeps what it closes, but no descriptor.
        counts.append(len(os.listdir("/proc/self/fd")))

    stage.when["resumed"] = count
    stage.run(persistence=Persistence(delay=0.001, longest_delay=0.001))
    assert len(server.websockets) == 102
    assert counts[-1] <= counts[0]
    assert threading.active_count() <= threads


# A server that is killed.


def test_a_killed_server_is_found_again(stage: Stage, port: int) -> None:
    def serve() -> None:
        loop = Loop()
        ScriptedServer(loop, losing(), port=port)
        os.write(writer, b"x")
        loop.run()

    reader, writer = os.pipe()
    with Child(serve) as child:
        os.read(reader, 1)
        client = stage.make(port=port, persistence=QUICK)

        def kill(_: Event) -> None:
            os.kill(child.pid, signal.SIGKILL)

        def start(_: Event) -> None:
            if stage.server is None and child.wait(60):
                server = stage.server = ScriptedServer(stage.loop, welcoming(resumed=True), port=port)
                server.on_end = client.goodbye

        stage.when.update({"mounted": kill, "reconnecting": start})
        client.run()
    assert told(stage)[-2:] == ["resumed", "closed"]
    for descriptor in (reader, writer):
        os.close(descriptor)

"""worker.py: one connection, with a client and a daemon who say things at awkward moments. What goes well is shown by the tests
in tests/service."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import need
from harness.log import DEADLINE
from harness.mounting import tmpfs
from harness.waiting import until
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from fuse_gated import pulse, supervision, worker_process
from fuse_gated.config.settings import Audit, Settings
from fuse_gated.edge import hosting, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.journal import JournalFile, JournalSocket
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.memory import make_memory, make_state
from fuse_gated.edge.notifying import Notifier
from fuse_gated.gate.shares import SIZE
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.wire import codec
from fuse_gated.wire.messages import SUBPROTOCOL, Hello, Offer
from fuse_gated.worker import Visitor, Worker

TENANT = Tenant(name="acme", rules=(Rule("/**", allow=ALL),))
IDENTITY = Identity(owner_uid=0, owner_gid=0, uids=(0,))
SETTINGS = Settings(seccomp=False)
VISITOR = Visitor("0123456789abcdef", "127.0.0.1")


class Client:
    """The other end of the connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.socket.settimeout(DEADLINE)
        self.protocol = ClientProtocol(parse_uri("ws://localhost/"), subprotocols=[SUBPROTOCOL])
        self.events: list[Any] = []
        self.raw = b""

    def upgrade(self, **headers: str) -> None:
        request = self.protocol.connect()
        for name, value in headers.items():
            request.headers[name.replace("_", "-")] = value
        self.protocol.send_request(request)
        self.flush()

    def hello(self) -> None:
        self.protocol.send_binary(codec.encode(Hello(Offer(export="work", program="test"))))
        self.flush()

    def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.socket.sendall(data)

    def receive(self) -> None:
        """What is there by now."""
        if not select.select([self.socket], [], [], 0)[0]:
            return
        try:
            data = self.socket.recv(2**16)
        except ConnectionResetError:
            data = b""
        self.raw += data
        if data:
            self.protocol.receive_data(data)
        else:
            self.protocol.receive_eof()
        self.events += self.protocol.events_received()

    def got(self, opcode: Opcode) -> list[Frame]:
        return [event for event in self.events if isinstance(event, Frame) and event.opcode is opcode]


class Scene:
    """A worker in this process. Its client, its daemon and its journal are the test's."""

    def __init__(self, journal: Any) -> None:
        self.loop = Loop()
        ours, theirs = socket.socketpair()
        self._theirs = theirs
        theirs.setblocking(False)
        self.client = Client(ours)
        self.daemon, self._channel = Channel.pair(supervision.FROM_WORKER, supervision.FROM_DAEMON)
        self.notifier = Notifier()
        self.host, self._driver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.state = make_state()
        self.shares = make_memory("shares", SIZE)
        self.said: list[Any] = []
        self.worker = Worker(self.loop, theirs, self._channel, journal, self.notifier, VISITOR, SETTINGS)

    def until(self, condition: Callable[[], object]) -> None:
        """Turn the loop until the condition holds."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"never; the worker said {self.said}, the client got {self.client.events}"
            self.loop.after(0.005, lambda: None)
            self.loop.turn()
            self.client.receive()
            self._hear()

    def _hear(self) -> None:
        try:
            while (received := self.daemon.receive()) is not None:
                self.said.append(received[0])
        except BlockingIOError:
            return

    def heard(self, kind: type) -> Any:
        """The daemon hears such a message."""
        self.until(lambda: any(isinstance(message, kind) for message in self.said))
        return next(message for message in self.said if isinstance(message, kind))

    def say(self, message: msgspec.Struct, *descriptors: int) -> None:
        """The daemon speaks, and the worker has heard it."""
        self.daemon.send(message, descriptors)
        self.worker._from_daemon(0)

    def log_in(self) -> None:
        self.client.upgrade(Authorization="Bearer token")
        self.heard(supervision.Login)

    def mount(self) -> None:
        """Log in, say hello, and be mounted, by a driver whose other end is `host`."""
        self.log_in()
        self.say(supervision.LoggedIn(TENANT, IDENTITY))
        self.until(lambda: self.client.protocol.handshake_exc is None and self.client.events)
        self.client.hello()
        self.heard(supervision.Open)
        self.host.send(hosting.encode_began(19, 131072))
        self.say(supervision.Opened("/run/mnt", "libfuse"), self._driver.fileno(), self.state, self.shares)
        self.until(lambda: self.client.got(Opcode.BINARY))

    def leave(self) -> None:
        """The client's connection breaks, and the worker has seen it."""
        self.client.socket.shutdown(socket.SHUT_RDWR)
        self.until(lambda: self.worker.ending)

    def close(self) -> None:
        self.worker.socket.abort()
        self.notifier.stop()
        os.close(self.state)
        os.close(self.shares)
        for closed in (self.client.socket, self._theirs, self.daemon, self._channel, self.host, self._driver, self.loop):
            closed.close()


@pytest.fixture
def records(tmp_path: Path) -> Callable[[], str]:
    """What the audit file holds."""
    return (tmp_path / "audit.jsonl").read_text


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    journal = JournalFile.open(str(tmp_path / "audit.jsonl"))
    scene = Scene(journal)
    yield scene
    scene.close()
    journal.close()


def test_a_header_that_is_not_ascii(scene: Scene, records: Callable[[], str]) -> None:
    scene.client.socket.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer \xff\r\n\r\n"
    )
    scene.until(lambda: scene.client.raw)
    assert scene.client.raw.startswith(b"HTTP/1.1 400 ")
    assert "a header that is not ASCII" in records()
    assert not any(isinstance(message, supervision.Login) for message in scene.said)


def test_a_daemon_that_talks_nonsense_is_gone(scene: Scene, records: Callable[[], str]) -> None:
    scene.log_in()
    scene.worker._from_daemon(0)  # Nothing was said.
    assert not scene.worker.ending
    os.write(scene.daemon.fileno(), b"\xc1")
    scene.until(lambda: scene.worker.ending)
    assert "the server is being restarted" in records()


@pytest.mark.parametrize(
    "message", [supervision.LoggedIn(TENANT, IDENTITY), supervision.LoginRefused("no")], ids=["let in", "refused"]
)
def test_a_login_whose_client_is_gone(scene: Scene, records: Callable[[], str], message: msgspec.Struct) -> None:
    scene.log_in()
    scene.leave()
    before = records()
    scene.say(message)
    assert scene.worker.login.tenant is None
    assert records() == before, "its end is told once"


def test_a_mount_whose_client_is_gone_is_given_back(scene: Scene) -> None:
    scene.log_in()
    scene.say(supervision.LoggedIn(TENANT, IDENTITY))
    scene.until(lambda: scene.client.events)
    scene.client.hello()
    scene.heard(supervision.Open)
    scene.leave()
    scene.say(supervision.Opened("/run/mnt", "libfuse"), scene.host.fileno(), scene.state, scene.shares)
    assert scene.heard(supervision.Ending).reason == "the client had gone before it was mounted"
    assert scene.worker.mounted is None


def test_a_policy_that_changes_between_login_and_hello(scene: Scene, records: Callable[[], str]) -> None:
    scene.log_in()
    scene.say(supervision.LoggedIn(TENANT, IDENTITY))
    scene.until(lambda: scene.client.events)
    scene.say(supervision.Apply(msgspec.structs.replace(TENANT, ownership="passthrough"), IDENTITY))
    scene.client.hello()
    scene.until(lambda: scene.client.got(Opcode.CLOSE))
    assert "this client cannot chown" in records()
    assert not any(isinstance(message, supervision.Open) for message in scene.said)


def test_a_client_that_is_not_heard_of_any_more(
    scene: Scene, records: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "ASK_AFTER", 0.01)
    monkeypatch.setattr(pulse, "DEAD_AFTER", 0.2)
    # It reads the pings, and its answers are lost.
    monkeypatch.setattr(scene.client, "flush", lambda flush=scene.client.flush: flush() if scene.worker.mounted is None else None)
    scene.mount()
    assert "nothing heard from the client for 0 s" in scene.heard(supervision.Suspended).reason
    assert not scene.worker.ending
    assert scene.client.got(Opcode.PING), "it was asked"
    assert "nothing heard from the client for 0 s" in records()
    scene.until(lambda: scene.worker.socket.closed)
    pings = len(scene.client.got(Opcode.PING))
    for _ in range(5):
        scene.loop.after(0.01, lambda: None)
        scene.loop.turn()
    assert len(scene.client.got(Opcode.PING)) == pings, "and no more after that"


def fill(sock: socket.socket) -> None:
    """Leave no room in a datagram socket."""
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(b"#" * size)


def test_a_refusal_that_the_journal_takes_late() -> None:
    """Nobody is served, so nobody waits for it; it is told all the same."""
    ours, journald = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, journald:
        ours.setblocking(False)
        scene = Scene(JournalSocket(os.dup(ours.fileno())))
        try:
            fill(ours)
            scene.client.upgrade()
            scene.until(lambda: b"401" in scene.client.raw)
            assert scene.worker.recorder.waiting is not None
            journald.setblocking(False)
            taken: list[bytes] = []

            def read() -> bool:
                try:
                    while True:
                        taken.append(journald.recv(2**16))
                except BlockingIOError:
                    return scene.worker.recorder.waiting is None

            scene.until(read)
            assert any(b"login-refused" in datagram for datagram in taken)
        finally:
            scene.close()
            scene.worker.journal.close()


# As a process.


class Forked:
    """`worker.run` in a process of its own."""

    def __init__(self, settings: Settings, runtime: Path, tls: Any = None) -> None:
        ours, theirs = socket.socketpair()
        daemons, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.client, self.daemon = Client(ours), Channel(daemons, supervision.FROM_WORKER)
        own = os.getpid()
        with theirs, workers:
            place = worker_process.Place(settings, str(runtime), own)
            self.child = process.spawn(lambda: worker_process.run(theirs, workers, VISITOR, place, tls))

    def close(self) -> None:
        self.child.end(DEADLINE)
        self.client.socket.close()
        self.daemon.close()


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    made: list[Forked] = []

    def fork(audit: Audit, tls: Any = None, runtime: Path = tmp_path) -> Forked:
        made.append(Forked(Settings(seccomp=False, audit=audit), runtime, tls))
        return made[-1]

    yield fork
    for one in made:
        one.close()


@pytest.mark.parametrize(("tls", "heard"), [(None, b"HTTP/1.1 503 "), ("a context", b"")], ids=["plain", "TLS"])
def test_without_a_journal_nobody_is_served(
    forked: Callable[..., Forked], tmp_path: Path, capfd: pytest.CaptureFixture[str], tls: Any, heard: bytes
) -> None:
    """Whoever speaks TLS cannot be told."""
    worker = forked(Audit(to="file", file=str(tmp_path / "nowhere" / "audit")), tls)
    assert worker.child.wait(DEADLINE) == 1
    assert worker.client.socket.recv(2**16)[:13] == heard
    assert "cannot be opened" in capfd.readouterr().err


def test_a_daemon_that_is_gone_when_it_is_spoken_to(forked: Callable[..., Forked], tmp_path: Path) -> None:
    """A client on a Unix socket, too: there is no delay to be switched off."""
    worker = forked(Audit(to="file"))
    worker.daemon.close()
    worker.client.upgrade(Authorization="Bearer token")
    assert worker.child.wait(DEADLINE) == 0
    told = (tmp_path / "audit.jsonl").read_text()
    assert told.count("connection-refused") == 1


def test_a_last_record_gets_its_second(forked: Callable[..., Forked], tmp_path: Path) -> None:
    """The disk is full, and nobody makes room: it ends all the same, and what it could not tell is not told by half."""
    need("root")
    with tmpfs(tmp_path, "size=64k"):
        worker = forked(Audit(to="file"))
        audit = tmp_path / "audit.jsonl"
        until(audit.exists, "it has its journal")
        with open(tmp_path / "full", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        worker.client.upgrade()
        assert worker.client.socket.recv(2**16).startswith(b"HTTP/1.1 401 ")
        worker.client.socket.shutdown(socket.SHUT_RDWR)
        assert worker.child.wait(DEADLINE) == 0
        assert audit.read_bytes() == b""

"""mounted.py and servant.py: a process gets a session that another one has left, in whatever state. The kernel's end of the
device, the daemon's of the channel, and what was left, are the test's."""

import contextlib
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.log import DEADLINE

from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.fuse_kernel import FLAGS, Negotiated
from fuse_gated.edge.fuse_requests import IN_HEADER
from fuse_gated.edge.inbox import SIZE as INBOX_SIZE
from fuse_gated.edge.journal import JournalFile
from fuse_gated.edge.keeping import STATE_SIZE
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.memory import make_memory, make_state
from fuse_gated.edge.notifying import Notifier
from fuse_gated.edge.state import MAGIC, RING_SIZE, State
from fuse_gated.gate.audit import Chain, Record
from fuse_gated.gate.audit_verify import verify
from fuse_gated.gate.shares import SIZE
from fuse_gated.gate.tenant import Identity, Outage, Tenant
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.mounted import About, _digest
from fuse_gated.operations import Attributes
from fuse_gated.servant import Servant
from fuse_gated.tree.journal import Asked, HandleRow, Known, NodeRow, Owed, Row
from fuse_gated.wire.messages import Offer, Write

SESSION = "5" * 16
IDENTITY = Identity(owner_uid=0, owner_gid=0, uids=(0,))
EVERY_FLAG = sum(FLAGS.values())
WRITE = msgspec.msgpack.encode(Write(77, 0, memoryview(b"")))
NODE = NodeRow(2, 1, b"f", (7, 2, 0o100000), 1, "", 0, False)
ROOT_ATTRIBUTES = Attributes(7, 1, 0o040755, 2, 0, 0, 0, 5, 8, 4096, 1, 2, 3)
GETATTR, FORGET, READ = 3, 2, 15
RESEND = 7


def tenant(**other: Any) -> Tenant:
    return Tenant(name="acme", rules=(Rule("/**", allow=ALL),), **other)


def about(**other: Any) -> bytes:
    fields = {"offer": Offer(export="work", program="p"), "driver": "kernel", "path": "/run/m",
              "negotiated": Negotiated(45, EVERY_FLAG, 2**20), "policy": _digest(tenant(), IDENTITY)}  # fmt: skip
    return msgspec.msgpack.encode(About(**{**fields, **other}))


class Scene:
    """A standby in this process."""

    def __init__(self, journal: JournalFile, audit: Path) -> None:
        self.loop = Loop()
        self.daemon, self._channel = Channel.pair(supervision.FROM_WORKER, supervision.FROM_DAEMON)
        self.notifier = Notifier()
        self.kernel, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.state = make_state()
        self.shares = make_memory("shares", SIZE)
        self._audit = audit
        self.servant = Servant(self.loop, self._channel, journal, self.notifier, "0" * 16, Settings())
        self.said: list[Any] = []
        self.stopped = False
        stop = self.loop.stop
        self.loop.stop = lambda: (setattr(self, "stopped", True), stop())[1]  # type: ignore[method-assign]

    def leave(
        self, rows: Sequence[Row] = (NODE, Known(ROOT_ATTRIBUTES, None)), *, records: int = 3, taken: int = 3, what: bytes = b""
    ) -> Chain:
        """What the last process left."""
        state = State(self.state, STATE_SIZE, lambda: ())
        state.about = what or about()
        state.commit(rows)
        chain = Chain("acme", SESSION, "work")
        for number in range(records):
            fields = chain.seal(Record(kind="operation" if number else "session-opened", operation="mkdir", path=b"d"))
            state.sealed(chain.sequence, chain.head, chain.encoded)
            if number < taken:
                state.taken(chain.sequence)
                assert self.servant.journal.write(fields)
        state.close()
        return chain

    def put(self, at: int, data: bytes) -> None:
        os.pwrite(self.state, data, at)

    def take_over(self, policy: Tenant | None = None) -> None:
        message = supervision.TakeOver(SESSION, policy or tenant(), IDENTITY, "the worker ended with SIGKILL")
        self.daemon.send(message, [self.device.fileno(), self.state, self.shares])
        self.servant._from_daemon(0)
        self.hear()

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"never; it said {self.said}"
            self.loop.after(0.005, lambda: None)
            self.loop.turn()
            self.hear()

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while (received := self.daemon.receive()) is not None:
                self.said.append(received[0])

    def heard(self, kind: type) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._audit.read_text().splitlines()]

    def kinds(self) -> list[str]:
        return [record["FUSE_GATED_KIND"] for record in self.records()]

    def ask(self, opcode: int, unique: int, body: bytes = b"", node: int = 1) -> None:
        self.kernel.send(IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, node, 0, 0, 9, 0, 0) + body)

    def written(self) -> list[tuple[int, int]]:
        """(error or notification, unique) of what was written to the device since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                _, error, unique = struct.unpack_from("=IiQ", self.kernel.recv(2**21))
                found.append((error, unique))
        return found

    def close(self) -> None:
        self.notifier.stop()
        os.close(self.state)
        os.close(self.shares)
        for closed in (self.daemon, self._channel, self.kernel, self.device, self.loop):
            closed.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    journal = JournalFile.open(str(tmp_path / "audit.jsonl"))
    scene = Scene(journal, tmp_path / "audit.jsonl")
    yield scene
    scene.close()
    journal.close()


# It goes on.


def test_it_goes_on_without_its_client(scene: Scene) -> None:
    scene.leave()
    scene.take_over()
    assert scene.said == [supervision.Suspended("the worker ended with SIGKILL")]
    assert scene.written() == [(RESEND, 0)], "what nobody has answered is sent again"
    assert scene.kinds() == ["session-opened", "operation", "operation", "session-restored"]
    [session] = verify([{name: str(value).encode() for name, value in record.items()} for record in scene.records()])
    assert (session.faults, session.records) == ((), 4)
    mounted = scene.servant.mounted
    assert mounted is not None
    assert (mounted.away, mounted.session, mounted.driver is not None) == (True, SESSION, True)
    assert mounted.serving.turnstile.inodes.find(b"f") is not None
    scene.ask(GETATTR, 2**63 + 8, bytes(16))
    scene.until(lambda: mounted.serving.turnstile.statistics.operations)
    assert scene.written() == [(0, 2**63 + 8)], "the root is known, and what was sent again is answered as that"
    scene.ask(READ, 10, struct.pack("=QQIIQII", 1, 0, 10, 0, 0, 0, 0), node=2)
    scene.until(lambda: mounted.serving.turnstile.busy)
    assert scene.written() == []


def test_a_record_that_the_journal_may_not_have_is_told_again(scene: Scene) -> None:
    chain = scene.leave(records=3, taken=2)
    scene.take_over()
    told = scene.records()
    assert [record["FUSE_GATED_SEQUENCE"] for record in told] == ["1", "2", "3", "4"]
    assert told[2]["FUSE_GATED_CHAIN"] == chain.head.hex()


def test_one_that_it_had_is_there_twice_and_that_is_no_fault(scene: Scene) -> None:
    chain = scene.leave(records=3, taken=3)
    scene.put(48, struct.pack("=Q", 2))
    scene.take_over()
    told = [{name: str(value).encode() for name, value in record.items()} for record in scene.records()]
    assert [record["FUSE_GATED_SEQUENCE"] for record in told] == [b"1", b"2", b"3", b"3", b"4"]
    [session] = verify(told)
    assert session.faults == ()
    assert any("twice in succession" in note for note in session.notes)
    assert chain.sequence == 3


def test_each_process_has_numbers_of_its_own(scene: Scene) -> None:
    scene.leave()
    scene.take_over()
    assert scene.servant.mounted is not None
    assert scene.servant.mounted.serving.turnstile.session.own_id() == (1 << 32) + 1
    other = State(scene.state, STATE_SIZE, lambda: ())
    assert other.next_epoch() == 2
    other.close()


def test_a_policy_that_changed_meanwhile(scene: Scene) -> None:
    """What the kernel was shown under the old one, it asks for again."""
    scene.leave()
    scene.take_over(tenant(audit="opens"))
    written: list[tuple[int, int]] = []
    scene.until(lambda: written.extend(scene.written()) or len(written) >= 4)
    assert sorted(error for error, _ in written) == [2, 2, 3, RESEND]


@pytest.mark.parametrize("kept", [False, True])
def test_a_request_that_was_read_and_perhaps_not_kept(scene: Scene, kept: bool) -> None:
    """It is answered once, and nobody is asked to send anything again."""
    raw = IN_HEADER.pack(56, GETATTR, 8, 1, 0, 0, 9, 0, 0) + bytes(16)
    unread(scene, raw, [NODE, Known(ROOT_ATTRIBUTES, None), *([Asked(8, raw)] if kept else [])])
    scene.take_over()
    assert scene.written() == ([(0, 8)] if kept else [(0, 9), (0, 8)]), "whether anybody waits for 8, and the answer"
    mounted = scene.servant.mounted
    assert mounted is not None
    assert mounted.serving.turnstile.ledger.asked == {}
    scene.ask(GETATTR, 10, bytes(16))
    scene.until(lambda: mounted.serving.turnstile.statistics.operations == 2)
    assert scene.written() == [(0, 10)]
    left = State(scene.state, STATE_SIZE, lambda: ())
    assert left.inbox is not None
    assert left.inbox.room[8:16] == struct.pack("=Q", 10), "read into where the next one looks"
    assert left.inbox.left() == 0
    left.close()


def test_it_yields(scene: Scene) -> None:
    scene.leave()
    scene.take_over()
    mounted = scene.servant.mounted
    assert mounted is not None
    scene.daemon.send(supervision.Yield())
    scene.until(lambda: scene.stopped)
    assert (mounted.yielded, mounted.driver) == (True, None)
    mounted.yield_up()
    mounted.lose("too late")
    assert "session-closed" not in scene.kinds()
    left = State(scene.state, STATE_SIZE, lambda: ())
    assert NODE in list(left.rows())
    left.close()


def test_there_is_no_room_any_more(scene: Scene) -> None:
    """It ends in order: no successor could go on with it."""
    scene.leave()
    scene.take_over()
    mounted = scene.servant.mounted
    assert mounted is not None
    mounted._state._half = 0
    scene.ask(FORGET, 0, struct.pack("=Q", 1), node=2)
    scene.until(lambda: mounted.serving.turnstile.ledger.changed)
    mounted.serving._tick()
    scene.until(lambda: scene.heard(supervision.Ending))
    assert "memory is full" in scene.heard(supervision.Ending)[0].reason
    assert scene.kinds()[-1] == "session-closed"


# The time for its client.


@pytest.mark.parametrize("lost_at", [math.inf, -math.inf, math.nan, 1e300, -5.0, 0.0])
def test_a_client_is_not_waited_for_longer_than_the_policy_says(scene: Scene, lost_at: float) -> None:
    scene.leave()
    scene.put(40, struct.pack("=d", lost_at))
    before = time.monotonic()
    scene.take_over()
    assert scene.servant.mounted is not None
    assert before <= scene.servant.mounted._lost_at <= time.monotonic()


def test_the_time_goes_on_from_when_it_was_lost(scene: Scene) -> None:
    scene.leave()
    scene.put(40, struct.pack("=d", time.monotonic() - 100.0))
    scene.take_over()
    scene.until(lambda: scene.heard(supervision.Ending))
    assert scene.heard(supervision.Ending) == [supervision.Ending("the client did not come back within 60 s")]


def test_where_there_is_no_time_it_ends(scene: Scene) -> None:
    scene.leave()
    scene.take_over(tenant(outage=Outage(grace=0.0)))
    scene.until(lambda: scene.heard(supervision.Ending))
    assert scene.kinds()[-2:] == ["session-restored", "session-closed"]


# What cannot be gone on with ends its own session, is told, and hurts nobody.


def deep(levels: int = 100_000) -> bytes:
    return b"\x91" * levels + b"\xc0"


def foreign(**fields: str) -> bytes:
    """A record as a hostile worker leaves it."""
    own = {"MESSAGE": "x", "FUSE_GATED_TENANT": "acme", "FUSE_GATED_SESSION": SESSION, "FUSE_GATED_SEQUENCE": "9", **fields}
    return msgspec.msgpack.encode([(name, value.encode()) for name, value in own.items()])


def sealed(record: bytes, sequence: int = 9) -> Callable[[Scene], None]:
    def leave(scene: Scene) -> None:
        scene.leave()
        state = State(scene.state, STATE_SIZE, lambda: ())
        state.sealed(sequence, bytes(32), record)
        state.close()

    return leave


def unread(scene: Scene, data: bytes, rows: Sequence[Row] = (NODE, Known(ROOT_ATTRIBUTES, None))) -> None:
    """What the last process has read, and nothing more."""
    scene.leave(rows, what=about(negotiated=Negotiated(38, 0, 4096)))
    scene.put(STATE_SIZE - INBOX_SIZE, data)


HOSTILE: dict[str, Callable[[Scene], Any]] = {
    "another version": lambda scene: scene.put(0, b"fgstate9"),
    "never begun": lambda _scene: None,
    "only its magic": lambda scene: scene.put(0, MAGIC),
    "about: garbage": lambda scene: scene.leave(what=b"\xc1"),
    "about: nested": lambda scene: scene.leave(what=b"\x81\xa5offer" + deep(60_000)),
    "about: not UTF-8": lambda scene: scene.leave(what=about().replace(b"/run/m", b"/run/\xff")),
    "about: libfuse": lambda scene: scene.leave(what=about(driver="libfuse", path="x")) and scene.put(8, b"\xff" * 56),
    "rows: garbage": lambda scene: (scene.leave(), scene.put(2**18 + 2 * 2**20 + RING_SIZE, b"\xff" * 64)),
    "rows: owed": lambda scene: scene.leave([Owed(2, 1, (7, 2, 0o100000), b"f", "write", b"\xc1", 0, 5)]),
    "rows: owed beyond its room": lambda scene: scene.leave([Owed(2, 1, (7, 2, 0o100000), b"f", "write", WRITE, RING_SIZE, 5)]),
    "rows: contradict": lambda scene: scene.leave([HandleRow(1, 9, b"f", 7, 0, False, 0.0, 0, 0, 0, 0, 0, 0)]),
    "length": lambda scene: (scene.leave(), scene.put(16, b"\xff" * 16)),
    "epoch": lambda scene: (scene.leave(), scene.put(32, b"\xff" * 8)),
    "sequence": lambda scene: (scene.leave(), scene.put(64, b"\xff" * 8)),
    "record: garbage": sealed(b"\xc1"),
    "record: nested": sealed(deep()),
    "record: another session's": sealed(foreign(FUSE_GATED_SESSION="6" * 16)),
    "record: another tenant's": sealed(foreign(FUSE_GATED_TENANT="other")),
    "record: another number": sealed(foreign(FUSE_GATED_SEQUENCE="8")),
    "record: another field": sealed(foreign(_SYSTEMD_UNIT="fuse-gated.service")),
    "record: a field in a name": sealed(foreign(**{"MESSAGE\n_PID": "1"})),
    "record: a field twice": sealed(foreign().replace(b"\x94", b"\x95", 1) + msgspec.msgpack.encode(("MESSAGE", b"y"))),
    "requests: garbage": lambda scene: scene.leave([Asked(8, b"\xff" * 50)], what=about(negotiated=Negotiated(38, 0, 4096))),
    "requests: nothing": lambda scene: scene.leave([Asked(8, b"")], what=about(negotiated=Negotiated(38, 0, 4096))),
    "requests: huge": lambda scene: scene.leave([Asked(8, bytes(2**21))], what=about(negotiated=Negotiated(38, 0, 4096))),
    "what was read: garbage": lambda scene: unread(scene, b"\xff" * 50),
    "what was read: half a header": lambda scene: unread(scene, IN_HEADER.pack(39, GETATTR, 8, 1, 0, 0, 9, 0, 0)),
    "what was read: huge": lambda scene: unread(scene, IN_HEADER.pack(INBOX_SIZE + 1, GETATTR, 8, 1, 0, 0, 9, 0, 0)),
    "what was read: half a request": lambda scene: unread(scene, IN_HEADER.pack(40, GETATTR, 8, 1, 0, 0, 9, 0, 0)),
    "what was read: a beginning": lambda scene: unread(scene, IN_HEADER.pack(104, 26, 8, 1, 0, 0, 9, 0, 0) + bytes(64)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_gone_on_with(scene: Scene, name: str) -> None:
    HOSTILE[name](scene)
    before = len(scene.records())
    scene.take_over()
    [ending] = scene.heard(supervision.Ending)
    assert 0 < len(ending.reason) <= 300
    assert scene.servant.ending
    assert scene.servant.mounted is None
    told = scene.records()[before:]
    closed = [record for record in told if record["FUSE_GATED_KIND"] == "session-closed"]
    assert len(closed) == 1
    assert f"session {SESSION} cannot be gone on with" in closed[0]["FUSE_GATED_DETAIL"]
    assert all(record.get("FUSE_GATED_SESSION") in (SESSION, "0" * 16) for record in told)
    assert all(record.get("FUSE_GATED_TENANT", "acme") == "acme" for record in told)
    found = verify([{key: str(value).encode() for key, value in record.items()} for record in scene.records()])
    assert [session.faults for session in found if session.session == "0" * 16] in ([()], []), "a chain of its own"
    # Its device is not read any more: it goes with its mount.
    scene.ask(GETATTR, 8, bytes(16))
    for _ in range(3):
        scene.loop.after(0.0, lambda: None)
        scene.loop.turn()
    assert [answer for answer in scene.written() if answer[1] == 8] in ([], [(-5, 8)])
    scene.daemon.send(supervision.Unmounted())
    scene.until(lambda: scene.stopped)


# The daemon is gone, or says something at an awkward moment.


def test_a_standby_that_was_never_needed(scene: Scene) -> None:
    scene.daemon.send(supervision.End(1001, "the server is stopping"))
    scene.until(lambda: scene.stopped)
    assert scene.servant.mounted is None
    assert [record.get("FUSE_GATED_SESSION") for record in scene.records()] == ["0" * 16]


def test_the_daemon_is_gone(scene: Scene) -> None:
    """It leaves the session to whoever comes."""
    scene.leave()
    scene.take_over()
    scene.daemon.close()
    while not scene.stopped:
        scene.loop.turn()
    assert scene.servant.mounted is not None
    assert scene.servant.mounted.yielded
    assert "session-closed" not in scene.kinds()


def test_a_new_policy_while_it_waits(scene: Scene) -> None:
    scene.leave()
    scene.daemon.send(supervision.Apply(tenant(), IDENTITY))
    scene.servant._from_daemon(0)
    scene.take_over()
    scene.daemon.send(supervision.Apply(tenant(outage=Outage(grace=0.0)), IDENTITY))
    scene.until(lambda: scene.heard(supervision.Ending))
    assert "policy-applied" in scene.kinds()
    assert "within 0 s" in scene.heard(supervision.Ending)[0].reason


def test_it_reports(scene: Scene) -> None:
    scene.daemon.send(supervision.Ask(1))
    scene.until(lambda: scene.heard(supervision.Report))
    scene.leave()
    scene.take_over()
    scene.daemon.send(supervision.Ask(2))
    scene.until(lambda: len(scene.heard(supervision.Report)) == 2)
    first, second = scene.heard(supervision.Report)
    assert (first.protocol, first.inodes, second.protocol, second.inodes) == ("", 0, "7.45", 2)

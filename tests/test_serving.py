"""serving.py: effects carried out in order between a driver, a WebSocket and a journal, all of them real; and what happens when
the journal takes no records."""

import contextlib
import errno
import os
import socket
import struct

import msgspec
import pytest
from websockets.client import ClientProtocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from fuse_gated import serving as serving_module
from fuse_gated.edge.fuse_kernel import RESENT, KernelDriver
from fuse_gated.edge.fuse_requests import OPCODES
from fuse_gated.edge.journal import JournalSocket
from fuse_gated.edge.keeping import STATE_SIZE
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.memory import make_state
from fuse_gated.edge.notifying import Notifier
from fuse_gated.edge.state import Full, State
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import KernelError, ProtocolError
from fuse_gated.gate.audit import Chain, Record, digest, first_head
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.gate.tenant import Cache, Identity, Tenant
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.operations import Attributes
from fuse_gated.serving import Recorder, Serving
from fuse_gated.tree.journal import Owed, SettledOwed
from fuse_gated.turnstile import listing
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.turnstile import Turnstile
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Asked, Cancel, Listed, ListedEntry, OpenedFile, Reply, Unlink
from fuse_gated.wire.session import Pending

NUMBERS = {name: number for number, (name, _) in OPCODES.items()}
DIRECTORY, REGULAR = 0o040755, 0o100644
ALLOWED = Rule("/**", allow=ALL)
PATIENCE, RETRY = 0.03, 0.005


def attributes(inode, mode=REGULAR):
    return Attributes(7, inode, mode, 1, 0, 0, 0, 5, 8, 4096, 1, 2, 3)


class Journald:
    """The other end of the journal's socket, which may be full or gone."""

    def __init__(self):
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.journal = JournalSocket(os.dup(ours.fileno()))
        self._filler = ours
        self._filler.setblocking(False)
        self.records = []

    def block(self):
        """Leave no room for another record."""
        self.read()
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._filler.send(b"#" * size)

    def read(self):
        """Take everything there is; the records among it are kept."""
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self.socket.recv(2**20)
                if not datagram.startswith(b"#"):
                    self.records.append(dict(line.split(b"=", 1) for line in datagram.split(b"\n") if b"=" in line))

    def close(self):
        self.socket.close()
        self._filler.close()
        self.journal.close()

    @property
    def told(self):
        """The records' kinds, operations and errnos."""
        self.read()
        names = (b"FUSE_GATED_KIND", b"FUSE_GATED_OPERATION", b"FUSE_GATED_ERRNO")
        return [" ".join(record[name].decode() for name in names if name in record) for record in self.records]


class Client:
    """The other end of the WebSocket: what it was asked, and its answers."""

    def __init__(self):
        self.frames = []
        self.messages = []
        self.closed = []
        self.socket = None

    def on_request(self, request):
        """A client gets none."""

    def on_response(self, response):
        """The connection is open."""

    def on_message(self, data):
        decoded = codec.decode_from_server(data)
        self.frames += decoded
        self.messages.append(len(decoded))

    def on_closed(self, code, reason):
        self.closed.append((code, reason))

    def reply(self, number, result=None, failure=None):
        self.socket.send(codec.encode(Reply(number, failure, result)))

    @property
    def asked(self):
        return [frame.operation if isinstance(frame, Asked) else "cancel" for frame in self.frames]


class Server(Client):
    def __init__(self):
        super().__init__()
        self.serving = None

    def on_request(self, request):
        self.socket.protocol.send_response(self.socket.protocol.accept(request))
        self.socket.flush_soon()

    def on_message(self, data):
        self.serving.on_message(data)


class Session:
    """One session whose kernel, client and journal are the test's."""

    def __init__(self, *, watches=False, memory=None, **tenant):
        """With a `memory` the client keeps the order of what it is asked, so that writes are answered ahead."""
        self.loop = Loop()
        self.journald = Journald()
        self.violations = []
        self.complaints = 0
        self.client, self.server = Client(), Server()
        ours, theirs = socket.socketpair()
        for end, sock, protocol in (
            (self.client, ours, ClientProtocol(parse_uri("ws://localhost/"))),
            (self.server, theirs, ServerProtocol()),
        ):
            sock.setblocking(False)
            end.socket = WebSocket(self.loop, sock, protocol, end)
        self.client.socket.protocol.send_request(self.client.socket.protocol.connect())
        self.client.socket.flush_soon()
        policy = Tenant(name="acme", rules=(Rule("/secret", hide=True), ALLOWED), **tenant)
        gate = Gate(policy, Identity(owner_uid=1000, owner_gid=1000, anyone=True))
        limiter, orders = Limiter(policy.limits, self.loop.now), memory is not None
        turnstile = Turnstile(gate, limiter, Limits(), export_root=b"", watches=watches, orders=orders)
        self.state = State(memory, STATE_SIZE, turnstile.ledger.everything) if memory is not None else None
        self.full = []
        self.chain = Chain("acme", "session", "src")
        self.recorder = Recorder(self.loop, self.journald.journal, self.chain, self._taken, self._complained)
        told = self.violations.append, self.state, self.full.append
        self.serving = Serving(self.loop, turnstile, self.server.socket, self.recorder, *told)
        self.server.serving = self.serving
        self.device, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.notifier = Notifier()
        self.driver = KernelDriver(self.device.fileno(), self.notifier, self.serving.on_request, lambda: None, lambda: None)
        self.serving.attach(self.driver)
        self.answers = {}
        self.notices = []
        self.number = 0
        self.until(lambda: self.client.socket.open and self.server.socket.open)

    def _taken(self):
        self.serving.on_record_taken()

    def _complained(self):
        self.complaints += 1

    def close(self):
        self.serving.detach()
        self.client.socket.abort()
        self.server.socket.abort()
        self.notifier.stop()
        for sock in (self.device, self.kernel):
            sock.close()
        self.journald.close()
        if self.state is not None:
            self.state.close()
        self.loop.close()

    def ask(self, name, body=b"", node=1, caller=1000, bits=0):
        """A request of the kernel; its number, which it has with these bits."""
        self.number += 2
        unique = self.number | bits
        header = struct.pack("=IIQQIIIHH", 40 + len(body), NUMBERS[name], unique, node, caller, 1000, 4321, 0, 0)
        self.kernel.send(header + body)
        return self.number

    def mkdir(self, name=b"d"):
        return self.ask("MKDIR", struct.pack("=II", 0o755, 0) + name + b"\0")

    def lookup(self, name=b"f"):
        return self.ask("LOOKUP", name + b"\0")

    def hear(self):
        """What the kernel was answered and told."""
        with contextlib.suppress(BlockingIOError):
            while True:
                packet = self.kernel.recv(2**21)
                _, error, unique = struct.unpack_from("=IiQ", packet)
                if unique:
                    assert unique not in self.answers, "answered twice"
                    self.answers[unique] = errno.errorcode[-error] if error else packet[16:]
                else:
                    self.notices.append((error, packet[16:]))

    def until(self, done):
        """Turns of the loop until it is so; the test's own timeout ends it otherwise."""
        while not done():
            self.loop.soon(lambda: None)
            self.loop.turn()
            with contextlib.suppress(AttributeError):
                self.hear()

    def settle(self, seconds=0.0):
        """Turns of the loop for a while."""
        due = []
        self.loop.after(seconds, lambda: due.append(True))
        self.until(lambda: due)
        for _ in range(5):
            self.loop.soon(lambda: None)
            self.loop.turn()
        self.hear()

    def asked(self, number):
        """Waits until the client was asked for it."""
        self.until(lambda: any(frame.id == number for frame in self.client.frames))

    def answered(self, number):
        """Waits for the answer to a request, and returns it."""
        self.until(lambda: number in self.answers)
        return self.answers[number]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(serving_module, "PATIENCE", PATIENCE)
    monkeypatch.setattr(serving_module, "_RETRY", RETRY)


@pytest.fixture
def session():
    session = Session()
    yield session
    session.close()


def silent(session):
    """Until it has lost its patience with the journal."""
    session.until(lambda: session.serving.silenced)


# When all goes well.


def test_an_operation_is_told_asked_and_answered(session):
    number = session.mkdir()
    session.asked(number)
    assert session.journald.told == ["operation mkdir"]
    assert number not in session.answers
    session.client.reply(number, attributes(21, DIRECTORY))
    assert len(session.answered(number)) == 128
    assert session.journald.told == ["operation mkdir"]


def test_a_refusal_is_told_before_it_is_answered(session):
    number = session.lookup(b"secret")
    assert session.answered(number) == "ENOENT"
    assert session.journald.told == ["refused lookup ENOENT"]
    assert session.client.frames == []


def test_what_one_turn_asks_leaves_in_one_message(session):
    numbers = [session.lookup(b"n%d" % number) for number in range(10)]
    for number in numbers:
        session.asked(number)
    # The first may be all there is, so it is not kept waiting for others.
    assert session.client.messages == [1, 9]


def test_a_request_that_nobody_waits_for_goes_with_the_next_or_a_little_later(session):
    lookup = session.lookup()
    session.asked(lookup)
    session.client.reply(lookup, attributes(21))
    session.answered(lookup)
    number = session.ask("OPEN", struct.pack("=II", 2, 0), node=2)
    session.asked(number)
    session.client.reply(number, OpenedFile(77, attributes(21)))
    (handle,) = struct.unpack_from("=Q", session.answered(number))
    released = session.ask("RELEASE", struct.pack("=QIIQ", handle, 0, 0, 0), node=2)
    assert session.answered(released) == b""
    session.until(lambda: "release" in session.client.asked)
    assert session.journald.told == ["operation open"]


def test_more_of_those_go_together(session):
    handles = []
    for number in range(2):
        opened = session.ask("OPENDIR", struct.pack("=II", 0, 0))
        session.asked(opened)
        session.client.reply(opened, OpenedFile(80 + number, attributes(1, DIRECTORY)))
        handles += struct.unpack_from("=Q", session.answered(opened))
    for handle in handles:
        session.ask("RELEASEDIR", struct.pack("=QIIQ", handle, 0, 0, 0))
    session.until(lambda: session.client.asked.count("releasedir") == 2)


def test_a_fault_that_a_request_brings_to_light_is_told_too(session, monkeypatch):
    monkeypatch.setattr(listing, "_MOST_ENTRIES", 3)
    opened = session.ask("OPENDIR", struct.pack("=II", 0, 0))
    session.asked(opened)
    session.client.reply(opened, OpenedFile(80, attributes(1, DIRECTORY)))
    (handle,) = struct.unpack_from("=Q", session.answered(opened))
    first = session.ask("READDIR", struct.pack("=QQIIQII", handle, 2, 4096, 0, 0, 0, 0))
    session.asked(first)
    session.client.reply(first, Listed(tuple(ListedEntry(b"n%d" % at, 5, REGULAR & 0o170000) for at in range(4)), True))
    session.answered(first)
    turnstile = session.serving.turnstile
    turnstile.apply(session.loop.now, Gate(Tenant(name="acme", rules=(Rule("/n*", hide=True), ALLOWED)), turnstile.gate.identity))
    session.ask("READDIR", struct.pack("=QQIIQII", handle, 3, 4096, 0, 0, 0, 0))
    session.until(lambda: session.violations)
    assert "more than 3 entries" in str(session.violations[0])


@pytest.mark.parametrize(("bits", "asked"), [(0, ["gather"]), (RESENT, ["opendir"])], ids=["the first time", "again"])
def test_what_the_kernel_sends_again_the_client_may_have_done(bits, asked):
    """It answers that once more, and nothing else would give it back."""
    session = Session(watches=True, cache=Cache("watched"))
    try:
        session.ask("OPENDIR", struct.pack("=II", 0, 0), bits=bits)
        session.until(lambda: session.client.frames)
        assert session.client.asked == asked
    finally:
        session.close()


def test_what_the_kernel_is_to_forget_it_is_told(session):
    lookup = session.lookup()
    session.asked(lookup)
    session.client.reply(lookup, attributes(21))
    session.answered(lookup)
    session.client.socket.send(msgspec.msgpack.encode([["notice", [b"f"]]]))
    session.until(lambda: len(session.notices) == 2)
    assert {code for code, _ in session.notices} == {2, 3}


def test_a_fault_of_the_client_is_told_to_who_ends_the_session(session):
    session.client.reply(999)
    session.until(lambda: session.violations)
    assert isinstance(session.violations[0], ProtocolError)
    assert "request 999" in str(session.violations[0])


def test_a_client_that_answers_nothing_is_found_by_the_clock(session):
    session.serving.turnstile.limits = Limits(deadline=0.02)
    session.serving.turnstile.session._max_in_flight = 1
    first = session.lookup(b"a")
    session.asked(first)
    assert session.answered(first) == "ETIMEDOUT"
    session.lookup(b"b")
    session.until(lambda: session.violations)
    assert "none of 1 requests was answered" in str(session.violations[0])


def test_a_mount_that_is_gone_ends_the_session_in_order(session):
    session.ask("DESTROY")
    session.until(lambda: session.client.closed)
    assert session.client.closed == [(1000, "unmounted")]


def test_a_mount_that_is_left_alone_is_neither_read_nor_answered(session):
    number = session.lookup()
    session.asked(number)
    session.serving.detach()
    session.lookup(b"g")
    session.client.reply(number, attributes(21))
    session.client.socket.send(msgspec.msgpack.encode([["notice", [b"f"]]]))
    session.settle()
    assert session.answers == {}
    assert len(session.client.frames) == 1
    session.serving._resume(session.driver)
    session.serving.detach()


def test_what_is_said_of_the_session_is_told_in_its_place(session):
    session.serving.tell(Record(kind="session-opened", detail="from here"))
    session.mkdir()
    session.until(lambda: len(session.journald.told) == 2)
    assert session.journald.told == ["session-opened", "operation mkdir"]


def test_operations_that_were_held_back_go_by_the_clock():
    session = Session(limits=TenantLimits(operations={"*": 50.0}))
    try:
        numbers = [session.lookup(b"n%d" % number) for number in range(52)]
        for number in numbers:
            session.asked(number)
    finally:
        session.close()


# A client that does not keep up.


def test_while_too_much_waits_for_the_client_the_kernel_keeps_its_requests(session):
    session.server.socket.queued = 2**30
    number = session.lookup()
    session.settle(3 * RETRY)
    assert session.client.frames == []
    session.server.socket.queued = 0
    session.asked(number)


def test_while_too_much_waits_for_room_with_the_client_the_kernel_keeps_its_requests(session):
    """What many writers have to say must not all be copied here."""
    session.asked(session.lookup())
    wire = session.serving.turnstile.session
    wire._max_in_flight = 1
    writes = [wire.own_id(), wire.own_id()]
    for number in writes:
        wire.ask(Pending(number, Unlink(b"x"), session.loop.now + 3600, print, print, wire._max_bytes))
    assert wire.crowded
    number = session.lookup(b"other")
    session.settle(3 * RETRY)
    assert wire.get(number) is None, "it was not read"
    wire.give_up(writes[0])
    session.until(lambda: wire.get(number) is not None)


def test_that_the_mount_is_gone_is_noticed_all_the_same(session):
    session.server.socket.queued = 2**30
    session.kernel.close()
    with pytest.raises(KernelError, match="0 bytes"):
        session.settle()


# A journal that takes nothing.


def test_within_its_patience_everything_waits_in_order(session, monkeypatch):
    monkeypatch.setattr(serving_module, "PATIENCE", 3600.0)
    before = session.lookup(b"before")
    session.asked(before)
    session.journald.block()
    first, second = session.mkdir(b"one"), session.mkdir(b"two")
    refused = session.lookup(b"secret")
    session.settle(3 * RETRY)
    session.client.reply(before, attributes(21))
    session.settle(3 * RETRY)
    assert session.client.asked == ["getattr"], "nothing is sent"
    assert session.answers == {}, "nobody is answered, not even who asked before"
    session.journald.read()
    session.asked(second)
    assert session.answered(refused) == "ENOENT"
    assert len(session.answered(before)) == 128
    assert session.journald.told == ["operation mkdir", "operation mkdir", "refused lookup ENOENT"]
    assert [frame.id for frame in session.client.frames] == [before, first, second]


def test_data_that_waits_for_a_record_is_no_view_of_the_drivers_buffer(session, monkeypatch):
    monkeypatch.setattr(serving_module, "PATIENCE", 3600.0)
    lookup = session.lookup()
    session.asked(lookup)
    session.client.reply(lookup, attributes(21))
    session.answered(lookup)
    opened = session.ask("OPEN", struct.pack("=II", 2, 0), node=2)
    session.asked(opened)
    session.client.reply(opened, OpenedFile(77, attributes(21)))
    (handle,) = struct.unpack_from("=Q", session.answered(opened))
    session.journald.block()
    session.mkdir()
    body = struct.pack("=QQIIQII", handle, 0, 5, 0, 0, 0, 0)
    written = session.ask("WRITE", body + b"first", node=2)
    session.lookup(b"other-name-that-fills-the-buffer-anew")
    session.settle(3 * RETRY)
    session.journald.read()
    session.asked(written)
    (asked,) = [frame for frame in session.client.frames if frame.id == written]
    assert codec.decode_arguments(asked).data == b"first"


def test_beyond_its_patience_what_was_not_sent_fails_and_nothing_new_is_sent(session):
    session.journald.block()
    told, untold = session.mkdir(b"one"), session.lookup(b"f")
    assert session.answered(told) == "EIO"
    assert session.answered(untold) == "EIO"
    assert session.serving.silenced
    later = session.lookup(b"g")
    assert session.answered(later) == "EIO"
    session.settle(3 * RETRY)
    assert session.client.frames == []


def test_its_patience_may_end_with_what_comes_next(session, monkeypatch):
    monkeypatch.setattr(serving_module, "PATIENCE", 0.0)
    session.journald.block()
    assert session.answered(session.mkdir()) == "EIO"
    assert session.answered(session.lookup()) == "EIO"


def test_the_loop_goes_on_turning_while_the_journal_is_full(session):
    session.journald.block()
    session.mkdir()
    turned = []
    session.loop.soon(lambda: turned.append(True))
    session.loop.turn()
    silent(session)
    assert turned == [True]
    assert session.serving.turnstile.next_due(session.loop.now) is None


def test_what_was_with_the_client_already_is_answered(session):
    number = session.lookup()
    session.asked(number)
    session.journald.block()
    session.mkdir()
    silent(session)
    session.client.reply(number, attributes(21))
    assert len(session.answered(number)) == 128


def test_once_a_record_goes_through_everything_goes_on_and_the_gap_is_told(session):
    session.journald.block()
    told = session.mkdir(b"one")
    assert session.answered(told) == "EIO"
    for _ in range(3):
        assert session.answered(session.lookup()) == "EIO"
    session.journald.read()
    session.until(lambda: not session.serving.silenced)
    number = session.mkdir(b"two")
    session.asked(number)
    assert session.journald.told == ["operation mkdir", "failed mkdir EIO", "audit-gap", "operation mkdir"]
    gap = session.journald.records[2]
    assert gap[b"FUSE_GATED_COUNT"] == b"4"
    assert [frame.id for frame in session.client.frames] == [number]


def test_no_record_is_lost_and_the_chain_holds(session):
    session.mkdir(b"zero")
    session.settle()
    for round_ in range(3):
        session.journald.block()
        numbers = [session.mkdir(b"%d-%d" % (round_, number)) for number in range(5)]
        assert [session.answered(number) for number in numbers] == ["EIO"] * 5
        session.journald.read()
        session.until(lambda: not session.serving.silenced)
        session.journald.read()
    session.settle()
    session.journald.read()
    head = first_head("session")
    for sequence, record in enumerate(session.journald.records, 1):
        assert record[b"FUSE_GATED_SEQUENCE"] == b"%d" % sequence
        fields = [(name.decode(), value) for name, value in record.items() if name != b"FUSE_GATED_CHAIN"]
        head = digest(head, fields)
        assert record[b"FUSE_GATED_CHAIN"].decode() == head.hex()
    assert session.journald.told.count("operation mkdir") == 16
    assert session.journald.told.count("failed mkdir EIO") == 15
    assert session.journald.told.count("audit-gap") == 3


def test_what_is_closed_meanwhile_is_given_back_afterwards(session):
    lookup = session.lookup()
    session.asked(lookup)
    session.client.reply(lookup, attributes(21))
    session.answered(lookup)
    opened = session.ask("OPEN", struct.pack("=II", 0, 0), node=2)
    session.asked(opened)
    session.client.reply(opened, OpenedFile(77, attributes(21)))
    (handle,) = struct.unpack_from("=Q", session.answered(opened))
    session.journald.block()
    session.mkdir()
    silent(session)
    released = session.ask("RELEASE", struct.pack("=QIIQ", handle, 0, 0, 0), node=2)
    assert session.answered(released) == b""
    session.settle(3 * RETRY)
    assert "release" not in session.client.asked
    session.journald.read()
    session.until(lambda: "release" in session.client.asked)


def test_an_interrupted_caller_is_not_kept_waiting_for_the_journal(session, monkeypatch):
    monkeypatch.setattr("fuse_gated.turnstile.turnstile.INTERRUPT_GRACE", 0.0)
    session.journald.block()
    number = session.mkdir()
    session.settle()
    session.ask("INTERRUPT", struct.pack("=Q", number))
    assert session.answered(number) in ("EINTR", "EIO")
    silent(session)
    session.journald.read()
    session.until(lambda: not session.serving.silenced)
    session.settle()
    assert not any(isinstance(frame, Asked) for frame in session.client.frames), "what was given up is not sent any more"
    assert all(isinstance(frame, Cancel) for frame in session.client.frames)
    assert session.journald.told[0] == "operation mkdir"
    assert session.journald.told[1].startswith("failed mkdir")


def test_a_journal_that_is_gone_is_complained_of_and_may_be_replaced(session):
    session.journald.socket.close()
    number = session.mkdir(b"one")
    assert session.answered(number) == "EIO"
    assert session.complaints >= 1
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    session.journald.socket = theirs
    session.journald.journal.reconnect(ours.detach())
    session.until(lambda: not session.serving.silenced)
    assert session.journald.told == ["operation mkdir", "failed mkdir EIO", "audit-gap"]


def test_a_full_journal_is_not_complained_of(session):
    session.journald.block()
    session.mkdir()
    silent(session)
    session.settle(3 * RETRY)
    assert session.complaints == 0


def test_at_the_sessions_end_callers_are_told_though_no_record_can_be(session):
    number = session.lookup()
    session.asked(number)
    session.journald.block()
    session.mkdir()
    silent(session)
    session.serving.turnstile.lost(session.loop.now)
    session.serving.carry_out()
    assert session.answered(number) == "ENOTCONN"


# Writes that are answered ahead.


@pytest.fixture
def ahead():
    """A session with a memory, and the handle of a file that is open in it."""
    memory = make_state()
    session = Session(memory=memory, cache=Cache("watched"))
    session.memory = memory
    lookup = session.lookup()
    session.asked(lookup)
    session.client.reply(lookup, attributes(21))
    session.answered(lookup)
    opened = session.ask("OPEN", struct.pack("=II", 2, 0), node=2)
    session.asked(opened)
    session.client.reply(opened, OpenedFile(77, attributes(21)))
    (session.handle,) = struct.unpack_from("=Q", session.answered(opened))
    yield session
    session.close()
    os.close(memory)


def write(session, data=b"first"):
    return session.ask("WRITE", struct.pack("=QQIIQII", session.handle, 0, len(data), 0, 0, 0, 0) + data, node=2)


def owed(session):
    """What a successor finds."""
    rows = {}
    for row in session.state.rows():
        if isinstance(row, Owed):
            rows[row.request] = session.state.get(row.at, row.size)
        elif isinstance(row, SettledOwed):
            del rows[row.request]
    return rows


def test_what_is_answered_ahead_is_where_a_successor_finds_it(ahead):
    first, second = write(ahead), write(ahead, b"other")
    assert struct.unpack_from("=I", ahead.answered(first)) == (5,)
    ahead.answered(second)
    assert owed(ahead) == {first: b"first", second: b"other"}
    ahead.asked(second)
    for number in (first, second):
        ahead.client.reply(number, 5)
    ahead.until(lambda: not owed(ahead) and ahead.state.get(0, 10) == bytes(10))
    assert not ahead.serving.turnstile.ahead


def test_while_a_record_waits_nothing_more_is_answered_ahead(ahead, monkeypatch):
    monkeypatch.setattr(serving_module, "PATIENCE", 3600.0)
    ahead.journald.block()
    ahead.serving.tell(Record(kind="session-opened"))
    first = write(ahead)
    ahead.settle(3 * RETRY)
    assert ahead.serving.turnstile.ahead.halted
    second = write(ahead, b"other")
    ahead.lookup(b"other-name-that-fills-the-buffer-anew")
    ahead.settle(3 * RETRY)
    assert not {first, second} & ahead.answers.keys()
    ahead.journald.read()
    ahead.answered(first)
    ahead.asked(second)
    assert not ahead.serving.turnstile.ahead.halted
    data = {frame.id: bytes(codec.decode_arguments(frame).data) for frame in ahead.client.frames if frame.id in (first, second)}
    assert data == {first: b"first", second: b"other"}
    assert owed(ahead) == {first: b"first"}
    for number in (first, second):
        ahead.client.reply(number, 5)
    ahead.answered(second)


def test_what_could_not_be_sent_is_told_by_the_next(ahead):
    ahead.journald.block()
    ahead.serving.tell(Record(kind="session-opened"))
    first = write(ahead)
    silent(ahead)
    ahead.answered(first)
    ahead.journald.read()
    ahead.until(lambda: not ahead.serving.silenced)
    assert ahead.answered(write(ahead)) == "EIO"
    assert not [frame for frame in ahead.client.frames if frame.operation == "write"]


def test_where_there_is_no_room_for_what_a_successor_must_know_nothing_is_answered_ahead(ahead, monkeypatch):
    def full(_rows):
        raise Full("no room")

    monkeypatch.setattr(ahead.state, "commit", full)
    ahead.answered(write(ahead))
    assert len(ahead.full) == 1
    second = write(ahead)
    ahead.asked(second)
    assert second not in ahead.answers

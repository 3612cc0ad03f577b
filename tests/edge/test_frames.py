"""edge/frames.py: whole messages on their short way, everything else to `websockets`, however the bytes arrive."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from fuse_gated.edge import frames
from fuse_gated.edge.frames import BUFFER, Incoming, Outgoing

MOST = 4 * 2**20


class Receiver:
    """An end that takes bytes: what it heard, in order, by which way."""

    def __init__(self, protocol, accept=True):
        self.protocol = protocol
        self.accept = accept
        self.heard = []
        self.parts = None
        self.incoming = Incoming(protocol, MOST, self.message, self.other)

    def message(self, data):
        self.heard.append(("short", bytes(data)))

    def other(self):
        for event in self.protocol.events_received():
            if not isinstance(event, Frame):
                self.heard.append(("http", event))
                if isinstance(self.protocol, ServerProtocol):
                    answer = self.protocol.accept(event) if self.accept else self.protocol.reject(401, "no\n")
                    self.protocol.send_response(answer)
            elif event.opcode in (Opcode.BINARY, Opcode.CONT):
                self.heard.append(("long", bytes(event.data)))
                self.incoming.fragmented = not event.fin
            else:
                self.heard.append((event.opcode.name.lower(), bytes(event.data)))

    def feed(self, data, sizes=None):
        """Let the bytes arrive, in pieces of these sizes (the last one again and again)."""
        rest = memoryview(data)
        sizes = iter(sizes or ())
        size = len(data)
        while rest:
            size = next(sizes, size)
            room = self.incoming.room()
            assert len(room)
            count = min(max(size, 1), len(room), len(rest))
            room[:count] = rest[:count]
            self.incoming.take(count)
            rest = rest[count:]


def server(*, accept=True):
    return Receiver(ServerProtocol(max_size=MOST), accept)


def upgrade():
    protocol = ClientProtocol(parse_uri("ws://localhost/"))
    protocol.send_request(protocol.connect())
    return protocol, b"".join(protocol.data_to_send())


def open_server():
    receiver = server()
    receiver.feed(upgrade()[1])
    assert receiver.protocol.state is State.OPEN
    receiver.heard.clear()
    return receiver


def open_client():
    """(the client as a receiver, the server's protocol)"""
    protocol, request = upgrade()
    other = ServerProtocol()
    other.receive_data(request)
    other.send_response(other.accept(other.events_received()[0]))
    receiver = Receiver(protocol)
    receiver.feed(b"".join(other.data_to_send()))
    assert protocol.state is State.OPEN
    receiver.heard.clear()
    return receiver, other


def masked(opcode, data=b"", fin=True):
    return Frame(opcode, data, fin=fin).serialize(mask=True)


SIZES = [0, 1, 125, 126, 127, 65535, 65536, BUFFER - 14, BUFFER - 13, BUFFER, BUFFER + 1, 3 * BUFFER, MOST]
PIECES = {"whole": (), "bytes": (1, 1, 2, 3, *[1] * 11, 100_000), "some": (3, 70_000)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_a_message_arrives_the_short_way(size, pieces):
    data = random.Random(size).randbytes(size)
    receiver = open_server()
    receiver.feed(masked(Opcode.BINARY, data) + masked(Opcode.BINARY, b"next"), pieces)
    assert receiver.heard == [("short", data), ("short", b"next")]
    client, other = open_client()
    other.send_binary(data)
    other.send_binary(b"next")
    client.feed(b"".join(other.data_to_send()), pieces)
    assert client.heard == [("short", data), ("short", b"next")]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("binary"), st.binary(max_size=300)),
            st.tuples(st.just("ping"), st.binary(max_size=125)),
            st.tuples(st.just("fragments"), st.binary(max_size=300)),
        ),
        max_size=12,
    ),
    st.lists(st.integers(1, 90), max_size=60),
)
def test_order_is_kept_in_whatever_pieces_it_arrives(sent, sizes):
    data, expected = b"", []
    for kind, payload in sent:
        if kind == "binary":
            data += masked(Opcode.BINARY, payload)
            expected.append(("short", payload))
        elif kind == "ping":
            data += masked(Opcode.PING, payload)
            expected.append(("ping", payload))
        else:
            # A control frame may stand between fragments (RFC 6455, 5.4).
            data += masked(Opcode.BINARY, payload, fin=False) + masked(Opcode.PING, b"between") + masked(Opcode.CONT, payload)
            expected += [("long", payload), ("ping", b"between"), ("long", payload)]
    receiver = open_server()
    receiver.feed(data, sizes)
    assert receiver.heard == expected
    assert receiver.protocol.state is State.OPEN


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 60])
def test_the_handshake_may_come_in_pieces(cut):
    receiver = server()
    _, request = upgrade()
    receiver.feed(request, [len(request) - cut, 1])
    receiver.feed(masked(Opcode.BINARY, b"hello"))
    assert [kind for kind, _ in receiver.heard] == ["http", "short"]


def test_a_message_behind_the_answer_to_the_upgrade():
    protocol, request = upgrade()
    other = ServerProtocol()
    other.receive_data(request)
    other.send_response(other.accept(other.events_received()[0]))
    other.send_binary(b"welcome")
    receiver = Receiver(protocol)
    receiver.feed(b"".join(other.data_to_send()))
    assert [kind for kind, _ in receiver.heard] == ["http", "short"]


def test_what_follows_a_refused_upgrade_is_not_for_us():
    receiver = server(accept=False)
    receiver.feed(upgrade()[1] + masked(Opcode.BINARY, b"let me in") * 3, [7])
    assert [kind for kind, _ in receiver.heard] == ["http"]


FAULTS = {
    "not masked": (b"\x82\x01x", 1002),
    "a reserved bit": (b"\xc2\x81\0\0\0\0x", 1002),
    "an unknown opcode": (b"\x83\x81\0\0\0\0x", 1002),
    "too long": (b"\x82\xff" + (MOST + 1).to_bytes(8, "big") + b"\0\0\0\0x", 1009),
    "a message within another's fragments": (
        Frame(Opcode.BINARY, b"a", fin=False).serialize(mask=True) + Frame(Opcode.BINARY, b"b").serialize(mask=True),
        1002,
    ),
}


@pytest.mark.parametrize("pieces", [(), (1,)], ids=["whole", "bytes"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_for_the_protocol(fault, pieces):
    data, code = FAULTS[fault]
    receiver = open_server()
    receiver.feed(data + masked(Opcode.BINARY, b"more") * 3, pieces)
    assert receiver.protocol.close_sent.code == code
    assert ("short", b"more") not in receiver.heard


def test_a_stranger_gets_no_room_for_what_is_only_announced():
    """What is longer than expected takes as much memory as has arrived."""
    receiver = open_server()
    receiver.incoming.most = 1000
    receiver.feed(b"\x82\xff" + MOST.to_bytes(8, "big") + b"\0\0\0\0" + bytes(100))
    assert len(receiver.incoming.room()) == frames._FOR_STRANGERS
    receiver.feed(bytes(MOST - 100) + masked(Opcode.BINARY, b"next"))
    assert receiver.heard == [("long", bytes(MOST)), ("short", b"next")]


def test_a_masked_message_from_a_server_is_a_fault():
    client, _ = open_client()
    client.feed(masked(Opcode.BINARY, b"x"))
    assert client.protocol.close_sent.code == 1002
    assert client.heard == []


def test_nothing_is_heard_once_it_is_over():
    receiver = open_server()

    def message(data):
        receiver.heard.append(data)
        receiver.incoming.over = True

    receiver.incoming = Incoming(receiver.protocol, MOST, message, receiver.other)
    receiver.incoming._tail = None
    receiver.feed(masked(Opcode.BINARY, b"one") + masked(Opcode.BINARY, b"two"))
    assert receiver.heard == [b"one"]


def test_a_long_message_that_was_under_way_when_we_closed_is_dropped():
    receiver = open_server()
    data = masked(Opcode.BINARY, bytes(2 * BUFFER))
    receiver.feed(data[:BUFFER])
    receiver.protocol.send_close(1000)
    receiver.feed(data[BUFFER:])
    assert receiver.heard == []


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sent_is_a_frame(size):
    data = random.Random(size).randbytes(size)
    server_side, client_side = ServerProtocol(), ClientProtocol(parse_uri("ws://localhost/"))
    header, body = Outgoing(server_side).frame(data)
    assert header + body == Frame(Opcode.BINARY, data).serialize(mask=False)
    receiver = open_server()
    header, body = Outgoing(client_side).frame(data)
    receiver.feed(bytes(header) + bytes(body))
    assert receiver.heard == [("short", data)]


@pytest.mark.parametrize("sizes", [(0, 0, 0), (1, 70_000, 2), (5, 3, 1), (40, 2**20, 3)])
def test_a_message_in_parts_is_one_frame(sizes):
    parts = [random.Random(size).randbytes(size) for size in sizes]
    server_side, client_side = ServerProtocol(), ClientProtocol(parse_uri("ws://localhost/"))
    pieces = Outgoing(server_side).frame_of(parts)
    assert b"".join(pieces) == Frame(Opcode.BINARY, b"".join(parts)).serialize(mask=False)
    assert all(piece is part for piece, part in zip(pieces[1:], parts, strict=True)), "nothing is copied"
    receiver = open_server()
    receiver.feed(b"".join(Outgoing(client_side).frame_of(parts)))
    assert receiver.heard == [("short", b"".join(parts))]


def test_long_messages_of_a_server_are_not_copied():
    """They are views of the buffer, for as long as they are being heard; a client's are unmasked to another place anyway."""
    kinds = {}
    for name, receiver, mask in ("client", open_client()[0], False), ("server", open_server(), True):
        kinds[name] = []
        receiver.incoming._on_message = lambda data, name=name: kinds[name].append(type(data))
        for size in 100, frames._LENT - 1, frames._LENT, MOST:
            receiver.feed(Frame(Opcode.BINARY, bytes(size)).serialize(mask=mask))
    assert kinds["client"] == [bytes, bytes, memoryview, bytearray]
    assert kinds["server"] == [bytes] * 4


def test_nothing_is_received_behind_a_message_that_has_begun():
    """It would have to be moved to the front afterwards."""
    for receiver, data in (
        (open_server(), masked(Opcode.BINARY, bytes(2**20))),
        (open_client()[0], Frame(Opcode.BINARY, bytes(2**20)).serialize(mask=False)),
    ):
        assert len(receiver.incoming.room()) == BUFFER
        receiver.feed(data[:20])
        assert len(receiver.incoming.room()) == len(data) - 20
        receiver.feed(data[20:-1])
        assert (len(receiver.incoming.room()), receiver.heard) == (1, [])
        receiver.feed(data[-1:])
        assert receiver.heard == [("short", bytes(2**20))]
        assert len(receiver.incoming.room()) == BUFFER


def test_what_was_received_may_be_given_back_and_what_is_not_complete_stays():
    receiver = open_server()
    data = masked(Opcode.BINARY, bytes(range(256)) * 1000)
    receiver.feed(data + data[:1000])
    assert (receiver.incoming.rest(), receiver.incoming.waiting) == (False, 1000)
    receiver.feed(data[1000:])
    assert receiver.heard == [("short", bytes(range(256)) * 1000)] * 2
    assert (receiver.incoming.rest(), receiver.incoming.waiting) == (True, 0)
    assert not any(receiver.incoming.room()), "its pages are the kernel's again"


def test_no_mask_is_used_twice():
    outgoing = Outgoing(ClientProtocol(parse_uri("ws://localhost/")))
    masks = {outgoing.frame(b"")[0][2:] for _ in range(3 * frames._MASKS)}
    assert len(masks) > 3 * frames._MASKS - 3


def test_a_ping_goes_and_its_answer_comes_past_the_protocol():
    receiver = open_server()
    ping = Outgoing(receiver.protocol).ping()
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN)
    client.receive_data(ping)
    [event] = client.events_received()
    assert (event.opcode, event.data) == (Opcode.PING, b"")
    pong = b"".join(client.data_to_send())
    before = Frame(Opcode.BINARY, b"before").serialize(mask=True)
    after = Frame(Opcode.BINARY, b"after").serialize(mask=True)
    for sizes in (None, (1,), (len(before) + 1, 100), (len(before) + 3, 100)):
        receiver.feed(before + pong + after, sizes)
        heard = [(how, what) for how, what in receiver.heard if (how, what) != ("pong", b"")]
        assert heard == [("short", b"before"), ("short", b"after")]
        receiver.heard.clear()
    receiver.feed(before + pong + after)
    assert ("pong", b"") not in receiver.heard, "it is all in one piece, and nobody is bothered"


def test_a_ping_that_says_nothing_is_for_whoever_takes_it():
    before, after = masked(Opcode.BINARY, b"before"), masked(Opcode.BINARY, b"after")
    for pieces in PIECES.values():
        receiver = open_server()
        receiver.incoming.on_ping = lambda heard=receiver.heard: heard.append(("taken", b""))
        receiver.feed(before + masked(Opcode.PING) + masked(Opcode.PING, b"word") + after, pieces)
        assert receiver.heard[0] == ("short", b"before")
        assert receiver.heard[-2:] == [("ping", b"word"), ("short", b"after")]
    receiver = open_server()
    receiver.incoming.on_ping = lambda: receiver.heard.append(("taken", b""))
    receiver.feed(masked(Opcode.PING) + Frame(Opcode.PING, b"").serialize(mask=False))
    assert receiver.heard == [("taken", b"")], "one that is not masked as it should be is the protocol's to refuse"
    assert receiver.protocol.parser_exc is not None


def test_an_answer_to_a_ping_is_heard():
    receiver, heard = open_server(), []
    receiver.incoming.on_pong = lambda: heard.append("pong")
    receiver.feed(masked(Opcode.PONG) * 2)
    assert heard == ["pong"] * 2
    assert receiver.heard == []


def test_both_sides_answer_a_ping():
    receiver = open_server()
    client, other = open_client()
    assert Outgoing(receiver.protocol).pong() == bytes([0x8A, 0])
    other.receive_data(Outgoing(client.protocol).pong())
    (event,) = other.events_received()
    assert (event.opcode, event.data) == (Opcode.PONG, b"")


def test_a_pong_that_says_something_is_for_the_protocol():
    receiver = open_server()
    receiver.feed(Frame(Opcode.PONG, b"word").serialize(mask=True))
    assert receiver.heard == [("pong", b"word")]


def test_a_clients_ping_is_masked():
    protocol = open_server().protocol
    client = ClientProtocol(parse_uri("ws://localhost/"), state=State.OPEN)
    ping = Outgoing(client).ping()
    assert len(ping) == 6
    protocol.receive_data(ping)
    [event] = protocol.events_received()
    assert (event.opcode, event.data) == (Opcode.PING, b"")

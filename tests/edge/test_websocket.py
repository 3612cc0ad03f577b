"""edge/websocket.py: real sockets, `websockets` on both ends or bytes of our own, with and without TLS."""

import contextlib
import socket
import ssl
import struct

import pytest
from harness.certificates import Authority, self_signed
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from fuse_gated.edge import websocket
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.websocket import WebSocket

LIMIT = 4 * 2**20
MASK = b"\0\0\0\0"


class End:
    """One end: a WebSocket and what it told."""

    def __init__(self, loop, sock, protocol, accept=True):
        self.accept = accept
        self.requests = []
        self.responses = []
        self.messages = []
        self.closed = []
        self.on_message_do = None
        sock.setblocking(False)
        self.socket = WebSocket(loop, sock, protocol, self)

    def on_request(self, request):
        self.requests.append(request)
        if self.accept is None:
            return  # Somebody is still thinking about it.
        protocol = self.socket.protocol
        protocol.send_response(protocol.accept(request) if self.accept else protocol.reject(401, "no token\n"))
        self.socket.flush_soon()

    def on_response(self, response):
        self.responses.append(response)

    def on_message(self, data):
        self.messages.append(bytes(data))
        if self.on_message_do is not None:
            self.on_message_do()

    def on_closed(self, code, reason):
        self.closed.append((code, reason))


class World:
    """A loop, and pairs of connected sockets on it."""

    def __init__(self):
        self.loop = Loop()
        self.sockets = []

    def pair(self):
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        listener.close()
        self.sockets += [client, server]
        return client, server

    def server(self, sock, **options):
        return End(self.loop, sock, ServerProtocol(max_size=LIMIT), **options)

    def client(self, sock):
        end = End(self.loop, sock, ClientProtocol(parse_uri("ws://localhost/"), max_size=LIMIT))
        end.socket.protocol.send_request(end.socket.protocol.connect())
        end.socket.flush_soon()
        return end

    def connected(self):
        """Two ends of an open connection: (client, server)."""
        ours, theirs = self.pair()
        client, server = self.client(ours), self.server(theirs)
        self.until(lambda: client.socket.open and server.socket.open)
        return client, server

    def raw(self):
        """A peer that may send any bytes, connected to an open server: (socket, server)."""
        ours, theirs = self.pair()
        server = self.server(theirs)
        protocol = ClientProtocol(parse_uri("ws://localhost/"))
        protocol.send_request(protocol.connect())
        ours.sendall(b"".join(protocol.data_to_send()))
        self.until(lambda: server.socket.open)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += ours.recv(1)
        return ours, server

    def until(self, done):
        """Turns of the loop until it is so; the test's own timeout ends it otherwise."""
        while not done():
            self.loop.turn()

    def settle(self):
        """A few turns that wait for nothing."""
        for _ in range(5):
            self.loop.soon(lambda: None)
            self.loop.turn()


@pytest.fixture
def world():
    world = World()
    yield world
    for sock in world.sockets:
        sock.close()
    world.loop.close()


def frame(opcode, data=b"", fin=True):
    return Frame(opcode, data, fin=fin).serialize(mask=True)


def whole(sock):
    """All that a socket still says, to its end."""
    sock.settimeout(30)
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def close_frame(data):
    """(code, reason) of the close frame that bytes from a server begin with."""
    assert data[0] == 0x88, data[:20]
    return int.from_bytes(data[2:4], "big"), data[4 : 2 + data[1]].decode()


# The upgrade.


def test_both_ends_open_by_an_upgrade(world):
    client, server = world.connected()
    assert [request.path for request in server.requests] == ["/"]
    assert [response.status_code for response in client.responses] == [101]
    assert client.socket.open
    assert not client.socket.closed


def test_a_refused_upgrade_is_an_answer_of_http_and_the_end(world):
    ours, theirs = world.pair()
    client, server = world.client(ours), world.server(theirs, accept=False)
    world.until(lambda: client.closed and server.closed)
    (response,) = client.responses
    assert isinstance(response, Response)
    assert (response.status_code, response.body) == (401, b"no token\n")
    assert client.closed[0][0] == server.closed[0][0] == 1006
    assert client.socket.closed


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET / SMTP\r\n\r\n", b"hello\r\n"])
def test_what_is_no_http_is_answered_so_that_people_see_it(world, junk):
    ours, theirs = world.pair()
    server = world.server(theirs)
    ours.sendall(junk)
    world.until(lambda: server.socket.bytes_sent)
    ours.shutdown(socket.SHUT_WR)
    world.until(lambda: server.socket.closed)
    assert whole(ours).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert server.requests == []
    ((code, reason),) = server.closed
    assert code == 1006
    assert reason


def test_half_an_upgrade_ends_with_the_connection(world):
    ours, theirs = world.pair()
    server = world.server(theirs)
    ours.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgr")
    world.settle()
    assert (server.requests, server.closed) == ([], [])
    ours.close()
    world.until(lambda: server.closed)
    assert server.closed[0][0] == 1006
    assert server.requests == []


def test_what_is_closed_while_connecting_is_let_go(world):
    _, theirs = world.pair()
    server = world.server(theirs)
    server.socket.close(1001, "going away")
    assert server.socket.closed
    assert server.closed == [(1006, server.closed[0][1])]
    server.socket.close()
    server.socket.abort()
    assert len(server.closed) == 1


# Messages.


def test_messages_arrive_whole_and_in_order(world):
    client, server = world.connected()
    sent = [b"", b"a", bytes(range(256)) * 500, b"last"]
    for data in sent:
        client.socket.send(data)
        server.socket.send(memoryview(data))
    world.until(lambda: len(client.messages) == len(server.messages) == 4)
    assert client.messages == server.messages == sent


def test_what_one_turn_sends_leaves_at_its_end_and_what_is_gathered_at_once(world):
    client, _ = world.connected()
    before = client.socket.bytes_sent
    client.socket.send(b"one")
    client.socket.send(b"two")
    assert client.socket.bytes_sent == before
    client.socket.send_now(b"three")
    assert client.socket.bytes_sent - before == 3 * 6 + len(b"onetwothree")


def drained(world, ours, expected):
    """So many bytes, read as they come."""
    received = b""
    ours.setblocking(False)
    while len(received) < expected:
        try:
            received += ours.recv(2**20)
        except BlockingIOError:
            world.loop.soon(lambda: None)
            world.loop.turn()
    return received


def test_a_message_of_the_full_length_passes_though_the_peer_reads_slowly(world):
    ours, server = world.raw()
    data = bytes(range(256)) * (LIMIT // 256)
    for _ in range(4):
        server.socket.send(data)
    world.settle()
    assert server.socket.queued > 0
    assert drained(world, ours, 4 * (10 + LIMIT)) == 4 * (b"\x82\x7f" + LIMIT.to_bytes(8, "big") + data)
    assert server.socket.queued == 0
    server.socket.send(b"more")
    world.settle()
    ours.setblocking(True)
    assert ours.recv(10) == b"\x82\x04more"


PARTS = (b"head", bytes(range(256)) * (LIMIT // 512), b"tail")


def test_a_message_in_parts_arrives(world):
    client, server = world.connected()
    client.socket.send(b"before")
    already = server.socket.bytes_sent
    for end in (client, server):
        end.socket.send_parts(PARTS)
        end.socket.send_now(b"behind")
    world.until(lambda: len(client.messages) == 2 and len(server.messages) == 3)
    assert client.messages == [b"".join(PARTS), b"behind"]
    assert server.messages == [b"before", b"".join(PARTS), b"behind"]
    assert server.socket.bytes_sent - already == 10 + len(b"".join(PARTS)) + 2 + len(b"behind")


def test_what_does_not_leave_at_once_is_copied(world):
    ours, server = world.raw()
    volatile = bytearray(PARTS[1])
    for _ in range(8):
        server.socket.send_parts((b"head", memoryview(volatile), b"tail"))
    assert server.socket.queued > 0
    volatile[:] = bytes(len(volatile))
    whole = b"".join(PARTS)
    assert drained(world, ours, 8 * (10 + len(whole))) == 8 * (b"\x82\x7f" + len(whole).to_bytes(8, "big") + whole)


def test_a_message_in_parts_goes_behind_what_the_protocol_has_to_say(world):
    client, server = world.connected()
    server.socket.protocol.send_binary(b"first")
    server.socket.send_parts(PARTS)
    world.until(lambda: len(client.messages) == 2)
    assert client.messages == [b"first", b"".join(PARTS)]


def test_parts_to_a_peer_that_is_gone_or_a_closed_connection_are_dropped(world):
    ours, server = world.raw()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ours.close()
    server.socket.send_parts(PARTS)
    server.socket.send_parts(PARTS)
    world.until(lambda: server.socket.closed)
    server.socket.send_parts(PARTS)
    assert (server.closed, server.socket.queued) == ([(1006, "")], 0)


def test_the_memory_of_long_messages_is_kept_while_they_come_and_given_back_then(world, monkeypatch):
    said = []
    monkeypatch.setattr(websocket, "_REST", 0.02)
    monkeypatch.setattr(websocket, "keep_freed", lambda: said.append("keep"))
    monkeypatch.setattr(websocket, "give_back_freed", lambda: said.append("give back"))
    client, server = world.connected()
    client.socket.send(b"short")
    world.until(lambda: server.messages)
    assert said == []
    for _ in range(3):
        server.socket.send_parts(PARTS)
    assert said == ["keep"], "once for all of them"
    world.until(lambda: len(client.messages) == 3 and said.count("give back") == 2)
    assert said == ["keep", "keep", "give back", "give back"], "who receives them does the same"
    server.socket.send_parts(PARTS)
    server.socket.abort()
    assert said[4:] == ["keep", "give back"], "nothing comes any more"


def test_so_is_what_a_long_message_took_that_comes_in_small_pieces(world, monkeypatch):
    said = []
    monkeypatch.setattr(websocket, "_REST", 0.02)
    monkeypatch.setattr(websocket, "keep_freed", lambda: said.append("keep"))
    monkeypatch.setattr(websocket, "give_back_freed", lambda: said.append("give back"))
    ours, server = world.raw()
    sent = frame(Opcode.BINARY, bytes(2**19))
    for start in range(0, len(sent) - 30_000, 30_000):
        ours.sendall(sent[start : start + 30_000])
        world.settle()
    assert said == ["keep"], "it is not whole, so nothing can be given back"
    ours.sendall(sent[start + 30_000 :])
    world.until(lambda: said == ["keep", "give back"])
    assert server.messages == [bytes(2**19)]


def test_fragments_are_one_message(world):
    ours, server = world.raw()
    ours.sendall(frame(Opcode.BINARY, b"one ", fin=False) + frame(Opcode.CONT, b"two ", fin=False) + frame(Opcode.CONT, b"three"))
    ours.sendall(frame(Opcode.BINARY, b"four"))
    world.until(lambda: len(server.messages) == 2)
    assert server.messages == [b"one two three", b"four"]


def test_empty_fragments_without_end_cost_nothing(world):
    ours, server = world.raw()
    ours.sendall(frame(Opcode.BINARY, b"x", fin=False))
    for _ in range(20):
        ours.sendall(frame(Opcode.CONT, b"", fin=False) * 5000)
        world.settle()
    ours.sendall(frame(Opcode.CONT, b"y"))
    world.until(lambda: server.messages)
    assert server.messages == [b"xy"]


def test_what_was_heard_is_counted(world):
    client, server = world.connected()
    before = server.socket.bytes_received
    client.socket.send(b"12345")
    world.until(lambda: server.messages)
    assert server.socket.bytes_received - before == 6 + 5
    assert server.socket.last_heard == pytest.approx(world.loop.now, abs=60)


# What is no part of the protocol.


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(Opcode.TEXT, b"text"), 1003),
        (frame(Opcode.TEXT, b"te", fin=False) + frame(Opcode.CONT, b"xt"), 1003),
        (b"\x82\xff" + (LIMIT + 1).to_bytes(8, "big") + MASK, 1009),
        (frame(Opcode.BINARY, bytes(LIMIT), fin=False) + frame(Opcode.CONT, b"x"), 1009),
        (b"\x82\x01x", 1002),
        (b"\x83\x80" + MASK, 1002),
        (b"\xc2\x80" + MASK, 1002),
        (frame(Opcode.CONT, b"x"), 1002),
        (frame(Opcode.CLOSE, b"\x00"), 1002),
    ],
    ids=["text", "text in parts", "too long", "too long in parts", "not masked", "reserved", "compressed", "goes on", "a half"],
)
def test_what_is_not_allowed_closes_the_connection_with_a_reason(world, sent, code):
    ours, server = world.raw()
    ours.setblocking(False)
    rest = memoryview(sent)
    while rest and not server.closed:
        with contextlib.suppress(BlockingIOError):
            rest = rest[ours.send(rest) :]
        world.loop.soon(lambda: None)
        world.loop.turn()
    world.until(lambda: server.closed)
    assert server.closed[0][0] == code
    assert server.messages == []
    assert not server.socket.open
    data = whole(ours)
    assert close_frame(data)[0] == code
    ours.close()
    world.until(lambda: server.socket.closed)
    assert len(server.closed) == 1


# Pings.


def test_a_ping_is_answered(world):
    client, server = world.connected()
    client.socket.ping()
    heard = server.socket.bytes_received
    world.until(lambda: server.socket.bytes_received > heard)
    heard = client.socket.bytes_received
    world.until(lambda: client.socket.bytes_received > heard)
    assert not server.closed


@pytest.mark.parametrize("word", [b"%04d", b""], ids=["that say something", "that say nothing"])
def test_pings_whose_answers_are_read_may_go_on_for_ever(world, word):
    ours, server = world.raw()
    for number in range(2500):
        said = word % number if word else b""
        ours.sendall(frame(Opcode.PING, said))
        heard = server.socket.bytes_received
        world.until(lambda heard=heard: server.socket.bytes_received > heard)
        assert ours.recv(6) == bytes([0x8A, len(said)]) + said
    assert server.closed == []


def test_many_pings_at_once_are_all_answered(world):
    ours, server = world.raw()
    ours.sendall(frame(Opcode.PING, b"") * 3 + frame(Opcode.PING, b"word") + frame(Opcode.BINARY, b"x"))
    before = server.socket.bytes_sent
    world.until(lambda: server.messages)
    assert ours.recv(12, socket.MSG_WAITALL) == b"\x8a\x00" * 3 + b"\x8a\x04word"
    assert server.socket.bytes_sent - before == 12


def test_signs_of_life_are_heard(world):
    client, server = world.connected()
    heard = []
    server.socket.on_sign = lambda: heard.append("server")
    client.socket.on_sign = lambda: heard.append("client")
    client.socket.ping()
    world.until(lambda: len(heard) == 2)
    assert heard == ["server", "client"], "a ping, and its answer"
    ours, other = world.raw()
    other.socket.on_sign = lambda: heard.append("other")
    ours.sendall(frame(Opcode.PING, b"word") + frame(Opcode.PONG, b"word"))
    world.until(lambda: len(heard) == 4)
    assert heard[2:] == ["other"] * 2


@pytest.mark.parametrize(("length", "at_once"), [(125, 500), (0, 2000)])
def test_pings_whose_answers_are_not_read_are_bounded(world, length, at_once):
    ours, server = world.raw()
    ours.setblocking(False)
    most = 0
    while not server.closed:
        with contextlib.suppress(BlockingIOError):
            ours.send(frame(Opcode.PING, bytes(length)) * at_once)
        world.loop.soon(lambda: None)
        world.loop.turn()
        most = max(most, server.socket.queued)
    assert server.closed == [(1008, "too many pings whose answers were not read")]
    assert most < 2**20


# The end.


@pytest.mark.parametrize(("code", "reason"), [(1000, "goodbye"), (1001, "going away"), (4003, "against the policy")])
def test_both_ends_hear_once_why_it_ended(world, code, reason):
    client, server = world.connected()
    server.socket.close(code, reason)
    server.socket.close(1008, "said twice")
    world.until(lambda: client.socket.closed and server.socket.closed)
    assert client.closed == server.closed == [(code, reason)]
    assert not client.socket.open


def test_a_client_leaves_in_order(world):
    client, server = world.connected()
    client.socket.send(b"last words")
    client.socket.close(1000, "goodbye")
    world.until(lambda: client.socket.closed and server.socket.closed)
    assert server.messages == [b"last words"]
    assert server.closed == client.closed == [(1000, "goodbye")]


def test_a_long_reason_is_cut_between_characters(world):
    client, server = world.connected()
    server.socket.close(1008, "é" * 100)
    world.until(lambda: client.closed)
    assert client.closed == [(1008, "é" * 61)]


def test_nothing_is_sent_after_the_close(world):
    client, server = world.connected()
    client.socket.close()
    before = client.socket.bytes_sent
    client.socket.send(b"too late")
    client.socket.send_now(b"too late")
    client.socket.ping()
    assert client.socket.bytes_sent == before
    world.until(lambda: server.closed)
    assert server.messages == []


def test_a_peer_that_breaks_off_is_no_orderly_end(world):
    client, server = world.connected()
    client.socket.abort()
    assert client.closed[0][0] == 1006
    world.until(lambda: server.closed)
    assert server.closed[0][0] == 1006
    assert server.socket.closed


def test_what_a_peer_said_before_it_broke_off_is_heard(world):
    ours, server = world.raw()
    ours.sendall(frame(Opcode.BINARY, b"first") + frame(Opcode.BINARY, b"second"))
    ours.close()
    world.until(lambda: server.closed)
    assert server.messages == [b"first", b"second"]


def test_a_peer_that_resets_is_an_end_too(world):
    ours, server = world.raw()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ours.close()
    server.socket.send_now(b"x")
    server.socket.send(bytes(2**20))
    server.socket.send(bytes(2**20))
    world.until(lambda: server.closed)
    assert server.closed[0][0] == 1006
    assert server.socket.queued == 0


def test_a_peer_that_never_answers_the_close_is_let_go_after_a_while(world, monkeypatch):
    monkeypatch.setattr(websocket, "_CLOSE_TIMEOUT", 0.01)
    _ours, server = world.raw()
    server.socket.close(1001, "going away")
    assert not server.socket.closed
    world.until(lambda: server.socket.closed)
    assert server.closed == [(1001, "going away")]


def test_a_peer_that_closes_and_then_stays_is_let_go_after_a_while(world, monkeypatch):
    monkeypatch.setattr(websocket, "_CLOSE_TIMEOUT", 0.01)
    ours, server = world.raw()
    ours.sendall(frame(Opcode.CLOSE, (1000).to_bytes(2, "big")))
    world.until(lambda: server.socket.closed)
    assert server.closed == [(1000, "")]
    assert close_frame(whole(ours))[0] == 1000


def test_closing_within_a_message_leaves_the_next_unheard(world):
    ours, server = world.raw()
    server.on_message_do = server.socket.abort
    ours.sendall(frame(Opcode.BINARY, b"first") + frame(Opcode.BINARY, b"second"))
    world.until(lambda: server.closed)
    assert server.messages == [b"first"]
    world.settle()


def test_an_end_that_was_let_go_does_nothing_any_more(world):
    client, _server = world.connected()
    client.socket.send(b"queued")
    client.socket.abort()
    world.settle()
    client.socket._flush()
    assert client.socket.closed
    assert len(client.closed) == 1


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory)
    return authority, authority.issue("server"), self_signed(directory, "stranger")


def contexts(certificates, *, trusted=True):
    authority, server, stranger = certificates
    ours = ssl.create_default_context(cafile=str(authority.certificate))
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = server if trusted else stranger
    theirs.load_cert_chain(pair.certificate, pair.key)
    return ours, theirs


def tls_pair(world, certificates, **options):
    ours, theirs = contexts(certificates, **options)
    client, server = world.pair()
    for sock in (client, server):
        sock.setblocking(False)
    client = ours.wrap_socket(client, server_hostname="localhost", do_handshake_on_connect=False)
    server = theirs.wrap_socket(server, server_side=True, do_handshake_on_connect=False)
    world.sockets += [client, server]
    return world.client(client), world.server(server)


def test_messages_pass_through_tls(world, certificates):
    client, server = tls_pair(world, certificates)
    world.until(lambda: client.socket.open and server.socket.open)
    large = bytes(range(256)) * (LIMIT // 256)
    for data in (b"small", large, large, b"last"):
        client.socket.send(data)
        server.socket.send(data)
    world.until(lambda: len(client.messages) == len(server.messages) == 4)
    assert client.messages == server.messages == [b"small", large, large, b"last"]
    for end in (client, server):
        end.socket.send_parts(PARTS)
    world.until(lambda: len(client.messages) == len(server.messages) == 5)
    assert client.messages[4] == server.messages[4] == b"".join(PARTS)
    assert client.socket.queued == server.socket.queued == 0


def test_a_close_passes_through_tls(world, certificates):
    client, server = tls_pair(world, certificates)
    world.until(lambda: client.socket.open and server.socket.open)
    server.socket.close(4003, "against the policy")
    world.until(lambda: client.socket.closed and server.socket.closed)
    assert client.closed == server.closed == [(4003, "against the policy")]


def test_a_busy_peer_behind_tls_leaves_others_their_turn(world, certificates):
    client, server = tls_pair(world, certificates)
    world.until(lambda: client.socket.open and server.socket.open)
    others = []
    for _ in range(8):
        client.socket.send(bytes(LIMIT))

    def other():
        others.append(len(server.messages))
        if len(server.messages) < 8:
            world.loop.after(0.0, other)

    world.loop.after(0.0, other)
    world.until(lambda: len(server.messages) == 8)
    assert len(set(others)) > 1


def test_a_server_that_nobody_vouches_for_is_refused_with_a_reason(world, certificates):
    client, server = tls_pair(world, certificates, trusted=False)
    world.until(lambda: client.closed and server.closed)
    assert "CERTIFICATE_VERIFY_FAILED" in client.socket.tls_error
    assert client.closed == [(1006, client.socket.tls_error)]
    assert server.socket.tls_error.startswith("TLS handshake failed: ")
    assert server.requests == []


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b""])
def test_a_peer_that_speaks_no_tls_is_an_end_with_a_reason(world, certificates, junk):
    _, theirs = contexts(certificates)
    ours, sock = world.pair()
    sock.setblocking(False)
    server = world.server(theirs.wrap_socket(sock, server_side=True, do_handshake_on_connect=False))
    world.sockets.append(server.socket._socket)
    ours.sendall(junk)
    world.settle()
    ours.close()
    world.until(lambda: server.closed)
    assert server.closed == [(1006, server.socket.tls_error)]
    assert server.socket.tls_error.startswith("TLS handshake failed")


def test_what_is_let_go_before_its_handshake_shakes_no_hands(world, certificates):
    client, server = tls_pair(world, certificates)
    server.socket.abort()
    world.settle()
    world.until(lambda: client.closed)
    assert server.closed[0][0] == 1006
    assert server.socket.protocol.state is not State.OPEN


def test_messages_before_the_answer_to_the_upgrade_end_where_it_does(world):
    ours, theirs = world.pair()
    server = world.server(theirs, accept=None)
    server.on_message_do = server.socket.abort
    protocol = ClientProtocol(parse_uri("ws://localhost/"))
    protocol.send_request(protocol.connect())
    ours.sendall(b"".join(protocol.data_to_send()) + frame(Opcode.BINARY, b"one") + frame(Opcode.BINARY, b"two"))
    world.until(lambda: server.closed)
    assert server.messages == [b"one"]


def test_closing_twice_is_closing_once(world):
    client, server = world.connected()
    client.socket.close(1000, "goodbye")
    client.socket.close(1008, "again")
    world.until(lambda: server.closed)
    assert server.closed == [(1000, "goodbye")]

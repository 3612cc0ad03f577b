"""edge/channel.py: typed messages and descriptors over real sockets."""

import contextlib
import os
import socket
from collections.abc import Iterator

import msgspec
import pytest

from fuse_gated.edge.channel import MAX_FDS, MAX_PACKET, Channel
from fuse_gated.errors import PeerError, ProtocolError


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    data: bytes = b""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    number: int


DECODER: "msgspec.msgpack.Decoder[Ping | Pong]" = msgspec.msgpack.Decoder(Ping | Pong)


@pytest.fixture
def ends() -> Iterator[tuple[Channel[Ping | Pong], Channel[Ping | Pong]]]:
    first, second = Channel.pair(DECODER, DECODER)
    with first, second:
        yield first, second


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel[Ping | Pong]]]:
    """A peer that may send anything, and the channel that receives it, which takes one descriptor a message."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, Channel(receiver, DECODER, max_fds=1) as channel:
        yield sender, channel


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_messages_arrive_whole_in_order_and_typed(ends):
    first, second = ends
    first.send(Ping(b"a"))
    first.send(Pong(2))
    second.send(Pong(3))
    assert second.receive() == (Ping(b"a"), [])
    assert second.receive() == (Pong(2), [])
    assert first.receive() == (Pong(3), [])


def test_nothing_there_is_blocking_io_error(ends):
    with pytest.raises(BlockingIOError):
        ends[0].receive()


def test_a_full_queue_is_blocking_io_error_and_loses_nothing(ends):
    first, second = ends
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 10**6:
            first.send(Pong(sent))
            sent += 1
    assert 0 < sent < 10**6
    assert [second.receive() for _ in range(sent)] == [(Pong(number), []) for number in range(sent)]
    with pytest.raises(BlockingIOError):
        second.receive()


def test_the_longest_message_passes_and_a_longer_one_is_not_sent(ends):
    first, second = ends
    overhead = len(msgspec.msgpack.encode(Ping(bytes(MAX_PACKET // 2)))) - MAX_PACKET // 2
    longest = Ping(bytes(MAX_PACKET - overhead))
    first.send(longest)
    assert second.receive() == (longest, [])
    with pytest.raises(ValueError, match="do not fit"):
        first.send(Ping(bytes(MAX_PACKET - overhead + 1)))
    with pytest.raises(BlockingIOError):
        second.receive()


def test_descriptors_travel_as_copies_that_are_close_on_exec(ends):
    first, second = ends
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    first.send(Pong(1), [writer])
    received = second.receive()
    assert received is not None
    message, (copy,) = received
    assert message == Pong(1)
    assert copy != writer
    assert not os.get_inheritable(copy)
    os.write(copy, b"through the copy")
    assert os.read(reader, 100) == b"through the copy"
    for fd in (reader, writer, copy):
        os.close(fd)


def test_as_many_descriptors_as_allowed(ends):
    first, second = ends
    first.send(Pong(1), [0] * MAX_FDS)
    received = second.receive()
    assert received is not None
    assert len(received[1]) == MAX_FDS
    for fd in received[1]:
        os.close(fd)
    with pytest.raises(ValueError, match="do not fit"):
        first.send(Pong(1), [0] * (MAX_FDS + 1))


@pytest.mark.parametrize("count", [2, 3, 200])
def test_more_descriptors_than_allowed_are_closed(raw, count):
    sender, channel = raw
    before = open_descriptors()
    socket.send_fds(sender, [msgspec.msgpack.encode(Pong(1))], [0] * count)
    with pytest.raises(ProtocolError, match="descriptors"):
        channel.receive()
    assert open_descriptors() == before


def test_a_channel_that_takes_no_descriptors_never_has_them_open():
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, Channel(receiver, DECODER, max_fds=0) as channel:
        sender.send(msgspec.msgpack.encode(Pong(1)))
        assert channel.receive() == (Pong(1), [])
        before = open_descriptors()
        socket.send_fds(sender, [msgspec.msgpack.encode(Pong(1))], [0])
        with pytest.raises(ProtocolError, match="descriptors"):
            channel.receive()
        assert open_descriptors() == before


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"x",
        msgspec.msgpack.encode({"type": "pang"}),
        msgspec.msgpack.encode({"type": "pong"}),
        msgspec.msgpack.encode({"type": "pong", "number": "1"}),
        msgspec.msgpack.encode(Pong(1)) + b"\x00",
        b"\x81\xa4type\xa4\xff\xfe\xfd\xfc",
        b"\x91" * 100_000,
        b"\x82\xa4type\xa4ping\xa5other" + b"\x91" * 100_000,
    ],
    ids=["reserved", "number", "unknown", "incomplete", "wrong-type", "rest", "not-utf-8", "deep", "deep-inside"],
)
def test_what_does_not_decode_is_a_protocol_error_and_its_descriptors_are_closed(raw, packet):
    sender, channel = raw
    before = open_descriptors()
    socket.send_fds(sender, [packet], [0])
    with pytest.raises(ProtocolError):
        channel.receive()
    assert open_descriptors() == before


def test_a_packet_that_is_too_long_is_a_protocol_error(raw):
    sender, channel = raw
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
    sender.send(bytes(MAX_PACKET + 1))
    with pytest.raises(ProtocolError, match="bytes"):
        channel.receive()


def test_an_empty_packet_with_a_descriptor_is_a_protocol_error(raw):
    sender, channel = raw
    before = open_descriptors()
    socket.send_fds(sender, [b""], [0])
    with pytest.raises(ProtocolError):
        channel.receive()
    assert open_descriptors() == before


def test_end_of_file_is_none_after_what_was_sent_before(ends):
    first, second = ends
    first.send(Pong(7))
    first.close()
    assert second.receive() == (Pong(7), [])
    assert second.receive() is None


def test_a_peer_that_left_things_unread_is_gone_all_the_same(ends):
    first, second = ends
    first.send(Pong(1))
    second.close()
    assert first.receive() is None
    with pytest.raises(PeerError, match="gone"):
        first.send(Pong(2))


def test_channels_are_close_on_exec(ends):
    assert not os.get_inheritable(ends[0].fileno())
    assert not os.get_inheritable(ends[1].fileno())

"""edge/hosting.py: what travels between libfuse's process and the worker."""

from typing import Any

import msgspec
import pytest

from fuse_gated import operations as op
from fuse_gated.edge import hosting
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Attributes, Caller, Filesystem

CALLER = Caller(1000, 1001, 4321)
FOUND = Attributes(7, 5, 0o100644, 1, 500, 501, 0, 5, 8, 4096, -1, 2**63, 3)
SPACE = Filesystem(1000, 500, 400, 100, 50, 4096, 255, 4096)

REQUESTS: list[op.Request] = [
    op.Lookup(b"d", b"\xff\n"),
    op.Getattr(b"", 5),
    op.Getattr(b"d/f"),
    op.Setattr(b"f", None, 0o644, 1, 2, 3, op.NOW, -2, True),
    op.Readlink(b"l"),
    op.Symlink(b"", b"l", b"../x"),
    op.Mknod(b"", b"p", 0o010644, 0, 0),
    op.Mkdir(b"d", b"e", 0o755, 0),
    op.Unlink(b"d", b"f"),
    op.Rmdir(b"", b"d"),
    op.Rename(b"d", b"a", b"e", b"b", 0),
    op.Link(b"d/f", b"e", b"g"),
    op.Open(b"f", 0o100002),
    op.Create(b"d", b"f", 0o101, 0o644, 0),
    op.Read(b"", 5, 2**40, 131072),
    op.Flush(b"", 5, 2**64 - 1),
    op.Release(b"", 5),
    op.Fsync(b"", 5, True),
    op.Opendir(b"d", 0),
    op.Readdir(b"", 5, 3, 32768, False),
    op.Releasedir(b"", 5),
    op.Fsyncdir(b"", 5, False),
    op.Statfs(b""),
    op.Access(b"d", 4),
    op.Getxattr(b"f", b"user.a", 65536),
    op.Setxattr(b"f", b"user.a", b"\0value", 1),
    op.Listxattr(b"f", 65536),
    op.Removexattr(b"f", b"user.a"),
    op.Getlk(b"", 5, 9, 0, 2**63 - 1, 1, 4321),
    op.Setlk(b"", 5, 9, 0, 10, 1, 4321, True, False),
    op.Lseek(b"", 5, 2**40, 3),
    op.Fallocate(b"", 5, 0, 2**40, 1),
    op.CopyFileRange(b"", 5, 0, b"d/f", 6, 7, 2**40),
    op.Interrupt(8),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_arrives_as_it_was(request_: op.Request) -> None:
    assert hosting.decode_request(hosting.encode_request(2, CALLER, request_)) == (2, CALLER, request_)


def test_every_kind_of_request_is_tried() -> None:
    assert {type(request) for request in REQUESTS} | {op.Write} == set(hosting.RESULTS)


@pytest.mark.parametrize("size", [0, 1, 70_000, 131072])
def test_data_arrives_whole(size: int) -> None:
    """70,000: MessagePack's longest form of a length, which msgspec 0.19 shows with a wrong one."""
    packet = hosting.encode_request(2, CALLER, op.Write(b"", 5, 7, b"x" * size, True))
    assert len(packet) < hosting.MAX_PACKET
    message = hosting.decode_request(memoryview(packet))
    assert isinstance(message, tuple)
    request = message[2]
    assert isinstance(request, op.Write)
    assert (len(request.data), bytes(request.data), request.from_cache) == (size, b"x" * size, True)


def test_the_beginning() -> None:
    assert hosting.decode_request(hosting.encode_began(19, 131072)) == hosting.Began(19, 131072)


def packet(*message: Any) -> bytes:
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xc1",
        b"\x91" * 2000,
        packet("began", "x", 1),
        packet("what", 1),
        packet("ask", 2, 0, 0, 0, "destroy", ()),
        packet("ask", 2, 0, 0, 0, "lookup", (b"",)),
        packet("ask", 2, 0, 0, 0, "lookup", (1, b"f")),
        packet("ask", 2, 0, 0, 0, "lookup", (b"", "f")),
        packet("ask", 0, 0, 0, 0, "statfs", (b"",)),
        packet("ask", 3, 0, 0, 0, "statfs", (b"",)),
        packet("ask", -2, 0, 0, 0, "statfs", (b"",)),
        packet("ask", 2, -1, 0, 0, "statfs", (b"",)),
        packet("ask", 2, 0, 2**32, 0, "statfs", (b"",)),
        packet("ask", 2, 0, 0, 0, "getattr", (b"/f", None)),
        packet("ask", 2, 0, 0, 0, "getattr", (b"d//f", None)),
        packet("ask", 2, 0, 0, 0, "getattr", (b"d/../f", None)),
        packet("ask", 2, 0, 0, 0, "getattr", (b"d\0", None)),
        packet("ask", 2, 0, 0, 0, "rename", (b"d", b"a", b"..", b"b", 0)),
    ],
)
def test_what_libfuse_cannot_have_sent(packet: bytes) -> None:
    with pytest.raises(ProtocolError, match="from libfuse"):
        hosting.decode_request(packet)


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        (op.Unlink, op.Done(), None),
        (op.Lookup, op.Entry(1, FOUND), FOUND),
        (op.Getattr, op.Attr(FOUND), FOUND),
        (op.Open, op.Opened(5), 5),
        (op.Create, op.Created(op.Entry(1, FOUND), op.Opened(6)), 6),
        (op.Read, op.Data(memoryview(b"data")), b"data"),
        (op.Write, op.Count(5), 5),
        (op.Getlk, op.Lock(1, 2, 0, 4), (0, 1, 2, 4)),
        (op.Readdir, op.Listing((op.DirectoryEntry(b"\xff", 5, 3, 0o100000),)), ((b"\xff", 5, 3, 0o100000),)),
        (op.Statfs, SPACE, SPACE),
        (op.Lseek, op.Position(2**40), 2**40),
        (op.CopyFileRange, op.Count(2**40), 2**40),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, op.Answer) else "",
)
def test_an_answer_arrives_as_it_was(kind: type[op.Request], answer: op.Answer, expected: Any) -> None:
    answered = hosting.decode_answer(hosting.encode_answer(8, answer))
    assert (answered.unique, answered.errno) == (8, 0)
    assert hosting.decode_result(kind, answered.result) == expected


def test_a_listing_with_attributes() -> None:
    entries = (
        op.DirectoryEntry(b"a", 5, 3, 0o100000, op.Entry(1, FOUND)),
        op.DirectoryEntry(b"b", 6, 4, 0o040000),
    )
    answered = hosting.decode_answer(hosting.encode_answer(8, op.Listing(entries, plus=True)))
    expected = ((b"a", 5, 3, 0o100000, FOUND), (b"b", 6, 4, 0o040000, None))
    assert hosting.decode_result(op.Readdir, answered.result, plus=True) == expected
    with pytest.raises(ProtocolError, match="malformed result of readdir"):
        hosting.decode_result(op.Readdir, answered.result)


def test_a_greeting() -> None:
    assert hosting.decode_greeting(hosting.encode_greeting()) == (0, "")
    assert hosting.decode_greeting(hosting.encode_greeting(24, "too many")) == (24, "too many")


@pytest.mark.parametrize(
    "packet", [b"", hosting.encode_answer(8, op.Data(b"x")), hosting.encode_greeting()[:-1] + b"\xc0", packet(8, 0, "early")]
)
def test_what_is_no_greeting(packet: bytes) -> None:
    with pytest.raises(ProtocolError, match="worker"):
        hosting.decode_greeting(packet)


def test_a_failure_has_an_errno() -> None:
    answered = hosting.decode_answer(hosting.encode_answer(8, op.Failed(13)))
    assert (answered.unique, answered.errno) == (8, 13)


@pytest.mark.parametrize("packet", [b"", b"\x91" * 2000, packet(1, 2), packet("x", 0, None)])
def test_what_a_worker_cannot_have_sent(packet: bytes) -> None:
    with pytest.raises(ProtocolError, match="from the worker"):
        hosting.decode_answer(packet)


def test_a_result_of_another_kind() -> None:
    answered = hosting.decode_answer(hosting.encode_answer(8, op.Count(5)))
    with pytest.raises(ProtocolError, match="malformed result of lookup"):
        hosting.decode_result(op.Lookup, answered.result)

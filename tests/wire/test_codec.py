"""wire/codec.py: what is sent can be read, and what is anything else ends in ProtocolError, at a bounded cost."""

import tracemalloc

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Attributes, Filesystem
from fuse_gated.wire import codec
from fuse_gated.wire.codec import MAX_FRAMES, Batch
from fuse_gated.wire.messages import (
    MAX_AFTER,
    MAX_MESSAGE,
    Ask,
    Asked,
    Cancel,
    Gather,
    Gathered,
    Hello,
    Listed,
    ListedEntry,
    LockState,
    Notice,
    Offer,
    Open,
    OpenedFile,
    Owner,
    Replied,
    Reply,
    Setattr,
    Symlink,
    Terms,
    Unlink,
    Unwatch,
    Welcome,
    Write,
)
from fuse_gated.wire.tables import ARGUMENTS, RESULTS

FILE = Attributes(7, 21, 0o100644, 1, 500, 501, 0, 5, 8, 4096, 1, 2, 3)
HELLO = b"\x91\x92\xa5hello\x81\xa6export\xa3src"
REPLY = b"\x91\x93\xa5reply\x02\xc0"
REPLIES = {
    Attributes: FILE,
    OpenedFile: OpenedFile(5, FILE),
    Listed: Listed((ListedEntry(b"x", 31, 0o100000), ListedEntry(b"y", 32, 0, FILE)), False),
    Filesystem: Filesystem(1000, 500, 400, 100, 50, 4096, 255, 4096),
    LockState: LockState(1, 0, 10),
    bytes: b"data",
    int: 5,
    tuple[bytes, ...]: (b"user.a", b"user.b"),
    tuple[Gathered, ...]: (
        Gathered("ENOENT", watched=True),
        Gathered(None, FILE, True, content=b"data"),
        Gathered(None, FILE, False, (ListedEntry(b"x", 31, 0o100000), ListedEntry(b"y", 32, 0, FILE)), True),
    ),
    None: None,
    Attributes | None: FILE,
}


def reply_of(frame):
    return codec.decode_from_client(codec.encode(frame))[0]


# What is sent can be read.


def test_frames_of_a_client_arrive():
    frames = [Hello(Offer(export="src", root=b"/home", capabilities=("chown",), token="t")), Notice((b"a", b"b/c"))]
    assert codec.decode_from_client(codec.encode(*frames)) == frames


def test_frames_of_a_server_arrive():
    terms = Terms(session="s", resume=b"r", mount="/m", max_in_flight=1, max_bytes_in_flight=2)
    assert codec.decode_from_server(codec.encode(Welcome(terms), Cancel(4))) == [Welcome(terms), Cancel(4)]


@pytest.mark.parametrize(
    "arguments",
    [
        Unlink(b"a/b"),
        Setattr(7, mode=0o600, size=2**40, atime=-1, mtime=-(10**18)),
        Symlink(b"l", b"\xff\xfe", Owner(0, 65534)),
        Open(b"f", 3, True),
        Write(7, 2**40, memoryview(b"data"), True),
        Gather((b"", b"a/b"), 65536, 1000, 2**20, True),
        Unwatch((b"a", b"")),
    ],
)
def test_arguments_arrive(arguments):
    operation = next(name for name, kind in ARGUMENTS.items() if isinstance(arguments, kind))
    asked = codec.decode_from_server(codec.encode(Ask(6, operation, arguments)))[0]
    assert isinstance(asked, Asked)
    assert (asked.id, asked.operation) == (6, operation)
    assert codec.decode_arguments(asked) == arguments


def test_what_a_request_waits_for_arrives():
    after = (1, 0, 2**63 - 1)
    [asked] = codec.decode_from_server(codec.encode(Ask(6, "unlink", Unlink(b"f"), after)))
    assert (asked.id, asked.after) == (6, after)
    assert codec.decode_arguments(asked) == Unlink(b"f")
    batch = Batch()
    batch.add(Ask(6, "unlink", Unlink(b"f"), tuple(range(MAX_AFTER))))
    [asked] = codec.decode_from_server(batch.take()[0])
    assert asked.after == tuple(range(MAX_AFTER))


def test_a_request_that_waits_for_none_does_not_say_so():
    """An older client has never seen the field."""
    form = b"\x94\xa3ask\x06\xa6unlink\x91\xc4\x01f"
    assert codec.encode(Cancel(6), Ask(6, "unlink", Unlink(b"f"))) == b"\x92\x92\xa6cancel\x06" + form
    batch = Batch()
    batch.add(Ask(6, "unlink", Unlink(b"f")))
    assert batch.take() == [b"\xdd\x00\x00\x00\x01" + form]
    assert codec.decode_from_server(b"\x91" + form)[0].after == ()
    assert codec.decode_from_server(b"\x91\x95" + form[1:] + b"\x90")[0].after == ()


@pytest.mark.parametrize("operation", RESULTS)
def test_results_arrive(operation):
    result = REPLIES[RESULTS[operation]]
    replied = reply_of(Reply(2, None, result))
    assert isinstance(replied, Replied)
    assert codec.decode_result(operation, replied.result) == result


def test_an_errno_arrives_without_a_result():
    assert reply_of(Reply(2, "EACCES")) == Replied(2, "EACCES", msgspec.Raw(b"\xc0"))
    assert codec.decode_from_client(b"\x91\x93\xa5reply\x02\xa5EPERM")[0].errno == "EPERM"


def test_file_data_is_a_view_of_the_message_and_no_copy():
    message = codec.encode(Reply(2, None, b"d" * 1000))
    data = codec.decode_result("read", codec.decode_from_client(message)[0].result)
    assert isinstance(data, memoryview)
    assert data.obj is message or bytes(data.obj)[-1000:] == b"d" * 1000
    assert data == b"d" * 1000


def test_an_operation_that_is_not_known_has_no_arguments():
    asked = codec.decode_from_server(codec.encode(Ask(6, "teleport", None)))[0]
    assert codec.decode_arguments(asked) is None


# What is anything else is refused.


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "truncated"),
        (b"\xc0", "Expected `array`"),
        (b"\x91", "truncated"),
        (b"\x90\x90", "trailing"),
        (b"\x91\x90", "Expected `array`"),
        (b"\x91\x91\xa7teleport", "malformed message"),
        (b"\x91\x92\xa4nope\x01", "nope"),
        (b"\x91\x92\x05\x01", "Expected `str`"),
        (HELLO[:-4] + b"\x07", "Expected `str`"),
        (b"\x91\x92\xa5hello\x80", "missing required field `export`"),
        (b"\x91\x92\xa5reply\x02", "malformed message"),
        (b"\x91\x93\xa5reply\xa1x\xc0", "Expected `int`"),
        (b"\x91\x93\xa5reply\x02\x05", "Expected `str | null`"),
        (b"\x91\x93\xa5reply\x02\xa2\xff\xfe", "utf-8"),
        (b"\x91\x92\xa2\xff\xfe\x01", "utf-8"),
        (b"\x91\x92\xa6notice\x91\xa1a", "Expected `bytes`"),
        (b"\x91\x94\xa5reply\x02\xc0" + b"\x91" * 100_000, "recursion"),
        (b"\x91\x94\xa5reply\x02\xc0\xc6\xff\xff\xff\xff", "truncated"),
        (b"\x91\x94\xa5reply\x02\xc0\xdd\xff\xff\xff\xff", "truncated"),
        (b"\x91\x92\xa6notice\xdd\xff\xff\xff\xff", "truncated"),
    ],
)
def test_a_malformed_message_of_a_client_is_refused_with_a_reason(message, reason):
    with pytest.raises(ProtocolError, match="malformed") as caught:
        codec.decode_from_client(message)
    assert reason in str(caught.value)
    assert caught.value.close_code == 1007


@pytest.mark.parametrize("message", [b"", HELLO, REPLY, b"\x91\x92\xa6cancel\xa1x", b"\x91\x94\xa3ask\x02\xa2\xff\xff\x90"])
def test_a_malformed_message_of_a_server_is_refused(message):
    with pytest.raises(ProtocolError, match="malformed message"):
        codec.decode_from_server(message)


@pytest.mark.parametrize("after", [None, 4, b"\x04", ["4"], [4.0], [None], [-1], [2**63], [[4]], {"4": 4}, [4] * (MAX_AFTER + 1)])
def test_a_malformed_list_of_what_a_request_waits_for_is_refused(after):
    with pytest.raises(ProtocolError, match="malformed message") as caught:
        codec.decode_from_server(msgspec.msgpack.encode([("ask", 6, "unlink", (b"f",), after)]))
    assert caught.value.close_code == 1007


@pytest.mark.parametrize("arguments", [None, b"f", [], ["f"], [b"f", 2], {"path": b"f"}])
def test_malformed_arguments_are_refused(arguments):
    asked = Asked(6, "readlink", msgspec.Raw(msgspec.msgpack.encode(arguments)))
    if arguments == [b"f", 2]:
        assert codec.decode_arguments(asked).path == b"f"
        return
    with pytest.raises(ProtocolError, match="malformed arguments of readlink") as caught:
        codec.decode_arguments(asked)
    assert caught.value.close_code == 1007


WRONG = [None, True, -1.5, "text", [], {}, [None], [-1] * 13, {"mode": 5}, [[b"x"], True], 2**64 - 1, b"bytes", 7]


@pytest.mark.parametrize("operation", RESULTS)
def test_a_result_of_another_kind_is_refused(operation):
    faults = [fault for wrong in WRONG if (fault := _fault(codec.decode_result, operation, _raw(wrong)))]
    assert len(faults) >= len(WRONG) - 2
    assert all(f"malformed result of {operation}" in str(fault) and fault.close_code == 1007 for fault in faults)


def test_a_reason_is_short_however_much_of_the_message_it_quotes():
    tag = b"x" * 100_000
    with pytest.raises(ProtocolError) as caught:
        codec.decode_from_client(b"\x91\x92\xdb" + len(tag).to_bytes(4, "big") + tag + b"\x01")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("decode", [codec.decode_from_client, codec.decode_from_server])
@pytest.mark.parametrize("header", [b"\xdd" + (MAX_FRAMES + 1).to_bytes(4, "big"), b"\xdc" + (MAX_FRAMES + 1).to_bytes(2, "big")])
def test_too_many_frames_are_refused_before_they_are_decoded(decode, header):
    frames = b"\x93\xa5reply\x02\xc0" * 400_000
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="4097 frames in one message") as caught:
            decode(header + frames)
        cost = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.close_code == 1008
    assert cost < 2 * len(frames)


def test_as_many_frames_as_are_allowed_are_read():
    message = b"\xdc" + MAX_FRAMES.to_bytes(2, "big") + b"\x93\xa5reply\x02\xc0" * MAX_FRAMES
    assert len(codec.decode_from_client(message)) == MAX_FRAMES
    assert len(codec.decode_from_client(b"\xdd" + MAX_FRAMES.to_bytes(4, "big") + message[3:])) == MAX_FRAMES


# Fuzz: bytes, and structures that are nearly right.

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=20) | st.text(max_size=20) | st.floats(),
    lambda inner: st.lists(inner, max_size=15) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=40,
)
tags = st.sampled_from(["hello", "reply", "notice", "ask", "cancel", "welcome", "x"])
nearly = st.lists(st.tuples(tags, anything, anything, anything).map(list) | anything, max_size=4).map(msgspec.msgpack.encode)


def torn(data):
    message, start, end, junk = data
    return message[:start] + junk + message[start + end :]


pieces = st.tuples(nearly, st.integers(0, 60), st.integers(0, 4), st.binary(max_size=4))
messages = st.binary(max_size=300) | nearly | pieces.map(torn)


@given(messages)
@example(b"\x91\x93\xa5reply\x02\xa1\xff")
def test_no_bytes_raise_anything_but_protocol_error(message):
    for decode in (codec.decode_from_client, codec.decode_from_server):
        fault = _fault(decode, message)
        if fault is not None:
            assert str(fault)
            assert fault.close_code in (1007, 1008)
            continue
        for frame in decode(message):
            if isinstance(frame, Asked):
                _fault(codec.decode_arguments, frame)
            elif isinstance(frame, Replied):
                for operation in RESULTS:
                    _fault(codec.decode_result, operation, frame.result)


@given(st.sampled_from(sorted(RESULTS)), anything.map(msgspec.msgpack.encode) | st.binary(max_size=100))
def test_no_result_and_no_arguments_raise_anything_but_protocol_error(operation, raw):
    _fault(codec.decode_result, operation, msgspec.Raw(raw))
    _fault(codec.decode_arguments, Asked(2, operation, msgspec.Raw(raw)))


def _fault(decode, *arguments):
    """The ProtocolError that it raises, if it does. Any other exception fails the test."""
    try:
        decode(*arguments)
    except ProtocolError as error:
        return error
    return None


def _raw(value):
    return msgspec.Raw(msgspec.msgpack.encode(value))


# Batches.


def asks(count, size=0):
    return [Ask(2 * number, "write", Write(1, 0, memoryview(bytes([number % 256]) * size))) for number in range(count)]


def read_back(messages):
    return [frame.id for message in messages for frame in codec.decode_from_server(message)]


def test_nothing_added_is_no_message():
    assert Batch().take() == []


def test_what_was_added_leaves_in_one_message_and_only_once():
    batch = Batch()
    for frame in asks(3):
        batch.add(frame)
    (message,) = batch.take()
    assert read_back([message]) == [0, 2, 4]
    assert batch.take() == []
    batch.add(Cancel(9))
    assert read_back(batch.take()) == [9]


def test_a_frame_is_encoded_when_it_is_added():
    buffer = bytearray(b"old data")
    batch = Batch()
    batch.add(Ask(2, "write", Write(1, 0, memoryview(buffer))))
    buffer[:] = b"new data"
    (asked,) = codec.decode_from_server(batch.take()[0])
    assert codec.decode_arguments(asked).data == b"old data"


def test_a_message_never_gets_longer_than_allowed():
    batch = Batch()
    for frame in asks(9, 2**20):
        batch.add(frame)
    messages = batch.take()
    assert [len(codec.decode_from_server(message)) for message in messages] == [3, 3, 3]
    assert all(len(message) <= MAX_MESSAGE for message in messages)
    assert read_back(messages) == [2 * number for number in range(9)]


def test_a_message_that_is_just_as_long_as_allowed_is_one():
    overhead = len(codec.encode(*asks(2, 2**20))) - 2 * 2**20 + 4  # the header's length does not depend on the count
    fitting = Ask(0, "write", Write(1, 0, memoryview(bytes(MAX_MESSAGE - 2**20 - overhead - 4))))
    batch = Batch()
    for frame in (asks(1, 2**20)[0], fitting):
        batch.add(frame)
    messages = batch.take()
    assert len(messages) == 1
    assert MAX_MESSAGE - 16 < len(messages[0]) <= MAX_MESSAGE


def test_a_batch_says_when_it_is_long_enough_to_leave():
    batch = Batch()
    said = []
    for size in (codec.LONG // 2, codec.LONG // 2, 1):
        batch.add(asks(1, size)[0])
        said.append(batch.is_long)
    assert said == [False, True, True]
    batch.take()
    assert not batch.is_long


def test_a_message_never_has_more_frames_than_allowed():
    batch = Batch()
    for number in range(MAX_FRAMES + 5):
        batch.add(Cancel(number))
    messages = batch.take()
    assert [len(codec.decode_from_server(message)) for message in messages] == [MAX_FRAMES, 5]
    assert read_back(messages) == list(range(MAX_FRAMES + 5))


def test_a_frame_too_long_for_any_message_is_alone_in_its():
    batch = Batch()
    batch.add(Cancel(1))
    batch.add(asks(1, MAX_MESSAGE)[0])
    batch.add(Cancel(3))
    assert [len(codec.decode_from_server(message)) for message in batch.take()] == [1, 1, 1]
    batch.add(asks(1, MAX_MESSAGE)[0])
    assert len(batch.take()) == 1


# Messages in parts.


def in_parts(batch, frame):
    message = batch.take_with(frame)
    assert message is not None
    assert batch.take() == [], "nothing is left for another one"
    return b"".join(message)


DATA = memoryview(bytes(range(256)) * (codec.LONG_DATA // 256) + b"!")


@pytest.mark.parametrize(
    "frame",
    [
        Ask(6, "write", Write(7, 2**40, DATA)),
        Ask(2**62, "write", Write(2**33, 0, DATA, append=True, clear_setid=True, most=2**50), (4, 2**40)),
        Reply(6, None, DATA),
        Reply(6, None, bytes(DATA), 123_456),
    ],
)
def test_a_message_in_parts_is_what_it_would_be_in_one(frame):
    for before in (), (Cancel(2), Cancel(4)):
        batch, other = Batch(), Batch()
        for one in before:
            batch.add(one)
            other.add(one)
        other.add(frame)
        assert in_parts(batch, frame) == other.take()[0]
        assert in_parts(batch, frame)[:5] == b"\xdd\0\0\0\1", "it has begun anew"


def test_the_data_of_a_message_in_parts_stays_where_it_is():
    buffer = bytearray(codec.LONG_DATA)
    message = Batch().take_with(Ask(2, "write", Write(1, 0, memoryview(buffer))))
    buffer[-1] = 9
    assert bytes(message[1]) == buffer


@pytest.mark.parametrize(
    "frame",
    [
        Ask(2, "write", Write(1, 0, DATA[: codec.LONG_DATA - 1])),
        Ask(2, "write", Write(1, 0, memoryview(bytes(MAX_MESSAGE - codec.LONG)))),
        Ask(2, "unlink", Unlink(b"f")),
        Reply(2, "EIO"),
        Reply(2, None, FILE),
    ],
)
def test_what_is_not_worth_parts_or_does_not_fit_is_to_be_added(frame):
    batch = Batch()
    batch.add(Cancel(9))
    assert batch.take_with(frame) is None
    assert read_back(batch.take()) == [9]


def test_what_came_before_leaves_before():
    batch = Batch()
    for frame in asks(5, 2**20):
        batch.add(frame)
    assert batch.take_with(Ask(20, "write", Write(1, 0, DATA))) is None
    assert read_back(batch.take()) == [0, 2, 4, 6, 8]
    for number in range(MAX_FRAMES):
        batch.add(Cancel(number))
    assert batch.take_with(Ask(20, "write", Write(1, 0, DATA))) is None

"""wire/messages.py: frames are arrays with a tag, and may grow at their end, and so may arguments."""

import msgspec
import pytest

from fuse_gated.wire import messages
from fuse_gated.wire.messages import Ask, Cancel, Hello, Notice, Offer, Reply, Terms
from fuse_gated.wire.tables import ARGUMENTS

FRAMES = [
    (Hello(Offer(export="src")), ["hello", {"export": "src", "program": "", "root": b"", "capabilities": [], "resume": None,
                                           "token": None}]),
    (messages.Welcome(Terms(session="s", resume=b"r", mount="/m", max_in_flight=1, max_bytes_in_flight=2)),
     ["welcome", {"session": "s", "resume": b"r", "mount": "/m", "max_in_flight": 1, "max_bytes_in_flight": 2,
                  "max_data": 2**20, "deadline": 30.0, "resumed": False, "grace": 0.0,
                  "driver": ""}]),
    (Ask(2, "unlink", messages.Unlink(b"f"), (4, 6)), ["ask", 2, "unlink", [b"f"], [4, 6]]),
    (Cancel(2), ["cancel", 2]),
    (Reply(2, None, 5), ["reply", 2, None, 5, 0]),
    (Reply(2, "EACCES"), ["reply", 2, "EACCES", None, 0]),
    (Notice((b"a/b",)), ["notice", [b"a/b"], [], False]),
    (messages.Broken(7), ["broken", 7]),
    (Ask(2, "create", messages.Create(b"f", 2, 0o644, None, 9)), ["ask", 2, "create", [b"f", 2, 0o644, None, 9], []]),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "form"), FRAMES)
def test_a_frame_is_an_array_with_its_tag_first(frame, form):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(frame)) == form


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_may_be_followed_by_what_a_later_version_adds(name):
    values = [_value(field.type) for field in msgspec.structs.fields(ARGUMENTS[name])]
    arguments = msgspec.msgpack.decode(msgspec.msgpack.encode([*values, "new", 7]), type=ARGUMENTS[name])
    found = [bytes(value) if isinstance(value, memoryview) else value for value in msgspec.structs.astuple(arguments)]
    assert found == values


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_have_defaults_may_be_left_out(name):
    required = [field for field in msgspec.structs.fields(ARGUMENTS[name]) if field.required]
    encoded = msgspec.msgpack.encode([_value(field.type) for field in required])
    assert isinstance(msgspec.msgpack.decode(encoded, type=ARGUMENTS[name]), ARGUMENTS[name])


def _value(kind):
    simple = {int: 3, bytes: b"x", bool: True, memoryview: b"x", messages.Target: b"x", tuple[bytes, ...]: (b"x", b"y")}
    return simple.get(kind)

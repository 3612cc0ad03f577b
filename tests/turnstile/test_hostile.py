"""A hostile client: whatever it answers ends in a ProtocolError with a reason, or in an answer that harms nobody."""

import msgspec
import pytest
from harness.cases import ASIDE, CASES, Scene
from harness.sansio import DIRECTORY, LINK, REGULAR, ROOT, Errno, Mount, attributes
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_gated import operations as op
from fuse_gated.edge import fuse_answers
from fuse_gated.errors import ProtocolError
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.operations import Filesystem
from fuse_gated.turnstile import effects
from fuse_gated.wire import codec
from fuse_gated.wire.messages import Hello, Listed, ListedEntry, LockState, Offer, OpenedFile

ASKING = {str(case): case for case in CASES if case.asks and case.operation not in ASIDE}
BIG, NEGATIVE = 2**64 - 1, -1
BAD_ATTRIBUTES = {
    "negative size": attributes(21, size=-1),
    "huge size": attributes(21, size=2**63),
    "negative inode": attributes(-21),
    "negative device": attributes(21, device=-1),
    "no type": attributes(21, mode=0o644),
    "two types": attributes(21, mode=0o150000),
    "negative mode": attributes(21, mode=-1),
    "huge mode": attributes(21, mode=2**32),
    "negative links": attributes(21, nlink=-1),
    "huge uid": attributes(21, uid=2**32),
    "negative gid": attributes(21, gid=-1),
    "huge rdev": attributes(21, rdev=2**32),
    "negative blocks": attributes(21, blocks=-1),
    "a block of a gigabyte": attributes(21, block_size=2**30),
}
WITH_ATTRIBUTES = {
    "lookup": lambda a: a,
    "getattr": lambda a: a,
    "setattr": lambda a: a,
    "symlink": lambda a: a,
    "mknod": lambda a: a,
    "mkdir": lambda a: a,
    "link": lambda a: a,
    "open": lambda a: OpenedFile(80, a),
    "create": lambda a: OpenedFile(80, a),
    "opendir": lambda a: OpenedFile(80, a),
    "readdir-plus": lambda a: Listed((ListedEntry(b"x", 31, REGULAR, a),), True),
}
SPACE = Filesystem(1000, 500, 400, 100, 50, 4096, 255, 4096)
BAD = [
    ("read", b"x" * 11, "11 bytes of data, 10 were asked for"),
    ("read", b"x" * 2**20, "bytes of data"),
    ("write", 6, "6 bytes written, of 5"),
    ("write", NEGATIVE, "-1 bytes written"),
    ("write", BIG, "bytes written"),
    ("copy_file_range", 6, "6 bytes written, of 5"),
    ("copy_file_range", NEGATIVE, "-1 bytes written"),
    ("lseek", NEGATIVE, "an offset of -1"),
    ("lseek", 2**63, "an offset of"),
    ("getlk", LockState(3), "a lock of type 3"),
    ("getlk", LockState(NEGATIVE), "a lock of type -1"),
    ("getlk", LockState(1, 5, 4), "a lock from 5 to 4"),
    ("getlk", LockState(1, NEGATIVE, 4), "a lock from -1"),
    ("getlk", LockState(1, 0, 2**63), "a lock from 0"),
    ("getxattr", b"x" * 65537, "65537 bytes"),
    ("listxattr", (b"",), "extended attribute named"),
    ("listxattr", (b"user.a\0b",), "extended attribute named"),
    ("listxattr", (b"user." + b"a" * 251,), "extended attribute named"),
    ("listxattr", tuple(b"user.%d" % at for at in range(10_000)), "more than 65536"),
    ("statfs", msgspec.structs.replace(SPACE, blocks=NEGATIVE), "blocks -1"),
    ("statfs", msgspec.structs.replace(SPACE, block_size=0), "block_size 0"),
    ("statfs", msgspec.structs.replace(SPACE, name_max=2**32), "name_max"),
    *(
        ("readdir", Listed((ListedEntry(name, 31, REGULAR),), True), "no file can have that name")
        for name in (b"", b".", b"..", b"a/b", b"/", b"../x", b"a\0", b"\0", b"n" * 256)
    ),
    ("readdir", Listed((ListedEntry(b"x", NEGATIVE, REGULAR),), True), "inode -1"),
    ("readdir", Listed((ListedEntry(b"x", 31, 0o777),), True), "type"),
    ("readdir", Listed((), False), "never end"),
    ("readdir", Listed(tuple(ListedEntry(b"%d" % at, 31, REGULAR) for at in range(1025)), True), "1025 entries, 1024"),
]


def refused(name, result, reason):
    mount = Mount()
    case, scene = ASKING[name], Scene(mount)
    number = mount.ask(case.request(scene))
    nodes, handles = len(mount.t.inodes), len(mount.t.handles)
    with pytest.raises(ProtocolError, match=reason) as caught:
        mount.reply(number, result)
    assert caught.value.close_code in (1002, 1007, 1008)
    assert mount.answers(number) == [], "the kernel sees nothing of it"
    assert (len(mount.t.inodes), len(mount.t.handles)) == (nodes, handles)
    mount.t.lost(mount.now)
    mount.gather()
    assert mount.answer(number) == op.Failed(107), "its caller is not left alone"


@pytest.mark.parametrize(("name", "result", "reason"), BAD, ids=[f"{name}-{at}" for at, (name, _, _) in enumerate(BAD)])
def test_what_cannot_be_is_refused_with_a_reason(name, result, reason):
    refused(name, result, reason)


@pytest.mark.parametrize("bad", BAD_ATTRIBUTES.values(), ids=BAD_ATTRIBUTES)
@pytest.mark.parametrize("name", WITH_ATTRIBUTES)
def test_attributes_that_no_file_can_have_are_refused(name, bad):
    refused(name, WITH_ATTRIBUTES[name](bad), "attributes with")


@pytest.mark.parametrize("name", ASKING)
def test_a_result_of_another_kind_is_refused(name):
    wrong = {"text": "text"} if ASKING[name].asks != "statfs" else b"bytes"
    refused(name, wrong, "malformed result")


@pytest.mark.parametrize("name", ASKING)
def test_a_second_reply_is_refused(name):
    mount = Mount()
    scene = Scene(mount)
    number = mount.ask(ASKING[name].request(scene))
    mount.reply(number, Errno("EIO"))
    with pytest.raises(ProtocolError, match="not in flight"):
        mount.reply(number, Errno("EIO"))
    mount.answer(number)


@pytest.mark.parametrize("number", [0, 1, 3, -2, 10**6, BIG])
def test_a_reply_to_what_was_never_asked_is_refused(number):
    mount = Mount()
    with pytest.raises(ProtocolError, match=f"a reply to request {number}, which is not in flight"):
        mount.reply(number, None)


def test_a_hello_in_the_middle_is_refused():
    with pytest.raises(ProtocolError, match="a second hello"):
        Mount().message(codec.encode(Hello(Offer(export="src"))))


def test_an_errno_that_nobody_knows_goes_no_further_than_here():
    mount = Mount(audit="everything")
    number = mount.ask(op.Lookup(ROOT, b"f"))
    mount.reply(number, Errno("E\nFUSE_GATED_DECISION=allowed" * 1000))
    assert mount.answer(number) == op.Failed(5)
    assert mount.records[-1].errno == "EIO"


@pytest.mark.parametrize("kind", [DIRECTORY, LINK])
def test_a_file_that_changes_its_type_is_another_file(kind):
    mount = Mount()
    scene = Scene(mount)
    assert mount.do(op.Getattr(scene.f), attributes(21, kind)) == op.Failed(116)
    assert mount.do(op.Open(scene.f, 0), OpenedFile(80, attributes(21, kind))) == op.Failed(116)


def test_a_directory_that_turns_up_twice_is_two_nodes():
    """As one node, it would move a working directory of the server out of the mount."""
    mount = Mount()
    first, second = mount.lookup(b"a", DIRECTORY, inode=500), mount.lookup(b"b", DIRECTORY, inode=500)
    assert first != second
    inside = mount.lookup(b"x", parent=first)
    assert mount.t.inodes.path(mount.t.inodes.get(inside)) == b"a/x"


# Whatever it answers.

numbers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from([0, 1, 5, 21, 24, 2**31, 2**32, 2**63, DIRECTORY | 0o755, REGULAR])
arrays = st.lists(numbers, min_size=13, max_size=13)
plain = st.none() | numbers | st.binary(max_size=12) | st.text(max_size=5) | st.booleans() | arrays
results = st.recursive(plain, lambda inner: st.lists(inner, max_size=4), max_leaves=30) | st.tuples(numbers, arrays)
listings = st.tuples(
    st.lists(st.tuples(st.binary(max_size=6), numbers, numbers, st.none() | arrays), max_size=5), st.booleans()
)
errnos = st.sampled_from([None, "EIO", "ENOSYS", "ENOENT", "EEXIST", "EAGAIN", "EINTR", "ESTALE"]) | st.text(max_size=8)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(ASKING)), errnos, results | listings)
def test_every_answer_is_refused_or_one_that_the_kernel_can_be_given(name, errno, result):
    mount = Mount([Rule("/d/.*", hide=True), Rule("/**", allow=ALL)], audit="everything")
    scene = Scene(mount)
    number = mount.ask(ASKING[name].request(scene))
    fault = _fault(mount, msgspec.msgpack.encode([["reply", number, errno, result]]))
    if fault is not None:
        assert str(fault)
        return
    for effect in mount.log:
        if isinstance(effect, effects.Answer):
            assert b"".join(fuse_answers.encode(effect.request, effect.answer))
        elif isinstance(effect, effects.Tell):
            assert len(effect.record.errno) < 20
    answers = mount.answers(number)
    if answers and isinstance(answers[0], op.Listing):
        assert not any(entry.name.startswith(b".") for entry in answers[0].entries[2:])
    if isinstance(result, (bytes, str)) and answers and isinstance(answers[0], op.Data):
        assert answers[0].data == result


def _fault(mount, message):
    try:
        mount.message(message)
    except ProtocolError as error:
        return error
    return None

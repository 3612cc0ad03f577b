"""turnstile/knowing.py: what is known of a file while it is open, and what of that a change through the mount ends."""

import math

import pytest
from harness.sansio import O_RDONLY, O_RDWR, O_TRUNC, ROOT, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.gate.tenant import Cache as CachePolicy
from fuse_gated.tree.cache import Name
from fuse_gated.turnstile.knowing import KERNEL
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

FILE = attributes(21, size=2**20)  # too large to be brought with its opening


class Watched:
    """A mount whose client watches the root, in which there is a file."""

    def __init__(self, *, known=FILE, **options):
        self.mount = Mount(**options)
        self.t = self.mount.t
        self.t.watches = True
        self.t.set_cache()
        self.node = self.mount.lookup(b"f", inode=21)
        self.list(known)
        self.mount.clear()

    def list(self, known):
        cache = self.t.cache
        names = [Name(b"f", known.inode, 0o100000, known)]
        cache.listed(b"", None, names, complete=True, since=cache.tick, until=math.inf)

    def open(self, found=FILE, flags=O_RDWR, remote=77):
        return self.mount.do(op.Open(self.node, flags), wire.OpenedFile(remote, found)).handle

    def getattr(self, handle, found=FILE):
        """The client says `found`, if it is asked."""
        number = self.mount.ask(op.Getattr(self.node, handle))
        if not self.mount.answers(number):
            self.mount.reply(number, found)
        answer = self.mount.answer(number)
        assert isinstance(answer, op.Attr), answer
        return answer

    def opened_here(self):
        """A handle that the client knows nothing of."""
        self.t.cache.read(b"f", b"known", self.t.cache.tick)
        number = self.mount.ask(op.Open(self.node, O_RDONLY))
        return self.mount.answer(number).handle


def test_what_an_open_file_is_holds_until_the_client_tells_otherwise():
    watched = Watched()
    handle = watched.open()
    assert watched.getattr(handle).valid == KERNEL


def test_what_it_is_found_to_be_is_known_from_then_on():
    watched = Watched(known=attributes(21, size=4))
    handle = watched.open()
    assert f"forget attributes of {watched.node}" in watched.mount.story
    assert watched.getattr(handle).valid == KERNEL
    assert watched.t.cache.attributes(b"f", watched.mount.now) == FILE


@pytest.mark.parametrize("found", [FILE, attributes(21, size=2**20, atime=99)])
def test_the_kernel_goes_on_with_what_it_has_where_nothing_but_reading_has_changed_it(found):
    watched = Watched()
    watched.t.cache.hits = 0
    handle = watched.open(found, flags=O_RDONLY)
    assert not [word for word in watched.mount.story if word.startswith("forget")]
    answer = watched.getattr(handle, found)
    assert (answer.valid, answer.attributes.atime) == (KERNEL, FILE.atime)
    assert "send getattr" not in watched.mount.story


def test_a_file_whose_name_is_anothers_by_now_is_not_followed():
    watched = Watched()
    handle = watched.open(flags=O_RDONLY)
    watched.mount.message(codec.encode(wire.Notice((b"f",), (attributes(22),))))
    assert watched.getattr(handle).valid == 0.0


def test_an_answer_that_crosses_a_notice_is_not_believed():
    watched = Watched()
    handle = watched.open(flags=O_RDONLY)
    watched.t.cache.changes(b"f")
    number = watched.mount.ask(op.Getattr(watched.node, handle))
    watched.mount.message(codec.encode(wire.Notice((b"f",), (attributes(21, size=6, mtime=9),))))
    watched.mount.reply(number, FILE)
    assert watched.mount.answer(number).valid == 0.0


@pytest.mark.parametrize(
    ("policy", "audit", "valid"),
    [
        (CachePolicy(mode="ttl", ttl=3.0), "writes", 3.0),
        (CachePolicy(mode="ttl", ttl=3.0), "everything", 0.0),
        (CachePolicy(mode="strict"), "writes", 0.0),
    ],
)
def test_without_a_watch_it_holds_for_as_long_as_the_policy_says(policy, audit, valid):
    mount = Mount(cache=policy, audit=audit)
    mount.t.watches = True
    mount.t.set_cache()
    node = mount.lookup(b"f", inode=21)
    handle = mount.do(op.Open(node, O_RDWR), wire.OpenedFile(77, attributes(21))).handle
    mount.now += 60.0
    assert mount.do(op.Getattr(node, handle), attributes(21)).valid == valid


def write(watched):
    handle = watched.open(remote=78)
    watched.mount.do(op.Write(watched.node, handle, 0, b"new"), 3)


def allocate(watched):
    handle = watched.open(remote=78)
    watched.mount.do(op.Fallocate(watched.node, handle, 0, 9, 0), None)


def copy(watched):
    handle = watched.open(remote=78)
    watched.mount.do(op.CopyFileRange(watched.node, handle, 0, watched.node, handle, 9, 3), 3)


def truncate(watched):
    watched.mount.do(op.Setattr(watched.node, size=0), attributes(21, size=0))


def open_truncating(watched):
    watched.open(attributes(21, size=0), O_RDWR | O_TRUNC, remote=78)


@pytest.mark.parametrize("change", [write, allocate, copy, truncate, open_truncating])
def test_what_is_open_by_what_was_known_of_it_is_read_from_the_client_after_a_change(change):
    watched = Watched()
    handle = watched.opened_here()
    assert bytes(watched.mount.do(op.Read(watched.node, handle, 0, 9)).data) == b"known"
    change(watched)
    watched.mount.clear()
    number = watched.mount.ask(op.Read(watched.node, handle, 0, 9))
    assert watched.mount.story == ["send open"]
    watched.mount.reply(watched.mount.sent[-1].id, wire.OpenedFile(90, attributes(21, size=0)))
    assert watched.mount.arguments == wire.Read(90, 0, 9)
    watched.mount.reply(number, b"")
    assert watched.mount.answer(number).data == b""


def test_the_same_where_there_are_no_nodes():
    mount = Mount()
    mount.t.watches = True
    mount.t.set_cache()
    cache = mount.t.cache
    cache.listed(b"", None, [Name(b"f", 21, 0o100000, FILE)], complete=True, since=cache.tick, until=math.inf)
    cache.read(b"f", b"known", cache.tick)
    handle = mount.do(op.Open(b"f", O_RDONLY)).handle
    assert mount.t.handles.get(handle).pinned is not None
    other = mount.do(op.Open(b"f", O_RDWR), wire.OpenedFile(78, FILE)).handle
    mount.do(op.Write(b"f", other, 0, b"new"), 3)
    assert mount.t.handles.get(handle).pinned is None


def test_a_name_that_the_kernel_has_forgotten_is_no_hindrance(monkeypatch):
    watched = Watched()
    monkeypatch.setattr(watched.t, "siblings", lambda _node: [ROOT, 4711])
    write(watched)
    assert "answer Count" in watched.mount.story

"""turnstile/prefetch.py: who walks a tree finds the next files there, and what is fetched in vain is bounded."""

import pytest
from harness.sansio import FIFO, ROOT, Mount, Tree, attributes

from fuse_gated import operations as op
from fuse_gated.gate.tenant import Cache as CachePolicy
from fuse_gated.gate.verdict import ALL, READ, Rule
from fuse_gated.tree import telldir
from fuse_gated.turnstile import gathering, prefetch
from fuse_gated.turnstile.prefetch import Cursor
from fuse_gated.turnstile.turnstile import Limits
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Gathered

DIRECTORIES = [b"d%d" % i for i in range(6)]


@pytest.fixture(autouse=True)
def listings_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what comes next in a listing can be seen here."""
    monkeypatch.setattr(telldir, "crc32", lambda name: int.from_bytes(name[:4].ljust(4, b"\0")))


def tree(files: int = 4, content: bytes = b"some text") -> Tree:
    """d0 to d5, each with files f0 … and a directory `deep` with one more."""
    contents: dict[bytes, bytes | None] = {}
    for directory in DIRECTORIES:
        contents[directory] = contents[directory + b"/deep"] = None
        contents[directory + b"/deep/last"] = content
        for i in range(files):
            contents[directory + b"/f%d" % i] = content
    return Tree(contents)


def mount(**other) -> Mount:
    return Mount(watches=True, **other)


def gathers(mount: Mount) -> list[wire.Gather]:
    return [frame.arguments for frame in mount.sent if frame.operation == "gather"]


def listed(mount: Mount, tree: Tree, path: bytes) -> None:
    node = mount.walk(tree, path) if path else ROOT
    assert isinstance(mount.see(tree, op.Opendir(node, 0)), op.Opened)


def read(mount: Mount, tree: Tree, path: bytes) -> None:
    node = mount.walk(tree, path)
    opened = mount.see(tree, op.Open(node, 0))
    assert isinstance(opened, op.Opened)
    mount.see(tree, op.Release(node, opened.handle))


# Directories.


def test_who_looks_into_one_directory_after_the_other_finds_the_next_ones_listed() -> None:
    m, t = mount(), tree()
    listed(m, t, b"")
    assert len(gathers(m)) == 1
    listed(m, t, b"d0")
    assert all(directory in m.t.cache for directory in DIRECTORIES), "those beside it"
    assert all(directory + b"/deep" in m.t.cache for directory in DIRECTORIES), "and beneath them"
    m.clear()
    for directory in DIRECTORIES:
        listed(m, t, directory)
        listed(m, t, directory + b"/deep")
    assert gathers(m) == []
    assert m.t.prefetch.directories_used == m.t.prefetch.directories_fetched == 11


def test_who_looks_into_one_directory_gets_that_one() -> None:
    m, t = mount(), tree()
    listed(m, t, b"d3")
    assert [found.paths for found in gathers(m)] == [(b"",), (b"d3",)] or m.t.prefetch.directories_fetched <= 11


def test_directories_that_the_policy_hides_are_not_listed() -> None:
    m = mount(rules=(Rule("/d1", hide=True), Rule("/d1/**", hide=True), Rule("/d2/**", deny=READ), Rule("/**", allow=ALL)))
    t = tree()
    listed(m, t, b"")
    listed(m, t, b"d0")
    asked = {path for found in gathers(m) for path in found.paths}
    assert b"d3" in asked
    assert not {path for path in asked if path.startswith((b"d1", b"d2/"))}


def test_what_is_listed_in_vain_is_bounded_and_forgotten_after_a_while() -> None:
    m = mount()
    t = Tree({b"a": None, b"b": None, **{b"a/%d" % i: None for i in range(100)}, **{b"a/%d/x" % i: None for i in range(100)}})
    listed(m, t, b"")
    listed(m, t, b"a")
    first = m.t.prefetch.directories_fetched
    assert prefetch.FIRST_DIRECTORIES <= first <= 110
    m.t.prefetch._directories = 4 * prefetch.FIRST_DIRECTORIES
    m.tick(prefetch.UNUSED)
    listed(m, t, b"b")
    assert m.t.prefetch._directories == prefetch.FIRST_DIRECTORIES
    assert len(m.t.prefetch._frontier) <= prefetch._FRONTIER


def test_a_directory_that_is_looked_into_again_is_nothing_new() -> None:
    m, t = mount(), tree()
    listed(m, t, b"")
    for _ in range(3):
        m.t.prefetch.visited(m.t, b"")
    assert not m.t.prefetch._frontier
    for i in range(200):
        m.t.prefetch.visited(m.t, b"elsewhere/%d/%d" % (i, i))
    assert len(m.t.prefetch._visited) <= 2 * prefetch._REMEMBERED


# Contents.


def test_who_reads_one_file_after_the_other_finds_the_next_ones_there() -> None:
    m, t = mount(), tree()
    for directory in (b"", *DIRECTORIES):
        listed(m, t, directory)
    read(m, t, b"d0/f0")
    m.clear()
    read(m, t, b"d0/f1")
    assert len(gathers(m)) <= 3
    m.clear()
    for path in [b"d0/f2", b"d0/f3", *[b"d%d/f%d" % (d, f) for d in range(1, 6) for f in range(4)]]:
        read(m, t, path)
    assert gathers(m) == []
    assert m.sent == []
    assert m.t.prefetch.bytes_used <= m.t.prefetch.bytes_fetched <= 36 * 9


def test_who_opens_a_file_that_is_just_coming_waits_for_it() -> None:
    m, t = mount(), tree()
    for directory in (b"", b"d0"):
        listed(m, t, directory)
    read(m, t, b"d0/f0")
    node = m.walk(t, b"d0/f1")
    other = m.walk(t, b"d0/f2")
    m.clear()
    first = m.ask(op.Open(node, 0))
    second = m.ask(op.Open(other, 0))
    assert {path for found in gathers(m) for path in found.paths} >= {b"d0/f1", b"d0/f2"}
    assert not m.answers(second)
    m.serve(t, wire.Gather)
    assert isinstance(m.answer(first), op.Opened)
    assert isinstance(m.answer(second), op.Opened)


def test_content_is_asked_for_only_where_it_may_be_read() -> None:
    m = mount(rules=(Rule("/d0/f2", deny=READ), Rule("/d0/f3", hide=True), Rule("/**", allow=ALL)))
    t = tree()
    for directory in (b"", b"d0"):
        listed(m, t, directory)
    read(m, t, b"d0/f0")
    read(m, t, b"d0/f1")
    asked = {path for found in gathers(m) for path in found.paths if found.content}
    assert not asked & {b"d0/f2", b"d0/f3"}
    assert b"d1/f0" in asked


@pytest.mark.parametrize("content", [b"x" * (gathering.SMALL + 1), None])
def test_what_is_large_or_no_file_is_opened_as_usual(content: bytes | None) -> None:
    m, t = mount(), Tree({b"a": content or b"p"})
    listed(m, t, b"")
    if content is None:
        m.notice(b"a", attributes=(attributes(t.attributes(b"a").inode, FIFO),))
        m.t.inodes.root.children.clear()
    number = m.ask(op.Lookup(ROOT, b"a"))
    entry = m.answer(number)
    assert isinstance(entry, op.Entry)
    m.clear()
    m.ask(op.Open(entry.node, 0))
    assert [frame.operation for frame in m.sent] == ["open"]


def test_a_content_that_does_not_come_is_read_as_usual() -> None:
    m, t = mount(), tree()
    listed(m, t, b"")
    listed(m, t, b"d0")
    node = m.walk(t, b"d0/f0")
    m.clear()
    number = m.ask(op.Open(node, 0))
    m.reply(m.sent[-1].id, (Gathered(None, t.attributes(b"d0/f0"), True),))
    assert [frame.operation for frame in m.sent] == ["gather", "open"]
    m.serve(t)
    assert isinstance(m.answer(number), op.Opened)


def test_where_a_directory_cannot_be_watched_no_content_is_asked_for() -> None:
    m, t = mount(), tree()
    listed(m, t, b"")
    listed(m, t, b"d0")
    node = m.walk(t, b"d0/f0")
    m.t.unwatched[b"d0"] = m.now + 1
    m.clear()
    m.see(t, op.Open(node, 0))
    assert [frame.operation for frame in m.sent] == ["open"]


# The window.


def test_the_window_grows_with_what_is_used_and_shrinks_with_what_is_not() -> None:
    m, t = mount(), tree(files=60, content=b"x" * 50_000)
    for directory in (b"", *DIRECTORIES):
        listed(m, t, directory)
    read(m, t, b"d0/f0")
    read(m, t, b"d0/f1")
    p = m.t.prefetch
    assert prefetch.FIRST_WINDOW <= p._unused < prefetch.FIRST_WINDOW + prefetch._BATCH
    names = sorted(b"f%d" % i for i in range(60))
    following = names[names.index(b"f1") + 1 :]
    for name in following[:3]:
        read(m, t, b"d0/" + name)
    assert p._window == 8 * prefetch.FIRST_WINDOW
    assert p.bytes_used == 3 * 50_000
    m.tick(prefetch.UNUSED)
    read(m, t, b"d5/f0")
    assert p._window == prefetch.FIRST_WINDOW


def test_empty_files_are_not_fetched_without_end() -> None:
    m, t = mount(), Tree({b"d%d" % d: None for d in range(8)} | {b"d%d/%d" % (d, i): b"" for d in range(8) for i in range(1000)})
    for directory in (b"", *[b"d%d" % d for d in range(8)]):
        listed(m, t, directory)
    m.clear()
    read(m, t, b"d0/0")
    read(m, t, b"d0/1")
    asked = [path for found in gathers(m) for path in found.paths]
    assert len(asked) <= prefetch.FIRST_WINDOW // prefetch._FILE_SIZE + 2 + prefetch._BATCH_PATHS


def test_what_others_wait_for_goes_first() -> None:
    m, t = mount(bounds=Limits(max_bytes_in_flight=2**20)), tree()
    for directory in (b"", b"d0"):
        listed(m, t, directory)
    read(m, t, b"d0/f0")
    m.clear()
    gathering.gather(m.t, [b"d1"])
    assert not prefetch._has_room(m.t)
    m.t.prefetch._fetch(m.t, Cursor(b"d0/f1"))
    m.gather()
    assert [found.paths for found in gathers(m)] == [(b"d1",)]


def test_after_the_cache_is_emptied_nothing_is_counted_on() -> None:
    m, t = mount(), tree()
    for directory in (b"", b"d0"):
        listed(m, t, directory)
    read(m, t, b"d0/f0")
    read(m, t, b"d0/f1")
    p = m.t.prefetch
    assert p._fetched
    m.t.set_cache()
    assert not p._fetched
    assert p._unused == 0
    p.used(m.t, b"d0/f2")
    assert p.bytes_used == 0


# Where it goes on.


def walked(mount: Mount, cursor: Cursor) -> list[bytes]:
    found = []
    while (entry := cursor.next(mount.t)) is not None:
        found.append(entry[0] + b"/" + entry[1].name if entry[0] else entry[1].name)
    return found


def test_a_cursor_goes_depth_first_and_then_up() -> None:
    m, t = mount(), Tree({b"a": None, b"a/1": b"", b"a/2": None, b"a/2/x": b"", b"a/3": b"", b"b": b"", b"c": None, b"c/1": b""})
    for directory in (b"", b"a", b"a/2", b"c"):
        listed(m, t, directory)
    assert walked(m, Cursor(b"a/1")) == [b"a/2/x", b"a/3", b"b", b"c/1"]
    assert walked(m, Cursor(b"b")) == [b"c/1"]
    assert walked(m, Cursor(b"a/none")) == [b"b", b"c/1"]
    assert walked(m, Cursor(b"unknown/x")) == []


def test_a_cursor_stops_at_what_is_not_known_and_goes_on_when_it_is() -> None:
    m, t = mount(), Tree({b"a": b"1", b"b": b"2", b"c": None, b"c/x": b"3", b"d": b"4"})
    listed(m, t, b"")
    cursor = Cursor(b"a")
    assert walked(m, cursor) == [b"b"]
    assert cursor.blocked == b"c"
    read(m, t, b"a")
    read(m, t, b"b")
    assert {b"c/x", b"d"} <= {path for found in gathers(m) for path in found.paths}


def test_a_directory_that_cannot_be_known_is_passed_over() -> None:
    many = {b"c/%d" % i: b"" for i in range(5000)}
    m, t = mount(), Tree({b"a": b"1", b"b": b"2", b"c": None, b"d": b"4", **many})
    listed(m, t, b"")
    read(m, t, b"a")
    m.clear()
    read(m, t, b"b")
    assert b"d" in {path for found in gathers(m) for path in found.paths}
    m, t = mount(), Tree({b"a": b"1", b"b": b"2", b"c": None, b"d": b"4"})
    listed(m, t, b"")
    read(m, t, b"a")
    node = m.walk(t, b"b")
    m.clear()
    m.ask(op.Open(node, 0))
    for _ in range(9):
        for frame in [each for each in m.sent if not m._is_served(each)]:
            if frame.arguments.paths == (b"c",):
                m.reply(frame.id, (Gathered("EXDEV"),))
            else:
                m.reply(frame.id, t.answer(frame.arguments))
    assert b"d" in {path for found in gathers(m) for path in found.paths}


def test_a_directory_that_is_being_listed_for_another_is_not_asked_for_again() -> None:
    m, t = mount(), Tree({b"a": b"1", b"b": b"2", b"c": None, b"c/x": b"3"})
    listed(m, t, b"")
    gathering.gather(m.t, [b"c"])
    m.t.prefetch._fetch(m.t, Cursor(b"b"))
    m.gather()
    assert [found.paths for found in gathers(m)][-1] == (b"c",)


def test_a_directory_that_may_not_be_listed_is_passed_over() -> None:
    m, t = mount(rules=(Rule("/c/**", deny=READ), Rule("/**", allow=ALL))), Tree({b"b": b"2", b"c": None, b"d": b"4"})
    listed(m, t, b"")
    cursor = Cursor(b"b")
    assert walked(m, cursor) == [b"d"]
    assert not cursor.blocked


def test_for_a_time_to_live_it_is_fetched_as_well() -> None:
    m, t = mount(cache=CachePolicy(mode="ttl", ttl=60.0)), tree()
    listed(m, t, b"")
    listed(m, t, b"d0")
    m.clear()
    listed(m, t, b"d1")
    assert m.sent == []

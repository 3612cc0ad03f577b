"""What the kernel keeps by itself while the client watches: listings and pages, and until when."""

import msgspec
import pytest
from harness.sansio import DIRECTORY, EVERYTHING, REGULAR, ROOT, Errno, Mount, Tree, attributes

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Cache as CachePolicy
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.tree import telldir
from fuse_gated.turnstile import attributes as attributes_module
from fuse_gated.turnstile import gathering, lazily
from fuse_gated.wire import messages

LARGE = bytes(gathering.SMALL + 1)


def tree() -> Tree:
    return Tree({b"a": b"content", b"b": b"other", b"d": None, b"d/e": b"deeper", b"large": LARGE})


def mount(**other) -> Mount:
    return Mount(watches=True, **other)


def asked(m: Mount) -> list[str]:
    return [frame.operation for frame in m.sent]


def opened(m: Mount, t: Tree, node: int = ROOT) -> op.Opened:
    answer = m.see(t, op.Opendir(node, 0))
    assert isinstance(answer, op.Opened), answer
    return answer


def closed(m: Mount, t: Tree, handle: op.Opened, node: int = ROOT) -> None:
    assert m.see(t, op.Releasedir(node, handle.handle)) == op.Done()


def listed(
    m: Mount, t: Tree, handle: op.Opened, node: int = ROOT, offset: int = 0, after: bytes | None = None
) -> list[bytes]:
    """From an offset on, or from that of a name in a listing that was answered from here."""
    if after is not None:
        (offset,) = telldir.positions([after])
    answer = m.see(t, op.Readdir(node, handle.handle, offset, 4096, False))
    assert isinstance(answer, op.Listing), answer
    return [entry.name for entry in answer.entries]


def flags(handle: op.Opened) -> tuple[bool, bool]:
    """Whether the kernel may keep what it reads, and goes on with what it has."""
    return handle.cache_listing, handle.keep_cache


FIRST, AGAIN, NEVER = (True, False), (True, True), (False, False)
ASIDE = (False, True)
"""What it has is left to whoever puts it together."""


# Listings.


def test_a_listing_is_kept_and_goes_on_to_be() -> None:
    m, t = mount(), tree()
    assert flags(opened(m, t)) == FIRST
    m.clear()
    assert [flags(opened(m, t)) for _ in range(3)] == [AGAIN] * 3
    assert m.sent == []


def test_what_the_kernel_has_no_more_it_is_told_once_more() -> None:
    """It may drop a page at any time, and go on in the middle."""
    m, t = mount(), tree()
    whole = listed(m, t, opened(m, t))
    handle = opened(m, t)
    assert flags(handle) == AGAIN
    m.clear()
    assert listed(m, t, handle, after=whole[2]) == whole[3:]
    assert listed(m, t, handle, after=whole[-1]) == []
    assert listed(m, t, handle) == whole
    assert m.sent == []


@pytest.mark.parametrize("how", ["made", "removed", "replaced", "attributes", "nothing said", "overflow"])
def test_a_change_on_the_client_ends_it(how: str) -> None:
    m, t = mount(), tree()
    closed(m, t, opened(m, t))
    m.clear()
    match how:
        case "made":
            m.notice(b"new", attributes=(t.change(b"new", b""),))
        case "removed":
            del t.contents[b"a"]
            m.notice(b"a", attributes=(None,))
        case "replaced":
            m.notice(b"a", attributes=(attributes(4711),))
        case "attributes":
            m.notice(b"", attributes=(attributes(1, DIRECTORY, nlink=2, mtime=9),))
        case "nothing said":
            m.notice(b"a")
        case _:
            m.notice(overflow=True)
    assert f"forget {ROOT}" in m.story, "the kernel drops what it has"
    assert flags(opened(m, t)) == FIRST


def test_a_file_that_only_changes_does_not_end_it() -> None:
    m, t = mount(), tree()
    m.walk(t, b"a")
    opened(m, t)
    m.clear()
    m.notice(b"a", attributes=(t.change(b"a", b"changed"),))
    assert f"forget {ROOT}" not in m.story
    assert flags(opened(m, t)) == AGAIN


def test_a_change_of_our_own_ends_it() -> None:
    m, t = mount(), tree()
    closed(m, t, opened(m, t))
    m.do(op.Mkdir(ROOT, b"new", 0o755, 0), attributes(99, DIRECTORY))
    t.contents[b"new"] = None
    assert flags(opened(m, t)) == FIRST


def test_what_a_listing_finds_changed_ends_it() -> None:
    """The notice of that is on its way, and then says nothing new."""
    m, t = mount(), tree()
    handle = opened(m, t)
    t.change(b"new", b"")
    m.clear()
    gathering.gather(m.t, [b""])
    m.gather()
    m.serve(t)
    assert f"forget {ROOT}" in m.story
    assert flags(opened(m, t)) == ASIDE, "while somebody may have the old one half read"
    closed(m, t, handle)


def test_nobodys_is_kept_while_an_old_one_may_be_half_read() -> None:
    m, t = mount(), tree()
    old = opened(m, t)
    assert listed(m, t, old)
    m.notice(b"new", attributes=(t.change(b"new", b""),))
    between = opened(m, t)
    assert flags(between) == ASIDE
    assert b"new" in listed(m, t, between)
    closed(m, t, old)
    assert flags(opened(m, t)) == FIRST, "the one between keeps nothing"


def test_what_is_half_read_is_forgotten_at_its_end() -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    whole = listed(m, t, handle)
    m.clear()
    m.notice(b"new", attributes=(t.change(b"new", b""),))
    assert f"forget {ROOT}" not in m.story, "what is taken away in the midst of it never is whole again"
    m.clear()
    assert listed(m, t, handle, after=whole[-2]) == whole[-1:]
    assert f"forget {ROOT}" not in m.story
    assert listed(m, t, handle, after=whole[-1]) == []
    assert f"forget {ROOT}" in m.story


def test_what_is_whole_is_forgotten_at_once() -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    whole = listed(m, t, handle)
    assert listed(m, t, handle, after=whole[-1]) == []
    m.clear()
    m.notice(b"new", attributes=(t.change(b"new", b""),))
    assert f"forget {ROOT}" in m.story


def test_a_directory_that_is_not_watched_any_more_is_not_kept() -> None:
    m, t = mount(), tree()
    d = m.walk(t, b"d")
    handle = opened(m, t, d)
    assert flags(handle) == FIRST
    m.clear()
    m.t.cache.evict(b"d")
    m.message(b"\x90")
    assert f"forget {d}" in m.story
    assert flags(opened(m, t, d)) == NEVER, "nobody would tell of a change"
    closed(m, t, handle, d)


def test_a_moved_directory_is_read_anew() -> None:
    m, t = mount(), tree()
    d = m.walk(t, b"d")
    closed(m, t, opened(m, t, d), d)
    found = t.attributes(b"d")
    assert found is not None
    m.do(op.Rename(ROOT, b"d", ROOT, b"f", 0), None)
    renamed = Tree({b"f": None, b"f/e": b"deeper"})
    renamed.attributes = lambda path: found if path == b"f" else Tree.attributes(renamed, path)  # type: ignore[method-assign]
    assert flags(opened(m, renamed, d)) == FIRST


def test_a_policy_that_hides_a_name_ends_it() -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    assert b"a" in listed(m, t, handle)
    m.clear()
    m.apply([Rule("/a", hide=True), Rule("/**", allow=ALL)])
    assert f"forget {ROOT}" in m.story
    other = opened(m, t)
    assert flags(other) == ASIDE
    assert b"a" not in listed(m, t, other)
    m.clear()
    rest = listed(m, t, handle)
    assert b"a" not in rest
    assert listed(m, t, handle, after=rest[-1]) == []
    assert f"forget {ROOT}" in m.story


def test_where_everything_is_told_nothing_is_kept() -> None:
    m, t = mount(), tree()
    closed(m, t, opened(m, t))
    m.apply(EVERYTHING, audit="everything")
    assert [flags(opened(m, t)) for _ in range(2)] == [NEVER] * 2


def test_opens_are_told_though_it_is_kept() -> None:
    m, t = mount(audit="opens"), tree()
    opened(m, t)
    m.clear()
    assert flags(opened(m, t)) == AGAIN
    assert [record.operation for record in m.records] == ["opendir"]


@pytest.mark.parametrize("mode", ["ttl", "strict"])
def test_without_a_watch_no_listing_is_kept(mode: str) -> None:
    m, t = mount(cache=CachePolicy(mode=mode, ttl=60.0)), tree()
    assert [flags(opened(m, t)) for _ in range(2)] == [NEVER] * 2


def test_by_path_no_listing_is_kept() -> None:
    m, t = mount(), tree()
    assert [flags(m.see(t, op.Opendir(b"", 0))) for _ in range(2)] == [NEVER] * 2


def test_a_directory_too_long_to_be_known_is_kept_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "ENTRIES", 2)
    monkeypatch.setattr(gathering.gather, "__kwdefaults__", {"content": 0, "entries": 2})
    m, t = mount(), tree()
    handle = opened(m, t)
    assert flags(handle) == FIRST
    whole = listed(m, t, handle)
    assert asked(m) == ["gather", "opendir", "readdir"]
    closed(m, t, handle)
    m.clear()
    handle = opened(m, t)
    assert (flags(handle), asked(m)) == (AGAIN, [])
    # The kernel has lost the end of it.
    assert listed(m, t, handle, offset=4) == whole[4:]
    assert asked(m) == ["opendir", "readdir"]
    m.notice(b"new", attributes=(t.change(b"new", b""),))
    closed(m, t, handle)
    assert flags(opened(m, t)) == FIRST


def test_a_successor_counts_on_nothing() -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    after = mount()
    after.t.restore(m.t.ledger.everything(), 2)
    after.t.forget_all_that_is_watched()
    after.gather()
    assert f"forget {ROOT}" in after.story
    assert flags(opened(after, t)) == ASIDE, "its predecessor's may be half read"
    after.clear()
    whole = listed(after, t, handle)
    assert listed(after, t, handle, after=whole[-1]) == []
    assert f"forget {ROOT}" in after.story
    closed(after, t, handle)
    assert flags(opened(after, t)) == FIRST


# Files that are too large to be known, and that the kernel has read.


def read(m: Mount, t: Tree, node: int) -> op.Opened:
    """A file, opened, read from its beginning, and closed."""
    handle = m.see(t, op.Open(node, 0))
    assert isinstance(handle, op.Opened), handle
    m.see(t, op.Read(node, handle.handle, 0, 4096))
    m.see(t, op.Release(node, handle.handle))
    return handle


def large(m: Mount, t: Tree) -> int:
    m.known(t)
    node = m.walk(t, b"large")
    assert not read(m, t, node).keep_cache
    m.clear()
    return node


def test_a_large_file_that_was_read_is_opened_without_the_client() -> None:
    m, t = mount(), tree()
    node = large(m, t)
    handle = m.see(t, op.Open(node, 0))
    assert isinstance(handle, op.Opened)
    assert handle.keep_cache
    assert m.sent == []
    assert m.see(t, op.Read(node, handle.handle, 4096, 10)) == op.Data(bytes(10)), "what the kernel has no more"
    assert asked(m) == ["open", "read"]


def test_one_that_was_only_opened_is_not() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"large")
    for _ in range(2):
        m.clear()
        handle = m.see(t, op.Open(node, 0))
        assert isinstance(handle, op.Opened)
        assert not handle.keep_cache
        assert "open" in asked(m)
        m.see(t, op.Release(node, handle.handle))


def test_one_that_changed_is_not() -> None:
    m, t = mount(), tree()
    node = large(m, t)
    m.notice(b"large", attributes=(t.change(b"large", LARGE + b"more"),))
    assert not read(m, t, node).keep_cache
    assert read(m, t, node).keep_cache


def test_one_that_the_mount_has_written_to_is_not() -> None:
    m, t = mount(), tree()
    node = large(m, t)
    m.t.cache.changes(b"large")
    assert not read(m, t, node).keep_cache


def test_one_whose_change_was_found_and_not_told_yet_is_not() -> None:
    m, t = mount(), tree()
    node = large(m, t)
    t.change(b"large", LARGE + b"more")
    gathering.gather(m.t, [b""])
    m.gather()
    m.serve(t)
    assert not read(m, t, node).keep_cache


def test_another_file_by_that_name_is_not() -> None:
    m, t = mount(), tree()
    node = large(m, t)
    m.t.inodes.get(node).identity = (7, 4711, REGULAR)
    assert m.t.cache.unchanged(b"large", m.t.inodes.get(node).kept)
    assert gathering.kept_file(m.t, m.t.inodes.get(node), b"large") is None


@pytest.mark.parametrize("policy", [{"audit": "everything"}, {"cache": CachePolicy(mode="ttl", ttl=60.0)}])
def test_where_nobody_watches_or_everything_is_told_each_open_is_asked_for(policy) -> None:
    m, t = mount(**policy), tree()
    node = large(m, t)
    assert not read(m, t, node).keep_cache
    assert "open" in asked(m)


@pytest.mark.parametrize(("path", "size"), [(b"a", 7), (b"large", len(LARGE))])
def test_a_file_without_holes_is_not_asked_for_them(path: bytes, size: int) -> None:
    m, t = mount(), Tree({b"a": b"content", b"large": LARGE})
    found = Tree.attributes(t, path)
    assert found is not None
    full = msgspec.structs.replace(found, blocks=(size + 511) // 512)
    t.attributes = lambda wanted: full if wanted == path else Tree.attributes(t, wanted)  # type: ignore[method-assign]
    m.known(t)
    node = m.walk(t, path)
    read(m, t, node)
    handle = m.see(t, op.Open(node, 0))
    assert isinstance(handle, op.Opened)
    m.clear()
    assert m.see(t, op.Lseek(node, handle.handle, 3, 4)) == op.Position(size)
    assert m.see(t, op.Lseek(node, handle.handle, 3, 3)) == op.Position(3)
    answer = m.see(t, op.Lseek(node, handle.handle, size, 3))
    assert isinstance(answer, op.Failed)
    assert errno_name(answer.errno) == "ENXIO"
    assert m.sent == []


def test_what_may_have_holes_is_asked_for() -> None:
    m, t = mount(), tree()
    node = large(m, t)
    handle = m.see(t, op.Open(node, 0))
    assert isinstance(handle, op.Opened)
    number = m.ask(op.Lseek(node, handle.handle, 0, 4))
    m.serve(t, messages.Open)
    m.reply(number, 4096)
    assert m.answer(number) == op.Position(4096), "eight blocks are not all of it"


# What may be done with a file, and how much room there is.


def access(m: Mount, node: int, mask: int = 1) -> list[str]:
    """What the client is asked for an access(2) that it allows."""
    m.clear()
    number = m.ask(op.Access(node, mask))
    if m.sent:
        m.reply(number, None)
    assert m.answer(number) == op.Done()
    return asked(m)


def test_what_was_allowed_is_allowed_until_mode_or_owner_change() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"a")
    assert [access(m, node), access(m, node), access(m, node, 4)] == [["access"], [], ["access"]]
    m.notice(b"a", attributes=(t.change(b"a", b"written to"),))
    assert access(m, node) == []
    found = t.attributes(b"a")
    assert found is not None
    m.notice(b"a", attributes=(attributes(found.inode, uid=501, size=found.size),))
    assert [access(m, node), access(m, node)] == [["access"], []]
    m.now += attributes_module.ALLOWED
    assert access(m, node) == ["access"]


def test_what_was_denied_is_asked_for_each_time_and_judged_always() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"a")
    for _ in range(2):
        m.clear()
        number = m.ask(op.Access(node, 2))
        m.reply(number, Errno("EACCES"))
        assert isinstance(m.answer(number), op.Failed)
    access(m, node, 4)
    m.apply([Rule("/a", deny=ALL), *EVERYTHING])
    m.clear()
    assert isinstance(m.see(t, op.Access(node, 4)), op.Failed)
    assert m.sent == []


def test_an_answer_about_what_has_changed_meanwhile_is_not_kept() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"a")
    m.clear()
    number = m.ask(op.Access(node, 1))
    found = t.attributes(b"a")
    assert found is not None
    m.notice(b"a", attributes=(attributes(found.inode, mode=REGULAR | 0o600),))
    m.reply(number, None)
    assert access(m, node) == ["access"]


def test_of_what_is_not_known_each_access_is_asked_for() -> None:
    m = mount()
    node = m.lookup(b"far/away")
    assert [access(m, node), access(m, node)] == [["access"]] * 2


def test_only_so_much_that_was_allowed_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes_module, "_MOST_ALLOWED", 2)
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"a")
    assert [access(m, node, mask) for mask in (1, 2, 4, 1)] == [["access"]] * 4
    assert access(m, node, 4) == []


FILESYSTEM = op.Filesystem(1000, 500, 400, 100, 50, 4096, 255, 4096)


def test_how_much_room_there_is_holds_for_a_moment() -> None:
    m = mount()
    assert m.do(op.Statfs(ROOT), FILESYSTEM) == FILESYSTEM
    m.clear()
    assert m.do(op.Statfs(ROOT)) == FILESYSTEM
    m.now += attributes_module.FILESYSTEM
    m.do(op.Statfs(ROOT), FILESYSTEM)
    assert asked(m) == ["statfs"]


def test_without_a_cache_it_is_asked_for_each_time() -> None:
    m = Mount()
    for _ in range(2):
        m.clear()
        m.do(op.Statfs(ROOT), FILESYSTEM)
        assert asked(m) == ["statfs"]


# What is open for a moment only.


def test_who_closes_at_once_leaves_nothing_to_look_after() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"a")
    for _ in range(3):
        read(m, t, node)
    assert not m.t.lingering
    handle = m.see(t, op.Open(node, 0))
    read(m, t, node)
    assert isinstance(handle, op.Opened)
    assert [open_.id for _due, open_ in m.t.lingering if m.t.handles.get(open_.id)] == [handle.handle]


# What was listed by what is known.


def test_a_listing_ends_where_it_ended_though_the_client_opens_the_directory_meanwhile() -> None:
    """What comes while it is read is told once at most."""
    m, t = mount(), tree()
    handle = opened(m, t)
    whole = listed(m, t, handle)
    t.contents[b"0"] = b"first of all"
    m.notice(b"0", attributes=(t.attributes(b"0"),))
    m.tick(lazily.LINGERS)
    m.serve(t)
    assert not m.t.handles.unopened
    assert listed(m, t, handle, after=whole[-2]) == whole[-1:]
    assert listed(m, t, handle, after=whole[-1]) == []
    assert b"0" in listed(m, t, handle), "from the beginning the client is asked"
    assert asked(m)[-1] == "readdir"


def test_an_empty_directory_that_the_client_has_opened_is_read_anew() -> None:
    m, t = mount(), tree()
    t.contents = {b"": None, b"d": None}
    d = m.walk(t, b"d")
    handle = opened(m, t, d)
    assert listed(m, t, handle, d) == [b".", b".."]
    assert listed(m, t, handle, d, offset=2) == []
    m.tick(lazily.LINGERS)
    m.serve(t)
    t.contents[b"d/new"] = b""
    m.notice(b"d/new", attributes=(t.attributes(b"d/new"),))
    assert listed(m, t, handle, d) == [b".", b"..", b"new"]


def test_where_the_kernels_own_copy_does_not_go_on_it_goes_on_in_the_same_order() -> None:
    """Also where the client has opened the directory meanwhile, which lists in an order of its own."""
    m, t = mount(), tree()
    first = opened(m, t)
    whole = listed(m, t, first)
    assert listed(m, t, first, after=whole[-1]) == []
    closed(m, t, first)
    again = opened(m, t)
    assert flags(again) == AGAIN
    m.tick(lazily.LINGERS)
    m.serve(t)
    assert not m.t.handles.unopened
    t.contents[b"0"] = b"first of all"
    m.notice(b"0", attributes=(t.attributes(b"0"),))
    rest = listed(m, t, again, after=whole[2])
    assert set(rest) - {b"0"} == set(whole[3:]), "each that was there and not yet told, and none twice"
    assert "readdir" not in asked(m)

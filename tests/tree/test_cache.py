"""tree/cache.py: what is kept, what ends it, and what it costs. That it is true in the end: test_cache_followed.py."""

import math

import msgspec
import pytest

from fuse_gated.operations import Attributes
from fuse_gated.tree.cache import LONGEST_PATH, Cache
from fuse_gated.tree.known import MISSING, Name
from fuse_gated.tree.telldir import in_order

REGULAR, DIRECTORY, LINK = 0o100000, 0o040000, 0o120000


def attributes(inode: int, kind: int = REGULAR, nlink: int = 1, size: int = 5, mtime: int = 1, ctime: int = 9) -> Attributes:
    return Attributes(7, inode, kind | 0o644, nlink, 500, 501, 0, size, 8, 4096, 1, mtime, ctime)


def name(text: bytes, inode: int, kind: int = REGULAR, **other: int) -> Name:
    return Name(text, inode, kind, attributes(inode, kind, **other))


ROOT = attributes(1, DIRECTORY, nlink=3)
F, G, D = name(b"f", 2), name(b"g", 3), name(b"d", 4, DIRECTORY)


@pytest.fixture
def cache() -> Cache:
    """That knows the root, with f, g and the directory d."""
    cache = Cache(10**6)
    list_root(cache)
    return cache


def list_root(cache: Cache, *names: Name, complete: bool = True, since: int | None = None, own: Attributes | None = ROOT) -> None:
    since = cache.tick if since is None else since
    cache.listed(b"", own, names or (F, G, D), complete=complete, since=since, until=math.inf)


def list_d(cache: Cache, *names: Name, inode: int = 4, path: bytes = b"d", until: float = math.inf) -> None:
    cache.listed(path, attributes(inode, DIRECTORY), names, complete=True, since=cache.tick, until=until)


def news(cache: Cache) -> list[bytes]:
    cache.settle()
    found, cache.news = [path for path, _attributes in cache.news], []
    return found


# What is known.


def test_a_listing_knows_its_names_and_that_there_are_no_others(cache: Cache) -> None:
    assert cache.attributes(b"f", 0.0) == F.attributes
    assert cache.attributes(b"none", 0.0) is MISSING
    assert cache.attributes(b"", 0.0) is ROOT
    assert cache.attributes(b"d", 0.0) is None, "nobody tells of its own changes"
    assert cache.attributes(b"d/x", 0.0) is None
    assert [each.name for each in cache.names(b"", 0.0) or ()] == in_order([b"f", b"g", b"d"])
    assert cache.names(b"d", 0.0) is None
    assert b"" in cache
    assert cache.holds(b"", 0.0)
    assert not cache.holds(b"d", 0.0)


def test_a_part_of_a_listing_says_nothing_of_other_names() -> None:
    cache = Cache(10**6)
    list_root(cache, F, complete=False)
    assert cache.attributes(b"none", 0.0) is None
    assert cache.names(b"", 0.0) is None
    cache.saw(b"none", None, cache.tick)
    assert cache.attributes(b"none", 0.0) is MISSING


def test_a_directory_that_is_known_has_attributes_of_its_own(cache: Cache) -> None:
    list_d(cache)
    own = cache.attributes(b"d", 0.0)
    assert isinstance(own, Attributes)
    assert cache.until(b"d", own) == (math.inf, math.inf)
    cache.saw(b"d", attributes(4, DIRECTORY, nlink=9), cache.tick)
    assert cache.attributes(b"d", 0.0) == attributes(4, DIRECTORY, nlink=9)
    assert news(cache) == [b"d"]


def test_what_is_believed_for_a_while_is_not_believed_longer() -> None:
    cache = Cache(10**6)
    for until, asked in ((5.0, 6.0), (7.0, 8.0)):
        cache.listed(b"", ROOT, (F,), complete=True, since=cache.tick, until=until)
        known = cache.attributes(b"f", until - 1)
        assert isinstance(known, Attributes)
        assert cache.until(b"f", known) == (until, until)
        assert cache.attributes(b"f", asked) is None
        assert cache.attributes(b"", asked) is None
        assert cache.names(b"", asked) is None
        assert not cache.holds(b"", asked)
    cache.saw(b"f", attributes(2, size=6), cache.tick)
    assert not cache.settle(), "who believes for a while need not hear"


def test_only_the_very_attributes_that_are_known_may_be_relied_on(cache: Cache) -> None:
    assert F.attributes is not None
    assert cache.until(b"f", F.attributes) == (math.inf, math.inf)
    assert cache.until(b"f", attributes(2, size=6)) == (math.inf, 0.0)
    assert cache.until(b"f", attributes(3)) == (0.0, 0.0)
    assert cache.until(b"none", attributes(3)) == (0.0, 0.0)
    assert cache.until(b"d/x", attributes(3)) == (0.0, 0.0)


def test_what_has_several_names_is_not_followed(cache: Cache) -> None:
    cache.saw(b"f", attributes(2, nlink=2), cache.tick)
    assert cache.attributes(b"f", 0.0) is None
    assert [each.name for each in cache.names(b"", 0.0) or ()] == in_order([b"f", b"g", b"d"])
    assert news(cache) == [b"f"]


def test_a_new_name_of_a_file_ends_what_is_known_of_its_others(cache: Cache) -> None:
    cache.read(b"f", b"12345", cache.tick)
    list_d(cache)
    assert cache.told(b"d/new", attributes(2, nlink=2))
    assert news(cache) == [b"f"]
    assert cache.attributes(b"f", 0.0) is None
    assert cache.content(b"f") is None
    assert cache.told(b"d/new", attributes(2, nlink=2, mtime=5))
    assert news(cache) == []


def test_a_content_is_kept_with_the_attributes_that_are_known(cache: Cache) -> None:
    cache.read(b"f", b"12345", cache.tick)
    assert cache.content(b"f") == b"12345"
    cache.read(b"f", b"67890", cache.tick)
    assert cache.content(b"f") == b"67890"
    for unknown in (b"d", b"none", b"d/x"):
        cache.read(unknown, b"", cache.tick)
        assert cache.content(unknown) is None


# Notices.


def test_a_notice_of_what_is_known_is_nothing_new(cache: Cache) -> None:
    assert not cache.told(b"f", attributes(2))
    assert not cache.told(b"f", msgspec.structs.replace(attributes(2), atime=5)), "nobody tells of the last access"
    assert not cache.told(b"none", None)
    assert cache.told(b"f", attributes(2, size=6))
    assert cache.attributes(b"f", 0.0) == attributes(2, size=6)
    assert cache.told(b"f", None)
    assert cache.attributes(b"f", 0.0) is MISSING
    assert cache.told(b"far/away", None)


def test_what_was_written_in_the_moment_that_its_times_say_may_be_another_content(cache: Cache) -> None:
    racy = attributes(2, mtime=9)
    cache.told(b"f", racy)
    cache.read(b"f", b"12345", cache.tick)
    assert cache.told(b"f", racy)
    assert cache.content(b"f") is None
    assert cache.attributes(b"f", 0.0) == racy
    assert not cache.told(b"g", attributes(3)), "changed once more afterwards, but not written"
    empty = attributes(2, mtime=9, size=0)
    cache.told(b"f", empty)
    assert not cache.told(b"f", empty)


def test_a_name_that_comes_or_goes_changes_its_directory(cache: Cache) -> None:
    since = cache.tick
    assert cache.told(b"new", attributes(8))
    assert cache.attributes(b"", 0.0) is None
    assert [each.name for each in cache.names(b"", 0.0) or ()] == in_order([b"f", b"g", b"d", b"new"])
    list_root(cache, since=since)
    assert cache.attributes(b"", 0.0) is None
    assert cache.attributes(b"new", 0.0) == attributes(8)


def test_a_directory_that_goes_takes_with_it_what_lies_beneath(cache: Cache) -> None:
    list_d(cache, name(b"x", 5), name(b"e", 6, DIRECTORY))
    list_d(cache, name(b"y", 7), inode=6, path=b"d/e")
    cache.told(b"d", None)
    assert cache.attributes(b"d", 0.0) is MISSING
    assert cache.attributes(b"d/x", 0.0) is None
    assert cache.attributes(b"d/e/y", 0.0) is None
    assert [path for path, _names in cache.evicted] == [b"d", b"d/e"]


@pytest.mark.parametrize("other", [attributes(44, DIRECTORY), attributes(4, REGULAR)])
@pytest.mark.parametrize("how", ["told", "saw", "changed"])
@pytest.mark.parametrize("parent", [True, False])
def test_another_one_by_the_name_of_a_directory_has_other_names(cache: Cache, other: Attributes, how: str, parent: bool) -> None:
    list_d(cache, name(b"x", 5))
    if not parent:
        cache.evict(b"")
    if how == "changed":
        cache.changed(b"d", other, cache.tick)
    elif how == "saw":
        cache.saw(b"d", other, cache.tick)
    else:
        cache.told(b"d", other)
    assert b"d" not in cache
    assert cache.attributes(b"d/x", 0.0) is None


def test_the_root_changes_like_any_other(cache: Cache) -> None:
    assert cache.told(b"", attributes(1, DIRECTORY, nlink=4))
    assert cache.attributes(b"", 0.0) == attributes(1, DIRECTORY, nlink=4)
    assert cache.told(b"", attributes(11, DIRECTORY))
    assert b"" not in cache
    assert cache.attributes(b"", 0.0) is None
    cache.changes(b"")
    cache.renames(b"")


# Answers that something overtook.


def test_an_answer_to_a_question_before_a_notice_is_not_kept(cache: Cache) -> None:
    since = cache.tick
    cache.told(b"f", attributes(2, size=6))
    cache.saw(b"f", attributes(2), since)
    cache.read(b"f", b"12345", since)
    list_root(cache, since=since)
    assert cache.attributes(b"f", 0.0) == attributes(2, size=6)
    assert cache.content(b"f") is None
    assert cache.attributes(b"g", 0.0) == G.attributes


def test_a_first_listing_says_nothing_sure_of_what_changed_meanwhile() -> None:
    cache = Cache(10**6)
    since = cache.tick
    cache.told(b"f", None)
    list_root(cache, since=since)
    assert cache.attributes(b"f", 0.0) is None
    assert cache.names(b"", 0.0) is None
    assert cache.attributes(b"none", 0.0) is None
    cache = Cache(10**6)
    since = cache.changes(b"f")
    list_root(cache, since=since - 1)
    assert cache.attributes(b"f", 0.0) is None
    assert cache.names(b"", 0.0) is not None, "it was only written to"


def test_what_lies_beneath_a_directory_that_moved_meanwhile_is_not_kept(cache: Cache) -> None:
    since = cache.tick
    cache.renames(b"d")
    cache.listed(b"d", attributes(4, DIRECTORY), (name(b"x", 5),), complete=True, since=since, until=math.inf)
    assert b"d" not in cache
    list_d(cache)
    cache.saw(b"d/x", attributes(5), since)
    assert cache.attributes(b"d/x", 0.0) is MISSING


def test_after_clear_nothing_is_kept_that_was_asked_for_before(cache: Cache) -> None:
    since = cache.tick
    cache.clear()
    list_root(cache, since=since)
    assert b"" not in cache
    assert cache.size == 0
    list_root(cache)
    assert b"" in cache


# What an answer says before its notice.


def test_what_was_found_to_be_different_is_news(cache: Cache) -> None:
    cache.read(b"f", b"12345", cache.tick)
    cache.read(b"g", b"12345", cache.tick)
    list_root(cache, name(b"f", 2, size=6), name(b"g", 33), name(b"new", 8), own=attributes(1, DIRECTORY, nlink=2))
    assert news(cache) == [b"f", b"g", b"new", b"d", b""]
    assert not cache.told(b"f", attributes(2, size=6))
    assert cache.content(b"f") is None
    assert cache.attributes(b"d", 0.0) is MISSING
    cache.saw(b"f", None, cache.tick)
    cache.saw(b"f", attributes(2), cache.tick)
    cache.saw(b"g", attributes(33, nlink=2), cache.tick)
    assert news(cache) == [b"f", b"f", b"g"]


def test_what_is_as_it_was_keeps_its_content_and_is_no_news(cache: Cache) -> None:
    cache.read(b"f", b"12345", cache.tick)
    cache.saw(b"none", None, cache.tick)
    cache.changes(b"g")
    list_root(cache, Name(b"f", 2, REGULAR, None)._replace(attributes=F.attributes), G, D)
    assert cache.content(b"f") == b"12345"
    assert news(cache) == []
    list_root(cache, F, complete=False, own=None)
    assert cache.attributes(b"g", 0.0) == G.attributes
    assert cache.attributes(b"none", 0.0) is MISSING, "what was known of a watched directory stays known"


def test_what_cannot_be_looked_at_is_known_to_be_there(cache: Cache) -> None:
    list_root(cache, Name(b"f", 2, REGULAR, None), G, D)
    assert cache.attributes(b"f", 0.0) is None
    assert news(cache) == [b"f"]
    assert cache.names(b"", 0.0) is not None


def test_another_directory_by_that_name_is_listed_anew(cache: Cache) -> None:
    list_d(cache, name(b"x", 5))
    list_d(cache, name(b"y", 6), inode=44)
    assert cache.attributes(b"d/x", 0.0) is None
    assert [path for path, _names in cache.evicted] == [b"d"]


# Our own changes.


def test_while_a_file_is_changed_nothing_is_known_of_it(cache: Cache) -> None:
    cache.read(b"f", b"12345", cache.tick)
    since = cache.changes(b"f")
    assert cache.attributes(b"f", 0.0) is None
    assert cache.content(b"f") is None
    cache.changed(b"f", attributes(2, size=6), since)
    assert cache.attributes(b"f", 0.0) == attributes(2, size=6)
    list_d(cache)
    since = cache.changes(b"d")
    assert cache.attributes(b"d", 0.0) is None
    cache.changed(b"d", attributes(4, DIRECTORY, nlink=5), since)
    assert cache.attributes(b"d", 0.0) == attributes(4, DIRECTORY, nlink=5)


def test_while_a_name_comes_or_goes_nothing_is_known_of_it(cache: Cache) -> None:
    since = cache.renames(b"new")
    assert cache.attributes(b"new", 0.0) is None
    assert cache.names(b"", 0.0) is None
    cache.changed(b"new", attributes(8), since)
    assert [each.name for each in cache.names(b"", 0.0) or ()] == in_order([b"f", b"g", b"d", b"new"])
    since = cache.renames(b"f")
    cache.changed(b"f", None, since)
    assert cache.attributes(b"f", 0.0) is MISSING
    cache.renames(b"g")
    cache.saw(b"g", G.attributes, cache.tick)
    assert cache.attributes(b"g", 0.0) == G.attributes
    assert news(cache) == []
    since = cache.renames(b"elsewhere/f")
    cache.changed(b"elsewhere/f", attributes(9), since)
    assert cache.attributes(b"elsewhere/f", 0.0) is None


def test_a_listing_on_its_way_while_a_name_went_does_not_bring_it_back() -> None:
    cache = Cache(10**6)
    since = cache.renames(b"f")
    between = cache.tick
    cache.changed(b"f", None, since)
    list_root(cache, since=between)
    assert cache.names(b"", 0.0) is None
    assert cache.attributes(b"f", 0.0) is None


@pytest.mark.parametrize("said", [attributes(2, size=6), attributes(2), attributes(22), None])
@pytest.mark.parametrize("done", [attributes(2), None])
def test_what_a_notice_said_while_it_was_done_may_be_older(
    cache: Cache, said: Attributes | None, done: Attributes | None
) -> None:
    since = cache.renames(b"f")
    cache.told(b"f", said)
    cache.changed(b"f", done, since)
    found = cache.attributes(b"f", 0.0)
    if said == done:
        assert found == (done or MISSING)
    else:
        assert found is None


# Room.


def test_without_room_nothing_is_kept() -> None:
    cache = Cache(0)
    list_root(cache)
    assert b"" not in cache
    assert cache.changes(b"f") == cache.renames(b"f") == 0
    cache.changed(b"f", attributes(2), 0)
    assert cache.tick == 0


def test_contents_go_first_and_then_the_directory_that_was_not_used_for_longest(cache: Cache) -> None:
    list_d(cache, name(b"x", 5))
    list_d(cache, inode=9, path=b"e")
    cache.read(b"f", b"12345", cache.tick)
    cache.read(b"g", b"12345", cache.tick)
    cache.content(b"f")
    full = cache.size
    cache.room = full - 1
    cache.saw(b"g", G.attributes, cache.tick)
    assert (cache.content(b"f"), cache.content(b"g")) == (b"12345", None)
    cache.attributes(b"f", 0.0)
    cache.room = cache.size - 1200
    cache.saw(b"f", F.attributes, cache.tick)
    assert cache.evicted == [(b"d", [b"x"])]
    assert b"" in cache
    cache.room = 1
    cache.renames(b"f")
    assert cache.size == 0
    assert not cache._above
    assert not cache._contents


def test_what_was_asked_about_a_directory_that_went_is_not_kept(cache: Cache) -> None:
    since = cache.tick
    cache.evict(b"")
    list_root(cache)
    cache.saw(b"f", attributes(2, size=9), since)
    assert cache.attributes(b"f", 0.0) == F.attributes
    cache.evict(b"never/known")
    assert [path for path, _names in cache.evicted] == [b""]


def test_a_path_that_no_watch_can_have_is_not_kept() -> None:
    cache = Cache(10**9)
    path = b"/".join([b"n" * 200] * 21)
    assert len(path) > LONGEST_PATH
    list_d(cache, path=path)
    assert path not in cache


def test_paths_above_cost_as_well() -> None:
    cache = Cache(10**9)
    path = b"/".join([b"n"] * 2000)
    list_d(cache, path=path)
    assert cache.size > sum(range(1, 4000, 2))
    cache.forget(b"n")
    assert cache.size == 0
    assert not cache._above


@pytest.mark.parametrize("kind", [DIRECTORY, LINK, REGULAR])
def test_floods_cost_no_more_than_the_room(kind: int) -> None:
    cache = Cache(50_000)
    for i in range(3000):
        list_root(cache, name(b"%d" % i, i + 2, kind), complete=False)
        cache.told(b"n%d" % i, attributes(i, kind))
        cache.told(b"m%d" % i, None)
        cache.saw(b"s%d" % i, None, cache.tick)
        cache.read(b"n%d" % i, b"x" * 1000, cache.tick)
        assert cache.size <= 50_000
        cache.settle()
        cache.news.clear()
        cache.evicted.clear()


# A file that is being changed.


def test_of_what_is_being_changed_nothing_is_believed_until_all_of_it_is_done(cache: Cache) -> None:
    assert F.attributes is not None
    cache.read(b"f", b"hello", cache.tick)
    cache.hold(2)
    cache.hold(2)
    for _ in range(2):
        assert (cache.attributes(b"f", 0.0), cache.content(b"f")) == (None, None)
        assert cache.attributes(b"g", 0.0) == G.attributes
        found = {each.name: each.attributes for each in cache.names(b"", 0.0) or ()}
        assert (found[b"f"], found[b"g"]) == (None, G.attributes)
        assert cache.until(b"f", F.attributes) == (math.inf, 0.0), "it is that file all the same"
        assert cache.attributes(b"none", 0.0) is MISSING
        assert cache.content(b"g") is None
        cache.hold(3)
        cache.let_go(3)
    cache.let_go(2)
    assert cache.attributes(b"f", 0.0) is None
    cache.let_go(2)
    assert (cache.attributes(b"f", 0.0), cache.content(b"f")) == (F.attributes, b"hello")
    assert cache.until(b"f", F.attributes) == (math.inf, math.inf)


def test_by_whatever_name_it_is_known(cache: Cache) -> None:
    cache.hold(2)
    cache.renames(b"f")
    cache.told(b"new", attributes(2, size=9))
    assert cache.attributes(b"new", 0.0) is None
    cache.let_go(2)
    assert cache.attributes(b"new", 0.0) == attributes(2, size=9)


def test_content_of_which_no_name_is_known_any_more(cache: Cache) -> None:
    cache.read(b"f", b"hello", cache.tick)
    cache.hold(5)
    assert cache.content(b"f") == b"hello"
    assert cache.content(b"d/x") is None

"""turnstile/knowing.py: what is known is used only after the gate has judged, and the kernel hears of all that changes."""

import pytest
from harness.sansio import (
    DIRECTORY,
    EVERYTHING,
    LINK,
    O_RDWR,
    OWNER,
    ROOT,
    STRANGER,
    Errno,
    Mount,
    Tree,
    attributes,
    errno_name,
)

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError
from fuse_gated.gate.tenant import Cache as CachePolicy
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import READ, Rule
from fuse_gated.turnstile import knowing
from fuse_gated.wire import messages as wire


def tree() -> Tree:
    return Tree({b"a": b"one", b"b": b"two", b"l": b"a", b"d": None, b"d/x": b"three"}, (b"l",))


def mount(**other) -> Mount:
    return Mount(watches=True, **other)


def asked(mount: Mount) -> list[str]:
    return [frame.operation for frame in mount.sent]


def entry(answer: op.Answer) -> op.Entry:
    assert isinstance(answer, op.Entry), answer
    return answer


# Answered without asking, but not without the gate.


def test_what_is_known_is_not_asked_for() -> None:
    m, t = mount(), tree()
    m.known(t)
    found = entry(m.see(t, op.Lookup(ROOT, b"a")))
    assert found.attributes is not None
    assert found.attributes.size == 3
    assert (found.entry_valid, found.attributes_valid) == (knowing.KERNEL, knowing.KERNEL)
    assert isinstance(m.see(t, op.Getattr(found.node)), op.Attr)
    assert m.see(t, op.Lookup(ROOT, b"none")) == op.Entry(0, None, knowing.MISSING_VALID)
    assert m.sent == []


def test_a_link_that_is_known_is_read_without_asking() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = entry(m.see(t, op.Lookup(ROOT, b"l"))).node
    assert m.see(t, op.Readlink(node)) == op.Data(b"a")
    assert asked(m) == ["readlink"]
    assert m.see(t, op.Readlink(node)) == op.Data(b"a")
    assert asked(m) == ["readlink"]


def test_a_link_that_cannot_be_read_is_not_kept() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = entry(m.see(t, op.Lookup(ROOT, b"l"))).node
    for _again in range(2):
        assert m.do(op.Readlink(node), Errno("EACCES")) == op.Failed(13)
    assert asked(m) == ["readlink"] * 2


def test_what_the_policy_denies_is_denied_though_it_is_known() -> None:
    m, t = mount(audit="denials"), tree()
    m.known(t)
    m.apply((Rule("/a", hide=True), Rule("/b", deny=READ), *EVERYTHING))
    m.known(t)
    assert m.see(t, op.Lookup(ROOT, b"a")) == op.Failed(2)
    b = entry(m.see(t, op.Lookup(ROOT, b"b"))).node
    assert m.see(t, op.Open(b, 0)) == op.Failed(13)
    assert m.sent == []
    assert [(record.kind, record.path) for record in m.records] == [("refused", b"a"), ("refused", b"b")]


def test_a_stranger_is_refused_though_it_is_known() -> None:
    m, t = mount(), tree()
    m.known(t)
    assert m.see(t, op.Lookup(ROOT, b"a"), STRANGER) == op.Failed(13)


def test_everything_is_told_and_the_kernel_asks_each_time() -> None:
    m, t = mount(audit="everything"), tree()
    m.known(t)
    found = entry(m.see(t, op.Lookup(ROOT, b"a")))
    assert (found.entry_valid, found.attributes_valid) == (0.0, 0.001)
    assert m.story == ["tell operation lookup /a", "answer Entry"]
    m.clear()
    m.see(t, op.Getattr(found.node))
    assert m.story == ["tell operation getattr /a", "answer Attr"]
    assert m.see(t, op.Lookup(ROOT, b"none")) == op.Failed(2), "a missing name is looked up each time as well"
    assert m.sent == []


def test_what_is_known_is_limited_like_anything_else() -> None:
    m, t = mount(limits=TenantLimits(operations={"*": 4.0})), tree()
    m.known(t)
    numbers = [m.ask(op.Lookup(ROOT, b"a")) for _ in range(9)]
    held = [number for number in numbers if not m.answers(number)]
    assert held
    for _ in range(40):
        m.tick(0.25)
    assert all(m.answers(number) for number in numbers)
    assert m.sent == []


# What is kept, and for how long.


@pytest.mark.parametrize("watches", [False, True])
def test_nothing_is_kept_where_nothing_is_watched(watches: bool) -> None:
    m, t = Mount(watches=watches, cache=CachePolicy(mode="strict")), tree()
    m.known(t)
    found = entry(m.see(t, op.Lookup(ROOT, b"a")))
    assert (found.entry_valid, found.attributes_valid) == (0.0, 0.001)
    m.see(t, op.Lookup(ROOT, b"a"))
    assert asked(m) == ["getattr", "getattr"]


def test_for_a_time_to_live_no_watch_is_asked_for() -> None:
    m, t = mount(cache=CachePolicy(mode="ttl", ttl=2.0)), tree()
    number = m.ask(op.Opendir(ROOT, 0))
    assert not m.arguments.watch
    m.serve(t, watched=False)
    assert isinstance(m.answer(number), op.Opened)
    m.tick(0.5)
    found = entry(m.see(t, op.Lookup(ROOT, b"a")))
    assert (found.entry_valid, found.attributes_valid) == (1.5, 1.5)
    m.tick(1.5)
    m.clear()
    assert m.see(t, op.Lookup(ROOT, b"a"))
    assert "getattr" in asked(m)


def test_an_answer_that_a_notice_overtook_is_not_kept() -> None:
    m, t = mount(), tree()
    m.known(t)
    m.t.cache.changes(b"a")
    number = m.ask(op.Lookup(ROOT, b"a"))
    old = t.attributes(b"a")
    m.notice(b"a", attributes=(t.change(b"a", b"more"),))
    m.reply(m.sent[-1].id, old)
    assert entry(m.answer(number)).attributes_valid == 0.001
    assert m.t.cache.attributes(b"a", m.now) != old


def test_what_is_missing_in_a_known_directory_is_kept_and_what_fails_otherwise_is_not() -> None:
    m, t = mount(), Tree({b"d": None, **{b"d/%d" % i: b"" for i in range(600)}})
    d = m.walk(t, b"d")
    m.see(t, op.Lookup(d, b"0"))
    m.clear()
    assert b"d" in m.t.cache
    assert m.t.cache.names(b"d", m.now) is None
    assert m.do(op.Lookup(d, b"x"), Errno("EIO")) == op.Failed(5)
    assert m.do(op.Lookup(d, b"x"), Errno("ENOENT")) == op.Entry(0, None, knowing.MISSING_VALID)
    assert m.see(t, op.Lookup(d, b"x")) == op.Entry(0, None, knowing.MISSING_VALID)
    assert asked(m) == ["getattr"] * 2


def test_what_is_missing_fails_for_who_has_a_node_of_it() -> None:
    m, t = mount(), tree()
    a = m.walk(t, b"a")
    m.known(t)
    m.t.cache.told(b"a", None)
    assert m.see(t, op.Getattr(a)) == op.Failed(2)
    assert m.sent == []


def test_only_so_many_missing_names_are_remembered_by_the_kernel() -> None:
    m, t = mount(), tree()
    m.known(t)
    answers = [m.see(t, op.Lookup(ROOT, b"%d" % i)) for i in range(knowing.MOST_MISSING + 1)]
    assert answers[-2] == op.Entry(0, None, knowing.MISSING_VALID)
    assert answers[-1] == op.Failed(2)
    m.tick(knowing.MISSING_VALID)
    assert m.see(t, op.Lookup(ROOT, b"0")) == op.Entry(0, None, knowing.MISSING_VALID)


# Our own changes.


def test_after_our_own_change_what_the_client_said_of_it_is_known() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    now = t.change(b"a", b"1")
    assert isinstance(m.do(op.Setattr(a, size=1), now), op.Attr)
    m.clear()
    answer = m.see(t, op.Getattr(a))
    assert isinstance(answer, op.Attr)
    assert answer.attributes.size == 1
    assert m.sent == []


def test_after_our_own_write_the_client_is_asked() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    handle = m.see(t, op.Open(a, O_RDWR))
    assert isinstance(handle, op.Opened)
    assert m.do(op.Write(a, handle.handle, 0, b"xyz"), 3) == op.Count(3)
    m.clear()
    m.see(t, op.Getattr(a))
    assert asked(m) == ["getattr"]


def test_names_that_we_make_move_and_remove_are_known() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    made = m.do(op.Mkdir(ROOT, b"new", 0o755, 0), attributes(99, DIRECTORY))
    assert entry(made).entry_valid == knowing.KERNEL
    assert m.do(op.Unlink(ROOT, b"a"), None) == op.Done()
    m.clear()
    assert m.see(t, op.Lookup(ROOT, b"a")) == op.Entry(0, None, knowing.MISSING_VALID)
    assert m.see(t, op.Getattr(a)) == op.Failed(2)
    m.walk(t, b"b")
    assert m.sent == []
    m.clear()
    assert m.do(op.Rename(ROOT, b"b", ROOT, b"a", 0), None) == op.Done()
    t.contents[b"a"] = t.contents.pop(b"b")
    assert m.see(t, op.Lookup(ROOT, b"b")) == op.Entry(0, None, knowing.MISSING_VALID)
    assert asked(m) == ["rename"]


def test_a_lock_that_is_taken_ends_what_was_known() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    handle = m.see(t, op.Open(a, O_RDWR))
    assert isinstance(handle, op.Opened)
    m.see(t, op.Getattr(a))
    assert isinstance(m.see(t, op.Setlk(a, handle.handle, 5, 0, 9, 1, 7, False, False)), op.Done)
    assert f"forget attributes of {a}" in m.story
    m.clear()
    m.see(t, op.Getattr(a))
    assert asked(m) == ["getattr"]


def test_what_lay_in_a_directory_that_we_moved_the_kernel_asks_for_anew() -> None:
    m, t = mount(), tree()
    m.known(t)
    d = m.known(t, b"d")
    x = m.walk(t, b"d/x")
    m.clear()
    assert m.do(op.Rename(ROOT, b"d", ROOT, b"e", 0), None) == op.Done()
    assert f"expire {d}/x" in m.story
    assert f"forget attributes of {x}" in m.story
    assert m.story[-3:] == ["expire 1/e", f"forget attributes of {d}", "answer Done"]


# Notices.


def test_the_kernel_hears_of_changed_attributes_and_content() -> None:
    m, t = mount(), tree()
    m.known(t)
    a, d = m.walk(t, b"a"), m.known(t, b"d")
    m.notice(b"a", b"d", attributes=(t.change(b"a", b"other"), attributes(5, DIRECTORY, nlink=3)))
    assert f"forget {a}" in m.story
    assert "forget 1/d" in m.story, "another directory by that name"
    m.clear()
    m.notice(b"a", attributes=(t.attributes(b"a"),))
    assert m.story == [], "nothing new"
    assert d


def test_the_kernel_hears_of_what_was_replaced_removed_and_made() -> None:
    m, t = mount(), tree()
    m.known(t)
    a, b = m.walk(t, b"a"), m.walk(t, b"b")
    m.clear()
    m.notice(b"a", b"b", b"new", attributes=(attributes(12345), None, attributes(6)))
    # The root's listing once: nobody has read it since.
    assert m.story == ["forget 1", "forget 1/a", f"forget {a}", "forget 1/b", f"forget {b}", "forget 1/new"]
    m.clear()
    assert entry(m.see(t, op.Lookup(ROOT, b"new"))).entry_valid == knowing.KERNEL
    assert entry(m.see(t, op.Lookup(ROOT, b"a"))).node != a
    assert m.see(t, op.Lookup(ROOT, b"b")) == op.Entry(0, None, knowing.MISSING_VALID)
    assert m.sent == []


def test_a_notice_of_the_root_and_of_what_nobody_asked_for() -> None:
    m, t = mount(), tree()
    m.notice(b"far/away", b"", attributes=(None, t.attributes(b"")))
    assert m.story == ["forget attributes of 1"]


def test_a_notice_without_attributes_makes_everything_of_it_unknown() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    m.clear()
    m.notice(b"a", b"none")
    assert m.story == ["forget 1", "forget 1/a", f"forget {a}"]
    m.clear()
    m.see(t, op.Getattr(a))
    assert asked(m) == ["getattr"]


def test_too_much_to_tell_ends_all_that_was_known() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    m.clear()
    m.notice(overflow=True)
    assert m.story == ["forget 1", "expire 1/a", "forget attributes of 1", f"forget attributes of {a}"]
    m.clear()
    m.see(t, op.Getattr(a))
    assert "getattr" in asked(m)


def test_what_the_listing_finds_changed_is_told_at_once() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    m.do(op.Mkdir(ROOT, b"new", 0o755, 0), attributes(99, DIRECTORY))
    t.contents[b"new"] = None
    t.change(b"a", b"changed, and the notice is on its way")
    m.clear()
    assert isinstance(m.see(t, op.Opendir(ROOT, 0)), op.Opened)
    assert f"forget {a}" in m.story
    m.clear()
    m.notice(b"a", attributes=(t.attributes(b"a"),))
    assert m.story == [], "it was told before"


# What the client says that cannot be.


@pytest.mark.parametrize(
    ("paths", "values", "what"),
    [
        ((b"a",) * (knowing.MAX_NOTICES + 1), (), "changed paths"),
        ((b"a", b"b"), (attributes(5),), "2 paths with 1"),
        ((b"../a",), (None,), "component"),
        ((b"a//b",), (None,), "component"),
        ((b"/a",), (), "component"),
        ((b"a",), (attributes(5, size=-1),), "size"),
        ((b"a",), (attributes(5, kind=0o150000),), "no file is of that type"),
    ],
)
def test_a_notice_that_cannot_be_ends_the_session(paths, values, what) -> None:
    with pytest.raises(ProtocolError, match=what):
        mount().notice(*paths, attributes=values)


def test_attributes_that_cannot_be_are_not_kept() -> None:
    m, t = mount(), tree()
    m.known(t)
    m.t.cache.changes(b"a")
    m.ask(op.Lookup(ROOT, b"a"))
    with pytest.raises(ProtocolError, match="size"):
        m.reply(m.sent[-1].id, attributes(5, size=-1))


def test_a_flood_of_notices_costs_no_more_than_the_room() -> None:
    m, t = mount(cache=CachePolicy("watched", size=100_000)), tree()
    m.known(t)
    for start in range(0, 20_000, 4000):
        paths = [b"%d" % i for i in range(start, start + 4000)]
        m.notice(*paths, attributes=(None,) * 2000 + tuple(attributes(i + 1) for i in range(2000)))
        m.notice(*[b"deep/" + path for path in paths], attributes=(attributes(6, LINK, nlink=7),) * 4000)
        m.notice(*paths[:2000], attributes=tuple(attributes(i + 1, (DIRECTORY, LINK)[i % 2]) for i in range(2000)))
        m.clear()
        assert m.t.cache.size <= 100_000
    assert not m.t.cache.evicted
    assert not m.t.cache.news


# What is not kept any more.


def test_what_went_for_want_of_room_is_not_watched_and_the_kernel_asks() -> None:
    m = mount(cache=CachePolicy("watched", size=40_000))
    t = Tree({b"d": None, b"d/x": b"", **{b"d/%d" % i: b"" for i in range(30)}, b"e": None})
    m.known(t)
    d = m.known(t, b"d")
    x = m.walk(t, b"d/x")
    m.known(t, b"e")
    assert b"d" in m.t.cache
    for i in range(60):
        m.notice(b"d/%d" % (1000 + i), attributes=(attributes(1000 + i),))
    m.serve(t)
    assert b"d" not in m.t.cache
    assert [found for found in m.sent if found.operation == "unwatch"]
    assert f"expire {d}/x" in m.story
    assert f"forget attributes of {x}" in m.story


def test_what_was_gathered_while_its_watch_was_taken_away_is_not_kept() -> None:
    m, t = mount(), tree()
    m.known(t)
    m.t.cache.evict(b"")
    knowing.settle(m.t)
    m.gather()
    assert asked(m) == ["unwatch"]
    number = m.ask(op.Opendir(ROOT, 0))
    m.serve(t, wire.Gather)
    assert isinstance(m.answer(number), op.Opened)
    assert b"" in m.t.cache
    m.serve(t, wire.Unwatch)
    assert b"" not in m.t.cache


def test_without_watches_nothing_is_unwatched() -> None:
    m, t = mount(cache=CachePolicy(mode="ttl", ttl=9.0)), tree()
    m.known(t)
    m.t.cache.evict(b"")
    knowing.settle(m.t)
    m.gather()
    assert m.sent == []


# Outages and policies.


def test_an_outage_ends_what_was_known() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    m.clear()
    m.t.suspend(m.now)
    m.gather()
    # No name: to forget one takes a lock in the kernel, whose holder may wait for the client.
    assert m.story == ["forget 1", "forget attributes of 1", f"forget attributes of {a}"]
    assert b"" not in m.t.cache


def test_names_end_once_the_client_is_there_again() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    m.see(t, op.Lookup(ROOT, b"none"))
    m.clear()
    m.t.forget_all_that_is_watched()
    m.gather()
    assert m.story == ["forget 1", "expire 1/a", "forget 1/none", "forget attributes of 1", f"forget attributes of {a}"]


def test_who_is_asking_for_attributes_has_none_to_forget() -> None:
    """It would forget the answer as well, and a read(2) go by what was there before."""
    m, t = mount(), tree()
    a = m.walk(t, b"a")
    m.notice(b"a")
    m.ask(op.Getattr(a))
    m.clear()
    m.t.suspend(m.now)
    m.gather()
    assert "forget attributes of 1" in m.story
    assert f"forget attributes of {a}" not in m.story


def test_a_successor_first_hears_who_is_asking() -> None:
    m, t = mount(), tree()
    a = m.walk(t, b"a")
    m.notice(b"a")
    number = m.ask(op.Getattr(a))
    after = mount()
    after.t.restore(m.t.ledger.everything(), 2)
    after.t.forget_all_that_is_watched()
    after.gather()
    assert after.story == ["forget 1", "expire 1/a"]
    after.ask(op.Getattr(a), number=number)
    after.clear()
    for _ in range(2):
        knowing.all_sent_again(after.t)
        after.gather()
    assert after.story == ["forget attributes of 1"]
    after.t.forget_all_that_is_watched()
    after.gather()
    assert "forget attributes of 1" in after.story[1:], "from now on at once"


def test_a_new_policy_ends_what_was_known_and_what_is_being_asked() -> None:
    m, t = mount(), tree()
    m.known(t)
    for i in range(5):
        m.notice(b"a", attributes=(t.change(b"a", b"%d" % i),))
    m.t.cache.changes(b"a")
    a = m.ask(op.Lookup(ROOT, b"a"))
    question = m.sent[-1].id
    old = t.attributes(b"a")
    m.apply(EVERYTHING)
    assert "forget attributes of 1" in m.story
    opening = m.ask(op.Opendir(ROOT, 0))
    m.reply(m.sent[-1].id, t.gathered(m.arguments))
    assert isinstance(m.answer(opening), op.Opened)
    m.notice(b"a", attributes=(t.change(b"a", b"new"),))
    m.reply(question, old)
    assert m.t.cache.attributes(b"a", m.now) == t.attributes(b"a")
    assert m.answers(a)


def test_a_policy_may_end_caching() -> None:
    m, t = mount(), tree()
    m.known(t)
    m.apply(EVERYTHING, cache=CachePolicy(mode="strict"))
    m.clear()
    m.see(t, op.Lookup(ROOT, b"a"))
    m.see(t, op.Lookup(ROOT, b"a"))
    assert asked(m) == ["getattr", "getattr"]


def test_errnos_are_names() -> None:
    assert errno_name(2) == "ENOENT"
    assert OWNER.owner_uid == 1000


# What is open.


def test_what_an_open_says_of_a_file_is_known() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    m.notice(b"a", attributes=(t.change(b"a", b"x" * 200_000),))
    m.clear()
    assert isinstance(m.see(t, op.Open(a, 0)), op.Opened)
    assert asked(m) == ["open"]
    assert f"forget attributes of {a}" not in m.story, "it is what was known"
    m.t.cache.changes(b"a")
    assert isinstance(m.see(t, op.Open(a, 0)), op.Opened)
    assert f"forget attributes of {a}" in m.story
    assert m.t.cache.attributes(b"a", m.now) == t.attributes(b"a")


def test_our_own_write_ends_what_others_have_open_here() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    reader = m.see(t, op.Open(a, 0))
    by_path = m.see(t, op.Open(b"b", 0))
    writers = [m.see(t, op.Open(target, O_RDWR)) for target in (a, b"b")]
    assert isinstance(reader, op.Opened)
    assert isinstance(by_path, op.Opened)
    for writer, node in zip(writers, (a, b"b"), strict=True):
        assert isinstance(writer, op.Opened)
        assert m.do(op.Write(node, writer.handle, 0, b"new"), 3) == op.Count(3)
    t.change(b"a", b"new")
    t.change(b"b", b"new")
    assert m.see(t, op.Read(a, reader.handle, 0, 9)) == op.Data(b"new")
    assert m.see(t, op.Read(b"b", by_path.handle, 0, 9)) == op.Data(b"new")


def test_names_that_were_missing_are_asked_for_after_an_overflow() -> None:
    m, t = mount(), tree()
    m.known(t)
    m.see(t, op.Lookup(ROOT, b"none"))
    m.clear()
    m.notice(overflow=True)
    assert "forget 1/none" in m.story


def test_a_time_to_live_that_is_over_for_missing_names() -> None:
    m, t = mount(), tree()
    m.known(t)
    m.see(t, op.Lookup(ROOT, b"none"))
    m.tick(knowing.MISSING_VALID)
    m.see(t, op.Lookup(ROOT, b"other"))
    assert len(m.t.missing) == 1


def test_where_nothing_is_kept_an_open_is_asked_for_and_what_was_told_before_ends() -> None:
    m, t = Mount(), tree()
    a = m.walk(t, b"a")
    m.clear()
    m.see(t, op.Open(a, 0))
    assert m.story[:2] == ["send open", f"forget attributes of {a}"]


def test_a_missing_name_in_a_directory_that_is_not_known_is_asked_for_each_time() -> None:
    m = mount()
    assert m.do(op.Lookup(ROOT, b"x"), Errno("ENOENT")) == op.Failed(2)


def test_missing_names_of_a_directory_that_the_kernel_has_forgotten_are_nobodys() -> None:
    m, t = mount(), tree()
    d = m.known(t, b"d")
    m.see(t, op.Lookup(d, b"none"))
    m.ask(op.Forget(((d, 9),)))
    m.clear()
    m.notice(overflow=True)
    assert m.story == ["forget attributes of 1"]


def test_directories_that_the_kernel_does_not_know_go_in_silence() -> None:
    m, t = mount(), tree()
    m.known(t)
    d = m.known(t, b"d")
    m.ask(op.Forget(((d, 9),)))
    m.clear()
    m.t.cache.evict(b"d")
    m.notice()
    assert m.story == ["send unwatch"]

"""turnstile/gathering.py: what is asked for at once, for whom, and that nothing is asked for that the policy does not show."""

import pytest
from harness.sansio import (
    DIRECTORY,
    EVERYTHING,
    FIFO,
    FMODE_EXEC,
    ROOT,
    Errno,
    Mount,
    Tree,
    attributes,
)

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError
from fuse_gated.gate.tenant import Cache as CachePolicy
from fuse_gated.gate.verdict import ALL, READ, WRITE, Rule
from fuse_gated.tree.cache import LONGEST_PATH
from fuse_gated.tree.known import Name
from fuse_gated.tree.telldir import in_order
from fuse_gated.turnstile import gathering
from fuse_gated.turnstile.turnstile import INTERRUPT_GRACE, Limits
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Gathered, ListedEntry


def tree() -> Tree:
    return Tree({b"a": b"one", b"b": b"two", b"d": None, b"d/x": b"three"})


def mount(**other) -> Mount:
    return Mount(watches=True, **other)


def operations(mount: Mount) -> list[str]:
    return [frame.operation for frame in mount.sent]


# Asked for once, waited for by all.


def test_an_open_directory_is_listed_with_one_question() -> None:
    m, t = mount(), tree()
    first, second = m.ask(op.Opendir(ROOT, 0)), m.ask(op.Opendir(ROOT, 0))
    assert operations(m) == ["gather"]
    assert m.arguments == wire.Gather((b"",), 0, gathering.ENTRIES, 2**20, True)
    m.serve(t)
    opened = m.answer(first)
    assert isinstance(opened, op.Opened)
    assert isinstance(m.answer(second), op.Opened)
    listing = m.see(t, op.Readdir(ROOT, opened.handle, 0, 4096, True))
    assert isinstance(listing, op.Listing)
    assert [entry.name for entry in listing.entries] == [b".", b"..", *in_order([b"a", b"b", b"d"])]
    assert {entry.name for entry in listing.entries if entry.entry is not None} == {b"a", b"b"}, "d's own nobody tells"
    assert operations(m) == ["gather"]


def test_a_name_that_is_looked_up_while_its_directory_is_coming_waits_for_that() -> None:
    m, t = mount(), tree()
    m.ask(op.Opendir(ROOT, 0))
    number = m.ask(op.Lookup(ROOT, b"a"))
    assert operations(m) == ["gather"]
    m.serve(t, wire.Gather)
    assert isinstance(m.answer(number), op.Entry)
    assert operations(m) == ["gather"]


def test_who_waited_in_vain_asks_as_usual() -> None:
    m = mount()
    opening, lookup = m.ask(op.Opendir(ROOT, 0)), m.ask(op.Lookup(ROOT, b"a"))
    m.reply(m.sent[0].id, Errno("EIO"))
    assert operations(m)[:3] == ["gather", "opendir", "getattr"]
    m.reply(m.sent[1].id, wire.OpenedFile(8, attributes(1, DIRECTORY)))
    m.reply(m.sent[2].id, attributes(5))
    assert isinstance(m.answer(opening), op.Opened)
    assert isinstance(m.answer(lookup), op.Entry)


def test_who_has_gone_while_he_waited_is_left_alone() -> None:
    m, t = mount(), tree()
    number = m.ask(op.Opendir(ROOT, 0))
    m.interrupt(number)
    assert m.answers(number) == []
    m.tick(INTERRUPT_GRACE)
    assert m.answer(number) == op.Failed(4)
    m.serve(t)
    assert operations(m) == ["gather"]


def test_what_comes_within_the_grace_of_a_signal_still_reaches_the_caller() -> None:
    m, t = mount(), tree()
    number = m.ask(op.Opendir(ROOT, 0))
    m.interrupt(number)
    m.tick(INTERRUPT_GRACE / 2)
    m.serve(t)
    assert isinstance(m.answer(number), op.Opened)


def test_waiting_is_over_with_the_deadline() -> None:
    m = mount(bounds=Limits(deadline=5.0))
    number = m.ask(op.Opendir(ROOT, 0))
    m.tick(5.0)
    m.tick(0.25)
    assert m.answer(number) == op.Failed(110)
    assert operations(m)[:1] == ["gather"]


def test_what_did_not_fit_is_asked_for_once_more() -> None:
    m, t = mount(), tree()
    m.known(t)
    gathering.gather(m.t, [b"a", b"b", b"d"], content=10)
    gathering.gather(m.t, [b"b"])
    m.gather()
    asked = m.sent[-1]
    assert asked.arguments.paths == (b"a", b"b", b"d")
    m.reply(asked.id, t.gathered(wire.Gather((b"a",), 10, 9, 9, True)))
    assert m.arguments.paths == (b"b", b"d")
    assert set(m.t.gathering) == {b"b", b"d"}
    m.reply(m.sent[-1].id, ())
    assert not m.t.gathering
    assert m.t.cache.content(b"a") == b"one"


def test_who_waits_for_what_did_not_fit_goes_on_waiting() -> None:
    m, t = mount(), tree()
    m.known(t)
    a, b = m.walk(t, b"a"), m.walk(t, b"b")
    gathering.gather(m.t, [b"a", b"b"], content=10)
    m.gather()
    asked = m.sent[-1].id
    first, second = m.ask(op.Open(a, 0)), m.ask(op.Open(b, 0))
    m.reply(asked, t.gathered(wire.Gather((b"a",), 10, 9, 9, True)))
    assert m.answers(first)
    assert not m.answers(second)
    m.serve(t, wire.Gather)
    assert m.answers(second)


def test_who_waits_twice_has_the_deadline_of_the_first_time() -> None:
    m, t = mount(), tree()
    m.known(t)
    a = m.walk(t, b"a")
    number = m.ask(op.Open(a, 0))
    call = m.t._calls[number]
    m.now += 5.0
    m.t.now = m.now
    before = call.deadline
    gathering.wait(m.t, call, b"a")
    assert call.deadline == before


def test_very_many_are_asked_for_in_parts() -> None:
    m = mount()
    gathering.gather(m.t, [b"%d" % i for i in range(2 * wire.MAX_GATHERED + 1)])
    m.gather()
    assert [len(frame.arguments.paths) for frame in m.sent] == [wire.MAX_GATHERED, wire.MAX_GATHERED, 1]


# What is kept.


def test_what_is_not_watched_is_not_kept_and_not_asked_for_again_soon() -> None:
    m, t = mount(), tree()
    number = m.ask(op.Opendir(ROOT, 0))
    served = m.serve(t, watched=False)
    assert [type(arguments) for arguments in served] == [wire.Gather, wire.Opendir]
    assert isinstance(m.answer(number), op.Opened)
    assert b"" not in m.t.cache
    m.clear()
    m.see(t, op.Opendir(ROOT, 0))
    assert operations(m) == ["opendir"]
    m.tick(60.0)
    m.ask(op.Opendir(ROOT, 0))
    assert operations(m) == ["opendir", "gather"]


def test_a_directory_that_is_not_watched_any_more_is_not_known_any_more() -> None:
    m, t = mount(), tree()
    m.known(t)
    gathering.gather(m.t, [b"a"], content=9)
    m.gather()
    m.serve(t, watched=False)
    assert b"" not in m.t.cache


def test_a_file_with_several_names_says_nothing_of_its_directory() -> None:
    m, t = mount(), tree()
    m.known(t)
    gathering.gather(m.t, [b"a"], content=9)
    m.gather()
    m.reply(m.sent[-1].id, (Gathered(None, attributes(5, nlink=2), False, content=b"12345"),))
    assert b"" in m.t.cache
    assert m.t.cache.content(b"a") is None


def test_what_may_not_be_looked_at_is_not_asked_for_again_soon() -> None:
    m, t = mount(), tree()
    d = m.walk(t, b"d")
    m.clear()
    number = m.ask(op.Opendir(d, 0))
    m.reply(m.sent[-1].id, (Gathered("EXDEV"),))
    m.serve(t)
    assert isinstance(m.answer(number), op.Opened)
    m.clear()
    m.see(t, op.Opendir(d, 0))
    assert operations(m) == ["opendir"]


def test_what_cannot_be_watched_is_remembered_of_so_many() -> None:
    m = mount()
    for start in range(0, 3000, 1000):
        paths = [b"%d" % i for i in range(start, start + 1000)]
        gathering.gather(m.t, paths)
        m.gather()
        m.reply(m.sent[-1].id, tuple(Gathered("EACCES") for _ in paths))
    assert len(m.t.unwatched) <= 1024
    assert not gathering.may_gather(m.t, b"d/" * LONGEST_PATH)


def test_a_file_that_is_gone_is_known_to_be() -> None:
    m, t = mount(), tree()
    m.known(t)
    gathering.gather(m.t, [b"a"], content=9)
    m.gather()
    m.reply(m.sent[-1].id, (Gathered("ENOENT"),))
    assert m.see(t, op.Lookup(ROOT, b"a")) == op.Entry(0, None, 1.0)


def test_a_file_alone_is_known_without_its_directory() -> None:
    m, t = mount(), tree()
    gathering.gather(m.t, [b"d/x"], content=9)
    m.gather()
    m.serve(t)
    assert gathering.file_of(m.t, b"d/x") == (t.attributes(b"d/x"), b"three")
    assert gathering.file_of(m.t, b"d/y") is None
    assert gathering.listing_of(m.t, b"d") is None
    m.t.cache.told(b"d/x", attributes(9, FIFO))
    assert gathering.file_of(m.t, b"d/x") is None


def test_where_nothing_is_kept_nothing_is_known() -> None:
    m = Mount()
    assert gathering.listing_of(m.t, b"") is None
    assert gathering.file_of(m.t, b"a") is None
    assert not gathering.may_gather(m.t, b"")


def test_after_its_time_to_live_a_file_is_asked_for_anew() -> None:
    m, t = mount(cache=CachePolicy(mode="ttl", ttl=1.0)), tree()
    for content in (b"first", b"then"):
        t.change(b"a", content)
        m.tick(5.0)
        gathering.gather(m.t, [b"a"], content=9)
        m.gather()
        m.serve(t)
        assert gathering.file_of(m.t, b"a") == (t.attributes(b"a"), content)


# What the policy shows.


def test_nothing_is_asked_for_that_may_not_be_seen_or_read() -> None:
    rules = (
        Rule("/hidden/**", hide=True),
        Rule("/hidden", hide=True),
        Rule("/secret/**", deny=READ),
        Rule("/secret", deny=READ),
        Rule("/run", allow=ALL, deny=READ),
        Rule("/**", allow=ALL),
    )
    m = mount(rules=rules)
    for path in (b"hidden", b"secret"):
        gathering.looked_up(m.t, path)
        assert not gathering.may_be_listed(m.t, b"", Name(path, 5, DIRECTORY, None))
    m.gather()
    assert m.sent == []
    small = attributes(5)
    file = 0o100000
    assert gathering.may_be_listed(m.t, b"", Name(b"d", 5, DIRECTORY, None))
    assert not gathering.may_be_listed(m.t, b"", Name(b"a", 5, file, small))
    assert gathering.may_be_read(m.t, b"", Name(b"a", 5, file, small))
    assert not gathering.may_be_read(m.t, b"hidden", Name(b"a", 5, file, small))
    assert not gathering.may_be_read(m.t, b"secret", Name(b"a", 5, file, small))
    assert not gathering.may_be_read(m.t, b"", Name(b"run", 5, file, small))
    assert not gathering.may_be_read(m.t, b"", Name(b"a", 5, file, attributes(5, size=2**20)))
    assert not gathering.may_be_read(m.t, b"", Name(b"a", 5, file, None))
    assert not gathering.may_be_read(m.t, b"", Name(b"p", 5, FIFO, small))


def test_a_program_that_may_be_run_and_not_read_is_only_brought_for_who_runs_it() -> None:
    m, t = mount(rules=(Rule("/a", allow=ALL, deny=READ), *EVERYTHING)), tree()
    m.known(t)
    a = m.walk(t, b"a")
    m.clear()
    assert m.see(t, op.Open(a, 0)) == op.Failed(13)
    assert m.sent == []
    assert isinstance(m.see(t, op.Open(a, FMODE_EXEC)), op.Opened)
    assert m.see(t, op.Open(a, 0)) == op.Failed(13)


def test_an_open_that_may_not_be_is_refused_before_anything_is_asked() -> None:
    m, t = mount(rules=(Rule("/**", allow=WRITE),)), tree()
    assert m.see(t, op.Opendir(ROOT, 0)) == op.Failed(13)
    assert m.sent == []


# What no client may say.


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ((Gathered(None, attributes(5)),) * 2, "2 paths gathered, 1 were asked for"),
        ((Gathered(None, attributes(5, size=-1)),), "size"),
        ((Gathered(None, attributes(5, DIRECTORY), True, (ListedEntry(b"..", 5, 0o100000),)),), "named"),
        ((Gathered(None, attributes(5, DIRECTORY), True, (ListedEntry(b"a/b", 5, 0o100000),)),), "named"),
        ((Gathered(None, attributes(5, DIRECTORY), True, (ListedEntry(b"a", 5, 0o130000),)),), "there is none"),
        ((Gathered(None, attributes(5, DIRECTORY), True, (ListedEntry(b"a", -1, 0o100000),)),), "inode"),
        ((Gathered(None, attributes(5, DIRECTORY), True, tuple(ListedEntry(b"%d" % i, 5, 0) for i in range(4097))),), "4097"),
        ((Gathered(None, attributes(5), True, content=b"x" * 5000),), "content"),
    ],
)
def test_an_answer_that_cannot_be_ends_the_session(found, what) -> None:
    m = mount()
    m.ask(op.Opendir(ROOT, 0))
    with pytest.raises(ProtocolError, match=what):
        m.reply(m.sent[-1].id, found)


def test_lies_about_types_do_no_harm() -> None:
    m, t = mount(), tree()
    m.ask(op.Opendir(ROOT, 0))
    entries = (
        ListedEntry(b"f", 1, DIRECTORY, attributes(5)),
        ListedEntry(b"f", 5, 0o100000, attributes(6, DIRECTORY)),
        ListedEntry(b"u", 5, 0),
    )
    m.reply(m.sent[-1].id, (Gathered(None, attributes(1, DIRECTORY), True, entries, True),))
    m.serve(t)
    assert m.t.cache.attributes(b"f", m.now) is None
    gathering.gather(m.t, [b"", b"a"], content=9)
    m.gather()
    lies = (Gathered(None, attributes(1), True, content=b"not"), Gathered(None, attributes(8), True, content=b"x"))
    m.reply(m.sent[-1].id, lies)
    assert m.t.cache.content(b"") is None
    assert m.t.cache.content(b"a") is None, "not as long as it says"


def test_a_handle_that_cannot_be_ends_the_session() -> None:
    m = mount()
    m.ask(op.Opendir(ROOT, 0))
    m.reply(m.sent[-1].id, Errno("EIO"))
    with pytest.raises(ProtocolError, match="handle"):
        m.reply(m.sent[-1].id, wire.OpenedFile(-5, attributes(1, DIRECTORY)))

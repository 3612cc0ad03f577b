"""Mode `cached`: what the session knows goes on being answered while its client is away; and what needs no client in any mode."""

import pytest
from harness.sansio import EVERYTHING, O_RDONLY, O_RDWR, ROOT, Mount, Tree, attributes

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Outage as OutagePolicy
from fuse_gated.turnstile import gathering

LINK = 0o120777


def tree() -> Tree:
    return Tree({b"a": b"content", b"b": b"other", b"d": None, b"d/e": b"deeper"})


def mount(mode: str = "cached") -> Mount:
    return Mount(watches=True, outage=OutagePolicy(mode, 60.0))


def opened(m: Mount, t: Tree, node: int, flags: int = O_RDONLY) -> int:
    answer = m.see(t, op.Open(node, flags))
    assert isinstance(answer, op.Opened), answer
    return answer.handle


def away(m: Mount) -> None:
    m.t.suspend(m.now)
    m.gather()
    m.clear()


def known(m: Mount, t: Tree) -> int:
    """What a program has read, with what lies beside it; the file's node."""
    assert isinstance(m.see(t, op.Opendir(ROOT, 0)), op.Opened)
    node = m.walk(t, b"a")
    handle = opened(m, t, node)
    m.see(t, op.Read(node, handle, 0, 100))
    m.see(t, op.Release(node, handle))
    return node


def data(m: Mount, request: op.Read) -> bytes:
    answer = m.answer(m.ask(request))
    assert isinstance(answer, op.Data), answer
    return bytes(answer.data)


def test_a_file_that_was_read_can_be_read_again() -> None:
    m, t = mount(), tree()
    node = known(m, t)
    away(m)
    answer = m.answer(m.ask(op.Open(node, O_RDONLY)))
    assert isinstance(answer, op.Opened)
    assert data(m, op.Read(node, answer.handle, 2, 3)) == b"nte"
    assert m.answer(m.ask(op.Flush(node, answer.handle, 7))) == op.Done()
    assert m.answer(m.ask(op.Release(node, answer.handle))) == op.Done()
    assert m.sent == []
    assert all(handle.directory for handle in m.t.handles)
    assert m.t.outage is not None
    assert (m.t.outage.stale, m.t.outage.failed) == (2, 0)


def test_a_file_that_is_open_at_the_client_too() -> None:
    m, t = mount(), tree()
    node = known(m, t)
    handle = opened(m, t, node, O_RDWR)
    away(m)
    number = m.ask(op.Read(node, handle, 0, 100))
    assert not m.answers(number), "whoever may write has changed it, as far as anybody knows"
    m, t = mount(), tree()
    node = known(m, t)
    handle = opened(m, t, node)
    m.tick(1.0)
    m.serve(t)
    assert not m.t.handles.unopened
    m.t.handle(handle).pinned = None
    away(m)
    assert data(m, op.Read(node, handle, 3, 100)) == b"tent"
    number = m.ask(op.Release(node, handle))
    assert not m.answers(number), "the client is to close it"


def test_a_directory_that_was_listed_can_be_listed_again() -> None:
    m, t = mount(), tree()
    known(m, t)
    away(m)
    answer = m.answer(m.ask(op.Opendir(ROOT, 0)))
    assert isinstance(answer, op.Opened)
    listing = m.answer(m.ask(op.Readdir(ROOT, answer.handle, 0, 4096, True)))
    assert isinstance(listing, op.Listing)
    assert {entry.name for entry in listing.entries} == {b".", b"..", b"a", b"b", b"d"}
    last = listing.entries[-1].offset
    assert m.answer(m.ask(op.Readdir(ROOT, answer.handle, last, 4096, True))) == op.Listing((), True)
    assert m.answer(m.ask(op.Releasedir(ROOT, answer.handle))) == op.Done()
    assert m.sent == []


def test_names_that_nobody_has_looked_up_are_known_from_the_listing() -> None:
    m, t = mount(), tree()
    known(m, t)
    away(m)
    entry = m.answer(m.ask(op.Lookup(ROOT, b"b")))
    assert isinstance(entry, op.Entry)
    assert entry.attributes is not None
    assert entry.attributes.size == 5


def test_a_link_that_was_followed_leads_where_it_led() -> None:
    m, t = mount(), Tree({b"a": b"x"})
    assert isinstance(m.see(t, op.Opendir(ROOT, 0)), op.Opened)
    m.notice(b"l", attributes=(attributes(99, LINK),))
    entry = m.answer(m.ask(op.Lookup(ROOT, b"l")))
    assert isinstance(entry, op.Entry)
    number = m.ask(op.Readlink(entry.node))
    m.reply(number, b"a")
    assert m.answer(number) == op.Data(b"a")
    away(m)
    assert m.answer(m.ask(op.Readlink(entry.node))) == op.Data(b"a")
    assert m.t.outage is not None
    assert m.t.outage.stale == 1


@pytest.mark.parametrize("mode", ["cached", "wait"])
def test_what_is_not_known_waits(mode: str) -> None:
    m, t = mount(mode), tree()
    node = known(m, t)
    d = m.walk(t, b"d")
    kept = opened(m, t, node)
    away(m)
    requests: list[op.Request] = [
        op.Open(d, O_RDONLY), op.Open(node, O_RDWR), op.Opendir(d, 0), op.Readlink(d), op.Write(node, kept, 0, b"x"),
        op.Mkdir(ROOT, b"new", 0o755, 0), op.Read(node, 99, 0, 5), op.Readdir(ROOT, 99, 0, 4096, False),
    ]  # fmt: skip
    if mode == "wait":
        requests += [op.Open(node, O_RDONLY), op.Opendir(ROOT, 0), op.Read(node, kept, 0, 5)]
    for request in requests:
        assert not m.answers(m.ask(request)), request
    assert m.sent == []


@pytest.mark.parametrize("mode", ["cached", "wait"])
def test_a_close_that_has_nothing_to_say_needs_no_client(mode: str) -> None:
    m, t = mount(mode), tree()
    node = known(m, t)
    kept = opened(m, t, node, O_RDWR)
    written = opened(m, t, node, O_RDWR)
    assert m.do(op.Write(node, written, 0, b"x"), 1) == op.Count(1)
    away(m)
    assert m.answer(m.ask(op.Flush(node, kept, 7))) == op.Done()
    assert not m.answers(m.ask(op.Flush(node, written, 7)))
    assert not m.answers(m.ask(op.Flush(node, 99, 7)))


def test_a_listing_in_the_clients_order_is_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    m, t = mount(), tree()
    known(m, t)
    monkeypatch.setattr(gathering, "may_gather", lambda *_arguments: False)
    handle = m.see(t, op.Opendir(ROOT, 0))
    assert isinstance(handle, op.Opened)
    m.see(t, op.Readdir(ROOT, handle.handle, 0, 4096, False))
    away(m)
    assert not m.answers(m.ask(op.Readdir(ROOT, handle.handle, 3, 4096, False)))


def test_what_has_lost_its_name_is_not_what_has_it_now(monkeypatch: pytest.MonkeyPatch) -> None:
    m, t = mount(), tree()
    node = known(m, t)
    handle = opened(m, t, node)
    m.tick(1.0)
    m.serve(t)
    away(m)
    m.t.handle(handle).pinned = None
    monkeypatch.setattr(m.t.inodes, "gone", lambda _node: True)
    assert not m.answers(m.ask(op.Read(node, handle, 0, 100)))
    number = m.ask(op.Open(node, O_RDONLY))
    assert not m.answers(number) or errno_name(m.answer(number).errno) == "ESTALE"


def test_a_new_policy_ends_it() -> None:
    m, t = mount(), tree()
    node = known(m, t)
    away(m)
    m.apply(EVERYTHING, outage=OutagePolicy("wait", 60.0))
    assert not m.answers(m.ask(op.Open(node, O_RDONLY)))


def test_what_only_a_process_before_had_open_is_closed_here_and_later_at_the_client() -> None:
    m, t = mount(), tree()
    node = known(m, t)
    handle = opened(m, t, node)
    after = mount()
    after.t.restore(m.t.ledger.everything(), 2)
    away(after)
    assert after.answer(after.ask(op.Release(node, handle))) == op.Done()
    assert after.sent == []
    assert after.t.ledger.leftovers, "the client may have opened it for that process"

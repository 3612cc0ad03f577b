"""A listing that goes on: in another process, from a page that was given up, while names come and go."""

import random

import pytest
from harness.sansio import ROOT, Mount, Tree

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.tree import telldir
from fuse_gated.turnstile import gathering, listing

COUNT = 300
SIZE = 700
"""Bytes of a READDIR's room: some twenty names."""


def name(number: int) -> bytes:
    return b"entry-%d" % number


def tree() -> Tree:
    return Tree({name(number): b"" for number in range(COUNT)})


def mount(**other) -> Mount:
    return Mount(watches=True, **other)


def opened(m: Mount, t: Tree) -> int:
    answer = m.see(t, op.Opendir(ROOT, 0))
    assert isinstance(answer, op.Opened), answer
    return answer.handle


def read(m: Mount, t: Tree, handle: int, offset: int) -> tuple[op.DirectoryEntry, ...]:
    answer = m.see(t, op.Readdir(ROOT, handle, offset, SIZE, False))
    assert isinstance(answer, op.Listing), answer
    return answer.entries


def rest(m: Mount, t: Tree, handle: int, offset: int) -> list[bytes]:
    found = []
    while entries := read(m, t, handle, offset):
        found += [entry.name for entry in entries]
        offset = entries[-1].offset
    return found


def successor(m: Mount) -> Mount:
    """Another process, which has what the first one wrote down."""
    after = mount()
    after.t.restore(m.t.ledger.everything(), 2)
    after.t.forget_all_that_is_watched()
    after.gather()
    after.clear()
    return after


@pytest.mark.parametrize("gathers", [True, False], ids=["listed ahead", "asked of the client"])
@pytest.mark.parametrize("seed", range(4))
def test_in_another_process_each_name_that_stays_is_listed_once(
    monkeypatch: pytest.MonkeyPatch, gathers: bool, seed: int
) -> None:
    chance = random.Random(seed)
    m, t = mount(), tree()
    handle = opened(m, t)
    told: list[bytes] = []
    offset = 0
    for _ in range(chance.randint(1, 8)):
        entries = read(m, t, handle, offset)
        told += [entry.name for entry in entries]
        offset = entries[-1].offset
    assert offset >= telldir.OURS
    after = successor(m)
    monkeypatch.setattr(gathering, "may_gather", lambda *_arguments: gathers)
    # What was told is removed, as by rm -r, and some of the rest; and others come.
    gone = {each for each in told[2:] if chance.random() < 0.8} | {name(number) for number in chance.sample(range(COUNT), 20)}
    for each in gone:
        del t.contents[each]
    for number in range(50):
        t.contents[b"new-%d" % number] = b""
    found = told[2:] + rest(after, t, handle, offset)
    assert len(found) == len(set(found))
    stayed = {name(number) for number in range(COUNT)} - gone
    assert stayed <= set(found)
    assert set(found) - stayed <= gone | {b"new-%d" % number for number in range(50)}
    asked = [frame.operation for frame in after.sent]
    assert asked == (["gather"] if gathers else ["opendir", "readdir"])


def test_what_cannot_be_listed_ahead_the_client_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    entries = read(m, t, handle, 0)
    after = successor(m)
    monkeypatch.setattr(gathering, "ENTRIES", 10)
    monkeypatch.setattr(gathering.gather, "__kwdefaults__", {"content": 0, "entries": 10})
    monkeypatch.setattr(listing, "_PAGE", 64)
    found = [entry.name for entry in entries[2:]] + rest(after, t, handle, entries[-1].offset)
    assert sorted(found) == sorted(name(number) for number in range(COUNT))
    assert [frame.operation for frame in after.sent] == ["gather", "opendir"] + ["readdir"] * 5


def test_a_listing_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    entries = read(m, t, handle, 0)
    after = successor(m)
    monkeypatch.setattr(gathering, "may_gather", lambda *_arguments: False)
    monkeypatch.setattr(listing, "_MOST_RELISTED", COUNT - 1)
    answer = after.see(t, op.Readdir(ROOT, handle, entries[-1].offset, SIZE, False))
    assert isinstance(answer, op.Failed)
    assert errno_name(answer.errno) == "EIO"


def test_a_page_that_was_given_up_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_PAGES", 1)
    m, t = mount(), tree()
    first = opened(m, t)
    entries = read(m, t, first, 0)
    second = opened(m, t)
    read(m, t, second, 0)
    t.contents[b"new"] = b""
    m.notice(b"new", attributes=(t.attributes(b"new"),))
    m.clear()
    found = [entry.name for entry in entries[2:]] + rest(m, t, first, entries[-1].offset)
    assert sorted({*found} - {b"new"}) == sorted(name(number) for number in range(COUNT))
    assert len(found) == len(set(found))
    assert m.sent == []


def test_too_little_room_for_a_name_is_the_programs_fault() -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    (position,) = telldir.positions([name(7)])
    answer = m.see(t, op.Readdir(ROOT, handle, position, 16, False))
    assert isinstance(answer, op.Failed)
    assert errno_name(answer.errno) == "EINVAL"
    assert read(m, t, handle, telldir.LAST) == ()


def test_from_the_beginning_it_is_read_as_it_is_now_and_where_that_is_not_known_the_client_is_asked() -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    read(m, t, handle, 0)
    t.contents[b"new"] = b""
    m.t.forget_all_that_is_watched()
    m.gather()
    m.clear()
    assert b"new" in rest(m, t, handle, 0)
    assert [frame.operation for frame in m.sent] == ["opendir", "readdir", "readdir"], "and whether that was all"


def test_a_directory_that_is_gone_is_not_the_one_that_has_its_name_now(monkeypatch: pytest.MonkeyPatch) -> None:
    m, t = mount(), tree()
    handle = opened(m, t)
    read(m, t, handle, 0)
    monkeypatch.setattr(m.t.inodes, "gone", lambda _node: True)
    answer = m.see(t, op.Readdir(ROOT, handle, 0, SIZE, False))
    assert isinstance(answer, op.Failed)
    assert errno_name(answer.errno) == "ESTALE"

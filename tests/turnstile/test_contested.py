"""turnstile/contested.py: a name that is another file's each time that it is looked at can be opened all the same."""

import pytest
from harness.sansio import (
    CALLER,
    DIRECTORY,
    EVERYTHING,
    FIFO,
    LINK,
    O_RDONLY,
    O_RDWR,
    O_WRONLY,
    ROOT,
    Errno,
    Mount,
    attributes,
)

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError
from fuse_gated.gate import verdict
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import ALL, Rule
from fuse_gated.operations import Caller
from fuse_gated.tree.journal import GivenUp, HandleReleasing
from fuse_gated.turnstile import contested, names
from fuse_gated.turnstile.contested import CONTESTED, HELD, Contested
from fuse_gated.turnstile.effects import Keep, Send
from fuse_gated.turnstile.turnstile import INTERRUPT_GRACE
from fuse_gated.wire import messages as wire

ENOENT, EINTR, EACCES, ENOTDIR, ESTALE = 2, 4, 13, 20, 116
OTHER = Caller(1000, 1000, 13)
READ, WRITE, BOTH = wire.OPEN_READ, wire.OPEN_WRITE, wire.OPEN_READ | wire.OPEN_WRITE


def replaced(mount: Mount, flags: int = O_RDONLY, name: bytes = b"f", caller: Caller = CALLER) -> int:
    """A file that was another one when it was to be opened; the log begins anew."""
    node = mount.lookup(name, inode=21)
    assert mount.do(op.Open(node, flags), wire.OpenedFile(5, attributes(22)), caller=caller) == op.Failed(ESTALE)
    last(mount, None)
    mount.clear()
    return node


def replaced_directory(mount: Mount, name: bytes = b"d") -> int:
    node = mount.lookup(name, DIRECTORY, inode=31)
    assert mount.do(op.Opendir(node, 0), wire.OpenedFile(5, attributes(32, DIRECTORY))) == op.Failed(ESTALE)
    last(mount, None)
    mount.clear()
    return node


def last(mount: Mount, result: object) -> None:
    """The client answers what it was asked last."""
    mount.reply(mount.sent[-1].id, result)


def held(mount: Mount, flags: int = O_RDONLY, name: bytes = b"f", remote: int = 6) -> int:
    """A node whose file the client has opened with the look at its name."""
    replaced(mount, flags, name)
    number = mount.ask(op.Lookup(ROOT, name))
    last(mount, wire.OpenedFile(remote, attributes(23)))
    entry = mount.answer(number)
    assert isinstance(entry, op.Entry), entry
    return entry.node


def operations(mount: Mount) -> list[str]:
    return [frame.operation for frame in mount.sent]


# Files.


@pytest.mark.parametrize(("flags", "mode"), [(O_RDONLY, READ), (O_WRONLY, WRITE), (O_RDWR, BOTH)])
def test_what_is_looked_up_is_opened_at_once_and_stays_that_file(flags: int, mode: int) -> None:
    m = Mount()
    node = held(m, flags=flags)
    assert m.arguments == wire.Open(b"f", READ)
    number = m.ask(op.Open(node, flags))
    assert m.arguments == wire.Open(6, mode), "not by the name, which is another file's again"
    last(m, wire.OpenedFile(7, attributes(23)))
    assert isinstance(m.answer(number), op.Opened)


def test_whatever_else_is_asked_of_it_is_asked_of_that_file() -> None:
    """Until it is opened: then what is open says which it is."""
    m = Mount()
    node = held(m)
    m.ask(op.Getattr(node, None))
    assert m.arguments == wire.Getattr(6)
    m.ask(op.Access(node, 4))
    assert m.arguments == wire.Access(6, 4)
    opened = m.ask(op.Open(node, O_RDONLY))
    last(m, wire.OpenedFile(7, attributes(23)))
    assert isinstance(m.answer(opened), op.Opened)
    m.ask(op.Getattr(node, None))
    assert m.arguments == wire.Getattr(7)


def test_a_successor_knows_of_it_before_the_client_is_asked() -> None:
    m = Mount()
    replaced(m)
    m.ask(op.Lookup(ROOT, b"f"))
    kept, sent = m.log[-2:]
    assert isinstance(kept, Keep)
    assert isinstance(sent, Send)
    assert [row.request for row in kept.rows if isinstance(row, GivenUp)] == [sent.frame.id]


def test_who_opens_nothing_leaves_nothing_open() -> None:
    m = Mount()
    held(m)
    due = m.t.next_due(m.now)
    assert due is not None
    assert due <= m.now + HELD
    m.clear()
    m.tick(HELD / 2)
    assert m.sent == []
    m.tick(HELD / 2)
    assert [frame.arguments for frame in m.sent] == [wire.Release(6)]
    last(m, None)
    assert not m.t.handles.releasing
    assert not m.t.handles.held


@pytest.mark.parametrize("caller", [OTHER, CALLER])
def test_others_look_it_up_as_ever_and_so_does_everybody_later(caller: Caller) -> None:
    m = Mount()
    replaced(m)
    if caller is CALLER:
        m.tick(CONTESTED)
    m.ask(op.Lookup(ROOT, b"f"), caller)
    assert m.arguments == wire.Getattr(b"f")


@pytest.mark.parametrize(("result", "kind"), [(Errno("ENXIO"), FIFO), (Errno("EACCES"), 0o100000), (Errno("ELOOP"), LINK)])
def test_what_cannot_be_opened_is_looked_up_like_any_other(result: Errno, kind: int) -> None:
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    last(m, result)
    assert m.arguments == wire.Getattr(b"f")
    last(m, attributes(24, kind))
    entry = m.answer(number)
    assert isinstance(entry, op.Entry)
    assert entry.attributes is not None
    assert entry.attributes.mode & 0o170000 == kind
    assert not m.t.handles.held


def test_what_is_not_there_is_not_there() -> None:
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    last(m, Errno("ENOENT"))
    assert m.answer(number) == op.Failed(ENOENT)
    assert operations(m) == ["open"]


@pytest.mark.parametrize(
    ("rules", "limits"),
    [((Rule("/f", deny=verdict.READ), *EVERYTHING), None), (EVERYTHING, TenantLimits(open_files=0))],
    ids=["it may not be read", "no more files may be open"],
)
def test_what_the_policy_refuses_is_not_opened(rules: tuple[Rule, ...], limits: TenantLimits | None) -> None:
    m = Mount()
    replaced(m)
    m.apply(rules, **({"limits": limits} if limits is not None else {}))
    m.ask(op.Lookup(ROOT, b"f"))
    assert m.arguments == wire.Getattr(b"f")
    assert m.records == []


def test_a_caller_who_has_gone_leaves_nothing_open() -> None:
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    opening = m.sent[-1].id
    m.interrupt(number)
    m.tick(INTERRUPT_GRACE)
    assert m.answer(number) == op.Failed(EINTR)
    m.reply(opening, wire.OpenedFile(6, attributes(23)))
    assert m.arguments == wire.Release(6)
    assert not m.t.ledger.leftovers


def test_a_caller_who_has_gone_hears_of_no_error() -> None:
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    opening = m.sent[-1].id
    m.interrupt(number)
    m.tick(INTERRUPT_GRACE)
    m.reply(opening, Errno("EACCES"))
    assert m.answer(number) == op.Failed(EINTR)
    assert operations(m) == ["open"]


def test_what_no_client_may_say_ends_the_session() -> None:
    m = Mount()
    replaced(m)
    m.ask(op.Lookup(ROOT, b"f"))
    with pytest.raises(ProtocolError):
        last(m, wire.OpenedFile(-1, attributes(23)))


def test_a_signal_whose_grace_is_over_ends_the_second_look() -> None:
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    m.interrupt(number)
    m.now += INTERRUPT_GRACE
    last(m, Errno("EACCES"))
    assert m.answer(number) == op.Failed(EINTR)


def test_there_is_an_end_to_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contested, "MOST_HELD", 2)
    m = Mount()
    for number in range(3):
        held(m, name=b"%d" % number, remote=60 + number)
    assert len(m.t.handles.held) == 2
    assert m.arguments == wire.Release(60)


# Directories.


def test_a_directory_that_was_looked_up_is_open_already() -> None:
    m = Mount()
    replaced_directory(m)
    number = m.ask(op.Lookup(ROOT, b"d"))
    assert m.arguments == wire.Opendir(b"d")
    last(m, wire.OpenedFile(6, attributes(33, DIRECTORY)))
    entry = m.answer(number)
    assert isinstance(entry, op.Entry)
    m.clear()
    opened = m.ask(op.Opendir(entry.node, 0))
    answer = m.answer(opened)
    assert isinstance(answer, op.Opened)
    assert m.sent == []
    assert not m.t.handles.held
    m.ask(op.Readdir(entry.node, answer.handle, 0, 4096, False))
    assert m.arguments == wire.Readdir(6, 0, 1024, False)


def test_a_directory_that_a_file_was_expected_to_be_is_opened_as_one() -> None:
    m = Mount()
    replaced(m)
    m.ask(op.Lookup(ROOT, b"f"))
    last(m, Errno("EISDIR"))
    assert m.arguments == wire.Opendir(b"f")


def test_what_may_not_be_listed_is_looked_up_like_any_other() -> None:
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    m.apply([Rule("/f", hide=True), Rule("/**", allow=ALL)])
    last(m, Errno("EISDIR"))
    assert m.arguments == wire.Getattr(b"f")
    last(m, attributes(40, DIRECTORY))
    assert isinstance(m.answer(number), op.Entry)


def test_a_file_in_the_place_of_a_directory_is_looked_up_like_any_other() -> None:
    m = Mount()
    replaced_directory(m)
    m.ask(op.Lookup(ROOT, b"d"))
    last(m, Errno("ENOTDIR"))
    assert m.arguments == wire.Getattr(b"d")


def walk_to(mount: Mount, inode: int, caller: Caller = CALLER) -> int:
    """The node of `d`, which is this directory."""
    number = mount.ask(op.Lookup(ROOT, b"d"), caller)
    mount.reply(number, attributes(inode, DIRECTORY))
    entry = mount.answer(number)
    assert isinstance(entry, op.Entry), entry
    return entry.node


def test_on_its_way_through_a_directory_that_is_replaced_a_process_finds_what_the_path_says() -> None:
    m = Mount()
    first = walk_to(m, 41)
    walk_to(m, 42, OTHER)
    assert m.answer(m.ask(op.Lookup(first, b"f"))) == op.Failed(ESTALE), "it is looked up anew"
    second = walk_to(m, 43)
    walk_to(m, 44, OTHER)
    m.clear()
    number = m.ask(op.Lookup(second, b"f"))
    assert m.arguments == wire.Open(b"d/f", READ)
    last(m, wire.OpenedFile(6, attributes(50)))
    entry = m.answer(number)
    assert isinstance(entry, op.Entry)
    assert entry.entry_valid == 0.0, "no notice tells of what lies in a directory without a name"
    again = m.ask(op.Lookup(second, b"f"))
    last(m, wire.OpenedFile(6, attributes(50)))
    assert isinstance(m.answer(again), op.Entry), "it has come no further"
    m.ask(op.Open(entry.node, O_RDONLY))
    assert m.arguments == wire.Open(6, READ)


def test_who_works_in_a_directory_that_is_replaced_does_not_find_the_other_one() -> None:
    m = Mount()
    first = walk_to(m, 41)
    walk_to(m, 42, OTHER)
    m.clear()
    for _ in range(2):
        assert m.answer(m.ask(op.Lookup(first, b"f"))) == op.Failed(ESTALE)
    assert m.sent == []


def test_a_directory_that_is_gone_for_good_is_gone() -> None:
    m = Mount()
    replaced(m)
    first = walk_to(m, 41)
    m.do(op.Rmdir(ROOT, b"d"), None)
    assert m.answer(m.ask(op.Lookup(first, b"f"))) == op.Failed(ENOENT)


def test_a_number_that_was_never_given_out_stays_unknown() -> None:
    m = Mount()
    replaced(m)
    for request in (op.Lookup(4711, b"f"), op.Open(4711, O_RDONLY)):
        assert m.answer(m.ask(request)) == op.Failed(ESTALE)


# What is found by others at the same time.


def test_a_look_that_is_overtaken_looks_again() -> None:
    m = Mount()
    first, second = m.ask(op.Lookup(ROOT, b"f")), m.ask(op.Lookup(ROOT, b"f"))
    m.reply(second, attributes(22))
    m.reply(first, attributes(21))
    assert m.answers(first) == []
    m.reply(first, attributes(22))
    assert m.answer(first) == m.answer(second)


def test_who_is_overtaken_over_and_over_hears_of_it() -> None:
    m = Mount()
    number = m.ask(op.Lookup(ROOT, b"f"))
    for look in range(names.MOST_LOOKS):
        assert m.answers(number) == []
        m.do(op.Lookup(ROOT, b"f"), attributes(100 + look), caller=OTHER)
        m.reply(number, attributes(21))
    assert m.answer(number) == op.Failed(ESTALE)


def test_what_an_overtaken_look_has_opened_is_closed() -> None:
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    m.do(op.Lookup(ROOT, b"f"), attributes(22), caller=OTHER)
    m.reply(next(frame.id for frame in m.sent if frame.operation == "open"), wire.OpenedFile(6, attributes(23)))
    assert [frame.arguments for frame in m.sent[-2:]] == [wire.Open(b"f", READ), wire.Release(6)]
    m.reply(m.sent[-2].id, wire.OpenedFile(7, attributes(22)))
    assert isinstance(m.answer(number), op.Entry)


def test_what_the_last_overtaken_look_has_opened_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MOST_LOOKS", 1)
    m = Mount()
    replaced(m)
    number = m.ask(op.Lookup(ROOT, b"f"))
    m.do(op.Lookup(ROOT, b"f"), attributes(22), caller=OTHER)
    m.reply(next(frame.id for frame in m.sent if frame.operation == "open"), wire.OpenedFile(6, attributes(23)))
    assert m.answer(number) == op.Failed(ESTALE)
    assert m.arguments == wire.Release(6)


# Whatever else meets another file.


def test_an_attribute_of_what_was_replaced_is_asked_of_what_is_looked_up() -> None:
    m = Mount()
    node = m.lookup(b"f", inode=21)
    assert m.do(op.Getattr(node, None), attributes(22)) == op.Failed(ESTALE)
    m.ask(op.Lookup(ROOT, b"f"))
    assert m.arguments == wire.Open(b"f", READ)


def test_what_can_be_opened_by_nobody_is_looked_up_like_any_other() -> None:
    m = Mount()
    node = m.lookup(b"l", LINK, inode=21)
    assert m.do(op.Getattr(node, None), attributes(22, LINK)) == op.Failed(ESTALE)
    m.ask(op.Lookup(ROOT, b"l"))
    assert m.arguments == wire.Getattr(b"l")


def test_the_root_and_what_has_no_node_have_no_name_to_contest() -> None:
    m = Mount()
    assert m.do(op.Getattr(ROOT, None), attributes(99, DIRECTORY)) == op.Failed(ESTALE)
    assert m.do(op.Getattr(b"f", None), Errno("ESTALE")) == op.Failed(ESTALE)
    assert m.do(op.Lookup(b"", b"f"), Errno("ESTALE")) == op.Failed(ESTALE)
    assert not m.t.contested


# When the session goes from process to process.


def test_a_successor_holds_it_on_and_closes_it_then() -> None:
    m = Mount()
    node = held(m)
    rows = list(m.t.ledger.everything())
    assert [row.node for row in rows if isinstance(row, HandleReleasing)] == [node]
    successor = Mount()
    successor.t.restore(rows, 2)
    successor.t.resume(successor.now)
    successor.gather()
    assert successor.sent == []
    successor.ask(op.Open(node, O_RDONLY))
    assert successor.arguments == wire.Open(6, READ)
    successor.tick(HELD)
    assert successor.arguments == wire.Release(6)


def test_a_successor_closes_what_the_client_may_have_opened() -> None:
    m = Mount()
    replaced(m)
    m.ask(op.Lookup(ROOT, b"f"))
    asked = m.sent[-1].id
    successor = Mount()
    successor.t.restore(m.t.ledger.everything(), 2)
    successor.t.resume(successor.now)
    successor.gather()
    assert [frame.id for frame in successor.sent] == [asked]
    last(successor, wire.OpenedFile(6, attributes(23)))
    assert successor.arguments == wire.Release(6)
    assert successor.t.handles.newest > 1, "no handle gets its number"


def test_while_the_client_is_away_nothing_is_held() -> None:
    """A successor has it."""
    m = Mount()
    held(m)
    m.t.suspend(m.now)
    m.gather()
    m.clear()
    m.tick(HELD)
    assert m.sent == []
    assert not m.t.handles.held


# The names by themselves.


def test_the_oldest_names_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contested, "MOST_CONTESTED", 2)
    of = Contested()
    for name in (b"a", b"b", b"c"):
        of.add(1.0, name, 5)
        of.looked_up(1.0, name, ord(name))
    assert [of.flags(1.0, name, 5) for name in (b"a", b"b", b"c")] == [None, 0, 0]
    assert not of.is_on_its_way(b"a", ord("a")), "nor do the ways go on for ever"
    assert of.is_on_its_way(b"c", ord("c"))
    of.add(1.0 + CONTESTED, b"d", 5)
    assert of.flags(1.0, b"c", 5) is None
    assert of


def test_it_ends_with_the_first_look_after_its_time() -> None:
    of = Contested()
    of.add(1.0, b"d/f", 5)
    of.looked_up(1.0, b"d/f", 5)
    assert of.is_on_its_way(b"d", 5)
    assert of.is_on_its_way(b"d/f", 5)
    assert not of.is_on_its_way(b"e", 5)
    of.looked_up(1.0 + CONTESTED, b"d/f", 5)
    assert not of
    assert not of.is_on_its_way(b"d", 5)


def test_what_everybody_had_better_be_sure_of_is_looked_up_like_any_other() -> None:
    of = Contested()
    assert not of.covers(1.0, b"f", 5)
    of.add(1.0, b"f")
    assert of.covers(1.0, b"f", 5)
    assert of.flags(1.0, b"f", 5) is None
    assert not of.covers(1.0 + CONTESTED, b"f", 5)

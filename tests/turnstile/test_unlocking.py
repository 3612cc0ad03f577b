"""turnstile/unlocking.py: locks that are given up before the client has heard of it."""

import math
from typing import Any

import msgspec
import pytest
from harness.sansio import CALLER, O_RDWR, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.gate.tenant import Cache, Outage
from fuse_gated.tree.handles import Handles
from fuse_gated.tree.inodes import Inodes
from fuse_gated.tree.journal import GivenUp, Locked, Owed, SettledOwed
from fuse_gated.turnstile import effects, unlocking
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.unlocking import Unlocks
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Ask

READ, WRITE, UNLOCK = 0, 1, 2
END = 2**63 - 1
FILE = (7, 21, 0o100000)


class File:
    """A file that is open at the client, on its own disk."""

    def __init__(
        self,
        mount: Mount | None = None,
        *,
        name: bytes = b"f",
        inode: int = 21,
        remote: int = 77,
        silent: bool = True,
        **other: Any,
    ) -> None:
        self.mount = mount or Mount(**{"orders": True, **other})
        self.node = self.mount.lookup(name, inode=inode)
        opened = self.mount.do(op.Open(self.node, O_RDWR), wire.OpenedFile(remote, attributes(inode), silent))
        assert isinstance(opened, op.Opened)
        self.handle = opened.handle
        self.mount.clear()

    def set(self, kind: int, start: int = 0, end: int = 9, owner: int = 5, *, flock: bool = False, wait: bool = False) -> int:
        return self.mount.ask(op.Setlk(self.node, self.handle, owner, start, end, kind, 4321, wait, flock))

    def take(self, kind: int = WRITE, start: int = 0, end: int = 9, owner: int = 5) -> None:
        number = self.set(kind, start, end, owner)
        self.mount.reply(number, None)
        assert self.mount.answer(number) == op.Done()
        self.mount.clear()

    def is_ahead(self, kind: int = UNLOCK, start: int = 0, end: int = 9, owner: int = 5, **other: Any) -> bool:
        """Whether it is answered before the client has done it; and what it is asked then."""
        before = len(self.mount.sent)
        number = self.set(kind, start, end, owner, **other)
        [asked] = self.mount.sent[before:]
        assert isinstance(asked.arguments, wire.Setlk)
        assert (asked.arguments.handle, asked.arguments.owner, asked.arguments.type) == (77, owner, kind)
        return bool(self.mount.answers(number))


@pytest.fixture
def file() -> File:
    made = File()
    made.take()
    return made


def asked(mount: Mount) -> list[Ask]:
    return [each for each in mount.sent if isinstance(each.arguments, wire.Setlk)]


def successor(mount: Mount) -> Mount:
    made = Mount(orders=True, ring=mount.ring)
    made.number = mount.number
    made.t.restore(list(mount.t.ledger.everything()), 2)
    made.t.resume(made.now)
    made.gather()
    return made


def test_it_is_sent_kept_and_answered(file: File) -> None:
    number = file.set(UNLOCK)
    assert file.mount.story == ["send setlk", "answer Done"]
    [sent] = file.mount.sent
    assert sent.arguments == wire.Setlk(77, 5, 0, 9, UNLOCK)
    assert sent.id == file.mount.t.session.unlock_id(number) != number
    [answer] = [effect for effect in file.mount.log if isinstance(effect, effects.Answer)]
    owed = Owed(sent.id, file.handle, FILE, b"f", "setlk", msgspec.msgpack.encode(sent.arguments), 0, 0)
    assert owed in answer.rows
    assert Locked(file.node, ()) in answer.rows
    file.mount.clear()
    file.mount.reply(sent.id, None)
    assert file.mount.log == []
    assert file.mount.t.ledger.rows() == (SettledOwed(sent.id),)
    assert not file.mount.t.unlocks
    assert file.mount.t.session.after is None


def test_nobody_gets_the_lock_before_it_is_free_and_nobody_is_told_that_it_is_not(file: File) -> None:
    file.set(UNLOCK)
    other = file.set(WRITE, owner=6)
    test = file.mount.ask(op.Getlk(file.node, file.handle, 6, 0, 9, WRITE, 1))
    first, second, third = file.mount.sent
    assert (second.id, second.after, third.id, third.after) == (other, (first.id,), test, (first.id,))
    assert file.mount.ask(op.Getattr(file.node, file.handle))
    assert file.mount.sent[-1].after == ()


def test_it_comes_after_what_was_written_and_what_was_given_up_before(file: File) -> None:
    mount = file.mount
    other = File(mount, name=b"g", inode=22, remote=78)
    write = mount.ask(op.Write(other.node, other.handle, 0, b"data"))
    file.set(UNLOCK, 0, 4)
    file.set(UNLOCK, 5, 9)
    first, second = asked(mount)
    assert first.after == (write,)
    assert second.after == (write, first.id)
    mount.reply(write, 4)
    assert mount.t.session.after is not None
    mount.reply(first.id, None)
    file.set(READ)
    assert asked(mount)[-1].after == (second.id,)
    mount.reply(second.id, None)
    assert mount.t.session.after is None
    assert mount.t.unlocks.newest() == ()


def test_a_write_that_follows_waits_for_no_lock(file: File) -> None:
    file.set(UNLOCK)
    file.mount.ask(op.Write(file.node, file.handle, 0, b"data", from_cache=True))
    assert file.mount.sent[-1].operation == "write"
    assert file.mount.sent[-1].after == ()


def test_who_goes_on_reading_need_not_wait_either(file: File) -> None:
    assert file.is_ahead(READ)
    assert [(lock.type, lock.owner) for lock in file.mount.t.handles.locks.on(file.node)] == [(READ, 5)]
    assert not file.is_ahead(READ), "nor must anybody else be there"


@pytest.mark.parametrize(
    ("held", "start", "end", "ahead"),
    [
        ([(WRITE, 0, 9)], 2, 7, True),
        ([(WRITE, 0, 4), (WRITE, 5, 9)], 0, 9, True),
        ([(WRITE, 5, 9), (WRITE, 0, 4)], 0, 9, True),
        ([(WRITE, 0, END)], 0, END, True),
        ([(WRITE, 0, 9)], 0, 10, False),
        ([(WRITE, 1, 9)], 0, 9, False),
        ([(WRITE, 0, 3), (READ, 4, 5), (WRITE, 6, 9)], 0, 9, False),
    ],
)
def test_only_of_what_it_has_to_itself(held: list[tuple[int, int, int]], start: int, end: int, ahead: bool) -> None:
    file = File()
    for kind, first, last in held:
        file.take(kind, first, last)
    assert file.is_ahead(READ, start, end) is ahead


def test_others_locks_are_not_its_own() -> None:
    file = File()
    file.take(owner=6)
    file.take(READ, 20, 29)
    assert not file.is_ahead(READ)


def test_an_flock_is_waited_for(file: File) -> None:
    assert not file.is_ahead(flock=True)


@pytest.mark.parametrize(
    "options",
    [
        {"silent": False}, {"orders": False}, {"ring": bytearray()}, {"writes": "through"}, {"cache": Cache("strict")},
        {"bounds": Limits(max_in_flight=1)},
    ],
)  # fmt: skip
def test_where_it_might_fail_or_be_lost_or_is_not_wanted_it_is_waited_for(options: dict[str, Any]) -> None:
    file = File(**options)
    file.take()
    if "bounds" in options:
        file.mount.ask(op.Getattr(file.node, file.handle))
        number = file.set(UNLOCK)
        assert file.mount.answers(number) == []
        return
    assert not file.is_ahead()


def test_no_more_than_so_many_are_on_their_way(monkeypatch: pytest.MonkeyPatch, file: File) -> None:
    monkeypatch.setattr(unlocking, "MOST", 2)
    assert [file.is_ahead(UNLOCK, at, at) for at in range(3)] == [True, True, False]


def test_while_the_journal_takes_no_records_it_is_waited_for(file: File) -> None:
    file.mount.t.ahead.halted = True
    assert not file.is_ahead()


def test_what_a_process_before_has_asked_for_is_asked_for_under_the_same_number(file: File) -> None:
    file.mount.t.ledger.before.add(file.mount.number + 2)
    assert not file.is_ahead()
    assert file.mount.sent[-1].id == file.mount.number


def test_without_nodes_it_is_waited_for() -> None:
    mount = Mount(orders=True)
    handle = mount.do(op.Open(b"f", 2), wire.OpenedFile(77, attributes(21), True)).handle
    mount.do(op.Setlk(b"f", handle, 5, 0, 9, WRITE, 1, False, False), None)
    number = mount.ask(op.Setlk(b"f", handle, 5, 0, 9, UNLOCK, 1, False, False))
    assert mount.answers(number) == []


def test_however_long_the_client_takes_it_is_not_taken_back(file: File) -> None:
    file.set(UNLOCK)
    file.mount.clear()
    file.mount.tick(1e6)
    assert file.mount.log == []
    assert file.mount.t.session.overdue(math.nextafter(math.inf, 0)) == []


@pytest.mark.parametrize("audit", ["everything", "writes"])
def test_a_client_that_has_no_such_lock_is_told_of(audit: str) -> None:
    file = File(audit=audit)
    file.take()
    file.set(UNLOCK)
    file.mount.clear()
    file.mount.reply(asked_id(file), Errno("EBADF"))
    told = [(record.kind, record.operation, record.path, record.errno) for record in file.mount.records]
    assert told == ([("failed", "setlk", b"f", "EBADF")] if audit == "everything" else [])
    assert not file.mount.t.unlocks


def asked_id(file: File) -> int:
    [number] = [row.request for row in file.mount.t.unlocks]
    return number


# Those who come after.


def test_a_successor_asks_again_before_anybody_else(file: File) -> None:
    mount = file.mount
    write = mount.ask(op.Write(file.node, file.handle, 0, b"data"))
    file.set(READ, 0, 4)
    file.set(UNLOCK)
    lock = file.set(WRITE, owner=6)
    other = successor(mount)
    first, second, third = other.sent
    assert [each.id for each in (first, second, third)] == [write, *(row.request for row in mount.t.unlocks)]
    assert [each.arguments for each in other.sent[1:]] == [each.arguments for each in asked(mount)[:2]]
    assert second.after[0] == third.after[0] == write
    other.t.request(other.now, lock, CALLER, op.Setlk(file.node, file.handle, 6, 0, 9, WRITE, 1, False, False))
    other.gather()
    assert set(other.sent[-1].after) == {write, third.id}
    other.reply(write, 4)
    other.reply(second.id, None)
    other.reply(third.id, None)
    assert other.t.session.after is None
    assert [row for row in other.t.ledger.everything() if isinstance(row, Owed)] == []


def test_one_that_does_not_live_to_do_so_leaves_it_to_the_next(file: File) -> None:
    file.set(UNLOCK)
    file.mount.t.suspend(file.mount.now)
    assert asked_id(file) == successor(file.mount).sent[0].id


def test_with_the_session_every_lock_ends() -> None:
    file = File(outage=Outage("wait", 60.0))
    file.take()
    file.set(UNLOCK)
    file.mount.t.lost(file.mount.now)
    assert not file.mount.t.unlocks
    assert file.mount.t.session.after is None


def test_while_the_client_is_away_it_waits(file: File) -> None:
    file.mount.t.suspend(file.mount.now)
    file.mount.gather()
    number = file.set(UNLOCK)
    assert file.mount.answers(number) == []
    assert not file.mount.t.unlocks


def test_of_a_file_that_is_closed_meanwhile(file: File) -> None:
    file.set(UNLOCK)
    file.mount.do(op.Release(file.node, file.handle))
    other = successor(file.mount)
    assert other.sent[0].arguments == wire.Setlk(77, 5, 0, 9, UNLOCK)


def owed(**other: Any) -> Owed:
    arguments = other.pop("arguments", wire.Setlk(77, 5, 0, 9, UNLOCK))
    values = {"request": 2**61 + 2, "handle": 1, "file": FILE, "path": b"f", "operation": "setlk", "at": 0, "size": 0}
    return Owed(**{**values, **other}, arguments=msgspec.msgpack.encode(arguments))


@pytest.mark.parametrize(
    "row",
    [
        owed(arguments=wire.Setlk(77, 5, 0, 9, WRITE)),
        owed(arguments=wire.Setlk(78, 5, 0, 9, UNLOCK)),
        owed(arguments="nonsense"),
        owed(operation="getlk", arguments=wire.Getlk(77, 5, 0, 9, UNLOCK)),
    ],
)
def test_what_none_of_ours_would_have_left(row: Owed) -> None:
    inodes = Inodes()
    handles = Handles(inodes)
    handles.add(inodes.known(inodes.root, b"name", attributes(21)), b"name", 77, 2)
    with pytest.raises(ValueError, match=r"lock|malformed|change by"):
        Unlocks().restore([row], handles)


def test_nor_so_many() -> None:
    handles = Handles(Inodes())
    unlocks = Unlocks()
    rows = [owed(request=2**61 + 2 * number) for number in range(unlocking.MOST + 1)]
    with pytest.raises(ValueError, match="given up"):
        unlocks.restore(rows, handles)


def test_what_is_owed_nobody_has_given_up() -> None:
    rows = [owed(), GivenUp(2**61 + 2, "open", b"")]
    with pytest.raises(ValueError, match="owed and given up"):
        Mount(orders=True).t.restore(rows, 2)

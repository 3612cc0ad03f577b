"""turnstile/leasing.py: close(2) of a file that is leased on the client does not wait, and any other does."""

from typing import Any

import pytest
from harness.sansio import EVERYTHING, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY, ROOT, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.audit import Record
from fuse_gated.gate.tenant import Cache
from fuse_gated.tree.handles import Handle
from fuse_gated.turnstile import leasing
from fuse_gated.wire import codec
from fuse_gated.wire import messages as wire

O_EXCL, O_SYNC, O_DSYNC, O_DIRECT = 0o200, 0o4010000, 0o10000, 0o40000
REMOTE = 70
OWNER = 9


def leasing_mount(**other: Any) -> Mount:
    """One whose client leases what it creates."""
    mount = Mount(**{"orders": True, "writes": "leased", **other})
    leasing.begin(mount.t)
    return mount


class Made:
    """A file that was made through the mount, and what the client said to that."""

    def __init__(
        self, flags: int = O_WRONLY | O_EXCL, *, leased: int = leasing.ROOM, mount: Mount | None = None, **other: Any
    ) -> None:
        if mount is None:
            mount = leasing_mount(**other)
        self.mount = mount
        opened = wire.OpenedFile(REMOTE, attributes(21), silent=True, made=True, leased=leased)
        created = mount.do(op.Create(ROOT, b"new", flags, 0o644, 0), opened)
        assert isinstance(created, op.Created), created
        self.asked: wire.Create = mount.arguments
        self.node, self.handle = created.entry.node, created.opened.handle
        mount.clear()

    def write(self, data: bytes = b"hello", offset: int = 0, **other: Any) -> int:
        number = self.mount.ask(op.Write(self.node, self.handle, offset, data, **{"from_cache": False, **other}))
        assert self.mount.answer(number) == op.Count(len(data))
        return number

    def close(self) -> int:
        return self.mount.ask(op.Flush(self.node, self.handle, OWNER))

    def released(self) -> wire.Release:
        self.mount.ask(op.Release(self.node, self.handle, O_WRONLY))
        found: wire.Release = self.mount.arguments
        return found

    def is_closed_at_once(self) -> bool:
        return bool(self.mount.answers(self.close()))

    def broken(self, remote: int = REMOTE) -> None:
        self.mount.message(codec.encode(wire.Broken(remote)))

    @property
    def open(self) -> Handle:
        return self.mount.t.handle(self.handle)

    @property
    def unleased(self) -> list[wire.Unlease]:
        return [frame.arguments for frame in self.mount.sent if frame.operation == "unlease"]


def records(mount: Mount, kind: str) -> list[Record]:
    return [record for record in mount.records if record.kind == kind]


def test_a_leased_file_is_closed_before_the_client_has_it() -> None:
    made = Made()
    assert made.asked.lease == leasing.ROOM
    number = made.write()
    assert made.mount.answer(made.close()) == op.Done()
    assert made.released() == wire.Release(REMOTE)
    assert made.mount.sent[-1].after == (number,), "the lease ends behind what was written"
    made.mount.reply(number, 5)
    assert not made.mount.t.ahead
    assert not records(made.mount, "writes-lost")


def test_times_and_mode_do_not_make_it_wait() -> None:
    made = Made()
    written = made.write()
    made.mount.ask(op.Setattr(made.node, made.handle, mtime=5))
    assert len(made.mount.t.ahead.of((7, 21, 0o100000))) == 2
    assert made.is_closed_at_once()
    made.mount.reply(written, 5)


@pytest.mark.parametrize(
    ("flags", "other"),
    [
        (O_RDONLY, {}),
        (O_WRONLY | O_SYNC, {}),
        (O_WRONLY | O_DSYNC, {}),
        (O_WRONLY | O_DIRECT, {}),
        (O_WRONLY, {"writes": "ahead"}),
        (O_WRONLY, {"writes": "through"}),
        (O_WRONLY, {"cache": Cache("strict")}),
    ],
)
def test_no_lease_is_asked_for_where_close_is_to_wait(flags: int, other: dict[str, Any]) -> None:
    made = Made(flags, **other)
    assert made.asked.lease == 0
    assert made.open.leased == 0, "what was not asked for does not count"


def test_nor_of_a_client_that_cannot() -> None:
    assert Made(mount=Mount(orders=True, writes="leased")).asked.lease == 0
    assert Made(mount=leasing_mount(orders=False)).asked.lease == 0, "it does not carry out in order"


@pytest.mark.parametrize("why", ["halted", "no room"])
def test_nor_while_nothing_is_answered_ahead(why: str) -> None:
    mount = leasing_mount()
    if why == "halted":
        mount.t.ahead.halted = True
    else:
        mount.t.ahead.room = 0
    assert Made(mount=mount).asked.lease == 0


def test_nor_by_a_driver_that_knows_names_only() -> None:
    mount = leasing_mount()
    mount.ask(op.Create(b"", b"new", O_WRONLY, 0o644, 0))
    assert mount.arguments.lease == 0


@pytest.mark.parametrize("leased", [0, -5])
def test_without_a_lease_close_waits(leased: int) -> None:
    made = Made(leased=leased)
    number = made.write()
    closing = made.close()
    assert not made.mount.answers(closing)
    made.mount.reply(number, 5)
    assert made.mount.answer(closing) == op.Done()
    assert made.released() == wire.Release(REMOTE)


def test_more_than_there_is_room_for_is_waited_for() -> None:
    made = Made(leased=2**40)
    made.write(b"x", leasing.ROOM - 1)
    assert made.is_closed_at_once(), "whatever the client says, no more than was asked for"
    made.write(b"xy", leasing.ROOM - 1)
    assert not made.is_closed_at_once()


def test_an_append_is_waited_for() -> None:
    made = Made()
    made.write(append=True)
    assert not made.is_closed_at_once(), "where it goes only the client knows"


def test_what_another_handle_wrote_is_waited_for() -> None:
    made = Made()
    other = made.mount.open(made.node, O_WRONLY, remote=REMOTE + 1)
    number = made.mount.ask(op.Write(made.node, other, 0, b"hello", from_cache=False))
    assert made.mount.answer(number) == op.Count(5)
    leasing.granted(made.mount.t, made.open, leasing.ROOM)
    assert not made.is_closed_at_once()


def test_the_window_counts_too() -> None:
    made = Made()
    made.mount.t.ahead.window = 1
    made.write(b"ab")
    made.mount.ask(op.Write(made.node, made.handle, 2, b"cd", from_cache=False))
    assert not made.is_closed_at_once(), "somebody still waits for his write"


def test_an_error_is_told() -> None:
    made = Made()
    number = made.write()
    made.mount.reply(number, Errno("EIO"))
    answer = made.mount.answer(made.close())
    assert isinstance(answer, op.Failed)
    assert errno_name(answer.errno) == "EIO"


def test_an_error_that_comes_when_it_is_closed_is_told_to_the_audit() -> None:
    made = Made()
    first, second = made.write(b"hello"), made.write(b"world!", 5)
    assert made.is_closed_at_once()
    made.released()
    made.mount.reply(first, Errno("EIO"))
    made.mount.reply(second, Errno("ECANCELED"))
    [lost] = records(made.mount, "writes-lost")
    assert (lost.errno, lost.bytes, lost.path) == ("EIO", 5, b"new")
    assert not records(made.mount, "failed")
    assert not made.mount.t.ahead
    reader = made.mount.open(made.node, O_RDONLY, remote=REMOTE + 1)
    assert made.mount.do(op.Flush(made.node, reader, OWNER)) == op.Done()
    for expected in (True, False):
        writer = made.mount.open(made.node, O_WRONLY, remote=REMOTE + 2 + expected)
        assert isinstance(made.mount.do(op.Flush(made.node, writer, OWNER)), op.Failed) == expected, "the next one hears of it"


def test_another_file_of_that_number_is_none_the_worse() -> None:
    made = Made()
    leasing.lost(made.mount.t, (7, 21, 0o100000), "EIO")
    made.released()
    assert Made(mount=made.mount).is_closed_at_once()


def test_only_so_many_errors_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "_MOST_FAILED", 2)
    mount = leasing_mount()
    for number in range(4):
        leasing.lost(mount.t, (7, number, 0o100000), "EIO")
    assert list(mount.t.ahead.failed) == [(7, 2, 0o100000), (7, 3, 0o100000)]


def test_only_so_many_are_leased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "MOST", 1)
    made = Made()
    assert Made(mount=made.mount).asked.lease == 0
    made.released()
    assert not made.mount.t.ahead.leased


def test_where_much_is_on_its_way_close_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would not be there soon: everything goes by one line."""
    made = Made()
    other = made.mount.open(made.mount.lookup(b"other", inode=55), O_WRONLY, remote=REMOTE + 1)
    made.mount.ask(op.Write(3, other, 0, bytes(leasing.AT_ONCE), from_cache=False))
    assert made.is_closed_at_once()
    made.mount.ask(op.Write(3, other, leasing.AT_ONCE, b"x", from_cache=False))
    made.write()
    assert not made.is_closed_at_once()


def test_a_part_that_was_written_is_waited_for() -> None:
    made = Made()
    first = made.write(b"hello")
    made.write(b"world", 5)
    made.mount.reply(first, 2)
    assert not made.is_closed_at_once()


def test_the_client_is_answered_behind_what_is_owed_when_somebody_wants_it() -> None:
    made = Made()
    number = made.write()
    made.broken()
    assert made.unleased == [wire.Unlease(REMOTE)]
    assert made.mount.sent[-1].after == (number,)
    assert not made.is_closed_at_once()
    made.broken()
    assert len(made.unleased) == 1, "it is answered once"


def test_it_is_found_among_others_and_given_up_once() -> None:
    mount = leasing_mount()
    mount.open(mount.lookup(b"other", inode=55), O_RDWR, remote=REMOTE - 1)
    made = Made(mount=mount)
    made.broken()
    made.mount.open(made.node, O_RDWR, remote=REMOTE + 1)
    assert made.unleased == [wire.Unlease(REMOTE)]


def test_it_may_have_been_released_meanwhile() -> None:
    made = Made()
    made.released()
    made.broken()
    made.broken(REMOTE + 5)
    assert not made.unleased


def test_a_client_that_speaks_of_leases_that_nobody_asked_for_is_ignored() -> None:
    made = Made(mount=Mount(orders=True, writes="leased"))
    made.broken()
    assert not made.unleased


@pytest.mark.parametrize("how", ["open", "truncate"])
def test_whoever_opens_it_on_the_server_need_not_wait_for_the_lease(how: str) -> None:
    made = Made()
    made.write()
    if how == "open":
        made.mount.ask(op.Open(made.node, O_WRONLY | O_TRUNC))
    else:
        # By its name, because what is open is open for reading only.
        made = Made(O_RDWR)
        made.open.flags = O_RDONLY
        made.mount.ask(op.Setattr(made.node, None, size=0))
    assert [frame.operation for frame in made.mount.sent][-2:] == ["unlease", "open" if how == "open" else "setattr"]
    assert not made.open.leased


def test_other_files_are_none_of_its_business() -> None:
    made = Made()
    other = made.mount.lookup(b"other", inode=55)
    for remote in (REMOTE + 1, REMOTE + 2):
        made.mount.open(other, O_RDWR, remote=remote)
    assert not made.unleased
    assert made.open.leased


def test_leases_go_with_the_connection() -> None:
    made = Made()
    made.write()
    made.mount.t.suspend(made.mount.now)
    made.mount.t.resume(made.mount.now)
    made.mount.gather()
    assert not made.open.leased


def test_a_new_policy_may_say_that_close_is_to_wait() -> None:
    made = Made()
    made.write()
    made.mount.apply(EVERYTHING, writes="ahead")
    assert not made.is_closed_at_once()


def test_while_the_client_is_away_close_waits() -> None:
    made = Made()
    made.mount.t.suspend(made.mount.now)
    made.open.leased = leasing.ROOM
    assert not leasing.covers(made.mount.t, made.open)


def test_without_leases_nothing_is_given_up() -> None:
    made = Made(mount=Mount(orders=True, writes="leased"))
    made.mount.open(made.node, O_RDWR, remote=REMOTE + 1)
    assert not made.unleased


def test_a_handle_that_is_given_out_twice_is_leased_once() -> None:
    """A client that does so is faulty, or worse."""
    first = Made()
    second = Made(mount=first.mount)
    assert not second.open.leased
    first.released()
    second.released()
    assert not first.mount.t.ahead.leased


def test_an_error_between_the_last_close_and_the_end_of_the_open_file_is_not_lost() -> None:
    made = Made()
    number = made.write()
    assert made.is_closed_at_once()
    made.mount.reply(number, Errno("EIO"))
    made.released()
    [lost] = records(made.mount, "writes-lost")
    assert (lost.errno, lost.path) == ("EIO", b"new")
    writer = made.mount.open(made.node, O_WRONLY, remote=REMOTE + 1)
    assert isinstance(made.mount.do(op.Flush(made.node, writer, OWNER)), op.Failed)


def test_one_that_a_close_has_told_is_told_once() -> None:
    made = Made()
    made.mount.reply(made.write(), Errno("EIO"))
    assert isinstance(made.mount.answer(made.close()), op.Failed)
    made.released()
    assert not records(made.mount, "writes-lost")


def test_an_error_of_a_file_without_a_number_is_told_to_the_audit() -> None:
    made = Made()
    handle = made.open
    handle.node, handle.failed = None, "EIO"
    leasing.lost_unheard(made.mount.t, handle)
    made.mount.gather()
    assert len(records(made.mount, "writes-lost")) == 1
    assert not made.mount.t.ahead.failed


@pytest.mark.parametrize("kind", [op.Setlk, op.Getlk])
def test_a_lock_gives_the_lease_up(kind: type) -> None:
    """For it the client opens the file once more."""
    made = Made(O_RDWR)
    made.mount.ask(kind(made.node, made.handle, OWNER, 0, 9, 1, 99, *((False, False) if kind is op.Setlk else ())))
    assert made.unleased == [wire.Unlease(REMOTE)]

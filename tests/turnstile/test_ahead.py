"""turnstile/ahead.py and settling.py: what is answered before the client has done it, and who hears of what went wrong."""

from typing import Any

import msgspec
import pytest
from harness.sansio import (
    CALLER,
    EVERYTHING,
    O_RDONLY,
    O_RDWR,
    ROOT,
    Errno,
    Mount,
    Tree,
    attributes,
)

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError, errno_name
from fuse_gated.gate.audit import Record
from fuse_gated.gate.tenant import Cache, Outage
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.tree.journal import HandleRow, Owed, Row, SettledOwed
from fuse_gated.turnstile import ahead, effects
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.owing import FIRST_WINDOW, LEAST_WINDOW, PROMPT, SLOW
from fuse_gated.turnstile.turnstile import INTERRUPT_GRACE
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Ask

O_EXCL, O_CREAT, O_DSYNC, O_SYNC, O_DIRECT = 0o200, 0o100, 0o10000, 0o4010000, 0o40000
SETUID = 0o4000
NODE, HANDLE = 2, 1
"""The first of a mount."""
KINDS = ["fsync", "flush", "write"]


def failed(answer: op.Answer) -> str:
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


class File:
    """An open file of a mount, which may have several."""

    def __init__(
        self, mount: Mount | None = None, name: bytes = b"f", flags: int = O_RDWR, inode: int = 21, remote: int = 77, **other: Any
    ) -> None:
        self.mount = mount or Mount(orders=True, **other)
        self.node = self.mount.lookup(name, inode=inode)
        self.handle = self.mount.open(self.node, flags, remote=remote)
        self.mount.clear()

    def again(self, remote: int = 78, flags: int = O_RDWR) -> int:
        """Another handle of it."""
        handle = self.mount.open(self.node, flags, remote=remote)
        self.mount.clear()
        return handle

    def write(self, data: bytes = b"hello", offset: int = 0, handle: int = 0, **other: Any) -> int:
        return self.mount.ask(op.Write(self.node, handle or self.handle, offset, data, **{"from_cache": False, **other}))

    def tells(self, kind: str = "fsync", handle: int = 0) -> op.Answer:
        """What the next fsync, close or write is told."""
        handle = handle or self.handle
        if kind == "write":
            return self.mount.answer(self.write(handle=handle))
        number = self.mount.ask(op.Fsync(self.node, handle, False) if kind == "fsync" else op.Flush(self.node, handle, 5))
        if not self.is_answered(number):
            self.mount.reply(number, None)
        return self.mount.answer(number)

    def is_answered(self, number: int) -> bool:
        return bool(self.mount.answers(number))


def frame(mount: Mount, number: int) -> Ask:
    [found] = [each for each in mount.sent if each.id == number]
    return found


def rows(mount: Mount) -> list[Row]:
    """What was committed, and what is to be."""
    committed = [row for effect in mount.log if isinstance(effect, effects.Answer) for row in effect.rows]
    return [*committed, *mount.t.ledger.rows()]


def records(mount: Mount, kind: str) -> list[Record]:
    return [record for record in mount.records if record.kind == kind]


def successor(mount: Mount, *, away: bool = False, **other: Any) -> Mount:
    """Another process, with what this one has left, in the same memory."""
    made = Mount(orders=True, ring=mount.ring, **other)
    made.number = mount.number
    made.t.restore(list(mount.t.ledger.everything()), 2)
    if away:
        made.t.suspend(made.now)
    else:
        made.t.resume(made.now)
    made.gather()
    return made


def balanced(mount: Mount) -> bool:
    """Whether nothing is left of anything."""
    return not mount.t.ahead and not mount.t.ahead.promised and not mount.t.cache._held and mount.t.session.after is None


# A write is answered ahead.


def test_sent_then_held_then_answered() -> None:
    f = File()
    number = f.write(b"hello", 7)
    assert f.mount.story == ["send write", "hold", "answer Count"]
    assert f.mount.answer(number) == op.Count(5)
    assert f.mount.arguments == wire.Write(77, 7, memoryview(b"hello"))
    assert bytes(f.mount.ring[:5]) == b"hello"
    arguments = msgspec.msgpack.encode(wire.Write(77, 7, memoryview(b"")))
    owed = Owed(number, f.handle, (7, 21, 0o100000), b"f", "write", arguments, 0, 5)
    assert owed in rows(f.mount)
    f.mount.reply(number, 5)
    assert f.mount.answers(number) == [op.Count(5)]
    assert rows(f.mount)[-1] == SettledOwed(number)
    assert balanced(f.mount)


def test_other_names_of_the_file_are_looked_at_again() -> None:
    mount = Mount(orders=True)
    a, b = (mount.lookup(name, inode=21, nlink=2) for name in (b"a", b"b"))
    handle = mount.open(a)
    mount.clear()
    mount.ask(op.Write(a, handle, 0, b"hello", False))
    assert mount.story == ["send write", "hold", f"forget attributes of {b}", f"forget {b}", "answer Count"]


def test_what_was_written_is_told_when_it_is_closed() -> None:
    f = File(audit="writes")
    f.write(b"hello")
    f.write(b"you", 5)
    f.mount.ask(op.Release(f.node, f.handle))
    [record] = records(f.mount, "file-closed")
    assert (record.bytes, record.count) == (8, 2)
    assert f.mount.t.statistics.bytes_written == 0, "nothing of it is there yet"


# Who comes after what.


def test_a_write_comes_after_the_one_before_it_in_its_file() -> None:
    f = File()
    g = File(f.mount, b"g", inode=22, remote=99)
    numbers = [f.write(), g.write(), f.write(), f.write(handle=f.again())]
    assert [frame(f.mount, numbers[-1]).after] == [(numbers[2],)]
    assert [each.after for each in File(f.mount, b"h", inode=23, remote=5).mount.sent] == []
    h = f.write()
    assert frame(f.mount, h).after == (numbers[3],)


EVERYTHING_ELSE = [
    op.Read(NODE, HANDLE, 0, 10),
    op.Getattr(NODE, HANDLE),
    op.Getattr(NODE),
    op.Lookup(ROOT, b"other"),
    op.Setattr(NODE, size=3),
    op.Setattr(NODE, mode=0o600),
    op.Flush(NODE, HANDLE, 5),
    op.Fsync(NODE, HANDLE, False),
    op.Open(NODE, O_RDONLY),
    op.Create(ROOT, b"new", O_RDWR, 0o644, 0),
    op.Lseek(NODE, HANDLE, 0, 4),
    op.Fallocate(NODE, HANDLE, 0, 10, 0),
    op.CopyFileRange(NODE, HANDLE, 0, NODE, HANDLE, 20, 5),
    op.Setlk(NODE, HANDLE, 5, 0, 9, 1, 44, wait=False, flock=False),
    op.Getlk(NODE, HANDLE, 5, 0, 9, 1, 44),
    op.Rename(ROOT, b"f", ROOT, b"x", 0),
    op.Unlink(ROOT, b"f"),
    op.Link(NODE, ROOT, b"x"),
    op.Opendir(ROOT, 0),
    op.Statfs(ROOT),
    op.Getxattr(NODE, b"user.x", 10),
    op.Access(NODE, 4),
    op.Release(NODE, HANDLE),
]


@pytest.mark.parametrize("request_", EVERYTHING_ELSE, ids=lambda request: type(request).__name__)
def test_everything_else_comes_after_all(request_: op.Request) -> None:
    f = File()
    assert (f.node, f.handle) == (NODE, HANDLE)
    g = File(f.mount, b"g", inode=22, remote=99)
    f.write()
    last = {f.write(), g.write()}
    f.mount.clear()
    f.mount.ask(request_)
    assert [set(each.after) for each in f.mount.sent] == [last]


def test_a_write_that_is_not_answered_ahead_comes_after_its_own_file_alone() -> None:
    f = File()
    g = File(f.mount, b"g", inode=22, remote=99)
    sync = f.again(flags=O_RDWR | O_SYNC)
    number = f.write()
    other = g.again(79, O_RDWR | O_SYNC)
    waits, also = f.write(handle=sync), g.write(handle=other)
    assert frame(f.mount, waits).after == (number,)
    assert frame(f.mount, also).after == ()
    assert not f.is_answered(waits)


def test_with_nothing_owed_nothing_is_named() -> None:
    f = File()
    f.mount.reply(f.write(), 5)
    f.mount.ask(op.Getattr(f.node))
    assert f.mount.sent[-1].after == ()
    assert f.mount.t.session.after is None


def test_what_waits_for_room_names_what_is_owed_when_it_is_sent() -> None:
    f = File(bounds=Limits(max_in_flight=4))
    first = f.write()
    f.mount.ask(op.Statfs(ROOT))
    for _ in range(4):
        f.mount.ask(op.Getattr(f.node))
    waits = f.write(b"late")
    assert not [each for each in f.mount.sent if each.id == waits]
    f.mount.reply(first, 5)
    for sent in f.mount.sent[1:6]:
        f.mount.reply(sent.id, attributes(21) if sent.operation == "getattr" else op.Filesystem(1, 2, 3, 4, 5, 6, 7, 8))
    assert frame(f.mount, waits).after == ()
    assert not f.is_answered(waits)
    f.mount.reply(waits, 4)
    assert f.mount.answer(waits) == op.Count(4)


# What is not answered ahead.


def usual(f: File, **other: Any) -> None:
    """It waits for the client."""
    f.mount.clear()
    number = f.write(**other)
    assert f.mount.story == ["send write"]
    assert not f.mount.t.ahead
    f.mount.reply(number, len(f.mount.arguments.data))
    assert isinstance(f.mount.answer(number), op.Count)


@pytest.mark.parametrize(
    "options",
    [
        {"writes": "through"},
        {"cache": Cache("strict")},
        {"flags": O_RDWR | O_SYNC},
        {"flags": O_RDWR | O_DSYNC},
        {"flags": O_RDWR | O_DIRECT},
        {"ring": bytearray()},
        {"ring": bytearray(4)},
        {"bounds": Limits(max_in_flight=1)},
        {"bounds": Limits(max_bytes_in_flight=8)},
    ],
    ids=["through", "strict", "O_SYNC", "O_DSYNC", "O_DIRECT", "no memory", "little memory", "one request", "few bytes"],
)
def test_what_is_not_answered_ahead(options: dict[str, Any]) -> None:
    usual(File(**options))


def test_dirty_pages_and_nothing_are_not() -> None:
    f = File()
    usual(f, from_cache=True)
    usual(f, data=b"")


def test_an_append_is_not_where_a_file_has_a_limit() -> None:
    f = File(limits=TenantLimits(file_size=100))
    usual(f, append=True)
    assert f.is_answered(f.write())
    assert failed(f.mount.answer(f.write(offset=99))) == "EFBIG"
    g = File()
    assert g.is_answered(g.write(append=True))
    assert g.mount.arguments.append


def test_a_client_that_does_not_keep_the_order_is_asked_as_ever() -> None:
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    handle = mount.open(node)
    mount.clear()
    mount.ask(op.Write(node, handle, 0, b"hello", False))
    assert mount.story == ["send write"]


def test_a_driver_without_nodes_is_answered_as_ever() -> None:
    mount = Mount(orders=True)
    opened = mount.do(op.Open(b"f", O_RDWR), wire.OpenedFile(77, attributes(21)))
    assert isinstance(opened, op.Opened)
    mount.clear()
    mount.ask(op.Write(b"f", opened.handle, 0, b"hello", False))
    assert mount.story == ["send write"]


def test_while_the_journal_takes_no_records_nothing_is_answered_ahead() -> None:
    f = File()
    f.mount.t.ahead.halted = True
    usual(f)
    f.mount.t.ahead.halted = False
    assert f.is_answered(f.write())


def test_the_policy_may_change_while_something_is_owed() -> None:
    f = File()
    number = f.write()
    f.mount.apply(EVERYTHING, writes="through", cache=Cache("strict"))
    f.mount.clear()
    waits = f.write()
    assert f.mount.story == ["send write"]
    assert f.mount.sent[-1].after == (number,)
    f.mount.reply(number, 5)
    f.mount.reply(waits, 5)
    assert balanced(f.mount)


# The window.


def test_it_waits_until_there_is_room() -> None:
    f = File()
    f.mount.t.ahead.window = 10
    numbers = [f.write(), f.write(), f.write(), f.write()]
    assert [f.is_answered(number) for number in numbers] == [True, True, False, False]
    assert f.mount.story[-2:] == ["send write", "hold"], "it is on its way all the same"
    f.mount.now += PROMPT
    f.mount.reply(numbers[0], 5)
    assert [f.is_answered(number) for number in numbers] == [True, True, True, False]
    owed = [row.request for row in rows(f.mount) if isinstance(row, Owed)]
    assert owed == numbers[:3]


def test_one_is_answered_however_long_it_is() -> None:
    f = File()
    f.mount.t.ahead.window = 3
    first, second = f.write(), f.write()
    assert (f.is_answered(first), f.is_answered(second)) == (True, False)
    f.mount.reply(first, 5)
    assert f.is_answered(second)


def test_what_the_client_has_done_before_there_was_room_is_answered() -> None:
    f = File()
    f.mount.t.ahead.window = 5
    g = File(f.mount, b"g", inode=22, remote=99)
    first, second, third = f.write(), g.write(), g.write(b"1234567")
    f.mount.reply(second, 5)
    assert f.mount.answer(second) == op.Count(5)
    f.mount.reply(third, 7)
    assert f.mount.answer(third) == op.Count(7)
    assert [row for row in rows(f.mount) if isinstance(row, Owed)] == [row for row in rows(f.mount) if isinstance(row, Owed)][:1]
    f.mount.reply(first, 5)
    assert balanced(f.mount)


def test_whose_write_was_short_before_there_was_room_is_told_so() -> None:
    f = File()
    f.mount.t.ahead.window = 5
    first, second = f.write(), f.write()
    f.mount.reply(first, 5)
    f.mount.reply(second, 5)
    f.mount.t.ahead.window = 5
    third, fourth = f.write(), f.write()
    assert (f.is_answered(third), f.is_answered(fourth)) == (True, False)
    f.mount.reply(fourth, 2)
    assert f.mount.answer(fourth) == op.Count(2)
    f.mount.reply(third, 5)
    assert balanced(f.mount)
    assert f.tells() == op.Done()


def test_it_grows_with_a_prompt_client_and_shrinks_with_a_slow_one() -> None:
    f = File(ring=bytearray(8 * FIRST_WINDOW))
    block = bytes(FIRST_WINDOW // 2)
    numbers = [f.write(block) for _ in range(4)]
    assert [f.is_answered(number) for number in numbers] == [True, True, False, False]
    f.mount.now += PROMPT / 2
    f.mount.reply(numbers[0], len(block))
    assert f.mount.t.ahead.window == 2 * FIRST_WINDOW
    assert all(map(f.is_answered, numbers))
    f.mount.now += SLOW
    f.mount.reply(numbers[1], len(block))
    assert f.mount.t.ahead.window == FIRST_WINDOW
    for number in numbers[2:]:
        f.mount.reply(number, len(block))
    for _ in range(4):
        number = f.write(b"x")
        f.mount.now += 2 * SLOW
        f.mount.reply(number, 1)
    assert f.mount.t.ahead.window == LEAST_WINDOW


def test_a_signal_ends_the_waiting_for_the_window() -> None:
    f = File()
    f.mount.t.ahead.window = 5
    first, second, third = f.write(), f.write(), f.write()
    f.mount.interrupt(second)
    assert f.mount.answer(second) == op.Count(5)
    f.mount.interrupt(first)
    for number in (first, second, third):
        f.mount.reply(number, 5)
    assert f.mount.answer(third) == op.Count(5)
    assert balanced(f.mount)


def test_who_has_a_signal_already_waits_for_the_client() -> None:
    """The limiter held it back, and nobody would be told again that he is not to wait."""
    f = File(limits=TenantLimits({"write": 1.0}))
    while f.is_answered(f.write()):
        pass
    number = f.mount.number
    f.mount.interrupt(number)
    f.mount.now += INTERRUPT_GRACE / 2
    f.mount.t.limiter.change(TenantLimits(), f.mount.now)
    f.mount.tick(60.0)
    assert f.mount.t.ahead.get(number) is None


# What is known of the file.


def test_nobody_is_shown_what_it_was_before() -> None:
    f = File()
    mount = f.mount
    number = f.write()
    mount.clear()
    mount.ask(op.Getattr(f.node))
    assert [(each.operation, each.after) for each in mount.sent] == [("getattr", (number,))]


class Watched(File):
    """A file in a directory that is watched."""

    def __init__(self) -> None:
        tree = Tree({b"f": b"12345"})
        self.mount = Mount(orders=True, watches=True)
        self.mount.known(tree)
        self.node = self.mount.walk(tree, b"f")
        self.handle = self.mount.open(self.node)
        self.mount.clear()

    def attributes(self, size: int) -> op.Attributes:
        node = self.mount.t.inodes.get(self.node)
        assert node is not None
        assert node.identity is not None
        return attributes(node.identity[1], size=size)

    def known(self, path: bytes) -> int | None:
        """Its size, as far as that is known."""
        found = self.mount.t.cache.attributes(path, self.mount.now)
        return found.size if isinstance(found, op.Attributes) else None


def test_a_notice_that_comes_while_something_is_owed_is_not_believed() -> None:
    f = Watched()
    mount = f.mount
    number, other = f.write(b"x" * 100), f.write(b"x" * 100, 100)
    mount.reply(number, 100)
    mount.notice(b"f", attributes=(f.attributes(100),))
    assert f.known(b"f") is None
    mount.reply(other, 100)
    assert f.known(b"f") is None, "that was before the second"
    mount.notice(b"f", attributes=(f.attributes(200),))
    assert f.known(b"f") == 200


@pytest.mark.parametrize("then", ["nothing", "written", "closed"])
def test_a_file_may_be_renamed_while_it_is_written_to(then: str) -> None:
    f = Watched()
    mount = f.mount
    first = f.write()
    move = mount.ask(op.Rename(ROOT, b"f", ROOT, b"g", 0))
    second = f.write(b"more", 5)
    mount.reply(first, 5)
    mount.notice(b"f", b"g", attributes=(None, f.attributes(5)))
    mount.reply(move, None)
    mount.notice(b"g", attributes=(f.attributes(5),))
    assert f.known(b"g") is None, "it is longer than that by now"
    numbers = [second]
    if then == "written":
        numbers.append(f.write(b"most", 9))
    elif then == "closed":
        mount.ask(op.Release(f.node, f.handle))
    for number in numbers:
        mount.notice(b"g", attributes=(f.attributes(5),))
        assert f.known(b"g") is None
        mount.reply(number, 4)
    assert balanced(mount)
    mount.notice(b"g", attributes=(f.attributes(13),))
    assert f.known(b"g") == 13


def test_a_file_may_lose_its_name_while_it_is_written_to() -> None:
    f = File()
    mount = f.mount
    first = f.write()
    gone = mount.ask(op.Unlink(ROOT, b"f"))
    second = f.write(b"more", 5)
    mount.reply(first, 5)
    mount.reply(gone, None)
    mount.reply(second, 4)
    assert balanced(mount)
    third = f.write(b"again")
    assert f.is_answered(third)
    mount.reply(third, Errno("ENOSPC"))
    assert failed(f.tells()) == "ENOSPC"


# What went wrong.


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_told_by_the_next_write_and_each_close_until_fsync_tells_it(kind: str) -> None:
    f = File(audit="writes")
    f.mount.reply(f.write(), Errno("ENOSPC"))
    [record] = records(f.mount, "failed")
    assert (record.path, record.errno, record.operation, record.bytes, record.uid) == (b"f", "ENOSPC", "write", 5, CALLER.uid)
    assert failed(f.tells(kind)) == "ENOSPC"
    if kind == "write":
        # It may be the rest of the same write(2), whose error the kernel forgets: what was done of it is what it tells.
        number = f.write()
        assert isinstance(f.mount.answer(number), op.Count), "once"
        f.mount.reply(number, 5)
    if kind != "fsync":
        # A child closes what it has inherited, and does not look.
        assert [failed(f.tells("flush")) for _ in range(2)] == ["ENOSPC"] * 2
        assert failed(f.tells("fsync")) == "ENOSPC"
    assert [f.tells("fsync"), f.tells("flush")] == [op.Done(), op.Done()]
    assert isinstance(f.tells("write"), op.Count)


@pytest.mark.parametrize("errno", ["EINTR", "EAGAIN"])
def test_nobody_is_told_to_try_again(errno: str) -> None:
    f = File()
    f.mount.reply(f.write(), Errno(errno))
    assert failed(f.tells()) == "EIO"


def test_an_error_that_is_known_to_be_on_its_way_is_told_by_the_close_that_waited_for_it() -> None:
    f = File()
    number = f.write()
    close = f.mount.ask(op.Flush(f.node, f.handle, 5))
    assert frame(f.mount, close).after == (number,)
    f.mount.reply(number, Errno("EDQUOT"))
    f.mount.reply(close, None)
    assert failed(f.mount.answer(close)) == "EDQUOT"


def test_it_is_not_told_who_has_written_nothing() -> None:
    f = File(audit="denials")
    writer, reader = f.again(78), f.again(79)
    numbers = [f.write(), f.write(handle=writer)]
    f.mount.reply(numbers[0], Errno("ENOSPC"))
    f.mount.reply(numbers[1], Errno("ECANCELED"))
    assert records(f.mount, "failed") == []
    assert f.tells(handle=reader) == op.Done()
    assert failed(f.tells()) == "ENOSPC"
    assert failed(f.tells(handle=writer)) == "ENOSPC"
    assert (f.tells(), f.tells(handle=writer)) == (op.Done(), op.Done())


def test_what_came_after_is_not_carried_out_and_told_once_with_it() -> None:
    f = File()
    numbers = [f.write() for _ in range(3)]
    f.mount.reply(numbers[0], Errno("ENOSPC"))
    assert failed(f.tells("write")) == "ENOSPC"
    new = f.write(b"new")
    assert frame(f.mount, new).after == (), "it does not come after what will not be done"
    for number in numbers[1:]:
        f.mount.reply(number, Errno("ECANCELED"))
    f.mount.reply(new, 3)
    assert failed(f.tells()) == "ENOSPC", "by fsync too"
    assert f.tells() == op.Done()
    assert balanced(f.mount)


def test_nobody_is_answered_ahead_behind_what_has_failed() -> None:
    """Else what is acknowledged there would be lost, and nobody would hear of it."""
    f = File()
    f.mount.t.ahead.window = 5
    other = f.again()
    g = File(f.mount, b"g", inode=22, remote=99)
    owed, fails, behind = g.write(), f.write(), f.write(handle=other)
    assert [f.is_answered(number) for number in (owed, fails, behind)] == [True, False, False]
    f.mount.reply(fails, Errno("ENOSPC"))
    assert failed(f.mount.answer(fails)) == "ENOSPC"
    f.mount.reply(owed, 5)
    assert not f.is_answered(behind), "although there is room"
    f.mount.interrupt(behind)
    assert not f.is_answered(behind)
    f.mount.reply(behind, Errno("ECANCELED"))
    assert failed(f.mount.answer(behind)) == "EIO"
    assert balanced(f.mount)
    assert (f.tells(), f.tells(handle=other)) == (op.Done(), op.Done())


def test_who_is_interrupted_behind_what_has_failed_does_not_wait_for_ever() -> None:
    f = File()
    f.mount.t.ahead.window = 5
    g = File(f.mount, b"g", inode=22, remote=99)
    owed, fails, behind = g.write(), f.write(), f.write()
    f.mount.reply(fails, Errno("ENOSPC"))
    f.mount.interrupt(behind)
    f.mount.tick(INTERRUPT_GRACE)
    assert failed(f.mount.answer(behind)) == "EINTR"
    f.mount.reply(behind, Errno("ECANCELED"))
    f.mount.reply(owed, 5)
    assert balanced(f.mount)


def test_whose_own_write_fails_is_told_of_what_was_owed_before_it() -> None:
    """The first is owed, the second waits for the window. It may be the rest of the same write(2), of which nobody hears."""
    f = File()
    f.mount.t.ahead.window = 5
    first, second = f.write(), f.write()
    f.mount.reply(first, Errno("ENOSPC"))
    f.mount.reply(second, Errno("ECANCELED"))
    assert failed(f.mount.answer(second)) == "ENOSPC"
    assert failed(f.tells()) == "ENOSPC"
    assert f.tells() == op.Done()


def test_who_was_told_of_his_own_is_told_of_what_came_with_it_by_fsync() -> None:
    f = File()
    f.mount.t.ahead.window = 5
    first, second = f.write(), f.write()
    f.mount.reply(first, 2)
    f.mount.reply(second, Errno("ENOSPC"))
    assert failed(f.mount.answer(second)) == "ENOSPC"
    assert failed(f.tells()) == "ENOSPC"
    assert f.tells() == op.Done()
    assert balanced(f.mount)


def test_cancelled_although_nothing_has_failed() -> None:
    """A process before this one may have heard why; a hostile client may say anything."""
    f = File()
    f.mount.reply(f.write(), Errno("ECANCELED"))
    assert failed(f.tells()) == "EIO"
    f.mount.t.ahead.window = 0
    g = File(f.mount, b"g", inode=22, remote=99)
    owed, waits = f.write(), g.write()
    f.mount.reply(waits, Errno("ECANCELED"))
    assert failed(f.mount.answer(waits)) == "EIO"
    assert g.tells() == op.Done()
    f.mount.reply(owed, 5)
    assert balanced(f.mount)


@pytest.mark.parametrize("told", [False, True])
def test_a_write_that_waits_for_the_client_is_told_of_what_was_owed_before_it(told: bool) -> None:
    f = File()
    number = f.write()
    page = f.write(from_cache=True)
    assert frame(f.mount, page).after == (number,)
    f.mount.reply(number, Errno("ENOSPC"))
    if told:
        assert failed(f.tells()) == "ENOSPC"
    f.mount.reply(page, Errno("ECANCELED"))
    assert failed(f.mount.answer(page)) == ("EIO" if told else "ENOSPC")
    if not told:
        assert failed(f.tells()) == "ENOSPC"
    assert f.tells() == op.Done()


def test_nobody_is_told_of_a_handle_that_is_closed_but_the_audit() -> None:
    f = File(audit="writes")
    number = f.write()
    f.mount.ask(op.Release(f.node, f.handle))
    f.mount.reply(number, Errno("ENOSPC"))
    [lost] = records(f.mount, "writes-lost")
    assert (lost.errno, lost.bytes) == ("ENOSPC", 5)
    assert balanced(f.mount)
    g = File(audit="writes")
    g.mount.reply(g.write(), Errno("ENOSPC"))
    g.mount.ask(op.Release(g.node, g.handle))
    [record] = records(g.mount, "file-closed")
    assert "ENOSPC" in record.detail


def test_what_takes_too_long_is_told_once() -> None:
    f = File(bounds=Limits(deadline=5.0))
    first = f.write()
    f.mount.now += 1.0
    second = f.write()
    f.mount.tick(4.0)
    assert failed(f.tells()) == "ETIMEDOUT"
    f.mount.tick(1.0)
    assert f.tells() == op.Done(), "what came after it counts as failed with it"
    assert balanced(f.mount)
    f.mount.reply(first, 5)
    f.mount.reply(second, 5)
    assert f.tells() == op.Done()


def test_whoever_waits_for_the_window_has_a_deadline() -> None:
    f = File(bounds=Limits(deadline=5.0))
    f.mount.t.ahead.window = 5
    f.write()
    waits = f.write()
    f.mount.tick(5.0)
    assert failed(f.mount.answer(waits)) == "ETIMEDOUT"
    assert failed(f.tells()) == "ETIMEDOUT", "of the first"
    assert f.tells() == op.Done()
    assert balanced(f.mount)


# Short writes.


def test_the_rest_of_a_short_write_is_asked_for() -> None:
    f = File()
    number = f.write(b"hello", 7)
    f.mount.reply(number, 2)
    rest = f.mount.sent[-1]
    assert rest.arguments == wire.Write(77, 9, memoryview(b"llo"))
    assert f.mount.t.session.is_own(rest.id)
    assert not rest.id % 2, "the client is to remember it"
    assert frame(f.mount, f.write(b"next")).after == (rest.id,)
    f.mount.reply(rest.id, 3)
    f.mount.reply(f.mount.number, 4)
    assert balanced(f.mount)
    assert f.tells() == op.Done()


@pytest.mark.parametrize("result", [0, 2, Errno("ENOSPC")])
def test_the_rest_may_fail(result: Any) -> None:
    f = File()
    f.mount.reply(f.write(), 2)
    f.mount.reply(f.mount.sent[-1].id, result)
    assert failed(f.tells()) == (result if isinstance(result, Errno) else "EIO")
    assert f.tells() == op.Done()
    assert balanced(f.mount)


@pytest.mark.parametrize("kind", ["fsync", "flush"])
def test_whoever_closes_meanwhile_waits_for_the_rest(kind: str) -> None:
    f = File()
    mount = f.mount
    number = f.write()
    close = mount.ask(op.Fsync(f.node, f.handle, False) if kind == "fsync" else op.Flush(f.node, f.handle, 5))
    mount.reply(number, 2)
    rest = mount.sent[-1].id
    mount.reply(close, None)
    assert not f.is_answered(close)
    mount.reply(rest, Errno("ENOSPC"))
    mount.reply(close, None)
    assert failed(mount.answer(close)) == "ENOSPC"


def test_the_rest_of_what_was_appended_does_not_belong_behind_it() -> None:
    f = File()
    f.mount.reply(f.write(append=True), 2)
    assert len(f.mount.sent) == 1
    assert failed(f.tells()) == "EIO"


@pytest.mark.parametrize(
    "request_of",
    [
        lambda f: op.Write(f.node, f.handle, 3, b"newer", True),
        lambda f: op.Setattr(f.node, size=0),
        lambda f: op.Fallocate(f.node, f.handle, 0, 10, 3),
        lambda f: op.CopyFileRange(f.node, f.handle, 20, f.node, f.handle, 0, 5),
        lambda f: op.Open(f.node, O_RDWR | 0o1000),
    ],
    ids=["write", "truncate", "fallocate", "copy", "open"],
)
def test_the_rest_is_not_written_over_what_came_after(request_of: Any) -> None:
    f = File()
    g = File(f.mount, b"g", inode=22, remote=99)
    number = f.write()
    f.mount.ask(op.Write(g.node, g.handle, 0, b"of another", True))
    f.mount.ask(request_of(f))
    asked = len(f.mount.sent)
    f.mount.reply(number, 2)
    assert len(f.mount.sent) == asked
    assert failed(f.tells("fsync")) == "EIO"


def test_what_is_done_to_other_files_does_not_keep_it_from_being_asked_for() -> None:
    f = File()
    g = File(f.mount, b"g", inode=22, remote=99)
    number = f.write()
    f.mount.ask(op.Write(g.node, g.handle, 0, b"of another", True))
    f.mount.ask(op.Setattr(ROOT, mode=0o755))
    f.mount.reply(number, 2)
    assert f.mount.arguments == wire.Write(77, 2, memoryview(b"llo"))


def test_whoever_closes_waits_until_it_is_known_why_it_was_short() -> None:
    f = File()
    mount = f.mount
    first = f.write()
    close = mount.ask(op.Fsync(f.node, f.handle, False))
    second = f.write(handle=f.again())
    mount.reply(first, 2)
    mount.reply(close, None)
    assert not f.is_answered(close)
    mount.reply(second, 5)
    mount.reply(close, None)
    assert failed(mount.answer(close)) == "EIO"


def test_several_short_ones() -> None:
    f = File()
    numbers = [f.write() for _ in range(3)]
    f.mount.reply(numbers[0], 2)
    f.mount.reply(numbers[1], 1)
    f.mount.reply(numbers[2], 5)
    assert failed(f.tells()) == "EIO"
    assert balanced(f.mount)
    assert f.tells() == op.Done()


def test_a_short_one_before_one_of_which_the_rest_was_written() -> None:
    f = silent()
    first, second = f.write(), f.write()
    f.mount.reply(first, 2)
    f.mount.reply(second, 1)
    close = f.mount.ask(op.Flush(f.node, f.handle, 5))
    f.mount.reply(f.mount.sent[-1].id, 4)
    assert failed(f.mount.answer(close)) == "EIO"
    assert balanced(f.mount)


def test_what_came_after_a_failure_is_not_asked_for_again() -> None:
    """It would be done after what was written since."""
    f = File()
    first, second = f.write(b"first"), f.write(b"older")
    f.mount.reply(first, Errno("ENOSPC"))
    assert failed(f.tells()) == "ENOSPC"
    third = f.write(b"newer")
    other = successor(f.mount)
    assert [each.id for each in other.sent] == [third]
    f.mount.t.lost(f.mount.now)
    f.mount.gather()
    assert second
    assert [record.bytes for record in records(f.mount, "writes-lost")] == [5]


def test_what_came_after_a_failure_may_be_done_in_part() -> None:
    """By a client that had done it for a process before this one."""
    f = File()
    first, second = f.write(), f.write()
    f.mount.reply(first, Errno("ENOSPC"))
    f.mount.reply(second, 2)
    assert balanced(f.mount)
    assert failed(f.tells()) == "ENOSPC"
    assert f.tells() == op.Done()


def test_a_short_one_is_told_whatever_comes_of_what_had_failed_before_it() -> None:
    f = File()
    first, second = f.write(), f.write()
    f.mount.reply(first, Errno("ENOSPC"))
    assert failed(f.tells()) == "ENOSPC"
    third, fourth = f.write(), f.write()
    f.mount.reply(third, 2)
    f.mount.reply(second, Errno("ECANCELED"))
    f.mount.reply(fourth, 5)
    assert failed(f.tells()) == "EIO"
    assert balanced(f.mount)


def test_the_rest_comes_after_nothing_even_if_it_had_to_wait_for_room() -> None:
    f = File(bounds=Limits(max_in_flight=4))
    number = f.write()
    for _ in range(4):
        f.mount.ask(op.Statfs(ROOT))
    f.mount.reply(number, 2)
    statfs = op.Filesystem(1, 2, 3, 4, 5, 6, 7, 8)
    for sent in [each for each in f.mount.sent if each.operation == "statfs"]:
        f.mount.reply(sent.id, statfs)
    [rest] = [each for each in f.mount.sent if each.operation == "write" and each.id != number]
    assert rest.after == ()


def test_why_it_was_short_the_next_may_tell() -> None:
    f = File()
    first, second = f.write(), f.write()
    f.mount.reply(first, 2)
    assert len(f.mount.sent) == 2
    f.mount.reply(second, Errno("EDQUOT"))
    assert failed(f.tells()) == "EDQUOT"
    assert f.tells() == op.Done()
    assert balanced(f.mount)


def test_a_short_one_that_cannot_be_made_good_is_an_error() -> None:
    f = File()
    first, second = f.write(), f.write()
    f.mount.reply(first, 2)
    f.mount.reply(second, 5)
    assert failed(f.tells()) == "EIO"
    assert f.tells() == op.Done()
    assert balanced(f.mount)


def test_the_rest_goes_on_after_the_handle_is_closed() -> None:
    f = File()
    number = f.write()
    f.mount.ask(op.Release(f.node, f.handle))
    f.mount.reply(number, 2)
    rest = f.mount.sent[-1]
    assert (rest.operation, rest.after) == ("write", ())
    f.mount.reply(rest.id, Errno("EBADF"))
    assert balanced(f.mount)


# A close that asks the client for nothing.


def silent() -> File:
    f = File()
    handle = f.mount.t.handles.get(f.handle)
    assert handle is not None
    handle.silent = True
    return f


def test_a_close_that_asks_for_nothing_waits_for_what_is_owed() -> None:
    f = silent()
    mount = f.mount
    assert f.mount.answer(mount.ask(op.Flush(f.node, f.handle, 5))) == op.Done()
    number = f.write()
    close = mount.ask(op.Flush(f.node, f.handle, 5))
    assert not f.is_answered(close)
    mount.reply(number, 5)
    assert mount.answer(close) == op.Done()
    assert [each.operation for each in mount.sent] == ["write"]
    number = f.write()
    close = mount.ask(op.Flush(f.node, f.handle, 5))
    mount.reply(number, Errno("ENOSPC"))
    assert failed(mount.answer(close)) == "ENOSPC"


def test_it_does_not_wait_for_what_others_write_meanwhile() -> None:
    f = silent()
    number = f.write()
    close = f.mount.ask(op.Flush(f.node, f.handle, 5))
    other = f.write()
    f.mount.reply(number, 5)
    assert f.mount.answer(close) == op.Done()
    f.mount.reply(other, 5)
    assert balanced(f.mount)


def test_a_signal_ends_that_waiting() -> None:
    f = silent()
    number = f.write()
    close = f.mount.ask(op.Flush(f.node, f.handle, 5))
    f.mount.interrupt(close)
    f.mount.tick(INTERRUPT_GRACE)
    assert failed(f.mount.answer(close)) == "EINTR"
    f.mount.reply(number, 5)
    assert balanced(f.mount)


def test_a_file_that_is_only_open_here_is_synchronised_when_others_have_written() -> None:
    f = File()
    node = f.mount.t.inodes.get(f.node)
    here = f.mount.t.handles.add(node, b"f", None, O_RDONLY)
    assert f.mount.answer(f.mount.ask(op.Fsync(f.node, here.id, False))) == op.Done()
    number = f.write()
    sync = f.mount.ask(op.Fsync(f.node, here.id, False))
    assert not f.is_answered(sync)
    f.mount.reply(number, 5)
    assert f.mount.answer(sync) == op.Done()


# Times and mode of what was just created.


class Made(File):
    """A file that was created by opening it."""

    def __init__(
        self, flags: int = O_RDWR | O_CREAT | O_EXCL, *, mode: int = 0o100644, mount: Mount | None = None, silent: bool = True,
        **other: Any,
    ) -> None:  # fmt: skip
        self.mount = mount or Mount(orders=True, **other)
        opened = wire.OpenedFile(77, attributes(21, mode=mode, size=0), silent)
        created = self.mount.do(op.Create(ROOT, b"new", flags, 0o644, 0), opened)
        assert isinstance(created, op.Created), created
        self.node, self.handle = created.entry.node, created.opened.handle
        self.mount.clear()

    def set(self, **values: Any) -> int:
        return self.mount.ask(op.Setattr(self.node, **values))

    def is_ahead(self, **values: Any) -> bool:
        number = self.set(**values)
        if self.is_answered(number):
            return True
        self.mount.reply(number, attributes(21, size=0))
        return False


def test_where_a_filesystem_may_refuse_a_mode_it_is_asked() -> None:
    assert not Made(silent=False).is_ahead(mode=0o100755)


def test_times_and_mode_of_a_new_file_are_set_ahead() -> None:
    f = Made(audit="denials")
    f.mount.reply(f.write(b"hello", 5), 5)
    f.mount.clear()
    number = f.set(mode=0o100755, mtime=10**18)
    assert f.mount.story == ["send setattr", "answer Attr"]
    answer = f.mount.answer(number)
    assert isinstance(answer, op.Attr)
    shown = answer.attributes
    assert (shown.mode, shown.mtime, shown.atime, shown.size, shown.inode) == (0o100755, 10**18, 1, 10, 21)
    assert answer.valid == 0.0
    more = f.mount.answer(f.set(atime=5, mtime=-1))
    assert isinstance(more, op.Attr)
    assert (more.attributes.atime, more.attributes.mtime, more.attributes.mode) == (5, 10**18, 0o100755)
    assert f.mount.sent[-1].after == (number,)
    end = f.mount.ask(op.Fsync(f.node, f.handle, False))
    assert frame(f.mount, end).after == (f.mount.number - 2,)
    for _ in range(2):
        f.mount.reply(number, attributes(21))
        number += 2
    f.mount.reply(end, None)
    assert f.mount.answer(end) == op.Done()
    assert balanced(f.mount)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"size": 3}, {}),
        ({"uid": 5}, {"ownership": "passthrough"}),
        ({"gid": 5}, {"ownership": "passthrough"}),
        ({"mode": 0o100644 | SETUID}, {}),
        ({"mode": 0o100644}, {"mode": 0o100644 | SETUID}),
        ({"mtime": 5}, {"flags": O_RDWR | O_CREAT}),
        ({"mtime": 5}, {"writes": "through"}),
    ],
    ids=["size", "owner", "group", "setuid", "was setuid", "not exclusively", "through"],
)
def test_nothing_else_is(values: dict[str, Any], options: dict[str, Any]) -> None:
    f = Made(**options)
    assert not f.is_ahead(**values)
    assert not f.is_ahead(mtime=6), "nor anything after it: only the client knows what the file is like by now"


def test_a_file_that_was_there_is_asked_about() -> None:
    f = File()
    number = f.mount.ask(op.Setattr(f.node, mtime=5))
    assert not f.is_answered(number)
    closed = File(f.mount, b"g", inode=22, remote=99)
    f.mount.ask(op.Release(closed.node, closed.handle))
    number = f.mount.ask(op.Setattr(closed.node, mtime=5))
    assert not f.is_answered(number)


def test_not_a_file_that_another_has_open_or_had() -> None:
    f = Made()
    other = f.again()
    assert not f.is_ahead(mtime=5)
    g = Made()
    other = g.again()
    g.mount.reply(g.write(b"1234567890", 100, handle=other), 10)
    g.mount.ask(op.Release(g.node, other))
    assert not g.is_ahead(mtime=5), "it is longer than its creator has made it"


def test_not_a_file_that_was_truncated_by_opening_it() -> None:
    f = Made()
    f.mount.reply(f.write(), 5)
    other = f.again(flags=O_RDWR | 0o1000)
    f.mount.ask(op.Release(f.node, other))
    assert not f.is_ahead(mtime=5)


def test_not_a_file_with_another_name_or_none() -> None:
    f = Made()
    f.mount.do(op.Link(f.node, ROOT, b"other"), attributes(21, nlink=2))
    assert not f.is_ahead(mtime=5)
    g = Made()
    g.mount.do(op.Unlink(ROOT, b"new"), None)
    number = g.set(mtime=5)
    assert not g.is_answered(number)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda f: (op.Fallocate(f.node, f.handle, 0, 10, 0), None),
        lambda f: (op.CopyFileRange(f.node, f.handle, 0, f.node, f.handle, 20, 5), 5),
        lambda f: (op.Write(f.node, f.handle, 0, b"dirty", True), 5),
        lambda f: (op.Write(f.node, f.handle, 0, b"behind", False, append=True), 6),
    ],
    ids=["fallocate", "copy_file_range", "dirty", "append"],
)
def test_not_a_file_whose_size_only_the_client_knows(request_of: Any) -> None:
    f = Made()
    request, result = request_of(f)
    f.mount.do(request, result)
    assert not f.is_ahead(mtime=5)


@pytest.mark.parametrize("size", [0, 700])
def test_not_a_file_that_others_at_the_client_have_changed(size: int) -> None:
    f = Made()
    f.mount.do(op.Getattr(f.node, f.handle), attributes(21, size=size))
    assert f.is_ahead(mtime=5) == (size == 0)


def test_a_short_write_leaves_its_size_to_the_client() -> None:
    f = Made()
    f.mount.t.ahead.window = 5
    first, second = f.write(), f.write(b"12345", 5)
    f.mount.reply(second, 2)
    f.mount.reply(first, 5)
    assert not f.is_ahead(mtime=5)


def test_where_there_is_no_room_it_is_asked_as_ever() -> None:
    f = Made(bounds=Limits(max_in_flight=2))
    f.write()
    number = f.set(mtime=5)
    assert not f.is_answered(number)


def test_that_it_failed_is_told() -> None:
    f = Made(audit="writes")
    number = f.set(mode=0o100600)
    f.mount.reply(number, Errno("EPERM"))
    assert [(record.operation, record.errno) for record in records(f.mount, "failed")] == [("setattr", "EPERM")]
    assert failed(f.tells("flush")) == "EPERM"


# The end of a connection, and of a session.


def test_what_was_not_answered_is_left_to_the_kernel_and_what_was_to_a_successor() -> None:
    f = File(outage=Outage("wait", 60.0))
    f.mount.t.ahead.window = 5
    kept, waits = f.write(), f.write()
    f.mount.t.suspend(f.mount.now)
    f.mount.gather()
    assert not f.is_answered(waits)
    assert [change.row.request for change in f.mount.t.ahead] == [kept]
    assert [row.request for row in f.mount.t.ledger.everything() if isinstance(row, Owed)] == [kept]
    assert f.mount.t.session.after is None
    assert not f.mount.t.ahead.waiting


def test_a_successor_asks_again_first_of_all() -> None:
    f = File()
    g = File(f.mount, b"g", inode=22, remote=99)
    closed = File(f.mount, b"h", inode=23, remote=98)
    numbers = [f.write(b"first"), g.write(b"other"), f.write(b"second", 5), closed.write(b"third")]
    f.mount.ask(op.Release(closed.node, closed.handle))
    other = successor(f.mount)
    assert [each.id for each in other.sent[:4]] == numbers
    assert [bytes(each.arguments.data) for each in other.sent[:4]] == [b"first", b"other", b"second", b"third"]
    assert [each.after for each in other.sent[:4]] == [(), (), (numbers[0],), ()]
    assert other.sent[4].arguments == wire.Release(98)
    assert set(other.sent[4].after) == {numbers[1], numbers[2], numbers[3]}
    for number in numbers:
        other.reply(number, len(frame(other, number).arguments.data))
    assert balanced(other)
    assert [row for row in other.t.ledger.everything() if isinstance(row, Owed)] == []


def test_there_may_be_nothing_to_ask_again() -> None:
    other = successor(File().mount)
    assert other.sent == []
    assert balanced(other)


def test_the_kernel_sends_again_what_it_has_no_answer_to() -> None:
    f = File()
    number = f.write()
    other = successor(f.mount)
    other.clear()
    other.number = number - 2
    f.mount = other
    assert f.write() == number
    assert other.answer(number) == op.Count(5)
    assert other.story == ["answer Count"], "the client was asked already"
    other.reply(number, 5)
    assert balanced(other)


def test_after_that_it_is_a_request_like_any_other() -> None:
    """The client repeats its answer."""
    f = File()
    number = f.write()
    other = successor(f.mount)
    other.reply(number, 5)
    other.clear()
    other.number = number - 2
    f.mount = other
    f.write()
    assert other.story == ["send write", "hold", "answer Count"]
    assert other.sent[-1].id == number


def sent_again(**other: Any) -> tuple[Made, int]:
    """SETATTR, by a kernel that has no answer to it, to a successor."""
    f = Made()
    number = f.set(mtime=5)
    f.mount = successor(f.mount, **other)
    f.mount.clear()
    f.mount.number = number - 2
    assert f.set(mtime=5) == number
    assert not f.is_answered(number)
    return f, number


def test_attributes_are_told_by_the_client() -> None:
    f, number = sent_again()
    assert f.mount.sent == []
    f.mount.reply(number, attributes(21, mtime=5))
    assert [each.operation for each in f.mount.sent] == ["setattr"], "the client repeats its answer"
    assert not f.mount.t.ahead
    f.mount.reply(number, attributes(21, mtime=5))
    assert isinstance(f.mount.answer(number), op.Attr)


def test_whoever_sent_it_again_is_told_of_its_failure() -> None:
    f, number = sent_again()
    f.mount.reply(number, Errno("EROFS"))
    assert failed(f.mount.answer(number)) == "EROFS"
    assert failed(f.tells()) == "EROFS"
    assert f.tells() == op.Done()
    assert balanced(f.mount)


def test_whoever_sent_it_again_has_a_deadline() -> None:
    f, number = sent_again(bounds=Limits(deadline=5.0))
    f.mount.tick(5.0)
    assert failed(f.mount.answer(number)) == "ETIMEDOUT"
    assert balanced(f.mount)


def test_who_is_interrupted_then_takes_nothing_back() -> None:
    f, number = sent_again()
    f.mount.interrupt(number)
    f.mount.tick(INTERRUPT_GRACE)
    assert failed(f.mount.answer(number)) == "EINTR"
    f.mount.reply(number, attributes(21, mtime=5))
    assert f.tells() == op.Done()
    assert balanced(f.mount)


@pytest.mark.parametrize("mode", ["wait", "fail"])
def test_while_the_client_is_away_what_was_owed_is_answered_and_stays_owed(mode: str) -> None:
    f = Made()
    number, times = f.write(), f.set(mtime=5)
    f.mount = standby = successor(f.mount, away=True, outage=Outage(mode, 60.0))
    standby.number = number - 2
    assert f.write() == number
    assert standby.answer(number) == op.Count(5)
    assert f.set(mtime=5) == times
    assert f.is_answered(times) == (mode == "fail")
    last = successor(standby)
    assert [each.id for each in last.sent] == [number, times]
    assert bytes(last.sent[0].arguments.data) == b"hello"


def test_an_error_is_told_by_a_successor() -> None:
    f = File()
    f.mount.reply(f.write(), Errno("ENOSPC"))
    assert [row.failed for row in rows(f.mount) if isinstance(row, HandleRow)] == ["ENOSPC"]
    f.mount = successor(f.mount)
    assert failed(f.tells("write")) == "ENOSPC"
    assert failed(f.tells("fsync")) == "ENOSPC"
    assert [row.failed for row in rows(f.mount) if isinstance(row, HandleRow)] == [""]
    f.mount = successor(f.mount)
    assert f.tells() == op.Done()


def test_who_is_killed_at_any_step_loses_nothing_that_was_acknowledged() -> None:
    """After each effect but none before: a successor knows of it, or the kernel has no answer."""
    f = File()
    f.mount.t.ahead.window = 10
    before = list(f.mount.t.ledger.everything())
    numbers = [f.write(b"%05d" % index, 5 * index) for index in range(4)]
    f.mount.now += PROMPT
    f.mount.reply(numbers[0], 5)
    ring = bytearray(len(f.mount.ring))
    committed: list[Row] = list(before)
    acknowledged: set[int] = set()
    for effect in f.mount.log:
        if isinstance(effect, effects.Hold):
            ring[effect.at : effect.at + len(effect.data)] = effect.data
        if isinstance(effect, effects.Answer):
            committed += effect.rows
            acknowledged.add(effect.request)
        other = Mount(orders=True, ring=bytearray(ring))
        other.t.restore(list(committed), 2)
        other.t.resume(other.now)
        other.gather()
        asked = {each.id: bytes(each.arguments.data) for each in other.sent}
        missing = acknowledged - asked.keys()
        assert missing <= {numbers[0]}, "what the client has done need not be asked again"
        assert all(asked[number] == b"%05d" % numbers.index(number) for number in asked)
    assert acknowledged == set(numbers[:3])


def test_what_is_owed_when_the_session_ends_is_told_to_be_lost() -> None:
    f = Made()
    g = File(f.mount, b"g", inode=22, remote=99)
    f.mount.t.ahead.window = 15
    for number in (f.write(), f.write(), g.write()):
        assert f.is_answered(number)
    f.set(mtime=5)
    waits = f.write()
    f.mount.t.lost(f.mount.now)
    f.mount.gather()
    lost = records(f.mount, "writes-lost")
    assert [(record.path, record.bytes, record.count, record.errno) for record in lost] == [
        (b"new", 10, 2, "EIO"),
        (b"g", 5, 1, "EIO"),
    ]
    assert failed(f.mount.answer(waits)) == "ENOTCONN"
    assert not f.mount.t.ahead
    f.mount.t.lost(f.mount.now)
    f.mount.gather()
    assert len(records(f.mount, "writes-lost")) == 2


def test_a_successor_knows_what_is_lost_of_a_file_that_is_closed() -> None:
    f = File()
    f.write()
    f.mount.ask(op.Release(f.node, f.handle))
    standby = successor(f.mount, away=True)
    standby.t.lost(standby.now)
    standby.gather()
    [record] = records(standby, "writes-lost")
    assert (record.path, record.bytes, record.uid) == (b"f", 5, None)


def test_what_cannot_be_recorded_is_not_done() -> None:
    f = File()
    number = f.write()
    f.mount.t.ahead.window = 5
    waits = f.write()
    for withdrawn in (number, waits):
        assert f.mount.t.withdraw(withdrawn)
    f.mount.gather()
    assert f.mount.t.untold == 2
    assert failed(f.mount.answer(waits)) == "EIO"
    assert balanced(f.mount)
    assert not ahead.withdrawn(f.mount.t, number)


# Hostile clients.


@pytest.mark.parametrize("result", [6, -1, 2**63, "5", None, b"hello", 5.0], ids=repr)
def test_a_count_that_cannot_be_ends_the_session(result: Any) -> None:
    f = File()
    number = f.write()
    with pytest.raises(ProtocolError):
        f.mount.reply(number, result)
    f.mount.t.lost(f.mount.now)
    f.mount.gather()
    assert [record.bytes for record in records(f.mount, "writes-lost")] == [5]


@pytest.mark.parametrize("result", [4, -1, "3"])
def test_nor_may_the_rest_be_more_than_it_was(result: Any) -> None:
    f = File()
    f.mount.reply(f.write(), 2)
    with pytest.raises(ProtocolError):
        f.mount.reply(f.mount.sent[-1].id, result)


@pytest.mark.parametrize("result", [attributes(21, size=-1), attributes(21, mode=0), None, 5], ids=["size", "mode", "", "int"])
def test_attributes_that_cannot_be_end_the_session(result: Any) -> None:
    f = Made()
    number = f.set(mtime=5)
    with pytest.raises(ProtocolError):
        f.mount.reply(number, result)


def test_an_answer_that_nobody_asked_for_ends_the_session() -> None:
    f = File()
    number = f.write()
    f.mount.reply(number, 5)
    with pytest.raises(ProtocolError):
        f.mount.reply(number, 5)

"""turnstile/lazily.py: what is only open here is a file like any other, and the client opens it once it is needed."""

import msgspec
import pytest
from harness.sansio import (
    DIRECTORY,
    O_RDONLY,
    O_RDWR,
    ROOT,
    Errno,
    Mount,
    Tree,
    attributes,
)

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError
from fuse_gated.operations import Attributes
from fuse_gated.tree import journal
from fuse_gated.tree.journal import Asked, HandleRow, NodeRow
from fuse_gated.turnstile import lazily
from fuse_gated.turnstile.effects import Answer, InvalidateInode
from fuse_gated.turnstile.turnstile import INTERRUPT_GRACE, Limits
from fuse_gated.wire import messages as wire

EBADF, ESTALE, EIO, EINTR, ETIMEDOUT, ENOENT = 9, 116, 5, 4, 110, 2


class Sparse(Tree):
    """Its files have holes: where these are nobody but the client can say."""

    def attributes(self, path: bytes) -> Attributes | None:
        found = super().attributes(path)
        return msgspec.structs.replace(found, blocks=0) if found is not None else None


def tree() -> Tree:
    return Sparse({b"a": b"one", b"b": b"two", b"d": None, b"d/x": b"three"})


def mount(**other) -> Mount:
    return Mount(watches=True, **other)


def operations(mount: Mount) -> list[str]:
    return [frame.operation for frame in mount.sent]


def opened(mount: Mount, tree: Tree, path: bytes = b"a") -> tuple[int, int]:
    """The node and the handle of a file that is open here alone; the log begins anew."""
    mount.known(tree)
    node = mount.walk(tree, path)
    answer = mount.see(tree, op.Open(node, O_RDONLY))
    assert isinstance(answer, op.Opened), answer
    assert answer.keep_cache
    assert mount.t.handles.unopened == 1
    mount.serve(tree)
    mount.clear()
    return node, answer.handle


# Without the client.


@pytest.mark.parametrize("what", [None, b"replaced"])
def test_what_loses_its_name_while_it_is_open_here_alone_stays_what_it_was(what: bytes | None) -> None:
    """The kernel asks for its attributes in the midst of a read(2)."""
    m, t = mount(), tree()
    node, handle = opened(m, t)
    found = t.attributes(b"a")
    assert found is not None
    m.notice(b"a", attributes=(attributes(4711) if what else None,))
    m.clear()
    number = m.ask(op.Getattr(node, handle))
    assert operations(m) == ["open"]
    m.reply(m.sent[-1].id, Errno("ENOENT"))
    answer = m.answer(number)
    assert isinstance(answer, op.Attr), answer
    assert (answer.attributes.inode, answer.attributes.nlink) == (found.inode, 0)
    assert m.see(t, op.Read(node, handle, 0, 10)) == op.Data(b"one")


def test_a_small_file_is_opened_read_and_closed_without_the_client() -> None:
    m, t = mount(audit="opens"), tree()
    node, handle = opened(m, t)
    assert m.see(t, op.Read(node, handle, 0, 4096)) == op.Data(b"one")
    assert m.see(t, op.Read(node, handle, 2, 4096)) == op.Data(b"e")
    assert m.see(t, op.Read(node, handle, 9, 4096)) == op.Data(b"")
    assert m.see(t, op.Flush(node, handle, 5)) == op.Done()
    assert m.see(t, op.Fsync(node, handle, False)) == op.Done()
    assert m.see(t, op.Release(node, handle)) == op.Done()
    assert m.sent == []
    assert [(record.kind, record.bytes) for record in m.records] == [("file-closed", 4)]
    assert m.t.handles.unopened == 0


def test_an_open_here_is_told_like_any_other() -> None:
    m, t = mount(audit="opens"), tree()
    m.known(t)
    node = m.walk(t, b"a")
    m.clear()
    m.see(t, op.Open(node, O_RDONLY))
    m.see(t, op.Open(node, O_RDONLY))
    assert [record.operation for record in m.records] == ["open", "open"]
    assert [name for name in operations(m) if name != "gather"] == []


def test_a_path_that_is_another_file_by_now_is_looked_up_again() -> None:
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"a")
    m.notice(b"a", attributes=(attributes(999, size=3),))
    m.t.cache.read(b"a", b"new", m.t.cache.tick)
    assert m.see(t, op.Open(node, O_RDONLY)) == op.Failed(ESTALE)


def test_fstat_of_what_is_known_needs_no_client() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    answer = m.see(t, op.Getattr(node, handle))
    assert isinstance(answer, op.Attr)
    assert answer.attributes.size == 3
    assert m.sent == []


# The client opens it once it is needed.


@pytest.mark.parametrize(
    ("request_of", "result", "answer"),
    [
        (lambda node, handle: op.Setlk(node, handle, 5, 0, 9, 0, 7, False, False), None, op.Done()),
        (lambda node, handle: op.Setlk(node, handle, 5, 0, 9, 0, 7, True, False), None, op.Done()),
        (lambda node, handle: op.Getlk(node, handle, 5, 0, 9, 0, 7), wire.LockState(2), op.Lock(0, 0, 2, 0)),
        (lambda node, handle: op.Lseek(node, handle, 0, 4), 3, op.Position(3)),
    ],
)
def test_whoever_does_more_with_it_has_it_opened_there(request_of, result, answer) -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    number = m.ask(request_of(node, handle))
    assert operations(m) == ["open"]
    m.serve(t, wire.Open)
    assert m.arguments.handle == t.attributes(b"a").inode
    m.reply(m.sent[-1].id, result)
    assert m.answer(number) == answer
    assert m.see(t, op.Read(node, handle, 0, 9)) == op.Data(b"one"), "it is still what it was"
    m.clear()
    assert m.see(t, op.Release(node, handle)) == op.Done()
    assert operations(m)[-1] == "release"


def test_what_is_copied_from_is_opened_there() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    b = m.walk(t, b"b")
    target = m.see(t, op.Open(b, O_RDWR))
    assert isinstance(target, op.Opened)
    m.clear()
    number = m.ask(op.CopyFileRange(node, handle, 0, b, target.handle, 0, 3))
    m.serve(t, wire.Open)
    assert operations(m) == ["open", "copy_file_range"]
    m.reply(m.sent[-1].id, 3)
    assert m.answer(number) == op.Count(3)


def test_after_a_change_it_is_read_from_the_client() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    m.notice(b"a", attributes=(t.change(b"a", b"changed"),))
    m.clear()
    assert m.see(t, op.Read(node, handle, 0, 4096)) == op.Data(b"changed")
    assert operations(m) == ["open", "read"]


def test_what_stays_open_is_opened_there_before_it_may_be_gone() -> None:
    m, t = mount(), tree()
    opened(m, t)
    assert m.t.next_due(m.now) is not None
    m.tick(lazily.LINGERS)
    m.serve(t)
    assert operations(m) == ["open"]
    assert m.t.handles.unopened == 0
    assert not m.t.lingering


def test_what_cannot_be_opened_there_is_told_to_who_uses_it() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    m.tick(lazily.LINGERS)
    m.reply(m.sent[-1].id, Errno("EACCES"))
    m.notice(b"a", attributes=(t.change(b"a", b"x"),))
    number = m.ask(op.Read(node, handle, 0, 9))
    m.reply(m.sent[-1].id, Errno("EMFILE"))
    assert m.answer(number) == op.Failed(24)


def test_what_was_closed_or_is_being_opened_need_not_be_opened() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    m.see(t, op.Release(node, handle))
    m.clear()
    m.tick(lazily.LINGERS)
    assert m.sent == []


# It must be the same file.


def test_another_file_by_that_name_is_not_opened() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    number = m.ask(op.Lseek(node, handle, 0, 4))
    m.reply(m.sent[-1].id, wire.OpenedFile(7, attributes(999)))
    assert m.answer(number) == op.Failed(ESTALE)
    assert m.arguments == wire.Release(7)


def test_a_file_that_is_gone_is_read_on_and_has_no_name() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    del t.contents[b"a"]
    m.notice(b"a", attributes=(None,))
    assert m.see(t, op.Lookup(ROOT, b"a")) == op.Entry(0, None, 1.0)
    assert m.see(t, op.Read(node, handle, 0, 9)) == op.Data(b"one")
    found = m.see(t, op.Getattr(node, handle))
    assert isinstance(found, op.Attr)
    assert found.attributes.nlink == 0
    assert m.see(t, op.Lseek(node, handle, 0, 4)) == op.Failed(ESTALE)


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_before_it_loses_its_name_it_is_opened_there(how: str) -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    m.walk(t, b"b")
    m.clear()
    number = m.ask(op.Unlink(ROOT, b"a") if how == "unlink" else op.Rename(ROOT, b"b", ROOT, b"a", 0))
    assert operations(m) == ["open"]
    m.serve(t, wire.Open)
    assert operations(m) == ["open", how]
    m.reply(m.sent[-1].id, None)
    assert m.answer(number) == op.Done()
    inode = t.attributes(b"a").inode
    assert m.see(t, op.Read(node, handle, 0, 9)) == op.Data(b"one")
    number = m.ask(op.Getattr(node, handle))
    assert m.arguments == wire.Getattr(inode)
    m.reply(m.sent[-1].id, attributes(inode, nlink=0))
    assert m.answers(number)


def test_what_cannot_be_opened_before_it_goes_goes_all_the_same() -> None:
    m, t = mount(), tree()
    opened(m, t)
    other = m.see(t, op.Open(m.walk(t, b"a"), O_RDONLY))
    assert isinstance(other, op.Opened)
    m.clear()
    number = m.ask(op.Unlink(ROOT, b"a"))
    assert operations(m) == ["open", "open"]
    m.reply(m.sent[0].id, Errno("EACCES"))
    m.reply(m.sent[1].id, Errno("EACCES"))
    assert operations(m)[2:] == ["unlink"]
    m.reply(m.sent[-1].id, None)
    assert m.answer(number) == op.Done()


def test_names_that_are_exchanged_need_not_be_opened() -> None:
    m, t = mount(), tree()
    opened(m, t)
    m.walk(t, b"b")
    m.clear()
    m.ask(op.Rename(ROOT, b"b", ROOT, b"a", 2))
    assert operations(m) == ["rename"]


def test_who_has_gone_before_the_name_goes_removes_nothing() -> None:
    m, t = mount(), tree()
    opened(m, t)
    number = m.ask(op.Unlink(ROOT, b"a"))
    m.interrupt(number)
    m.tick(INTERRUPT_GRACE)
    assert m.answer(number) == op.Failed(EINTR)
    m.serve(t)
    assert operations(m) == ["open"]


def test_a_signal_whose_grace_is_over_removes_nothing() -> None:
    m, t = mount(), tree()
    opened(m, t)
    number = m.ask(op.Unlink(ROOT, b"a"))
    m.interrupt(number)
    m.now += INTERRUPT_GRACE
    m.serve(t)
    assert m.answer(number) == op.Failed(EINTR)
    assert operations(m) == ["open"]


def test_by_path_what_is_open_is_opened_before_its_name_goes() -> None:
    m, t = mount(), tree()
    m.known(t)
    answer = m.see(t, op.Open(b"a", O_RDONLY))
    assert isinstance(answer, op.Opened)
    m.clear()
    m.ask(op.Unlink(b"", b"a"))
    assert operations(m) == ["open"]
    m.serve(t, wire.Open)
    assert operations(m) == ["open", "unlink"]


def test_by_path_another_file_is_never_taken_for_it() -> None:
    m, t = mount(), tree()
    m.known(t)
    answer = m.see(t, op.Open(b"a", O_RDONLY))
    assert isinstance(answer, op.Opened)
    m.notice(b"a", b"b", attributes=(attributes(999), attributes(998)))
    number = m.ask(op.Read(b"a", answer.handle, 0, 9))
    m.reply(m.sent[-1].id, wire.OpenedFile(7, attributes(999)))
    assert m.answer(number) == op.Data(b"one")
    assert m.arguments == wire.Release(7)


def test_by_path_what_is_not_watched_any_more_is_read_from_the_client() -> None:
    m, t = mount(), tree()
    m.known(t)
    answer = m.see(t, op.Open(b"a", O_RDONLY))
    assert isinstance(answer, op.Opened)
    m.t.cache.evict(b"")
    m.notice()
    m.clear()
    assert m.see(t, op.Read(b"a", answer.handle, 0, 9)) == op.Data(b"one")
    assert operations(m)[:1] == ["open"]


# Who waits, and does not.


def test_released_while_it_is_being_opened_it_is_closed_there() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    number = m.ask(op.Lseek(node, handle, 0, 4))
    assert m.answer(m.ask(op.Release(node, handle))) == op.Done()
    m.serve(t, wire.Open)
    assert m.answer(number) == op.Failed(EBADF)
    assert m.arguments == wire.Release(t.attributes(b"a").inode)


def test_what_was_opened_after_its_end_is_closed_by_a_successor_if_the_client_has_not_heard() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    m.tick(lazily.LINGERS)
    m.ask(op.Release(node, handle))
    m.serve(t, wire.Open)
    assert operations(m) == ["open", "release"]
    other = mount()
    other.t.restore(m.t.ledger.everything(), 2)
    other.t.resume(other.now)
    other.gather()
    assert operations(other) == ["release"]


def test_what_waits_for_room_when_it_ends_may_be_opened_all_the_same() -> None:
    m, t = mount(bounds=Limits(max_in_flight=1)), tree()
    node, handle = opened(m, t)
    m.ask(op.Statfs(ROOT))
    m.tick(lazily.LINGERS)
    m.ask(op.Release(node, handle))
    assert operations(m) == ["statfs"]
    other = mount()
    other.t.restore(m.t.ledger.everything(), 2)
    other.t.resume(other.now)
    other.gather()
    assert operations(other) == ["open"]


def test_all_who_wait_for_it_go_on() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    numbers = [m.ask(op.Lseek(node, handle, 0, 4)) for _ in range(3)]
    assert operations(m) == ["open"]
    m.serve(t, wire.Open)
    assert operations(m) == ["open"] + ["lseek"] * 3
    for frame in m.sent[1:]:
        m.reply(frame.id, 3)
    assert [m.answer(number) for number in numbers] == [op.Position(3)] * 3


def test_a_signal_ends_the_waiting_after_the_grace() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    number, other = m.ask(op.Lseek(node, handle, 0, 4)), m.ask(op.Lseek(node, handle, 0, 4))
    m.interrupt(number)
    m.tick(INTERRUPT_GRACE)
    assert m.answer(number) == op.Failed(EINTR)
    m.interrupt(other)
    m.now += INTERRUPT_GRACE
    m.serve(t)
    assert m.answer(other) == op.Failed(EINTR), "what it was given is over"
    assert operations(m) == ["open"]


def test_who_was_interrupted_does_not_hear_that_it_could_not_be_opened() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    number = m.ask(op.Lseek(node, handle, 0, 4))
    m.interrupt(number)
    m.tick(INTERRUPT_GRACE)
    m.reply(m.sent[0].id, Errno("EIO"))
    assert m.answer(number) == op.Failed(EINTR)


def test_waiting_is_over_with_the_deadline() -> None:
    m, t = mount(bounds=Limits(deadline=5.0)), tree()
    node, handle = opened(m, t)
    number = m.ask(op.Lseek(node, handle, 0, 4))
    m.tick(5.0)
    assert m.answer(number) == op.Failed(ETIMEDOUT)
    number = m.ask(op.Lseek(node, handle, 0, 4))
    assert m.answer(number) == op.Failed(EIO), "the client has not even answered the first time"
    m.serve(t)
    assert m.arguments == wire.Release(t.attributes(b"a").inode)
    assert isinstance(m.answer(m.ask(op.Read(node, handle, 0, 3))), op.Data)


def test_a_handle_that_was_never_given_out() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    assert m.see(t, op.Lseek(node, handle + 1, 0, 4)) == op.Failed(EBADF)
    with pytest.raises(Exception, match="EBADF"):
        lazily.unopened_in(m.t, wire.Read(-99, 0, 1))


@pytest.mark.parametrize("remote", [-1, 2**63])
def test_a_handle_that_no_client_may_give_ends_the_session(remote: int) -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    m.ask(op.Lseek(node, handle, 0, 4))
    with pytest.raises(ProtocolError):
        m.reply(m.sent[-1].id, wire.OpenedFile(remote, attributes(5)))


# Directories.


def test_a_directory_that_is_open_here_is_opened_there_to_be_removed_and_by_who_finds_another() -> None:
    m, t = mount(), tree()
    m.known(t)
    d = m.walk(t, b"d")
    answer = m.see(t, op.Opendir(d, 0))
    assert isinstance(answer, op.Opened)
    m.clear()
    number = m.ask(op.Rmdir(ROOT, b"d"))
    assert operations(m) == ["opendir"]
    m.reply(m.sent[-1].id, wire.OpenedFile(7, attributes(999, 0o040000)))
    assert operations(m)[:3] == ["opendir", "releasedir", "rmdir"]
    m.reply(m.sent[2].id, Errno("ENOTEMPTY"))
    assert m.answer(number) == op.Failed(39)
    number = m.ask(op.Fsyncdir(d, answer.handle, False))
    assert m.arguments == wire.Fsyncdir(0, False, b"d")
    m.reply(number, Errno("ENOENT"))
    m.serve(t, wire.Opendir)
    m.reply(number, None)
    assert m.answer(number) == op.Done()


# What nobody else can say.


def test_a_file_that_was_moved_away_before_it_was_opened_there_is_read_on() -> None:
    """Of a rename the client tells as of a change: only the time of that is another one."""
    m, t = mount(), tree()
    node, handle = opened(m, t)
    found = t.attributes(b"a")
    assert found is not None
    m.notice(b"a", attributes=(msgspec.structs.replace(found, ctime=found.ctime + 1, nlink=2),))
    m.notice(b"a", attributes=(attributes(4711),))
    m.clear()
    number = m.ask(op.Read(node, handle, 1, 10))
    m.reply(m.sent[-1].id, wire.OpenedFile(7, attributes(4711)))
    assert m.answer(number) == op.Data(b"ne")
    assert m.arguments == wire.Release(7)


def test_what_was_in_a_file_that_changed_before_it_went_nobody_says() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    changed = t.change(b"a", b"changed")
    m.notice(b"a", attributes=(changed,))
    m.notice(b"a", attributes=(None,))
    number = m.ask(op.Read(node, handle, 0, 10))
    m.reply(m.sent[-1].id, Errno("ENOENT"))
    assert m.answer(number) == op.Failed(ESTALE)
    number = m.ask(op.Getattr(node, handle))
    m.reply(m.sent[-1].id, Errno("ENOENT"))
    answer = m.answer(number)
    assert isinstance(answer, op.Attr)
    assert (answer.attributes.size, answer.attributes.nlink) == (len(b"changed"), 0)


def test_what_the_kernel_has_of_a_file_that_is_gone_it_keeps() -> None:
    """For who has it open, and for nobody who opens it later."""
    m, t = mount(), tree()
    node, _handle = opened(m, t)
    m.notice(b"a", attributes=(attributes(4711),))
    assert InvalidateInode(node, pages=False) in m.log
    found = m.t.inodes.get(node)
    assert found is not None
    assert found.kept == -1


def test_who_opens_a_name_that_was_gone_under_another_asks_the_client() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    number = m.ask(op.Lseek(node, handle, 0, 4))
    m.reply(m.sent[-1].id, wire.OpenedFile(7, attributes(4711)))
    assert m.answer(number) == op.Failed(ESTALE)
    m.serve(t)
    m.clear()
    m.see(t, op.Open(node, O_RDONLY))
    assert operations(m) == ["open"]


@pytest.mark.parametrize("what", [attributes(4711, DIRECTORY), Errno("ENOENT")], ids=["replaced", "removed"])
@pytest.mark.parametrize("there", [True, False], ids=["at the client", "here alone"])
def test_fstat_of_a_directory_that_lost_its_name_is_about_that_directory(there: bool, what: Attributes | Errno) -> None:
    """The kernel names no handle."""
    m, t = mount(), tree()
    m.known(t)
    node = m.walk(t, b"d")
    assert isinstance(m.see(t, op.Opendir(node, 0)), op.Opened)
    if there:
        m.tick(lazily.LINGERS)
        m.serve(t)
    m.t.cache.clear()
    m.clear()
    number = m.ask(op.Getattr(node, None))
    m.reply(number, what)
    found = t.attributes(b"d")
    assert found is not None
    if there:
        assert m.arguments == wire.Getattr(found.inode)
        m.reply(number, found)
    else:
        m.reply(m.sent[-1].id, Errno("ENOENT"))
    answer = m.answer(number)
    assert isinstance(answer, op.Attr)
    assert answer.attributes.inode == found.inode


def test_a_client_that_says_of_what_is_open_that_it_is_another_is_asked_once() -> None:
    m = Mount()
    node = m.lookup(b"d", DIRECTORY)
    m.opendir(node, remote=88)
    number = m.ask(op.Getattr(node, None))
    m.reply(number, attributes(4711, DIRECTORY))
    assert m.arguments == wire.Getattr(88)
    m.reply(number, attributes(4712, DIRECTORY))
    assert m.answer(number) == op.Failed(ESTALE)


# Those who come after.


def test_a_successor_opens_it_at_the_client() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    rows = list(m.t.ledger.everything())
    assert [row.remote for row in rows if isinstance(row, HandleRow)] == [-handle]
    successor = mount()
    successor.t.restore(rows, 2)
    assert successor.t.handles.unopened == 1
    successor.t.resume(successor.now)
    successor.gather()
    assert successor.see(t, op.Read(node, handle, 0, 9)) == op.Data(b"one")
    assert operations(successor) == ["open", "read"]
    rows = [row for effect in successor.log if isinstance(effect, Answer) for row in effect.rows]
    assert [row.remote for row in rows if isinstance(row, HandleRow)] == [t.attributes(b"a").inode]


def test_a_successor_opens_what_stays_open() -> None:
    m, t = mount(), tree()
    opened(m, t)
    b = m.open(m.walk(t, b"b"))
    assert b
    successor = mount()
    successor.t.restore(m.t.ledger.everything(), 2)
    successor.t.resume(successor.now)
    successor.tick(lazily.LINGERS)
    assert operations(successor) == ["open"]


def test_a_successor_does_not_take_another_file_for_it() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    successor = mount()
    successor.t.restore(m.t.ledger.everything(), 2)
    number = successor.ask(op.Read(node, handle, 0, 9))
    successor.reply(successor.sent[-1].id, wire.OpenedFile(7, attributes(999)))
    assert successor.answer(number) == op.Failed(ESTALE)
    number = successor.ask(op.Read(node, handle, 0, 9))
    successor.reply(successor.sent[-1].id, Errno("ENOENT"))
    assert successor.answer(number) == op.Failed(ESTALE)
    number = successor.ask(op.Getattr(node, handle))
    successor.reply(successor.sent[-1].id, Errno("EIO"))
    assert successor.answer(number) == op.Failed(EIO)


@pytest.mark.parametrize("what", ["opendir", "open"])
def test_what_a_process_before_may_have_had_opened_is_asked_for_under_its_number(what: str) -> None:
    """Whoever opened it here instead would leave open what the client has opened."""
    m, t = mount(), tree()
    m.known(t)
    request = op.Opendir(ROOT, 0) if what == "opendir" else op.Open(m.walk(t, b"a"), O_RDONLY)
    number = m.number + 2
    successor = mount()
    successor.t.restore([*m.t.ledger.everything(), Asked(number, b"raw")], 2)
    successor.number = number
    successor.known(t)
    successor.see(t, op.Lookup(ROOT, b"a"))
    successor.clear()
    successor.number = number - 2
    assert successor.ask(request) == number
    assert [(frame.id, frame.operation) for frame in successor.sent] == [(number, what)]
    assert not successor.t.ledger.before


def test_a_successor_closes_what_a_process_before_may_have_had_opened() -> None:
    m, t = mount(), tree()
    node, handle = opened(m, t)
    successor = mount()
    successor.t.restore(m.t.ledger.everything(), 2)
    assert successor.see(t, op.Release(node, handle)) == op.Done()
    assert operations(successor) == ["open", "release"]
    assert successor.arguments == wire.Release(t.attributes(b"a").inode)


def test_while_the_client_is_away_nothing_is_opened() -> None:
    m, t = mount(), tree()
    opened(m, t)
    m.t.suspend(m.now)
    m.gather()
    m.clear()
    m.tick(lazily.LINGERS)
    assert m.sent == []


def test_a_row_of_what_is_only_open_here_is_taken_as_it_is() -> None:
    rows = [NodeRow(2, 1, b"a", (7, 5, 0o100000), 1, "", 0, False), HandleRow(3, 2, b"a", -3, 0, False, 1.0, 1, 1, 0, 0, 0, 0)]
    m = mount()
    m.t.restore(rows, 2)
    handle = m.t.handles.get(3)
    assert handle is not None
    assert handle.pinned is None
    assert journal.handle_row(handle) == rows[1]

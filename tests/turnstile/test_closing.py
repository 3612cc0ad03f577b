"""turnstile/closing.py: close(2) of one descriptor and of the last one; and of which closes the kernel need not tell
(turnstile/files.py)."""

import pytest
from harness.sansio import (
    CALLER,
    EVERYTHING,
    FMODE_EXEC,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    ROOT,
    Errno,
    Mount,
    Tree,
    attributes,
)

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.tree import posix_locks
from fuse_gated.tree.journal import HandleGone, HandleRow
from fuse_gated.turnstile import effects
from fuse_gated.wire import messages


def failed(answer):
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


class Opened:
    """A mount with one open file."""

    def __init__(self, flags=O_RDWR, rules=EVERYTHING, **options):
        self.mount = Mount(rules, **options)
        self.node = self.mount.lookup(b"f", inode=21)
        self.handle = self.mount.open(self.node, flags, remote=77)
        self.mount.clear()

    def read(self, *results, offset=0, size=10):
        return self.mount.do(op.Read(self.node, self.handle, offset, size), *results)

    def write(self, *results, offset=0, data=b"hello"):
        return self.mount.do(op.Write(self.node, self.handle, offset, data, False, append=False), *results)


def test_a_close_asks_the_client_only_where_something_could_fail():
    opened = Opened()
    mount, flush = opened.mount, op.Flush(opened.node, opened.handle, 9)
    assert mount.do(flush) == op.Done()
    opened.read(b"x")
    assert mount.do(flush) == op.Done()
    assert [frame.operation for frame in mount.sent] == ["read"]
    opened.write(5)
    assert failed(mount.do(flush, Errno("ENOSPC"))) == "ENOSPC", "what could not be written is told"
    assert mount.do(flush, None) == op.Done()
    assert mount.arguments == messages.Flush(77, 9)
    mount.clear()
    assert mount.do(flush) == op.Done()
    assert mount.sent == []


def test_a_close_by_who_has_locks_gives_them_up():
    opened = Opened()
    mount = opened.mount
    mount.do(op.Setlk(opened.node, opened.handle, 9, 0, 10, 1, 4321, False, False), None)
    assert mount.do(op.Flush(opened.node, opened.handle, 8)) == op.Done(), "another owner's"
    assert mount.do(op.Flush(opened.node, opened.handle, 9), None) == op.Done()
    assert mount.arguments == messages.Flush(77, 9)
    assert mount.do(op.Flush(opened.node, opened.handle, 9)) == op.Done()


def test_copied_data_is_unflushed_too():
    opened = Opened()
    other = opened.mount.open(opened.node, remote=78)
    opened.mount.do(op.CopyFileRange(opened.node, opened.handle, 0, opened.node, other, 6, 5), 5)
    opened.mount.do(op.Flush(opened.node, other, 9), None)
    assert opened.mount.arguments == messages.Flush(78, 9)


@pytest.mark.parametrize("level", ["denials", "writes", "opens", "everything"])
@pytest.mark.parametrize("wrote", [False, True])
def test_reads_and_writes_are_told_once_when_the_file_is_closed(level, wrote):
    opened = Opened(audit=level)
    mount = opened.mount
    opened.read(b"abc")
    opened.read(b"de")
    if wrote:
        opened.write(5)
        mount.do(op.Fallocate(opened.node, opened.handle, 0, 10, 0), None)
    mount.clear()
    mount.now += 2.5
    mount.do(op.Rename(ROOT, b"f", ROOT, b"g", 0), None)
    mount.clear()
    mount.do(op.Release(opened.node, opened.handle))
    if level == "denials" or (level == "writes" and not wrote):
        assert mount.records == []
        return
    (record,) = mount.records
    assert (record.kind, record.operation, record.decision, record.path) == ("file-closed", "release", "allowed", b"g")
    assert (record.uid, record.pid, record.duration_usec) == (CALLER.uid, CALLER.pid, 2_500_000)
    assert (record.count, record.bytes) == ((4, 10) if wrote else (2, 5))
    assert record.detail == f"read 5 bytes in 2, wrote {5 if wrote else 0} bytes in {2 if wrote else 0}"
    assert mount.story == ["tell file-closed release /g", "send release", "answer Done"]


def test_locks_of_the_open_file_itself_are_given_up_before_it_is_closed():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    one, other = mount.open(node, remote=70), mount.open(node, remote=71)
    for handle, owner in ((one, 9), (one, 8), (other, 7)):
        mount.do(op.Setlk(node, handle, owner, 0, 10, 0, 4321, False, False), None)
    mount.clear()
    mount.do(op.Release(node, one))
    assert [frame.arguments for frame in mount.sent] == [messages.Flush(70, 8), messages.Flush(70, 9), messages.Release(70)]
    assert len(mount.t.handles.locks) == 1


def test_nobody_waits_for_the_client_to_close():
    opened = Opened()
    assert opened.mount.do(op.Release(opened.node, opened.handle)) == op.Done()
    assert opened.mount.arguments == messages.Release(77)
    number = opened.mount.sent[-1].id
    assert number % 2 == 1
    opened.mount.clear()
    opened.mount.reply(number, Errno("EIO"))
    assert opened.mount.log == []
    assert not opened.mount.t.session.busy


def test_a_close_that_the_client_never_answers_is_forgotten():
    opened = Opened()
    opened.mount.do(op.Release(opened.node, opened.handle))
    opened.mount.clear()
    opened.mount.tick(31)
    assert opened.mount.story == ["cancel"]


# Closes that the kernel need not tell of.


def known(**options):
    """A mount, what is in it, and a file whose content is known."""
    mount, tree = Mount(watches=True, **options), Tree({b"f": b"content"})
    mount.known(tree)
    node = mount.walk(tree, b"f")
    closed(mount, tree, node, opened(mount, tree, node))
    mount.clear()
    return mount, tree, node


def opened(mount, tree, node, flags=O_RDONLY):
    answer = mount.see(tree, op.Open(node, flags))
    assert isinstance(answer, op.Opened), answer
    return answer


def closed(mount, tree, node, answer):
    assert mount.see(tree, op.Release(node, answer.handle)) == op.Done()


@pytest.mark.parametrize(
    ("flags", "quiet"),
    [(O_RDONLY, True), (FMODE_EXEC, True), (O_WRONLY, False), (O_RDWR, False), (O_RDONLY | O_TRUNC, False)],
)
@pytest.mark.parametrize("cached", [False, True])
def test_only_of_what_is_only_read_no_close_is_told(flags, quiet, cached):
    mount, tree, node = known()
    if not cached:
        mount.t.cache.room = 0
    assert opened(mount, tree, node, flags).no_flush is quiet


@pytest.mark.parametrize("level", ["denials", "writes", "opens", "everything"])
def test_each_close_is_told_where_everything_is(level):
    mount, tree, node = known(audit=level)
    assert opened(mount, tree, node).no_flush is (level != "everything")


def test_what_was_just_made_may_have_an_error_to_tell():
    """Its times and its mode are set ahead (turnstile/ahead.py), even through a descriptor that can only read."""
    answer = Mount().do(op.Create(ROOT, b"new", O_RDONLY, 0o644, 0), messages.OpenedFile(5, attributes(9)))
    assert isinstance(answer, op.Created)
    assert not answer.opened.no_flush


def test_a_driver_without_nodes_tells_of_each():
    mount, tree = Mount(watches=True), Tree({b"f": b"content"})
    assert not opened(mount, tree, b"f").no_flush


@pytest.mark.parametrize("how", ["given", "refused", "waited for", "asked about", "flock"])
def test_once_anybody_wanted_a_lock_each_close_is_told(how):
    """A close gives up the locks that the process has on the file, through whichever descriptor (fcntl(2))."""
    mount, tree, node = known()
    holder = opened(mount, tree, node, O_RDWR)
    match how:
        case "given":
            mount.see(tree, op.Setlk(node, holder.handle, 9, 0, 10, 1, 4321, False, False))
        case "refused":
            mount.do(op.Setlk(node, holder.handle, 9, 0, 10, 1, 4321, False, False), Errno("EAGAIN"))
        case "waited for":
            mount.ask(op.Setlk(node, holder.handle, 9, 0, 10, 1, 4321, True, False))
        case "flock":
            mount.see(tree, op.Setlk(node, holder.handle, 9, 0, 10, 1, 4321, False, True))
        case _:
            mount.do(op.Getlk(node, holder.handle, 9, 0, 10, 1, 4321), messages.LockState(2))
    quiet = how in ("asked about", "flock")
    assert opened(mount, tree, node).no_flush is quiet
    if how == "given":
        mount.see(tree, op.Flush(node, holder.handle, 9))
        assert not opened(mount, tree, node).no_flush, "who has locked it may lock it again while it is open"


def test_where_too_many_locks_were_wanted_each_close_is_told(monkeypatch):
    mount, tree, node = known()
    monkeypatch.setattr(posix_locks, "MOST_REMEMBERED", 2)
    mount.t.handles.locks.wants(4711)
    assert opened(mount, tree, node).no_flush
    mount.t.handles.locks.wants(4712)
    assert not opened(mount, tree, node).no_flush


@pytest.mark.parametrize("others", [False, True])
def test_a_lock_that_was_taken_where_no_close_is_told_goes_with_the_last_descriptor(others):
    mount, tree, node = known()
    answer = opened(mount, tree, node)
    assert answer.no_flush
    if others:
        opened(mount, tree, node, O_RDWR)
    mount.see(tree, op.Setlk(node, answer.handle, 9, 0, 10, 0, 4321, False, False))
    mount.clear()
    closed(mount, tree, node, answer)
    remote = tree.attributes(b"f").inode
    assert [frame.arguments for frame in mount.sent] == [messages.Flush(remote, 9), messages.Release(remote)]
    assert len(mount.t.handles.locks) == 0


def test_who_has_taken_locks_through_another_descriptor_keeps_them():
    mount, tree, node = known()
    quiet = opened(mount, tree, node)
    mount.see(tree, op.Setlk(node, quiet.handle, 9, 0, 10, 0, 4321, False, False))
    other = opened(mount, tree, node, O_RDWR)
    mount.see(tree, op.Setlk(node, other.handle, 9, 20, 30, 0, 4321, False, False))
    mount.clear()
    closed(mount, tree, node, quiet)
    assert messages.Flush not in [type(frame.arguments) for frame in mount.sent]
    assert len(mount.t.handles.locks) == 2
    mount.clear()
    assert mount.see(tree, op.Flush(node, other.handle, 9)) == op.Done()
    assert messages.Flush in [type(frame.arguments) for frame in mount.sent]
    assert len(mount.t.handles.locks) == 0


# Again, by a successor.


def rows_of(mount):
    """What a successor was told with the last answer."""
    return [effect for effect in mount.log if isinstance(effect, effects.Answer)][-1].rows


def test_a_successor_gives_the_same_handle_and_closes_it_once():
    mount, tree, node = known()
    rows = list(mount.t.ledger.everything())
    number = mount.ask(op.Open(node, O_RDONLY))
    answer, told = mount.answer(number), rows_of(mount)
    assert [type(row) for row in told] == [HandleRow], "no more than where it is said already"
    successor = Mount(watches=True)
    successor.t.restore([*rows, *told], 2)
    successor.t.ledger.before.add(number)
    successor.number = number - 2
    assert successor.see(tree, op.Open(node, O_RDONLY)) == op.Opened(answer.handle), "the kernel may keep less"
    assert len(successor.t.handles) == 1

    number = mount.ask(op.Release(node, answer.handle))
    gone = rows_of(mount)
    assert [type(row) for row in gone] == [HandleGone]
    another = Mount(watches=True)
    another.t.restore([*rows, *told, *gone], 2)
    another.t.ledger.before.add(number)
    another.number = number - 2
    assert another.see(tree, op.Release(node, answer.handle)) == op.Done()
    assert failed(another.see(tree, op.Release(node, answer.handle))) == "EBADF", "and nothing else is closed twice"

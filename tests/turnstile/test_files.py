"""turnstile/files.py: open, create, read, write, and what belongs to open files."""

import pytest
from harness.sansio import (
    CALLER,
    DIRECTORY,
    EVERYTHING,
    FIFO,
    FMODE_EXEC,
    O_APPEND,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    ROOT,
    Errno,
    Mount,
    attributes,
)

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Limits
from fuse_gated.gate.verdict import EXECUTE, READ, WRITE, Rule
from fuse_gated.turnstile.limits import Limits as Bounds
from fuse_gated.wire import messages
from fuse_gated.wire.messages import (
    OPEN_DSYNC,
    OPEN_EXCLUSIVE,
    OPEN_READ,
    OPEN_SYNC,
    OPEN_TRUNCATE,
    OPEN_WRITE,
    OpenedFile,
    Owner,
)

O_EXCL, O_DSYNC, O_SYNC, O_NONBLOCK = 0o200, 0o10000, 0o4010000, 0o4000


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

    def write(self, *results, offset=0, data=b"hello", from_cache=False, append=False):
        return self.mount.do(op.Write(self.node, self.handle, offset, data, from_cache, append=append), *results)


# Opening.


@pytest.mark.parametrize(
    ("flags", "wire"),
    [
        (O_RDONLY, OPEN_READ),
        (O_WRONLY, OPEN_WRITE),
        (O_RDWR, OPEN_READ | OPEN_WRITE),
        (O_RDWR | O_TRUNC, OPEN_READ | OPEN_WRITE | OPEN_TRUNCATE),
        (O_WRONLY | O_EXCL, OPEN_WRITE | OPEN_EXCLUSIVE),
        (O_WRONLY | O_SYNC, OPEN_WRITE | OPEN_SYNC),
        (O_WRONLY | O_DSYNC, OPEN_WRITE | OPEN_DSYNC),
        (O_RDONLY | FMODE_EXEC | O_NONBLOCK, OPEN_READ),
        (O_WRONLY | O_APPEND, OPEN_WRITE),
    ],
)
def test_flags_become_the_wires_own(flags, wire):
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    mount.do(op.Open(node, flags, True), OpenedFile(77, attributes(21)))
    assert mount.arguments == messages.Open(b"f", wire, True)
    mount.do(op.Create(ROOT, b"g", flags, 0o100644, 0o22), OpenedFile(78, attributes(22)))
    assert mount.arguments == messages.Create(b"g", wire, 0o644, None)


def test_what_is_open_is_opened_anew_by_its_handle():
    opened = Opened()
    opened.mount.open(opened.node, remote=78)
    assert opened.mount.arguments == messages.Open(77, OPEN_READ | OPEN_WRITE)


def test_executing_needs_execute_and_reading_does_not():
    mount = Mount([Rule("/x", allow=EXECUTE), Rule("/r", allow=READ)])
    x, r = mount.lookup(b"x", inode=21), mount.lookup(b"r", inode=22)
    assert mount.open(x, FMODE_EXEC)
    assert mount.open(r, O_RDONLY)
    assert failed(mount.do(op.Open(x, O_RDONLY))) == "EACCES"
    assert failed(mount.do(op.Open(r, FMODE_EXEC))) == "EACCES"


def test_truncating_is_writing_whatever_it_is_opened_for():
    mount = Mount([Rule("/**", allow=READ)])
    assert failed(mount.do(op.Open(mount.lookup(b"f"), O_RDONLY | O_TRUNC))) == "EACCES"


@pytest.mark.parametrize("truncating", [False, True])
def test_other_names_of_a_truncated_file_are_looked_at_again(truncating):
    mount = Mount()
    a, b = mount.lookup(b"a", inode=21, nlink=2), mount.lookup(b"b", inode=21, nlink=2)
    mount.clear()
    mount.open(a, O_WRONLY | (O_TRUNC if truncating else 0))
    story = [word for word in mount.story if word.startswith("forget")]
    # What was opened is followed to the letter from here on.
    assert story.pop(0) == f"forget attributes of {a}"
    assert story == ([f"forget attributes of {b}", f"forget {b}"] if truncating else [])


def test_another_file_at_the_same_path_is_stale_and_given_back():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    mount.clear()
    assert failed(mount.do(op.Open(node, O_RDONLY), OpenedFile(77, attributes(22)))) == "ESTALE"
    assert mount.arguments == messages.Release(77)
    assert mount.story == ["send open", "send release", "answer ESTALE"]
    assert len(mount.t.handles) == 0


def test_what_is_created_belongs_to_its_maker_where_ownership_is_passed_through():
    mount = Mount(ownership="passthrough")
    created = mount.do(op.Create(ROOT, b"g", O_RDWR, 0o644, 0), OpenedFile(77, attributes(22)))
    assert mount.arguments.owner == Owner(CALLER.uid, CALLER.gid)
    assert mount.t.handles.get(created.opened.handle).node.id == created.entry.node


@pytest.mark.parametrize("kind", [DIRECTORY, FIFO])
def test_what_was_created_as_a_file_and_is_none_is_given_back_and_looked_up_again(kind):
    mount = Mount()
    assert failed(mount.do(op.Create(ROOT, b"g", O_RDWR, 0o644, 0), OpenedFile(77, attributes(22, kind)))) == "ESTALE"
    assert mount.arguments == messages.Release(77)
    assert len(mount.t.inodes) == 1


def test_creating_is_also_opening():
    mount = Mount([Rule("/**", allow=WRITE)])
    assert failed(mount.do(op.Create(ROOT, b"g", O_RDWR, 0o644, 0))) == "EACCES"
    assert isinstance(mount.do(op.Create(ROOT, b"g", O_WRONLY, 0o644, 0), OpenedFile(77, attributes(22))), op.Created)


def test_no_more_files_are_open_than_the_policy_allows_however_many_are_asked_for_at_once():
    mount = Mount(limits=Limits(open_files=3))
    f, d = mount.lookup(b"f", inode=21), mount.lookup(b"d", DIRECTORY, inode=22)
    mount.clear()
    mount.open(f)
    numbers = [mount.ask(op.Open(f, O_RDONLY)), mount.ask(op.Opendir(d, 0)), mount.ask(op.Create(ROOT, b"g", O_RDWR, 0, 0))]
    assert failed(mount.answer(numbers[2])) == "EMFILE"
    assert mount.records[-1].kind == "limited"
    mount.reply(numbers[0], Errno("EIO"))
    handle = mount.do(op.Open(f, O_RDONLY), OpenedFile(78, attributes(21))).handle
    assert failed(mount.do(op.Opendir(d, 0))) == "EMFILE"
    assert failed(mount.do(op.Open(f, O_RDONLY))) == "EMFILE"
    mount.do(op.Release(f, handle))
    assert mount.open(f, remote=79)


# Reading and writing.


def test_data_is_read_by_the_clients_handle():
    opened = Opened()
    assert opened.read(b"hello", offset=2**40, size=2**21) == op.Data(b"hello")
    assert opened.mount.arguments == messages.Read(77, 2**40, 2**20)
    assert opened.read(b"") == op.Data(b"")
    assert opened.mount.t.statistics.bytes_read == 5


@pytest.mark.parametrize("number", [0, 999])
def test_a_handle_that_was_never_given_out_is_bad(number):
    opened = Opened()
    opened.handle = number
    mount, node = opened.mount, opened.node
    for request in (
        op.Read(node, number, 0, 1), op.Write(node, number, 0, b"x"), op.Flush(node, number, 1), op.Release(node, number),
        op.Fsync(node, number, False), op.Lseek(node, number, 0, 3), op.Fallocate(node, number, 0, 1, 0),
        op.CopyFileRange(node, number, 0, node, number, 0, 1), op.Getlk(node, number, 1, 0, 1, 0, 1),
        op.Setlk(node, number, 1, 0, 1, 0, 1, False, False), op.Readdir(node, number, 0, 4096, True),
        op.Releasedir(node, number), op.Fsyncdir(node, number, False),
    ):  # fmt: skip
        assert failed(mount.do(request)) == "EBADF"
    assert mount.log == [effect for effect in mount.log if type(effect).__name__ == "Answer"]


def test_data_is_written_and_less_than_all_is_no_fault():
    opened = Opened()
    assert opened.write(3) == op.Count(3)
    assert opened.mount.arguments == messages.Write(77, 0, memoryview(b"hello"))
    assert opened.mount.t.statistics.bytes_written == 3


@pytest.mark.parametrize(
    ("flags", "from_cache", "now", "append"),
    [
        (O_RDWR, False, False, False),
        (O_RDWR, False, True, True),
        (O_APPEND | 1, False, True, True),
        (O_APPEND | 1, False, False, False),
        (O_APPEND | 1, True, True, False),
    ],
)
def test_appending_is_as_the_descriptor_is_now_and_not_for_pages_that_are_written_back(flags, from_cache, now, append):
    opened = Opened(flags)
    opened.write(5, from_cache=from_cache, append=now)
    assert opened.mount.arguments.append is append


def test_what_was_opened_for_reading_is_not_written():
    opened = Opened(O_RDONLY)
    assert failed(opened.write()) == "EBADF"
    assert failed(opened.mount.do(op.Fallocate(opened.node, opened.handle, 0, 10, 0))) == "EBADF"


def test_other_names_of_a_written_file_are_looked_at_again_and_their_pages_awaited_before_the_answer():
    mount = Mount()
    a, b = mount.lookup(b"a", inode=21, nlink=2), mount.lookup(b"b", inode=21, nlink=2)
    handle = mount.open(a)
    mount.clear()
    mount.do(op.Write(a, handle, 0, b"hello"), 5)
    assert mount.story == ["send write", f"forget attributes of {b}", f"forget {b}", "answer Count"]
    mount.clear()
    mount.do(op.CopyFileRange(a, handle, 0, a, handle, 100, 5), 5)
    assert mount.story == ["send copy_file_range", f"forget attributes of {b}", f"forget {b}", "answer Count"]
    mount.clear()
    mount.do(op.Fallocate(a, handle, 0, 5, 0), None)
    assert mount.story == ["send fallocate", f"forget attributes of {b}", f"forget {b}", "answer Done"]


def test_data_is_sent_out_of_the_drivers_buffer_and_copied_only_where_it_waits():
    opened = Opened(bounds=Bounds(max_in_flight=1))
    buffer = bytearray(b"first")
    first = opened.mount.ask(op.Write(opened.node, opened.handle, 0, memoryview(buffer)))
    assert opened.mount.sent[-1].arguments.data.obj is buffer
    waiting = opened.mount.ask(op.Write(opened.node, opened.handle, 5, memoryview(buffer)))
    buffer[:] = b"later"
    opened.mount.reply(first, 5)
    assert opened.mount.sent[-1].id == waiting
    assert opened.mount.sent[-1].arguments.data == b"first"


def test_no_file_is_written_beyond_what_the_policy_allows():
    opened = Opened(limits=Limits(file_size=1000))
    mount, node, handle = opened.mount, opened.node, opened.handle
    other = mount.open(node, remote=78)
    mount.clear()
    assert failed(opened.write(offset=996)) == "EFBIG"
    assert failed(mount.do(op.Fallocate(node, handle, 900, 101, 0))) == "EFBIG"
    assert failed(mount.do(op.CopyFileRange(node, handle, 0, node, other, 990, 11))) == "EFBIG"
    assert mount.sent == []
    assert [(record.kind, record.path) for record in mount.records] == [("limited", b"f")] * 3
    assert opened.write(5, offset=995) == op.Count(5)
    assert mount.do(op.Fallocate(node, handle, 900, 100, 0), None) == op.Done()
    assert mount.do(op.Fallocate(node, handle, 900, 2**40, 3), None) == op.Done(), "a hole makes no file larger"


def test_where_an_append_ends_only_the_client_knows():
    opened = Opened(O_APPEND | 1, limits=Limits(file_size=1000))
    assert opened.write(5, offset=10**6, append=True) == op.Count(5)
    assert opened.mount.arguments.append is True
    assert opened.mount.arguments.most == 1000
    opened.mount.clear()
    assert failed(opened.write(Errno("EFBIG"), append=True)) == "EFBIG"
    assert [(record.kind, record.errno, record.path) for record in opened.mount.records] == [("limited", "EFBIG", b"f")]
    opened.mount.clear()
    assert failed(opened.write(Errno("ENOSPC"), append=True)) == "ENOSPC"
    assert opened.mount.records == []


@pytest.mark.parametrize(("uid", "clears"), [(0, False), (1000, True)])
def test_setuid_and_setgid_go_where_anybody_but_root_changes_the_contents(uid, clears):
    opened = Opened()
    other = opened.mount.open(opened.node, remote=78)
    caller = op.Caller(uid, uid, 5)
    opened.mount.do(op.Fallocate(opened.node, opened.handle, 0, 10, 0), None, caller=caller)
    assert opened.mount.arguments.clear_setid is clears
    opened.mount.do(op.CopyFileRange(opened.node, opened.handle, 0, opened.node, other, 6, 5), 5, caller=caller)
    assert opened.mount.arguments.clear_setid is clears


def test_a_copy_is_cut_to_what_ends_in_time():
    opened = Opened()
    other = opened.mount.open(opened.node, remote=78)
    request = op.CopyFileRange(opened.node, opened.handle, 5, opened.node, other, 6, 2**62)
    assert opened.mount.do(request, 100) == op.Count(100)
    asked = opened.mount.arguments
    assert (asked.handle, asked.offset, asked.to_handle, asked.to_offset) == (77, 5, 78, 6)
    assert asked.length == 128 * 2**20


def test_a_copy_needs_read_at_one_end_and_write_at_the_other():
    mount = Mount()
    a, b = mount.lookup(b"a", inode=21), mount.lookup(b"b", inode=22)
    source, target = mount.open(a, O_RDONLY, remote=70), mount.open(b, O_WRONLY, remote=71)
    assert mount.do(op.CopyFileRange(a, source, 0, b, target, 0, 5), 5) == op.Count(5)
    assert failed(mount.do(op.CopyFileRange(b, target, 0, a, source, 0, 5))) == "EBADF"


@pytest.mark.parametrize(("whence", "hole"), [(3, False), (4, True)])
def test_data_and_holes_are_looked_for(whence, hole):
    opened = Opened()
    assert opened.mount.do(op.Lseek(opened.node, opened.handle, 5, whence), 7) == op.Position(7)
    assert opened.mount.arguments == messages.Lseek(77, 5, hole)


def test_nothing_else_is_looked_for():
    opened = Opened()
    for whence in (0, 1, 2, 5):
        assert failed(opened.mount.do(op.Lseek(opened.node, opened.handle, 0, whence))) == "EINVAL"


def test_nothing_lies_before_the_beginning():
    opened = Opened()
    assert failed(opened.mount.do(op.Lseek(opened.node, opened.handle, -1, 3))) == "ENXIO"
    assert opened.mount.sent == []


# Syncing.


@pytest.mark.parametrize("data_only", [False, True])
def test_a_file_is_made_to_last(data_only):
    opened = Opened()
    assert opened.mount.do(op.Fsync(opened.node, opened.handle, data_only), None) == op.Done()
    assert opened.mount.arguments == messages.Fsync(77, data_only)


# A policy that changes under open files.


def test_what_is_open_is_judged_again_once_after_the_policy_changed():
    opened = Opened()
    opened.mount.apply(EVERYTHING)
    opened.mount.clear()
    assert opened.read(b"x") == op.Data(b"x")
    assert opened.mount.t.handles.get(opened.handle).generation == 1


def test_of_what_was_opened_for_both_what_is_still_allowed_goes_on():
    opened = Opened(O_RDWR)
    mount = opened.mount
    mount.apply([Rule("/**", allow=READ)])
    assert opened.read(b"x") == op.Data(b"x")
    assert failed(opened.write()) == "EACCES"
    mount.apply([Rule("/**", allow=WRITE)])
    assert failed(opened.read()) == "EACCES"
    assert opened.write(5) == op.Count(5)
    mount.apply([])
    mount.clear()
    assert failed(opened.read()) == failed(opened.write()) == "EACCES"
    assert [record.kind for record in mount.records] == ["refused", "refused"], "every time"
    mount.apply(EVERYTHING)
    assert opened.read(b"x") == op.Data(b"x")


def test_what_was_opened_to_execute_is_judged_as_that():
    opened = Opened(FMODE_EXEC)
    opened.mount.apply([Rule("/**", allow=EXECUTE)])
    assert opened.read(b"x") == op.Data(b"x")
    opened.mount.apply([Rule("/**", allow=READ)])
    assert failed(opened.read()) == "EACCES"


def test_what_was_truncated_when_it_was_opened_is_not_judged_as_truncating():
    opened = Opened(O_RDONLY | O_TRUNC)
    opened.mount.apply([Rule("/**", allow=READ)])
    assert opened.read(b"x") == op.Data(b"x")


@pytest.mark.parametrize("create", [False, True])
def test_what_was_judged_before_the_policy_changed_is_judged_again_although_it_was_opened_after(create):
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    number = mount.ask(op.Create(ROOT, b"f", O_RDWR, 0o644, 0) if create else op.Open(node, O_RDWR))
    mount.apply([])
    mount.reply(number, OpenedFile(77, attributes(21)))
    answer = mount.answer(number)
    handle = answer.opened.handle if create else answer.handle
    assert failed(mount.do(op.Read(node, handle, 0, 5))) == "EACCES"


def test_what_is_open_is_judged_where_it_is_now():
    opened = Opened()
    opened.mount.do(op.Rename(ROOT, b"f", ROOT, b"g", 0), None)
    opened.mount.apply([Rule("/g", allow=READ)])
    assert opened.read(b"x") == op.Data(b"x")
    opened.mount.apply([Rule("/f", allow=READ)])
    assert failed(opened.read()) == "EACCES"

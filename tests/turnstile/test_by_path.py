"""A driver that names nodes by path (libfuse): what takes the nodes' part there."""

from harness.sansio import DIRECTORY, FIFO, O_RDONLY, O_RDWR, REGULAR, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import errno_number
from fuse_gated.gate.tenant import Limits as TenantLimits
from fuse_gated.gate.verdict import ALL, DELETE, READ, WRITE, Rule
from fuse_gated.wire import messages as wire

HIDDEN = b".fuse_hidden0000000200000001"
X_OK, R_OK = 1, 4
UNLOCK, WRITE_LOCK = 2, 1


def failed(name: str) -> op.Failed:
    return op.Failed(errno_number(name))


def look_up(mount: Mount, path: bytes, kind: int = REGULAR, inode: int = 5) -> None:
    parent, _, name = path.rpartition(b"/")
    answer = mount.do(op.Lookup(parent, name), attributes(inode, kind))
    assert isinstance(answer, op.Entry), answer


def opened(mount: Mount, path: bytes, flags: int = O_RDWR, remote: int = 77) -> int:
    answer = mount.do(op.Open(path, flags), wire.OpenedFile(remote, attributes(5)))
    assert isinstance(answer, op.Opened), answer
    return answer.handle


def last_sent(mount: Mount) -> wire.Arguments:
    found: wire.Arguments = mount.sent[-1].arguments
    return found


# Kinds.


def test_what_was_looked_up_is_renamed_as_what_it_is() -> None:
    """A directory may not move where the rules differ beneath it; a file may."""
    mount = Mount([Rule("/own/*/private", deny=READ), Rule("/**", allow=ALL)])
    look_up(mount, b"own/f")
    assert mount.do(op.Rename(b"own", b"f", b"", b"f", 0), None) == op.Done()
    look_up(mount, b"own/d", DIRECTORY)
    assert mount.do(op.Rename(b"own", b"d", b"", b"d", 0)) == failed("EXDEV")
    assert mount.do(op.Rename(b"own", b"unknown", b"", b"e", 0)) == failed("EXDEV"), "the stricter case"


def test_access_is_judged_by_what_was_looked_up() -> None:
    mount = Mount([Rule("/**", allow=READ)])
    look_up(mount, b"f")
    look_up(mount, b"d", DIRECTORY, 6)
    assert mount.do(op.Access(b"f", X_OK)) == failed("EACCES")
    assert mount.do(op.Access(b"d", X_OK), None) == op.Done()
    assert mount.do(op.Access(b"", R_OK), None) == op.Done()


def test_the_dots_have_the_numbers_of_their_directories() -> None:
    mount = Mount()
    look_up(mount, b"d", DIRECTORY, 40)
    look_up(mount, b"d/e", DIRECTORY, 41)

    def numbers(path: bytes) -> list[int]:
        handle = mount.do(op.Opendir(path, 0), wire.OpenedFile(9, attributes(1, DIRECTORY)))
        assert isinstance(handle, op.Opened)
        listing = mount.do(op.Readdir(b"", handle.handle, 0, 4096, False), wire.Listed((), True))
        assert isinstance(listing, op.Listing)
        return [entry.inode for entry in listing.entries]

    assert numbers(b"d/e") == [41, 40]
    assert numbers(b"d") == [40, 1]
    assert numbers(b"") == [1, 1]
    assert numbers(b"never/seen") == [1, 1]


def test_another_filesystem_has_numbers_of_its_own_from_the_first_look_at_the_root_on() -> None:
    mount = Mount()
    mount.t.inodes.root.identity = None
    assert isinstance(mount.do(op.Getattr(b""), attributes(1, DIRECTORY)), op.Attr)
    found = mount.do(op.Lookup(b"", b"f"), attributes(5, device=8))
    assert isinstance(found, op.Entry)
    assert found.attributes is not None
    assert found.attributes.inode != 5


# Handles.


def test_a_handle_that_nobody_has_is_not_the_root() -> None:
    mount = Mount()
    assert mount.do(op.Getattr(b"", 99)) == failed("EBADF")
    assert mount.do(op.Setattr(b"", 99, size=0)) == failed("EBADF")


def test_what_is_open_follows_its_name() -> None:
    mount = Mount(audit="opens")
    handle = opened(mount, b"d/f")
    assert mount.do(op.Rename(b"", b"d", b"", b"e", 0), None) == op.Done()
    mount.do(op.Release(b"", handle))
    assert [record.path for record in mount.records if record.kind == "file-closed"] == [b"e/f"]


def test_a_renamed_file_is_judged_by_its_new_name() -> None:
    mount = Mount()
    handle = opened(mount, b"f", O_RDONLY)
    mount.do(op.Rename(b"", b"f", b"", b"g", 0), None)
    mount.apply([Rule("/f", deny=READ), Rule("/**", allow=ALL)])
    assert mount.do(op.Read(b"", handle, 0, 5), b"hello") == op.Data(b"hello")
    mount.apply([Rule("/g", deny=READ), Rule("/**", allow=ALL)])
    assert mount.do(op.Read(b"", handle, 0, 5)) == failed("EACCES")


def test_the_record_of_a_refused_read_names_the_file() -> None:
    mount = Mount(limits=TenantLimits(operations={"read": 1.0}, on_excess="refuse"))
    handle = opened(mount, b"d/f")
    assert mount.do(op.Read(b"", handle, 0, 5), b"hello") == op.Data(b"hello")
    assert mount.do(op.Read(b"", handle, 0, 5)) == failed("EAGAIN")
    assert mount.records[-1].path == b"d/f"


def test_locks_follow_the_file() -> None:
    mount = Mount()
    handle = opened(mount, b"f")
    assert mount.do(op.Setlk(b"", handle, 9, 0, 10, WRITE_LOCK, 4321, False, False), None) == op.Done()
    mount.do(op.Rename(b"", b"f", b"", b"g", 0), None)
    assert mount.do(op.Flush(b"", handle, 9), None) == op.Done()
    assert isinstance(last_sent(mount), wire.Flush)


def test_giving_up_no_lock_asks_nobody() -> None:
    """libfuse gives up locks at every close(2)."""
    mount = Mount()
    handle = opened(mount, b"f")
    mount.clear()
    unlock = op.Setlk(b"", handle, 9, 0, 2**63 - 1, UNLOCK, 0, False, False)
    assert mount.do(unlock) == op.Done()
    mount.do(op.Setlk(b"", handle, 9, 0, 10, WRITE_LOCK, 4321, False, False), None)
    assert mount.do(unlock, None) == op.Done()
    assert mount.do(unlock) == op.Done()
    assert [type(frame.arguments) for frame in mount.sent] == [wire.Setlk, wire.Setlk]


# Files without a name.


def test_an_open_file_is_removed_and_lives_on() -> None:
    mount = Mount()
    handle = opened(mount, b"d/f")
    assert mount.do(op.Unlink(b"d", b"f", b"d/" + HIDDEN), None) == op.Done()
    assert last_sent(mount) == wire.Unlink(b"d/f")
    alias = b"d/" + HIDDEN
    assert isinstance(mount.do(op.Getattr(alias), attributes(5, nlink=0)), op.Attr)
    assert last_sent(mount) == wire.Getattr(77)
    mount.do(op.Setattr(alias, mode=0o600), attributes(5))
    assert last_sent(mount) == wire.Setattr(77, 0o600)
    mount.do(op.Setxattr(alias, b"user.a", b"b", 0), None)
    assert last_sent(mount) == wire.Setxattr(77, b"user.a", b"b")
    assert mount.do(op.Link(alias, b"", b"again")) == failed("ENOENT"), "it would be a new name for what the old one denied"
    again = mount.do(op.Open(alias, O_RDWR), wire.OpenedFile(78, attributes(5)))
    assert isinstance(again, op.Opened)
    mount.do(op.Release(b"", handle))
    mount.do(op.Getattr(alias), attributes(5))
    assert last_sent(mount) == wire.Getattr(78)
    mount.do(op.Release(b"", again.handle))
    mount.clear()
    assert mount.do(op.Unlink(b"d", HIDDEN)) == op.Done(), "its end, of which the client has long heard"
    assert mount.sent == []


def test_it_is_judged_as_the_removal_that_it_is() -> None:
    mount = Mount([Rule("/*.c", allow=READ | WRITE | DELETE), Rule("/**", allow=READ | WRITE)])
    opened(mount, b"a.c")
    opened(mount, b"a.h")
    assert mount.do(op.Unlink(b"", b"a.c", HIDDEN), None) == op.Done()
    assert mount.do(op.Unlink(b"", b"a.h", HIDDEN)) == failed("EACCES")
    assert [(record.operation, record.path) for record in mount.records[-1:]] == [("unlink", b"a.h")]


def test_a_file_that_is_not_open_is_not_hidden() -> None:
    """Somebody used libfuse's name: nothing is removed."""
    mount = Mount()
    assert mount.do(op.Unlink(b"", b"f", HIDDEN)) == failed("EACCES")
    assert mount.sent == []


def test_a_file_that_has_just_been_closed_is_removed() -> None:
    """libfuse takes it for open for a moment longer."""
    mount = Mount()
    handle = opened(mount, b"f")
    mount.do(op.Release(b"", handle))
    assert mount.do(op.Unlink(b"", b"f", HIDDEN), None) == op.Done()
    assert mount.do(op.Getattr(HIDDEN)) == failed("ENOENT")


def test_hidden_names_are_nobodys() -> None:
    mount = Mount()
    assert mount.do(op.Getattr(b"d/" + HIDDEN)) == failed("ENOENT")
    assert mount.do(op.Unlink(b"d", HIDDEN)) == op.Done(), "as after an alias' end"
    assert mount.sent == []


def test_a_removal_that_fails_hides_nothing() -> None:
    mount = Mount()
    handle = opened(mount, b"f")
    assert mount.do(op.Unlink(b"", b"f", HIDDEN), Errno("EIO")) == failed("EIO")
    mount.do(op.Rename(b"", b"f", b"", b"g", 0), None)
    assert mount.t.handles.path(mount.t.handle(handle)) == b"g"


def test_what_is_made_is_seen() -> None:
    mount = Mount([Rule("/**", allow=READ | WRITE)])
    assert isinstance(mount.do(op.Mknod(b"", b"p", 0o010644, 0, 0), attributes(8, FIFO)), op.Entry)
    assert mount.do(op.Access(b"p", X_OK)) == failed("EACCES"), "no directory"

import errno
import fcntl
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ALICE, need, outcome
from harness.leftovers import descriptors

from fuse_gated.edge.files import ELSEWHERE, LATER, Export
from fuse_gated.wire import messages as wire

READ, WRITE, TRUNCATE = wire.OPEN_READ, wire.OPEN_WRITE, wire.OPEN_TRUNCATE
BOTH = READ | WRITE


def answer(export: Export, arguments: wire.Arguments) -> str:
    return outcome(export.perform, arguments)


def opened(export: Export, path: bytes = b"file", flags: int = BOTH) -> int:
    return export.perform(wire.Open(path, flags)).handle


@pytest.fixture
def file(root: Path) -> Path:
    path = root / "file"
    path.write_bytes(b"0123456789")
    return path


@pytest.fixture
def handle(export: Export, file: Path) -> int:
    return opened(export)


def test_reading(export: Export, handle: int) -> None:
    for perform in (export.perform, lambda arguments: bytes(export.attempt(arguments))):
        assert perform(wire.Read(handle, 0, 4)) == b"0123"
        assert perform(wire.Read(handle, 8, 100)) == b"89"
        assert perform(wire.Read(handle, 10, 100)) == b""
        assert perform(wire.Read(handle, 0, 0)) == b""
        assert perform(wire.Read(handle, 2**62, 10)) == b""


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, wire.MAX_DATA + 1), (2**63 - 1, 1), (2**64 - 1, 1)])
def test_reads_that_make_no_sense(export: Export, handle: int, offset: int, size: int) -> None:
    assert answer(export, wire.Read(handle, offset, size)) == "EINVAL"
    assert outcome(export.attempt, wire.Read(handle, offset, size)) == "EINVAL"


def test_a_short_read_is_continued(export: Export, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 3), offset))
    assert export.perform(wire.Read(handle, 1, 8)) == b"12345678"
    assert export.perform(wire.Read(handle, 1, 100)) == b"123456789"


def test_what_is_not_cached_is_read_later(export: Export, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(number: int) -> Any:
        def preadv(*_: Any) -> int:
            raise OSError(number, os.strerror(number))

        return preadv

    for number in (errno.EAGAIN, errno.EOPNOTSUPP):
        monkeypatch.setattr(os, "preadv", refusing(number))
        assert export.attempt(wire.Read(handle, 0, 10)) is LATER
    monkeypatch.setattr(os, "preadv", refusing(errno.EIO))
    assert outcome(export.attempt, wire.Read(handle, 0, 10)) == "EIO"


def test_a_cold_file_is_read_by_a_thread(export: Export, file: Path) -> None:
    file.write_bytes(os.urandom(2**20))
    handle = opened(export)
    with file.open("rb") as cold:
        os.fsync(cold.fileno())
        os.posix_fadvise(cold.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert export.perform(wire.Read(handle, 0, 2**20)) == file.read_bytes()
    assert export.attempt(wire.Read(handle, 0, 2**20)) == file.read_bytes()


def test_writing(export: Export, handle: int, file: Path) -> None:
    assert export.perform(wire.Write(handle, 2, memoryview(b"ab"))) == 2
    assert export.perform(wire.Write(handle, 12, memoryview(b"end"))) == 3
    assert export.perform(wire.Write(handle, 0, memoryview(b"+"), append=True)) == 1
    assert export.perform(wire.Write(handle, 5, memoryview(b""))) == 0
    assert file.read_bytes() == b"01ab456789\0\0end+"


def test_appending_does_not_lose_what_others_append(export: Export, handle: int, file: Path) -> None:
    with file.open("ab", buffering=0) as other:
        for number in range(20):
            export.perform(wire.Write(handle, 0, memoryview(b"%d," % number), append=True))
            other.write(b"x")
    text = file.read_bytes()[10:]
    assert text == b"".join(b"%d,x" % number for number in range(20))


@pytest.mark.parametrize(
    ("arguments", "errno_name"),
    [
        (wire.Write(1, -1, memoryview(b"x")), "EINVAL"),
        (wire.Write(1, 2**63 - 1, memoryview(b"xx")), "EINVAL"),
        (wire.Write(1, 0, memoryview(b"x" * (wire.MAX_DATA + 1))), "EINVAL"),
        (wire.Write(99, 0, memoryview(b"x")), "EBADF"),
        (wire.Lseek(1, -1, False), "EINVAL"),
        (wire.Lseek(1, 10, False), "ENXIO"),
        (wire.Lseek(1, 2**63, True), "EINVAL"),
        (wire.Fallocate(1, 0, 0, 0), "EINVAL"),
        (wire.Fallocate(1, 0, -1, 0), "EINVAL"),
        (wire.Fallocate(1, -1, 1, 0), "EINVAL"),
        (wire.Fallocate(1, 1, 2**63 - 1, 0), "EFBIG"),
        (wire.Fallocate(1, 0, 10, 2), "EOPNOTSUPP"),
        (wire.Fallocate(1, 0, 10, 4), "EOPNOTSUPP"),
        (wire.Fallocate(1, 0, 10, -1), "EOPNOTSUPP"),
        (wire.CopyFileRange(1, -1, 1, 0, 1), "EINVAL"),
        (wire.CopyFileRange(1, 0, 1, -1, 1), "EINVAL"),
        (wire.CopyFileRange(1, 0, 1, 0, -1), "EINVAL"),
        (wire.CopyFileRange(1, 0, 1, 0, 2**63), "EINVAL"),
        (wire.CopyFileRange(1, 0, 2, 0, 1), "EBADF"),
        (wire.Flush(2, 0), "EBADF"),
        (wire.Release(2), "EBADF"),
        (wire.Releasedir(1), "EBADF"),
        (wire.Fsync(2, False), "EBADF"),
        (wire.Fsyncdir(1, False), "EBADF"),
        (wire.Readdir(1, 0, 10, False), "EBADF"),
        (wire.Open(b"file", 0), "EINVAL"),
        (wire.Open(b"file", TRUNCATE), "EINVAL"),
        (wire.Open(b"missing", READ), "ENOENT"),
        (wire.Open(b"", READ), "EISDIR"),
        (wire.Open(77, READ), "EBADF"),
        (wire.Opendir(b"file"), "ENOTDIR"),
        (wire.Opendir(b"missing"), "ENOENT"),
        (wire.Create(b"missing/x", WRITE, 0o644), "ENOENT"),
        (wire.Create(b"x", 0, 0o644), "EINVAL"),
        (wire.Create(b"file", WRITE | wire.OPEN_EXCLUSIVE, 0o644), "EEXIST"),
    ],
)
def test_what_makes_no_sense_is_refused(export: Export, handle: int, arguments: wire.Arguments, errno_name: str) -> None:
    assert handle == 1
    assert answer(export, arguments) == errno_name
    assert answer(export, wire.Read(handle, 0, 1)) == "ok"


def test_a_short_write_is_continued_or_told(export: Export, handle: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev
    room = 5

    def filling(fd: int, buffers: Any, offset: int, flags: int) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "full")
        data = buffers[0][: min(2, room)]
        room -= len(data)
        return pwritev(fd, [data], offset, flags)

    monkeypatch.setattr(os, "pwritev", filling)
    assert export.perform(wire.Write(handle, 0, memoryview(b"abcdefgh"))) == 5
    assert file.read_bytes() == b"abcde56789"
    assert answer(export, wire.Write(handle, 0, memoryview(b"abc"))) == "ENOSPC"
    room = 8
    assert export.perform(wire.Write(handle, 2, memoryview(b"ABCDEFGH"))) == 8
    assert file.read_bytes() == b"abABCDEFGH"


def test_a_limit_on_file_sizes_is_told(export: Export, handle: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        assert export.perform(wire.Write(handle, 90, memoryview(b"x" * 20))) == 10
        assert answer(export, wire.Write(handle, 100, memoryview(b"x"))) == "EFBIG"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_handles_do_what_they_were_opened_for(export: Export, file: Path) -> None:
    reader, writer = opened(export, flags=READ), opened(export, flags=WRITE)
    assert answer(export, wire.Write(reader, 0, memoryview(b"x"))) == "EBADF"
    assert answer(export, wire.Read(writer, 0, 1)) == "EBADF"
    assert answer(export, wire.Fallocate(reader, 0, 1, 0)) == "EBADF"
    assert answer(export, wire.Release(reader)) == "ok"
    assert answer(export, wire.Read(reader, 0, 1)) == "EBADF"
    assert export.open_handles == 1


def test_truncating_and_reopening(export: Export, file: Path, handle: int) -> None:
    file.rename(file.with_name("moved"))
    again = export.perform(wire.Open(handle, READ))
    assert export.perform(wire.Read(again.handle, 0, 4)) == b"0123"
    (file.with_name("moved")).unlink()
    cut = export.perform(wire.Open(handle, BOTH | TRUNCATE))
    assert (cut.attributes.size, cut.attributes.nlink) == (0, 0)
    assert export.perform(wire.Read(handle, 0, 4)) == b""


def test_creating(export: Export, root: Path) -> None:
    made = export.perform(wire.Create(b"new", BOTH | wire.OPEN_EXCLUSIVE, 0o602))
    assert made.attributes.mode == 0o100602
    assert export.perform(wire.Write(made.handle, 0, memoryview(b"text"))) == 4
    again = export.perform(wire.Create(b"new", READ, 0o777))
    assert (again.attributes.inode, again.attributes.mode, again.attributes.size) == (made.attributes.inode, 0o100602, 4)
    cut = export.perform(wire.Create(b"new", READ | TRUNCATE | wire.OPEN_SYNC | wire.OPEN_DSYNC, 0o777))
    assert cut.attributes.size == 0


def test_what_was_just_made_can_be_written_whatever_its_mode(export: Export, root: Path) -> None:
    made = export.perform(wire.Create(b"new", BOTH, 0o400))
    assert export.perform(wire.Write(made.handle, 0, memoryview(b"text"))) == 4
    assert made.attributes.mode == 0o100400


def test_creating_a_name_that_comes_and_goes(export: Export, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open

    def existing(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if flags & os.O_CREAT:
            raise FileExistsError(errno.EEXIST, "there")
        return really(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", existing)
    assert answer(export, wire.Create(b"new", WRITE, 0o644)) == "EAGAIN"


def test_special_files_are_never_opened(export: Export, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("fifo")
    if os.geteuid() == 0:
        os.mknod(root / "null", 0o20666, os.makedev(1, 3))
        os.mknod(root / "zero", 0o60666, os.makedev(7, 200))
    seen: list[int] = []
    really = os.open

    def watching(path: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        fd = really(path, flags, *arguments, **keywords)
        if not flags & os.O_PATH:
            seen.append(stat.S_IFMT(os.fstat(fd).st_mode))
        return fd

    monkeypatch.setattr(os, "open", watching)
    for name in [path.name.encode() for path in root.iterdir() if path.name != "link"]:
        for flags in (READ, WRITE, BOTH, BOTH | TRUNCATE):
            assert answer(export, wire.Open(name, flags)) == "ENXIO"
            assert answer(export, wire.Create(name, flags, 0o644)) == "ENXIO"
        assert answer(export, wire.Opendir(name)) == "ENOTDIR"
        assert answer(export, wire.Open(name + b"/x", READ)) == "ENOTDIR"
    assert answer(export, wire.Open(b"link", READ)) == "ELOOP"
    assert answer(export, wire.Create(b"link", WRITE, 0o644)) == "ELOOP"
    assert answer(export, wire.Opendir(b"link")) == "ENOTDIR"
    assert seen == []


def test_flushing_tells_what_close_tells(export: Export, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def full(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, "quota")

    export.perform(wire.Write(handle, 0, memoryview(b"x")))
    monkeypatch.setattr(os, "close", full)
    assert answer(export, wire.Flush(handle, 1)) == "EDQUOT"
    assert answer(export, wire.Flush(handle, 1)) == "ok"
    monkeypatch.undo()


def test_syncing(export: Export, handle: int) -> None:
    directory = export.perform(wire.Opendir(b"")).handle
    for data_only in (True, False):
        assert answer(export, wire.Fsync(handle, data_only)) == "ok"
        assert answer(export, wire.Fsyncdir(directory, data_only)) == "ok"
    assert answer(export, wire.Releasedir(directory)) == "ok"
    assert answer(export, wire.Fsyncdir(directory, False)) == "EBADF"


def test_syncing_a_directory_that_is_not_open(export: Export, root: Path) -> None:
    (root / "d").mkdir()
    (root / "l").symlink_to("d")
    before = len(os.listdir("/proc/self/fd"))
    for path in (b"", b"d"):
        for data_only in (True, False):
            arguments = wire.Fsyncdir(0, data_only, path)
            assert export.attempt(arguments) in (LATER, ELSEWHERE)
            assert export.perform(arguments) == export.perform(wire.Getattr(path))
    (root / "plain").touch()
    for path, expected in ((b"plain", "ENOTDIR"), (b"missing", "ENOENT"), (b"l", "ENOTDIR"), (b"l/x", "ENOTDIR")):
        assert answer(export, wire.Fsyncdir(0, False, path)) == expected
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_made_is_said_to_be(export: Export) -> None:
    made = export.perform(wire.Create(b"made", READ | WRITE, 0o644))
    again = export.perform(wire.Create(b"made", READ | WRITE, 0o644))
    assert (made.made, again.made, export.perform(wire.Open(b"made", READ)).made) == (True, False, False)


def test_directories_of_any_depth_are_listed(export: Export, root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").touch()
    found = export.perform(wire.Opendir(b"a/b"))
    assert found.attributes.inode == (root / "a" / "b").stat().st_ino
    assert [entry.name for entry in export.perform(wire.Readdir(found.handle, 0, 10, False)).entries] == [b"file"]
    assert answer(export, wire.Open(found.handle, READ)) == "EISDIR"
    assert answer(export, wire.Setattr(found.handle, size=0)) == "EISDIR"
    assert export.perform(wire.Getattr(found.handle)).nlink == 2


def test_holes(export: Export, handle: int, file: Path) -> None:
    export.perform(wire.Setattr(handle, size=0))
    export.perform(wire.Write(handle, 5 * 2**30, memoryview(b"far")))
    assert export.perform(wire.Lseek(handle, 0, False)) == 5 * 2**30
    assert export.perform(wire.Lseek(handle, 0, True)) == 0
    assert export.perform(wire.Lseek(handle, 5 * 2**30, True)) == 5 * 2**30 + 3
    assert answer(export, wire.Lseek(handle, 5 * 2**30 + 3, False)) == "ENXIO"
    assert file.stat().st_blocks < 100


def test_fallocate(export: Export, handle: int, file: Path) -> None:
    assert answer(export, wire.Fallocate(handle, 0, 8192, 1)) == "ok"
    assert file.stat().st_size == 10
    assert answer(export, wire.Fallocate(handle, 0, 8192, 0)) == "ok"
    assert file.stat().st_size == 8192
    assert answer(export, wire.Fallocate(handle, 0, 4, 3)) == "ok"
    assert file.read_bytes()[:10] == b"\0\0\0\x00456789"


def test_copying_a_range(export: Export, handle: int, root: Path) -> None:
    (root / "target").touch()
    target = opened(export, b"target")
    assert export.perform(wire.CopyFileRange(handle, 2, target, 3, 100)) == 8
    assert (root / "target").read_bytes() == b"\0\0\x0023456789"
    assert export.perform(wire.CopyFileRange(handle, 2, target, 3, 2**62)) == 8
    assert answer(export, wire.CopyFileRange(handle, 0, handle, 5, 10)) == "EINVAL"


def test_handles_are_limited(root: Path, file: Path) -> None:
    export = Export(root, max_handles=2)
    opened(export)
    directory = export.perform(wire.Opendir(b"")).handle
    assert answer(export, wire.Open(b"file", READ)) == "EMFILE"
    assert answer(export, wire.Opendir(b"")) == "EMFILE"
    assert answer(export, wire.Create(b"new", WRITE, 0o644)) == "EMFILE"
    assert not (root / "new").exists()
    export.perform(wire.Releasedir(directory))
    assert answer(export, wire.Create(b"new", WRITE, 0o644)) == "ok"
    export.close()


def test_setuid_is_lost_when_a_server_writes(export: Export, file: Path) -> None:
    need("root")
    file.chmod(0o6755)
    assert opened(export, flags=READ)
    assert stat.S_IMODE(file.stat().st_mode) == 0o6755
    assert export.perform(wire.Open(b"file", WRITE)).attributes.mode == 0o100755
    file.chmod(0o4755)
    assert export.perform(wire.Setattr(b"file", size=3)).mode == 0o100755
    file.chmod(0o4755)
    assert export.perform(wire.Open(b"file", READ | TRUNCATE)).attributes.mode == 0o100755


@pytest.mark.parametrize("cleared", [True, False])
@pytest.mark.parametrize("change", ["write", "fallocate", "copy", "truncate", "cut", "open"])
def test_a_trusted_server_says_when_setuid_goes(root: Path, file: Path, change: str, cleared: bool) -> None:
    """The server knows its caller; this process, which may be root's, would let every caller keep the bits."""
    need("root")
    export = Export(root, trust_server=True)
    handle = opened(export)
    file.chmod(0o6755)
    requests: dict[str, wire.Arguments] = {
        "write": wire.Write(handle, 0, memoryview(b"x"), clear_setid=cleared),
        "fallocate": wire.Fallocate(handle, 0, 100, 0, clear_setid=cleared),
        "copy": wire.CopyFileRange(handle, 0, handle, 5, 1, clear_setid=cleared),
        "truncate": wire.Setattr(handle, size=1, clear_setid=cleared),
        "cut": wire.Setattr(b"file", size=1, clear_setid=cleared),
        "open": wire.Open(b"file", BOTH | TRUNCATE, clear_setid=cleared),
    }
    assert answer(export, requests[change]) == "ok"
    assert stat.S_IMODE(file.stat().st_mode) == (0o755 if cleared else 0o6755)
    export.close()


def test_a_file_that_cannot_be_disarmed_is_not_opened(export: Export, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("root")
    file.chmod(0o4755)

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "immutable")

    monkeypatch.setattr(os, "fchmod", refused)
    before = descriptors()
    assert answer(export, wire.Open(b"file", WRITE)) == "EPERM"
    assert descriptors() == before


def test_the_kernel_decides_who_may_open(public_root: Path) -> None:
    need("root")
    (public_root / "secret").touch(0o600)

    def answers() -> list[str]:
        export = Export(public_root)
        return [
            answer(export, wire.Open(b"secret", READ)),
            answer(export, wire.Create(b"new", WRITE, 0o644)),
            answer(export, wire.Opendir(b"")),
        ]

    assert ALICE.call(answers) == ["EACCES", "EACCES", "ok"]


@pytest.fixture
def leased(file: Path) -> Iterator[int]:
    """A lease on the file, as Samba takes them; breaking it takes the holder's consent or 45 s."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(file, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    yield fd
    os.close(fd)
    signal.signal(signal.SIGIO, before)


def test_a_lease_does_not_hold_up_the_loop(root: Path, leased: int) -> None:
    export = Export(root)
    assert export.attempt(wire.Open(b"file", WRITE)) is LATER
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    assert isinstance(export.attempt(wire.Open(b"file", WRITE)), wire.OpenedFile)
    export.close()


def test_what_is_quick(export: Export, handle: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronous = opened(export, flags=BOTH | wire.OPEN_SYNC)
    assert export.attempt(wire.Write(handle, 0, memoryview(b"x"))) == 1
    assert export.attempt(wire.Write(synchronous, 0, memoryview(b"x"))) is LATER
    assert export.attempt(wire.Flush(handle, 1)) is None
    assert export.attempt(wire.Statfs()) is LATER
    assert export.attempt(wire.Fsync(handle, True)) is LATER
    assert export.attempt(wire.Release(synchronous)) is None
    directory = export.attempt(wire.Opendir(b"")).handle
    assert export.attempt(wire.Readdir(directory, 0, 10, True)).end
    monkeypatch.setattr("fuse_gated.edge.listing.QUICK_SIZE", 0)
    assert export.attempt(wire.Readdir(directory, 0, 10, True)) is LATER
    assert outcome(export.attempt, wire.Readdir(handle, 0, 10, True)) == "EBADF"


def test_a_whole_write_is_quick_unless_one_was_held_up(export: Export, handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, short = wire.Write(handle, 0, memoryview(bytes(wire.MAX_DATA))), wire.Write(handle, 0, memoryview(b"x"))
    now, took = 1000.0, 0.0
    really = os.pwritev

    def slow(*arguments: Any) -> int:
        nonlocal now
        now += took
        return really(*arguments)

    monkeypatch.setattr(os, "pwritev", slow)
    monkeypatch.setattr("fuse_gated.edge.contents.time.monotonic", lambda: now)
    assert export.attempt(whole) == wire.MAX_DATA
    took = 0.02
    assert export.attempt(whole) == wire.MAX_DATA
    took = 0.0
    assert export.attempt(whole) is LATER
    assert export.attempt(short) == 1
    now += 1.0
    assert export.attempt(whole) == wire.MAX_DATA


def test_nothing_is_quick_across_a_network(root: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.edge.filesystems._LOCAL", frozenset())
    export = Export(root)
    assert not export.local
    assert export.attempt(wire.Getattr(b"file")) is LATER
    handle = opened(export)
    assert export.attempt(wire.Release(handle)) is LATER
    assert export.attempt(wire.Setlk(handle, 1, 0, 0, 1)) is LATER
    export.close()


def test_a_network_mounted_beneath_is_noticed(export: Export, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.edge.filesystems.Filesystems.is_local", lambda *_: False)
    handle = opened(export)
    for arguments in (wire.Read(handle, 0, 10), wire.Write(handle, 0, memoryview(b"x")), wire.Flush(handle, 1)):
        assert export.attempt(arguments) is ELSEWHERE


def test_an_append_ends_where_it_may_grow_to(export: Export, file: Path, handle: int) -> None:
    data = memoryview(b"abc")
    # What another descriptor wrote meanwhile counts: the size is the file's, not what the server last saw.
    file.write_bytes(bytes(20))
    assert answer(export, wire.Write(handle, 0, data, append=True, most=22)) == "EFBIG"
    assert file.stat().st_size == 20
    assert export.perform(wire.Write(handle, 0, data, append=True, most=23)) == 3
    assert export.perform(wire.Write(handle, 0, data, append=True)) == 3


def test_what_open_directories_keep_is_bounded(export: Export, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_gated.edge.contents.MOST_ENTRIES", 25)
    for number in range(10):
        (root / f"n{number}").touch()
    handles = [export.perform(wire.Opendir(b"")).handle for _ in range(4)]
    for handle in handles[:3]:
        assert len(export.perform(wire.Readdir(handle, 0, 100, False)).entries) == 10
        assert len(export.perform(wire.Readdir(handle, 0, 100, False)).entries) == 10
    assert answer(export, wire.Readdir(handles[3], 0, 100, False)) == "ENOMEM"
    export.perform(wire.Releasedir(handles[0]))
    assert len(export.perform(wire.Readdir(handles[3], 0, 100, False)).entries) == 10

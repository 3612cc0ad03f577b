"""Open files without a name: all that a descriptor can do goes on (unlink(2))."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import outcome
from harness.clock import tick
from harness.files import make, opened
from harness.syscalls import FALLOC_KEEP_SIZE, fallocate, futimens


@pytest.fixture(
    params=[
        "unlinked",
        "replaced",
        "unlinked-and-made-anew",
        pytest.param("directory-gone", marks=pytest.mark.beyond_libfuse("nodes")),
    ]
)
def nameless(request: pytest.FixtureRequest, area: Path) -> Iterator[int]:
    """A descriptor of a file of ten bytes that has lost its name in one of several ways."""
    below = make("directory", area / "below")
    path = make("file", below / "thing", 0o644)
    path.write_bytes(b"0123456789")
    with opened(path, os.O_RDWR) as descriptor:
        if request.param == "replaced":
            make("file", area / "new").write_bytes(b"another")
            os.rename(area / "new", path)
        else:
            os.unlink(path)
        if request.param == "unlinked-and-made-anew":
            path.write_bytes(b"another")
        if request.param == "directory-gone":
            os.rmdir(below)
        yield descriptor
        if request.param in ("replaced", "unlinked-and-made-anew"):
            assert path.read_bytes() == b"another"


def test_fstat(nameless: int) -> None:
    info = os.fstat(nameless)
    assert (info.st_nlink, info.st_size) == (0, 10)


def test_read_and_write(nameless: int) -> None:
    assert os.pread(nameless, 100, 0) == b"0123456789"
    assert os.pwrite(nameless, b"abc", 8) == 3
    assert os.pread(nameless, 100, 0) == b"01234567abc"
    assert os.fstat(nameless).st_size == 11
    os.fsync(nameless)


def test_ftruncate(nameless: int) -> None:
    os.ftruncate(nameless, 3)
    assert (os.fstat(nameless).st_size, os.pread(nameless, 100, 0)) == (3, b"012")
    os.ftruncate(nameless, 5)
    assert os.pread(nameless, 100, 0) == b"012\0\0"


def test_fchmod_and_fchown(nameless: int) -> None:
    os.fchmod(nameless, 0o6711)
    assert os.fstat(nameless).st_mode & 0o7777 == 0o6711
    os.fchown(nameless, 51, 52)
    info = os.fstat(nameless)
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (51, 52, 0o711)


def test_futimens(nameless: int) -> None:
    futimens(nameless, 1_111_111_111_222_333_444, 1_555_555_555_666_777_888)
    info = os.fstat(nameless)
    assert (info.st_atime_ns, info.st_mtime_ns) == (1_111_111_111_222_333_444, 1_555_555_555_666_777_888)


def test_times_move_with_a_write(nameless: int, probe: Path) -> None:
    before = os.fstat(nameless)
    tick(probe)
    os.write(nameless, b"x")
    after = os.fstat(nameless)
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns


def test_xattr(nameless: int) -> None:
    os.setxattr(nameless, "user.name", b"value")
    assert os.getxattr(nameless, "user.name") == b"value"
    assert os.listxattr(nameless) == ["user.name"]
    os.removexattr(nameless, "user.name")


@pytest.mark.beyond_libfuse("fallocate")
def test_fallocate_and_seek(nameless: int) -> None:
    fallocate(nameless, 0, 0, 8192)
    assert os.fstat(nameless).st_size == 8192
    fallocate(nameless, FALLOC_KEEP_SIZE, 8192, 8192)
    assert os.fstat(nameless).st_size == 8192
    assert os.lseek(nameless, 0, os.SEEK_END) == 8192


def test_mmap(nameless: int) -> None:
    with mmap.mmap(nameless, 10) as view:
        assert view[:4] == b"0123"
        view[:4] = b"ABCD"
        view.flush()
    assert os.pread(nameless, 10, 0) == b"ABCD456789"


def test_locks(nameless: int) -> None:
    fcntl.flock(nameless, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(nameless, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(nameless, fcntl.LOCK_UN)


def test_opened_anew_through_proc(nameless: int) -> None:
    """/proc/self/fd leads to the file, not to its name (proc(5))."""
    with opened(Path(f"/proc/self/fd/{nameless}"), os.O_RDWR) as again:
        assert os.fstat(again).st_ino == os.fstat(nameless).st_ino
        assert os.read(again, 100) == b"0123456789"
        os.write(again, b"!")
    assert os.pread(nameless, 100, 0) == b"0123456789!"


def test_space_is_given_back_when_it_is_closed(area: Path) -> None:
    """Enough files to show a leak of handles; each is written after it lost its name."""
    for number in range(300):
        path = area / str(number)
        with opened(path, os.O_CREAT | os.O_RDWR) as descriptor:
            os.unlink(path)
            assert os.write(descriptor, b"x" * 100) == 100
    assert os.listdir(area) == []


def test_a_second_name_keeps_the_file(area: Path) -> None:
    path = make("file", area / "thing")
    os.link(path, area / "other")
    with opened(path, os.O_RDWR) as descriptor:
        os.unlink(path)
        assert os.fstat(descriptor).st_nlink == 1
        os.write(descriptor, b"content")
        os.fchmod(descriptor, 0o600)
    assert (area / "other").read_bytes() == b"content"
    assert (area / "other").stat().st_mode & 0o777 == 0o600
    assert outcome(os.stat, path) == "ENOENT"

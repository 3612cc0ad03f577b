"""Which time stamps reading, writing and listing move (POSIX, XBD 4.12), and that write(2) drops setuid."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ALICE
from harness.clock import changed
from harness.files import make, mode_of, opened
from harness.syscalls import fallocate

OLD = 1_000_000_000 * 10**9


@pytest.mark.beyond_libfuse("fallocate")
def test_write_moves_mtime_and_ctime(area: Path, probe: Path) -> None:
    path = make("file", area / "thing")
    with opened(path, os.O_WRONLY) as descriptor:
        assert changed(path, probe, lambda: os.write(descriptor, b"x")) == {"mtime", "ctime"}
        assert changed(path, probe, lambda: os.pwrite(descriptor, b"y", 0)) == {"mtime", "ctime"}
        assert changed(path, probe, lambda: fallocate(descriptor, 0, 0, 8192)) >= {"ctime"}
        assert changed(path, probe, lambda: os.close(os.dup(descriptor))) == set()


def test_a_store_into_a_shared_map_moves_mtime(area: Path, probe: Path) -> None:
    path = area / "thing"
    path.write_bytes(bytes(4096))

    def store() -> None:
        with opened(path, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 4096) as view:
            view[0] = 1
            view.flush()

    assert changed(path, probe, store) >= {"mtime", "ctime"}


def test_an_open_descriptor_sees_the_same_times_as_the_name(area: Path) -> None:
    path = make("file", area / "thing")
    with opened(path, os.O_RDWR) as descriptor:
        for operation in (
            lambda: os.write(descriptor, b"x"),
            lambda: path.chmod(0o600),
            lambda: os.utime(path, ns=(OLD, OLD)),
            lambda: os.ftruncate(descriptor, 0),
            lambda: os.link(path, area / "other"),
        ):
            operation()
            one, two = os.fstat(descriptor), path.stat()
            assert (one.st_mtime_ns, one.st_ctime_ns, one.st_size, one.st_nlink) == (
                two.st_mtime_ns,
                two.st_ctime_ns,
                two.st_size,
                two.st_nlink,
            )


def test_listing_moves_no_mtime_or_ctime(area: Path, probe: Path) -> None:
    make("file", area / "thing")
    assert changed(area, probe, lambda: os.listdir(area)) <= {"atime"}
    assert changed(area, probe, lambda: [entry.stat() for entry in os.scandir(area)]) <= {"atime"}


def test_what_only_looks_moves_nothing(area: Path, probe: Path) -> None:
    path = make("file", area / "thing")
    looking: list[Callable[[], object]] = [
        path.stat,
        lambda: os.access(path, os.R_OK),
        lambda: os.listxattr(path),
        lambda: os.statvfs(path),
        lambda: os.close(os.open(path, os.O_RDWR)),
        lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT)),
    ]
    for look in looking:
        assert changed(path, probe, look) == set()


@pytest.mark.parametrize(("mode", "after"), [(0o4777, 0o777), (0o2777, 0o777), (0o6777, 0o777), (0o1777, 0o1777)])
def test_write_drops_setuid_and_setgid_unless_root_writes(area: Path, mode: int, after: int) -> None:
    path = make("file", area / "thing", mode)

    def write() -> None:
        with opened(path, os.O_WRONLY) as descriptor:
            os.write(descriptor, b"x")
            os.write(descriptor, b"y")

    write()
    assert mode_of(path) == mode
    ALICE.call(write)
    assert mode_of(path) == after


@pytest.mark.beyond_libfuse("fallocate")
def test_fallocate_and_copy_file_range_drop_setuid(area: Path) -> None:
    path, source = make("file", area / "thing", 0o4777), area / "source"
    source.write_bytes(b"source")

    def allocate() -> None:
        with opened(path, os.O_WRONLY) as descriptor:
            fallocate(descriptor, 0, 0, 4096)

    def copy() -> None:
        with opened(source, os.O_RDONLY) as origin, opened(path, os.O_WRONLY) as descriptor:
            os.copy_file_range(origin, descriptor, 6)

    for change in (allocate, copy):
        path.chmod(0o4777)
        change()
        assert mode_of(path) == 0o4777
        ALICE.call(change)
        assert mode_of(path) == 0o777


def test_opening_to_truncate_drops_setuid(area: Path) -> None:
    path = make("file", area / "thing")
    path.write_bytes(b"content")
    path.chmod(0o4777)
    ALICE.call(lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
    assert (mode_of(path), path.stat().st_size) == (0o777, 0)
